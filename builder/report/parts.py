"""What the page is made of: figures in sections, and rows to find their words in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from builder import schema

Tables = Mapping[str, pa.Table]


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        id: unique on the page. title: its heading.
        texts: {weights view: what it shows, in words}.
        spec: Vega-Lite, or null for a figure that the page itself draws.
        data: {name in the spec: {"table": name, "where": {column: value}}}.
        behind: the name in `data` whose rows are the table and the CSV of the figure.
        wide: whether it takes the width of the page.
    """

    id: str
    title: str
    texts: dict[str, str]
    spec: dict[str, Any] | None
    data: dict[str, dict[str, Any]] = field(default_factory=dict)
    behind: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page; `missing` says why where it has no figure."""

    id: str
    title: str
    intro: str
    figures: list[Figure]
    missing: str = ""


def both(text: str) -> dict[str, str]:
    """The same words for both views of the weights."""
    return dict.fromkeys(schema.WEIGHT_VIEWS, text)


def source(table: str, **where: Any) -> dict[str, Any]:
    """Where a figure's rows come from: a table of the page, and what its columns must be."""
    return {"table": table, "where": where}


def rows(table: pa.Table, **where: Any) -> list[dict[str, Any]]:
    """The rows of a table in which columns have these values."""
    return [r for r in table.to_pylist() if all(r[k] == v for k, v in where.items())]


def has(table: pa.Table, **where: Any) -> bool:
    """Whether there is such a row."""
    return bool(rows(table, **where))
