"""One direction: what reads a release imports nothing of what builds one, and no torch."""

from __future__ import annotations

import ast
import gc
from collections.abc import Iterator
from pathlib import Path

import builder

PACKAGE = Path(builder.__file__).parent

SHARED = {
    "errors", "schema", "registry", "release", "content", "moments", "paper", "progress",
    "write", "card", "sample",
}  # fmt: skip
BUILD = {
    "sources", "trace", "extract", "measure", "pgd", "first_layer", "networks", "plan",
    "histograms", "workspace", "ahead", "build", "finish",
    "training",
}  # fmt: skip
READ = {"verify", "recompute", "sql", "hub", "diff", "reader", "export"}
TOP = {"cli", "docs", "bench", "__main__", "__init__"}

NO_TORCH = SHARED | READ
HEAVY = {"torch", "torchvision", "timm", "robustbench"}


def imports(path: Path) -> Iterator[str]:
    """Dotted names a module imports, at the top or inside functions; not those for types only."""
    gc.disable()  # CPython 3.11 fails to parse when a garbage collection runs callbacks meanwhile
    tree = ast.parse(path.read_text())
    gc.enable()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for inner in ast.walk(node):
                inner.names = []  # type: ignore[attr-defined]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "builder":
                yield from (f"builder.{a.name}" for a in node.names)
            elif node.names:
                yield node.module


def parts() -> dict[str, list[Path]]:
    """Files by module or subpackage of builder."""
    found: dict[str, list[Path]] = {}
    for path in PACKAGE.rglob("*.py"):
        found.setdefault(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), []).append(path)
    return found


def test_every_module_has_its_side():
    assert set(parts()) == SHARED | BUILD | READ | TOP


def test_imports_go_one_way():
    allowed = dict.fromkeys(SHARED, SHARED)
    allowed |= dict.fromkeys(BUILD, SHARED | BUILD)
    allowed |= dict.fromkeys(READ, SHARED | READ)
    for part, paths in parts().items():
        for path in paths:
            for name in imports(path):
                top = name.split(".")
                if part in allowed and top[0] == "builder" and len(top) > 1:
                    assert top[1] in allowed[part] | {part, "__version__"}, f"{path}: {name}"


def test_what_reads_a_release_imports_no_torch():
    for part in NO_TORCH:
        for path in parts()[part]:
            assert not {n.split(".")[0] for n in imports(path)} & HEAVY, path
