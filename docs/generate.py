"""The generated parts of the pages: `python docs/generate.py` renews them, `--check` compares."""

from __future__ import annotations

import atexit
import functools
import io
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import typer
from drawing import draw_rooms
from rich.console import Console
from rooms import GROUND, ROOMS

import builder.cli.main  # noqa: F401  registers the commands
from builder import schema
from builder.cli.main import app
from builder.paper.reference import write_reference
from builder.sql import catalog, findings
from builder.sql.run import answer_query
from builder.training.members import read_recipes, zoo_folder

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
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
    """Every table of a release, column by column."""
    lines: list[str] = []
    for table in schema.TABLES.values():
        key = ", ".join(f"`{k}`" for k in table.key)
        lines += [f"## {table.name}", "", table.description, "", f"Key: {key}.", ""]
        lines += ["| column | type | null | |", "|---|---|---|---|"]
        for c in table.columns:
            null = "yes" if c.nullable else ""
            lines.append(f"| `{c.name}` | {_type(c.type)} | {null} | {_cell(c.description)} |")
        lines.append("")
    return "\n".join(lines)


def _type(type_: pa.DataType) -> str:
    if pa.types.is_dictionary(type_):
        return "string"  # how it is encoded is no concern of readers
    if pa.types.is_fixed_size_list(type_):
        return f"{type_.value_type} [{type_.list_size}]"
    return str(type_)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def queries() -> str:
    """Every query: what it asks, what to expect, where the published value comes from."""
    lines: list[str] = []
    for q in catalog.list_queries():
        audit = "/" in q.name
        if audit and "## Audits" not in lines:
            lines += ["## Audits", "", AUDITS, ""]
        lines += [f"### {q.name}", "", f"[{q.title}](../queries/{q.name}.sql). {q.finding}", ""]
        facts = {
            "Expected": q.expect,
            "Source": "" if q.origin == "ours" else q.paper,
            "Ours": q.paper if q.origin == "ours" else "",
            "Note": q.note,
            "Parameter": "; ".join(q.params),
        }
        lines += [f"- {name}: {_plain(text)}" for name, text in facts.items() if text]
        lines.append("")
    return "\n".join(lines)


AUDITS = "They read every filter, and recompute what the tables say or ask what it hangs on."


def _plain(text: str) -> str:
    """Text of a header, of which Markdown shall make nothing else."""
    return re.sub(r"([*_<|])", r"\\\1", text) if "`" not in text else text


TOPICS = {
    "Use it": ("reading", "queries", "measuring", "learning", "commands"),
    "Understand it": ("metrics", "folding", "first-layer", "tables"),
    "Build it": (
        *("models", "robustbench", "full-scale", "performance"),
        *("executors", "troubleshooting"),
    ),
    "Develop it": ("architecture", "releasing"),
    "More": (),
}
"""The order of the pages in docs/; a page that is not named comes last, under More."""


def topics() -> Iterator[tuple[str, list[str]]]:
    """Every topic and its pages."""
    named = {name for pages in TOPICS.values() for name in pages}
    found = {p.stem for p in DOCS.glob("*.md")} - {"README", "index"}
    assert named <= found, f"no such pages: {named - found}"
    for topic, pages in TOPICS.items():
        here = [*pages, *(sorted(found - named) if topic == "More" else ())]
        if here:
            yield topic, here


def contents() -> str:
    """The pages by topic, each with its first sentence."""
    lines: list[str] = []
    for topic, pages in topics():
        lines += [f"**{topic}**", ""]
        for page in pages:
            title, _, text = (DOCS / f"{page}.md").read_text(encoding="utf-8").partition("\n")
            words = " ".join(text.strip().split("\n\n")[0].split())
            sentence = re.split(r"(?<=[.?]) ", words)[0]
            assert sentence[0] not in "#`<|!", f"docs/{page}.md does not begin with a sentence"
            lines.append(f"- [{title.lstrip('# ')}]({page}.md): {sentence}")
        lines.append("")
    return "\n".join(lines)


def toctree() -> str:
    """The same for the site's side bar."""
    lines: list[str] = []
    for topic, pages in topics():
        lines += ["```{toctree}", ":hidden:", f":caption: {topic}", "", *pages, "```"]
    return "\n".join(lines) + "\n"


@functools.cache
def _reference() -> str:
    """The reference release, written once."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    write_reference(Path(folder) / "reference")
    return f"{folder}/reference"


def finding() -> str:
    """One finding on the reference release, as a terminal shows it."""
    found = findings.examine(_reference())
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(findings.to_grid([f for f in found if f.query == "25_paired_effects"]))
    lines = (line.rstrip() for line in console.export_text().splitlines())
    shown = _block("text", "\n".join(line for line in lines if line))
    return f"One of the {len(found)} findings, which is not in the paper:\n\n{shown}"


QUESTION = """\
select robust, count(*) as models, sum(n_sparse) / sum(n_filters) as sparse
from models group by robust order by robust"""


def question() -> str:
    """One query on the reference release, and its answer."""
    out = io.BytesIO()
    answer_query(_reference(), QUESTION, out, form="markdown")
    command = f'.venv/bin/builder query --release out/reference "\n{QUESTION}"'
    return f"{_block('sh', command)}\n{out.getvalue().decode()}"


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```\n"


def _docstring(path: Path) -> str:
    return _first_line(path.read_text(encoding="utf-8").split('"""')[1])


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
    ROOT / "README.md": {"finding": finding, "question": question},
    DOCS / "README.md": {"contents": contents},
    DOCS / "index.md": {"toctree": toctree},
    DOCS / "commands.md": {"commands": commands},
    DOCS / "tables.md": {"tables": tables},
    DOCS / "queries.md": {"queries": queries},
    PACKAGE / "README.md": {"code": code},
    zoo_folder() / "README.md": {"members": members},
}
"""Every page with generated parts: name of a part -> what renders it."""

DRAWINGS: dict[Path, Callable[[], str]] = {DOCS / "rooms.svg": draw_rooms}
"""Every file that is generated as a whole."""


def render(text: str, parts: Parts) -> str:
    """A page with every generated part fresh."""
    for name, part in parts.items():
        start, end = f"<!-- {name}:start -->\n", f"<!-- {name}:end -->"
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        assert found and closed, f"the page has no part {name}"
        text = before + start + part() + end + after
    return text


def fresh(path: Path) -> str:
    """What a generated file, or a page with generated parts, should hold."""
    if path in DRAWINGS:
        return DRAWINGS[path]()
    return render(path.read_text(encoding="utf-8"), PAGES[path])


def main() -> int:
    stale = 0
    for path in (*DRAWINGS, *PAGES):
        text = fresh(path)
        if "--check" not in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.stderr.write(f"{path} is out of date: run `make docs`.\n")
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
