"""The generated parts of README.md: `python -m builder.docs` renews them, `--check` compares."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import builder.cli  # noqa: F401  registers the commands
from builder import schema
from builder.cli.app import app, bench
from builder.release import project_file
from builder.sql import catalog

PACKAGE = Path(__file__).parent


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0]


def commands() -> str:
    """Every command, its first line and its example."""
    lines = ["| command | does | example |", "|---|---|---|"]
    found = [("", command) for command in app.registered_commands]
    found += [("bench ", command) for command in bench.registered_commands]
    for group, command in found:
        assert command.callback is not None
        text = command.callback.__doc__ or ""
        example = re.search(r"Example: (.+)", text)
        assert example, f"the help of {command.callback.__name__} has no example"
        name = group + (command.name or command.callback.__name__)
        shown = example[1].replace("|", "\\|")
        lines.append(f"| `{name}` | {_first_line(text)} | `{shown}` |")
    return "\n".join(lines) + "\n"


def tables() -> str:
    """Every table of a release."""
    lines = ["| table | what a row is | key | columns |", "|---|---|---|---|"]
    for table in schema.TABLES.values():
        key = ", ".join(f"`{k}`" for k in table.key)
        lines.append(f"| `{table.name}` | {table.description} | {key} | {len(table.columns)} |")
    lines.append("")
    lines.append("Each column is described in `builder/schema.py` and on the card of a release.")
    return "\n".join(lines) + "\n"


def code() -> str:
    """Every module with the first line of its docstring."""
    lines = ["| module | |", "|---|---|"]
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name == "__init__.py" and path.parent == PACKAGE:
            continue
        name = path.relative_to(PACKAGE.parent).as_posix().removesuffix("/__init__.py")
        docstring = path.read_text(encoding="utf-8").split('"""')[1]
        lines.append(f"| `{name}` | {_first_line(docstring)} |")
    return "\n".join(lines) + "\n"


PARTS = {"commands": commands, "tables": tables, "queries": catalog.readme_index, "code": code}


def render(text: str) -> str:
    """README with every generated part fresh."""
    for name, part in PARTS.items():
        start, end = f"<!-- {name}:start -->\n", f"<!-- {name}:end -->"
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        assert found and closed, f"README.md has no part {name}"
        text = before + start + part() + end + after
    return text


def main() -> int:
    path = project_file("README.md")
    text = path.read_text(encoding="utf-8")
    fresh = render(text)
    if "--check" in sys.argv[1:]:
        if fresh != text:
            sys.stderr.write("README.md is out of date: run `make docs`.\n")
        return int(fresh != text)
    path.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
