"""What the project says of itself is true: README's generated parts, names, links, versions."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import generate as docs
import pytest

import builder
from builder import schema

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


def test_every_file_the_readme_names_exists():
    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"\]\(([\w./-]+)\)", text) + re.findall(
        r"`(builder/[\w/.]+\.py)`", text
    ):
        assert (ROOT / name).exists(), name


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
