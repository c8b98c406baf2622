"""Tables on stdout: fitted to a terminal for people, tab-separated values for programs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

CELL_WIDTH = 44
"""Columns of the terminal that one cell takes at most."""

GAP = 2
"""Blank columns of the terminal between two columns of a table."""


def write_rows(
    out: TextIO,
    names: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    right: Sequence[bool] | None = None,
    limit: int | None = None,
) -> str:
    """Write a table in the form that `out` asks for.

    On a terminal: the columns that fit, the outer ones first. Anywhere else: every row and column
    in full precision, as tab-separated values below a line of names, one line a row.

    Args:
        names: headings. rows: numbers, texts, lists; None is an empty cell.
        right: which columns are flush right on a terminal; by default those of numbers.
        limit: rows that a terminal shows at most.

    Returns:
        What a terminal does not show, in words; else nothing.
    """
    if not out.isatty():
        out.write("\t".join(names) + "\n")
        out.writelines("\t".join(map(field, row)) + "\n" for row in rows)
        return ""
    remaining = iter(rows)
    shown = list(islice(remaining, limit))
    more = limit is not None and next(remaining, None) is not None
    if right is None:
        right = [any(is_number(row[i]) for row in shown) for i in range(len(names))]
    cells = [[cell(value) for value in row] for row in shown]
    widths = [
        min(CELL_WIDTH, max(cell_len(text) for text in (name, *column)))
        for name, *column in zip(names, *cells, strict=True)
    ]
    console = Console(file=out, highlight=False)
    kept = _fitting(widths, console.width)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for i in kept:
        flush_right = i is not None and right[i]
        table.add_column(
            "…" if i is None else Text(names[i]),
            justify="right" if flush_right else "left",
            no_wrap=True,
            max_width=CELL_WIDTH,
        )
    for texts in cells:
        table.add_row(*("…" if i is None else Text(texts[i]) for i in kept))
    console.print(table)
    hidden = len(names) - sum(i is not None for i in kept)
    said = [f"the first {limit} rows"] if more else []
    said += [f"{hidden} of {len(names)} columns do not fit"] if hidden else []
    return "; ".join(said)


def is_number(value: Any) -> bool:
    """Whether a value is a number, which a column shows flush right."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def cell(value: Any) -> str:
    """A value for human eyes, on one line: six significant digits, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return "[" + ", ".join(map(cell, value)) + "]"
    line = " ".join(exact(value).split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


def exact(value: Any) -> str:
    """A value for programs: every digit, true or false, lists as JSON, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def field(value: Any) -> str:
    """An exact value between two tabs, on one line."""
    return re.sub(r"[\t\r\n]+", " ", exact(value))


def _fitting(widths: Sequence[int], width: int) -> list[int | None]:
    """Columns that fit a terminal, the outer ones first; None stands for those left out."""
    n = len(widths)
    if sum(widths) + GAP * (n - 1) <= width:
        return list(range(n))
    outer_first = [i for pair in zip(range(n), reversed(range(n)), strict=True) for i in pair]
    room = width - 1  # for the mark of what is left out
    kept = 0
    for i in outer_first[:n]:
        room -= widths[i] + GAP
        if room < 0 and kept:
            break
        kept += 1
    return [*range((kept + 1) // 2), None, *range(n - kept // 2, n)]
