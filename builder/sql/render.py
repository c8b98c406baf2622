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

from builder.tables import cell, exact, write_rows

TABLE_ROWS = 200
"""Rows a terminal table shows at most."""


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


def _write_table(
    name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], out: BinaryIO
) -> str:
    text = io.TextIOWrapper(out, encoding="utf-8", newline="", write_through=True)
    rows = (list(row.values()) for row in _rows(batches))
    right = [_is_number(f.type) for f in schema]
    said = write_rows(text, schema.names, rows, right=right, limit=TABLE_ROWS)
    text.detach()
    return f"{name}: {said}; --format csv has all." if said else ""


def _write_csv(
    name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], out: BinaryIO
) -> str:
    text = io.TextIOWrapper(out, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(schema.names)
    for row in _rows(batches):
        writer.writerow(
            [exact(_plain(v) if isinstance(v, list | dict) else v) for v in row.values()]
        )
    text.detach()
    return ""


def _write_json(
    name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], out: BinaryIO
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
    name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], out: BinaryIO
) -> str:
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)
    return ""


def _write_markdown(
    name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], out: BinaryIO
) -> str:
    def line(cells: Iterable[str]) -> bytes:
        return ("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |\n").encode()

    out.write(line(schema.names))
    out.write(line("---:" if _is_number(f.type) else "---" for f in schema))
    for row in _rows(batches):
        out.write(line(map(cell, row.values())))
    return ""


_WRITERS: dict[str, Callable[[str, pa.Schema, Iterable[pa.RecordBatch], BinaryIO], str]] = {
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
) -> str:
    """Write an answer in one of `FORMATS`; on a terminal a table shows what fits, else all is kept.

    Args:
        name: of the query; part of the JSON object.
        out: binary; the caller flushes and closes it.

    Returns:
        What a table left out on a terminal, in words; else nothing.
    """
    return _WRITERS[form](name, schema, batches, out)
