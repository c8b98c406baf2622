"""`import robust_filter_lens`: its names, what importing costs, and a neighbour named `builder`."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import robust_filter_lens as rfl


def python(code: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in another interpreter, in a folder, from which it imports first."""
    command = [sys.executable, "-c", "import sys\n" + code]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_dir_shows_the_public_names_and_nothing_else():
    assert dir(rfl) == sorted(rfl.__all__)
    assert {"open_release", "Release", "FilterBatch", "to_array", "BuilderError"} <= set(dir(rfl))


@pytest.mark.parametrize("name", [n for n in rfl.__all__ if n != "__version__"])
def test_every_public_name_is_there_and_documented(name: str):
    value = getattr(rfl, name)
    assert len(inspect.getdoc(value) or "") > 20
    for member, thing in vars(value).items() if inspect.isclass(value) else ():
        if not member.startswith("_") and callable(thing):
            assert inspect.getdoc(thing), f"{name}.{member}"


def test_a_name_that_is_none_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'open_releese'"):
        rfl.open_releese  # noqa: B018


def test_importing_loads_nothing_until_a_name_is_used():
    heavy = "{'torch', 'duckdb', 'pyarrow', 'numpy', 'huggingface_hub', 'builder'}"
    code = f"""
import robust_filter_lens as rfl
print(sorted({heavy} & set(sys.modules)))
rfl.open_release
print(sorted({{'torch', 'huggingface_hub'}} & set(sys.modules)))
"""
    done = python(code)
    assert done.stdout.splitlines() == ["[]", "[]"], done.stderr


@pytest.mark.parametrize(
    ("init", "found"),
    [
        ("VERSION = '0.6.0'", "__init__.py"),
        ("import nowhere_to_be_found", "does not import"),
        (None, "the remains of one"),
    ],
    ids=["installed", "broken", "uninstalled"],
)
def test_beside_another_folder_builder_it_imports_and_says_what_is_wrong(
    tmp_path: Path, init: str | None, found: str
):
    ours = Path(rfl.__file__).parent
    (tmp_path / "builder").mkdir()
    (tmp_path / "robust_filter_lens").symlink_to(ours)
    if init is not None:
        (tmp_path / "builder" / "__init__.py").write_text(init)
    code = """
from importlib.machinery import PathFinder
class Here:  # no other folder of that name, wherever ours is installed
    def find_spec(self, name, path=None, target=None):
        return PathFinder.find_spec(name, ["."]) if name == "builder" else None
sys.meta_path.insert(0, Here())
import robust_filter_lens as rfl
print(rfl.__version__, len(dir(rfl)), "builder-tool" in rfl.__doc__)
try:
    rfl.open_release
except ImportError as e:
    print(e)
from robust_filter_lens.__main__ import main
main()
"""
    done = python(code, tmp_path)
    first, second = done.stdout.splitlines()
    assert first == f"{rfl.__version__} {len(dir(rfl))} True"
    assert found in second and "pip install --force-reinstall robust-filter-lens" in second
    assert done.returncode == 1 and done.stderr == f"error: {second}\n"
