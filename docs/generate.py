"""The generated parts of the pages: `python docs/generate.py` renews them, `--check` compares."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import typer
from rooms import GROUND, ROOMS

import builder.cli.main  # noqa: F401  registers the commands
from builder import schema
from builder.cli.main import app
from builder.sql import catalog
from builder.training.members import read_recipes, zoo_folder

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "builder"


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0]


def commands() -> str:
    """Every command, its first line and its example, in the order of `builder --help`."""
    lines = ["| command | does | example |", "|---|---|---|"]
    group = typer.main.get_command(app)
    for name in group.list_commands(None):
        one = group.commands[name]
        members = {f"{name} {n}": c for n, c in getattr(one, "commands", {}).items()}
        for shown, command in (members or {name: one}).items():
            text = command.help or ""
            example = re.search(r"Example: (.+)", text)
            assert example, f"the help of {shown} has no example"
            line = example[1].replace("|", "\\|")
            lines.append(f"| `{shown}` | {_first_line(text)} | `{line}` |")
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


def _docstring(path: Path) -> str:
    return _first_line(path.read_text(encoding="utf-8").split('"""')[1])


def floor_plan() -> str:
    """The rooms in the order of the flow, either side of the wall, and what each reads."""
    lines = ["```"]
    torch: bool | None = None
    for name, room in ROOMS.items():
        if room.torch != torch:
            torch = room.torch
            lines.append(f"{'== needs torch ' if torch else '== no torch '}".ljust(72, "="))
        reads = f"  <- {', '.join(room.reads)}" if room.reads and name != "cli" else ""
        lines.append(f"{name + '/':14}{_docstring(PACKAGE / name / '__init__.py')}")
        if reads:
            lines.append(f"{'':14}{reads.strip()}")
    lines.append("```")
    return "\n".join(lines) + "\n"


def code() -> str:
    """Every module with the first line of its docstring, room by room."""
    lines = ["| module | |", "|---|---|"]
    files = [PACKAGE / f"{name}.py" for name in (*GROUND, "networks")]
    for room in ROOMS:
        files += sorted((PACKAGE / room).glob("*.py"))
    for path in files:
        if path.name != "__init__.py":
            name = path.relative_to(PACKAGE).as_posix()
            lines.append(f"| [`{name}`]({name}) | {_docstring(path)} |")
    return "\n".join(lines) + "\n"


def members() -> str:
    """Every member of the mini zoo, as its card says, in the order of the recipes."""
    lines = [
        "| member | clean % | PGD-20 % | epochs | weight decay | minutes | stored as |",
        "|---|---|---|---|---|---|---|",
    ]
    for recipe in read_recipes():
        file = zoo_folder() / f"{recipe.name}.json"
        if not file.exists():
            continue
        card = json.loads(file.read_bytes())
        cells = (
            recipe.name,
            f"{card['clean_acc']:.2f}",
            f"{card['pgd20_acc']:.2f}",
            recipe.epochs,
            f"{recipe.weight_decay:.4f}",
            round(card["training_seconds"] / 60),
            recipe.stored_as,
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


Parts = dict[str, Callable[[], str]]

PAGES: dict[Path, Parts] = {
    ROOT / "README.md": {
        "commands": commands,
        "tables": tables,
        "queries": catalog.readme_index,
    },
    PACKAGE / "README.md": {"rooms": floor_plan, "code": code},
    zoo_folder() / "README.md": {"members": members},
}
"""Every page with generated parts: name of a part -> what renders it."""


def render(text: str, parts: Parts) -> str:
    """A page with every generated part fresh."""
    for name, part in parts.items():
        start, end = f"<!-- {name}:start -->\n", f"<!-- {name}:end -->"
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        assert found and closed, f"the page has no part {name}"
        text = before + start + part() + end + after
    return text


def main() -> int:
    stale = 0
    for path, parts in PAGES.items():
        text = path.read_text(encoding="utf-8")
        fresh = render(text, parts)
        if "--check" not in sys.argv[1:]:
            path.write_text(fresh, encoding="utf-8")
        elif fresh != text:
            sys.stderr.write(f"{path} is out of date: run `make docs`.\n")
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
