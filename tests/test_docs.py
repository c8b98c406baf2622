"""What the project says of itself is true: README's generated parts, names, links, versions."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import generate as docs
import pytest
import typer
from pages import LANGUAGES, PAGES, ROOT, anchors, blocks, code_spans, commands, links
from rooms import ROOMS

import builder
import robust_filter_lens
from builder import schema
from builder.cli.main import app
from builder.cohort.registry import load_cohort

GENERATED = [*docs.DRAWINGS, *docs.PAGES]


@pytest.mark.parametrize("page", GENERATED, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_generated_parts_of_a_page_are_fresh(page: Path):
    assert docs.fresh(page) == page.read_text(encoding="utf-8")


def test_a_stale_part_is_renewed():
    page = ROOT / "docs" / "tables.md"
    text = page.read_text()
    stale = text.replace("## filters", "## filtres")
    assert stale != docs.render(stale, docs.PAGES[page]) == text


def test_the_drawing_shows_every_room_and_every_import_the_plan_allows():
    drawing = (ROOT / "docs" / "rooms.svg").read_text()
    assert re.findall(r">(\w+)</text>", drawing) == list(ROOMS)
    assert drawing.count("<circle ") == sum(len(room.reads) for room in ROOMS.values())


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str):
    for target in links(page):
        url = urlsplit(target)
        if url.scheme:
            assert url.scheme == "https" and "." in url.netloc and target == target.strip(), target
            continue
        path = (ROOT / page).parent / url.path if url.path else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        if url.fragment:
            assert url.fragment in anchors(path.resolve().relative_to(ROOT).as_posix()), target


@pytest.mark.parametrize("page", PAGES)
def test_every_file_a_page_names_exists(page: str):
    for code in code_spans(page):
        if re.fullmatch(r"(builder|tests|queries|docs)/[\w/.]+\.(py|sql|md)", code):
            assert "NN_" in code or "NAME" in code or (ROOT / code).exists(), f"{page} names {code}"


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_code_is_of_a_language_that_is_checked(page: str):
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{page}:{block.line}"
        if block.language == "python":
            for node in ast.walk(ast.parse(block.text, f"{page}:{block.line}")):
                if isinstance(node, ast.ImportFrom) and node.module == "robust_filter_lens":
                    assert {a.name for a in node.names} <= set(robust_filter_lens.__all__), page


def check_command(line: str) -> None:
    """Whether one command would be understood: its name, its options, their types; a recipe of
    make, an extra of the package."""
    words = shlex.split(line, comments=True)
    program, words = words[0].removeprefix(".venv/bin/"), words[1:]
    if program == "make":
        assert set(words) <= RECIPES, line
    elif program == "pip":
        named = re.findall(r"\[([\w,]+)\]", line)
        assert {extra for names in named for extra in names.split(",")} <= EXTRAS, line
    elif program == "builder":
        command, name = typer.main.get_command(app), "builder"
        while words and words[0] in getattr(command, "commands", {}):
            name = words.pop(0)
            command = command.commands[name]
        if words not in (["--help"], ["--version"], []):
            try:
                command.make_context(name, [w for w in words if w != "--help"])
            except typer.BadParameter as e:
                assert e.message.endswith("does not exist."), line  # a folder of the reader's
    else:
        assert program in ("hf", "git", "tensorboard", "python", "ray"), line


RECIPES = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_block_is_understood(page: str):
    for block in blocks(page):
        if block.language == "sh":
            for line in commands(block.text):
                for part in re.split(r" (?:&&|\|) ", re.sub(r" > \S+$", "", line)):
                    check_command(part)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_in_a_sentence_has_those_options(page: str):
    group = typer.main.get_command(app)
    for code in code_spans(page):
        if re.match(r"make [a-z-]+$", code):
            assert code.split()[1] in RECIPES, code
        if not code.startswith("builder ") or re.search(r" \.\.\.|builder COMMAND", code):
            continue
        for line in code.split(" && "):
            words, command = shlex.split(line)[1:], group
            while words and words[0] in getattr(command, "commands", {}):
                command = command.commands[words.pop(0)]
            assert command is not group or not words or words[0].startswith("-"), line
            known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
            used = {w.partition("=")[0] for w in words if re.match(r"--?[a-z]", w)}
            assert used <= known, f"{page}: {line}"


def test_every_option_in_a_sentence_is_one():
    group = typer.main.get_command(app)
    members = [*group.commands.values(), *group.commands["bench"].commands.values()]
    known = {o for c in members for p in c.params for o in (*p.opts, *p.secondary_opts)}
    for page in PAGES:
        for code in code_spans(page):
            if code.startswith("--"):
                assert re.split(r"[ =]", code)[0] in known, f"{page}: {code}"


def test_a_formula_in_a_sentence_has_nothing_that_markdown_escapes():
    for page in PAGES:
        text = re.sub(r"```.*?```|`[^`]*`", "", (ROOT / page).read_text(), flags=re.S)
        for formula in re.findall(r"\$([^$]+)\$", text):
            assert not re.search(r"\\[^A-Za-z]", formula), f"{page}: {formula}"


def test_readme_starts_with_the_two_commands_of_a_fresh_machine():
    first = blocks("README.md")[0]
    assert [line.split("#")[0].strip() for line in commands(first.text)] == [
        "make build",
        "make test",
    ]


def test_readme_counts_the_networks_of_the_mini_cohort():
    made_here = sum("zoo/" in m.checkpoint for m in load_cohort("mini").models)
    text = " ".join((ROOT / "README.md").read_text().split())
    words = {7: "seven", 8: "eight"}
    assert f"build {words[len(load_cohort('mini').models)]} real networks" in text
    assert f"`mini`: {words[made_here]} networks [trained by this project]" in text


def test_every_message_that_troubleshooting_quotes_is_one():
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = re.findall(r'^## "(.+)"$', text, flags=re.M)
    code = " ".join(path.read_text() for path in (ROOT / "builder").glob("**/*.py"))
    assert len(quoted) > 5
    for message in quoted:
        assert message in code, message


def test_every_variable_a_page_names_is_read():
    code = "".join(path.read_text() for path in (ROOT / "builder").glob("**/*.py"))
    for page in PAGES:
        for name in re.findall(r"RFL_[A-Z_]+", (ROOT / page).read_text()):
            assert name in code or name == "RFL_DATA", f"{page}: {name}"


def test_the_table_of_commands_has_them_all():
    shown = re.findall(r"^\| `([a-z ]+)` ", docs.commands(), flags=re.M)
    group = typer.main.get_command(app)
    assert {name.split()[0] for name in shown} == set(group.commands)


def test_every_column_of_every_table_is_described():
    for table in schema.TABLES.values():
        assert set(table.key) <= set(table.names)
        for column in table.columns:
            assert column.description.endswith(".") and len(column.description) > 5, column.name


def test_versions_agree():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {builder.__version__}\n" in citation


def test_the_lock_pins_every_dependency():
    wanted = list(PROJECT["dependencies"])
    for extra in PROJECT["optional-dependencies"].values():
        wanted += extra
    names = {re.split(r"[<>=\[]", w)[0].lower() for w in wanted} - {"robust-filter-lens"}
    locked = (ROOT / "requirements.lock").read_text().lower()
    pinned = set(re.findall(r"^([\w.-]+)==", locked, flags=re.M))
    assert {n.replace("_", "-") for n in names} <= {p.replace("_", "-") for p in pinned}
