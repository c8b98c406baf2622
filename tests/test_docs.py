"""What the project says of itself is true: README's generated parts, names, links, versions."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import generate as docs
import pytest
import typer

import builder
from builder import schema
from builder.cli.main import app

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("page", docs.PAGES, ids=lambda p: p.parent.name)
def test_the_generated_parts_of_a_page_are_fresh(page: Path):
    text = page.read_text()
    assert docs.render(text, docs.PAGES[page]) == text


def test_a_stale_part_is_renewed():
    page = ROOT / "README.md"
    text = page.read_text()
    stale = text.replace("| `filters` |", "| `filtres` |")
    assert stale != docs.render(stale, docs.PAGES[page]) == text


PAGES = ("README.md", "CONTRIBUTING.md", "release/RELEASING.md", "builder/README.md")


@pytest.mark.parametrize("page", PAGES)
def test_every_file_a_page_names_exists(page: str):
    text = (ROOT / page).read_text()
    linked = re.findall(r"\]\(([\w./-]+)\)", text)
    named = re.findall(r"`((?:builder|tests|queries)/[\w/.]+\.(?:py|sql))`", text)
    assert linked or named or page == "release/RELEASING.md"
    for name in linked:
        assert (ROOT / page).parent.joinpath(name).exists(), name
    for name in named:
        assert "NN_" in name or (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES[:3])
def test_every_command_a_page_shows_has_those_options(page: str):
    group = typer.main.get_command(app)
    text = (ROOT / page).read_text()
    blocks = "\n".join(re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```", text, flags=re.M | re.S))
    lines = re.findall(r"^(?:\$ )?(builder .+)", blocks.replace("\\\n", " "), flags=re.M)
    lines += [code for code in re.findall(r"`(builder [^`]+)`", text) if " ..." not in code]
    assert len(lines) > 2
    for line in "&&".join(lines).replace("|", "&&").split("&&"):
        words, command = shlex.split(line, comments=True)[1:], group
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert command is not group or not words or words[0].startswith("-"), line
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        used = {w.partition("=")[0] for w in words if re.match(r"--?[a-z]", w)}
        assert used <= known, line


def test_the_table_of_commands_has_them_all():
    shown = re.findall(r"^\| `([a-z ]+)` ", docs.commands(), flags=re.M)
    group = typer.main.get_command(app)
    assert {name.split()[0] for name in shown} == set(group.commands)


def test_every_recipe_a_page_names_is_one():
    recipes = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for page in PAGES:
        text = (ROOT / page).read_text()
        assert set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", text, flags=re.M)) <= {
            pair for r in recipes for pair in ((r, ""), ("", r))
        }, page


def test_every_column_of_every_table_is_described():
    for table in schema.TABLES.values():
        assert set(table.key) <= set(table.names)
        for column in table.columns:
            assert column.description.endswith(".") and len(column.description) > 5, column.name


def test_versions_agree():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"version: {builder.__version__}\n" in citation


def test_the_lock_pins_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        wanted += extra
    names = {re.split(r"[<>=\[]", w)[0].lower() for w in wanted} - {"robust-filter-lens"}
    locked = (ROOT / "requirements.lock").read_text().lower()
    pinned = set(re.findall(r"^([\w.-]+)==", locked, flags=re.M))
    assert {n.replace("_", "-") for n in names} <= {p.replace("_", "-") for p in pinned}
