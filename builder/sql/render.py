"""Answers as text or Parquet: for a terminal, for a program, for a document."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

TABLE_ROWS = 200
"""Rows a terminal table shows at most."""

CELL_WIDTH = 44
"""Characters of a cell in a terminal table at most."""

_GAP = "  "


def _cell(value: Any) -> str:
    """A value for human eyes: six significant digits, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_cell, value)) + "]"
    return " ".join(str(value).split())


def _plain(value: Any) -> Any:
    """A value as JSON can hold it; NaN and infinity become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value if isinstance(value, int | float | str | None) else str(value)


def _is_number(type_: pa.DataType) -> bool:
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    return any(is_kind(type_) for is_kind in kinds)


def _rows(batches: Iterable[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        yield from batch.to_pylist()


def _fitting(widths: list[int], width: int) -> list[int | None]:
    """Columns that fit a terminal, the outer ones first; None stands for those left out."""
    n = len(widths)
    if not width or sum(widths) + len(_GAP) * (n - 1) <= width:
        return list(range(n))
    outer_first = [i for pair in zip(range(n), reversed(range(n)), strict=True) for i in pair]
    room = width - 1  # for the mark of what is left out
    kept = 0
    for i in outer_first:
        room -= widths[i] + len(_GAP)
        if room < 0 and kept:
            break
        kept += 1
    return [*range((kept + 1) // 2), None, *range(n - kept // 2, n)]


def text_table(
    names: list[str], rows: list[list[str]], right: list[bool], width: int = 0
) -> tuple[str, int]:
    """An aligned table, and how many columns did not fit.

    Args:
        names: headings. rows: cells. right: which columns are flush right.
        width: columns of the terminal; 0: no limit.
    """
    cut = [[c if len(c) <= CELL_WIDTH else c[: CELL_WIDTH - 1] + "…" for c in row] for row in rows]
    widths = [max(len(n), *(len(r[i]) for r in cut), 1) for i, n in enumerate(names)]
    kept = _fitting(widths, width)

    def line(cells: list[str]) -> str:
        parts = [
            "…"
            if i is None
            else cells[i].rjust(widths[i])
            if right[i]
            else cells[i].ljust(widths[i])
            for i in kept
        ]
        return _GAP.join(parts).rstrip()

    rule = line(["─" * w for w in widths])
    shown = sum(i is not None for i in kept)
    return "\n".join([line(names), rule, *map(line, cut)]) + "\n", len(names) - shown


def _write_table(
    name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], out: BinaryIO, width: int
) -> str:
    rows: list[list[str]] = []
    more = False
    for row in _rows(batches):
        if len(rows) == TABLE_ROWS:
            more = True
            break
        rows.append([_cell(v) for v in row.values()])
    right = [_is_number(f.type) for f in schema]
    text, hidden = text_table(schema.names, rows, right, width)
    out.write(text.encode())
    said = [f"the first {TABLE_ROWS} rows"] if more else []
    said += [f"{hidden} of {len(schema)} columns do not fit"] if hidden else []
    return f"{name}: {'; '.join(said)}; --format csv has all." if said else ""


def _write_csv(
    name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], out: BinaryIO, width: int
) -> str:
    text = io.TextIOWrapper(out, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(schema.names)
    for row in _rows(batches):
        writer.writerow(
            [json.dumps(_plain(v)) if isinstance(v, list | dict) else v for v in row.values()]
        )
    text.detach()
    return ""


def _write_json(
    name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], out: BinaryIO, width: int
) -> str:
    start = json.dumps({"query": name, "columns": schema.names})[:-1]
    out.write(f'{start}, "rows": ['.encode())
    comma = ""
    for row in _rows(batches):
        out.write(f"{comma}\n{json.dumps(_plain(row), ensure_ascii=False)}".encode())
        comma = ","
    out.write(b"\n]}\n")
    return ""


def _write_parquet(
    name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], out: BinaryIO, width: int
) -> str:
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)
    return ""


def _write_markdown(
    name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], out: BinaryIO, width: int
) -> str:
    def line(cells: Iterable[str]) -> bytes:
        return ("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |\n").encode()

    out.write(line(schema.names))
    out.write(line("---:" if _is_number(f.type) else "---" for f in schema))
    for row in _rows(batches):
        out.write(line(map(_cell, row.values())))
    return ""


_WRITERS: dict[str, Callable[[str, pa.Schema, Iterable[pa.RecordBatch], BinaryIO, int], str]] = {
    "table": _write_table,
    "csv": _write_csv,
    "json": _write_json,
    "parquet": _write_parquet,
    "markdown": _write_markdown,
}
FORMATS = tuple(_WRITERS)


def write(
    name: str,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    form: str,
    out: BinaryIO,
    width: int = 0,
) -> str:
    """Write an answer in one of `FORMATS`; all but the table keep every row and digit.

    Args:
        name: of the query; part of the JSON object.
        out: binary; the caller flushes and closes it.
        width: columns of the terminal, for the table; 0: no limit.

    Returns:
        What a terminal table left out, in words; else nothing.
    """
    return _WRITERS[form](name, schema, batches, out, width)
