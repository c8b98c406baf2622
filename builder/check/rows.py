"""The rows of one table in two releases, matched by their key: added, removed, changed, rounded.

Small tables are joined by DuckDB, column by column within the schema's tolerances. Filters are
exact, may be many, and lie sorted by their key in both files: they are walked side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from builder import schema
from builder.errors import UsageError
from builder.release import content, split
from builder.release.parquet import open_parquet
from builder.release.views import connect, literal, scan

EXAMPLES = 5

_BATCH_ROWS = 1 << 17

_FILTER_KEY = ("layer_index", "out_channel", "in_channel")
"""Key of a filter inside the file of its model."""


@dataclass(frozen=True)
class ColumnChange:
    """Rows in which a column differs: within its tolerance (`rounding`), or by more than that.

    `largest` is the largest absolute difference of numbers, or of entries of vectors.
    """

    column: str
    rows: int
    largest: float | None = None
    rounding: bool = False


@dataclass(frozen=True)
class RowChanges:
    """What changed in the rows of one table. Row counts; a few keys as examples.

    `rounding_rows` differ, but only within the tolerances of their columns; they are no
    `changed_rows`. `summary_rows` of `changed_rows` summarise all models of the release.
    """

    added_rows: int = 0
    removed_rows: int = 0
    changed_rows: int = 0
    rounding_rows: int = 0
    summary_rows: int = 0
    columns: list[ColumnChange] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)


def column_types(file: Path) -> dict[str, str]:
    """{column: its type as DuckDB names it} of a Parquet file."""
    with connect() as con:
        rows = con.execute(f"DESCRIBE FROM {scan(literal(file))}").fetchall()
    return {row[0]: row[1] for row in rows}


def compare_rows(a: Path, b: Path, table: schema.Table, shared: dict[str, str]) -> RowChanges:
    """The changed rows of a table other than `filters`.

    Args:
        a: the earlier file. b: the later one.
        table: which table they hold.
        shared: {column: DuckDB's type in `a`} of the columns that are in both.

    Raises:
        UsageError: a column of the key is not among them.
    """
    if not set(table.key) <= set(shared):
        raise UsageError(f"{table.name}: the key {', '.join(table.key)} is not in both releases.")
    columns = {name: type_ for name, type_ in shared.items() if name not in table.key}
    with connect() as con:
        con.execute(_joined(a, b, table, columns))
        ((added, removed, changed, rounding),) = con.execute(
            "SELECT count(*) FILTER (NOT in_a), count(*) FILTER (NOT in_b), "
            "count(*) FILTER (beyond), count(*) FILTER (differs AND NOT beyond) FROM joined"
        ).fetchall()
        examples = con.execute(
            "SELECT key FROM joined WHERE NOT in_a OR NOT in_b OR beyond "
            f"ORDER BY key LIMIT {EXAMPLES}"
        ).fetchall()
        return RowChanges(
            added_rows=added,
            removed_rows=removed,
            changed_rows=changed,
            rounding_rows=rounding,
            summary_rows=_summary_rows(con, table.name, list(columns)),
            columns=list(_column_changes(con, columns)) if changed or rounding else [],
            examples=[text for (text,) in examples],
        )


def _joined(a: Path, b: Path, table: schema.Table, columns: dict[str, str]) -> str:
    """SQL of the table `joined`: key, in_a, in_b, differs, beyond; d{i}, x{i}, m{i} by column.

    Of column i, d says that it differs, x that it does by more than its tolerance, and m by how
    much, null where it is no number.
    """
    match = " AND ".join(f'a."{k}" IS NOT DISTINCT FROM b."{k}"' for k in table.key)
    text = ", ', ', ".join(
        f"""coalesce(a."{k}"::VARCHAR, b."{k}"::VARCHAR, '-')""" for k in table.key
    )
    parts: list[str] = []
    for i, (name, type_) in enumerate(columns.items()):
        tolerance = next((c.tolerance for c in table.columns if c.name == name), schema.EXACT)
        apart, scale = _distance(f'a."{name}"', f'b."{name}"', type_)
        allowed = f"{tolerance.absolute!r}::DOUBLE + {tolerance.relative!r}::DOUBLE * {scale}"
        parts += [
            f'in_a AND in_b AND a."{name}" IS DISTINCT FROM b."{name}" AS d{i}',
            f"d{i} AND NOT coalesce({apart} <= {allowed}, false) AS x{i}",
            f"CASE WHEN d{i} THEN {apart} END AS m{i}",
        ]
    either = [" OR ".join(f"{flag}{i}" for i in range(len(columns))) or "false" for flag in "dx"]
    sides = [f"(SELECT *, true AS here FROM {scan(literal(file))})" for file in (a, b)]
    return (
        f"CREATE TEMP TABLE joined AS SELECT concat({text}) AS key, "
        "coalesce(a.here, false) AS in_a, coalesce(b.here, false) AS in_b, "
        + "".join(f"{part}, " for part in parts)
        + f"{either[0]} AS differs, {either[1]} AS beyond "
        f"FROM {sides[0]} AS a FULL JOIN {sides[1]} AS b ON {match}"
    )


def _distance(a: str, b: str, type_: str) -> tuple[str, str]:
    """SQL of how far two values lie apart, and of the larger one's size; nulls for no numbers."""
    if type_ in _NUMBERS:
        return f"abs({a}::DOUBLE - {b}::DOUBLE)", f"greatest(abs({a}::DOUBLE), abs({b}::DOUBLE))"
    if type_ in ("DOUBLE[]", "DOUBLE[9]", "DOUBLE[45]"):
        apart = f"list_max(list_transform(list_zip({a}, {b}), lambda p: abs(p[1] - p[2])))"
        sizes = [f"list_max(list_transform({side}, lambda v: abs(v)))" for side in (a, b)]
        return apart, f"greatest({sizes[0]}, {sizes[1]})"
    return "NULL::DOUBLE", "NULL::DOUBLE"


_NUMBERS = ("FLOAT", "DOUBLE", "BIGINT", "INTEGER", "SMALLINT")


def _column_changes(
    con: duckdb.DuckDBPyConnection, columns: dict[str, str]
) -> Iterator[ColumnChange]:
    for i, name in enumerate(columns):
        found = con.execute(
            f"SELECT NOT x{i} AS rounding, count(*), max(m{i}) FROM joined WHERE d{i} "
            "GROUP BY ALL ORDER BY rounding"
        ).fetchall()
        for rounding, rows, largest in found:
            yield ColumnChange(name, rows, largest, rounding)


def _summary_rows(con: duckdb.DuckDBPyConnection, name: str, columns: list[str]) -> int:
    """How many of the changed rows summarise all models of a release."""
    if name == "histograms":
        where = "true"
    elif name == "pca":
        # `basis` comes first: full, or full:L2
        where = f"split(split(key, ', ')[1], ':')[1] IN {schema.UNIONS}"
    elif name == "models":
        own = [f"x{i}" for i, column in enumerate(columns) if column not in split.COLUMNS]
        where = f"NOT ({' OR '.join(own) or 'false'})"
    else:
        return 0
    ((count,),) = con.execute(f"SELECT count(*) FROM joined WHERE beyond AND {where}").fetchall()
    return int(count)


def compare_filters(a: Path, b: Path, shared: dict[str, str]) -> RowChanges:
    """The changed filters of one model: bit for bit, a few batches in memory at a time.

    Args:
        a: the earlier file. b: the later one.
        shared: the columns that are in both.

    Raises:
        UsageError: a column of the key is not among them.
    """
    if not set(_FILTER_KEY) <= set(shared):
        raise UsageError(f"{a.name}: the key {', '.join(_FILTER_KEY)} is not in both releases.")
    added = removed = changed = 0
    skip = {*_FILTER_KEY, *content.FILTER_IDENTITY}
    rows = dict.fromkeys((c for c in shared if c not in skip), 0)
    largest = dict.fromkeys(rows, 0.0)
    examples: list[str] = []

    def note(model: str, keys: NDArray[np.int64]) -> None:
        for key in keys[: max(0, EXAMPLES - len(examples))].tolist():
            at = (key >> 48, key >> 24 & 0xFFFFFF, key & 0xFFFFFF)
            examples.append(", ".join([model, *map(str, at)]))

    for keys_a, part_a, keys_b, part_b in _side_by_side(a, b, [*_FILTER_KEY, *rows]):
        _, in_a, in_b = np.intersect1d(keys_a, keys_b, assume_unique=True, return_indices=True)
        differs = np.zeros(len(in_a), bool)
        for name in rows if len(in_a) else ():
            x, y = (
                part.column(name).to_numpy(zero_copy_only=False)[rows_]
                for part, rows_ in ((part_a, in_a), (part_b, in_b))
            )
            other = _bits(x) != _bits(y)
            if other.any():
                differs |= other
                rows[name] += int(other.sum())
                if x.dtype.kind == "f":
                    apart = np.abs(x[other].astype(np.float64) - y[other]).max()
                    largest[name] = max(largest[name], float(apart))
        added += len(keys_b) - len(in_b)
        removed += len(keys_a) - len(in_a)
        changed += int(differs.sum())
        note(a.stem, np.setxor1d(keys_a, keys_b, assume_unique=True))
        note(a.stem, keys_a[in_a[differs]])
    columns = [ColumnChange(name, n, largest[name]) for name, n in rows.items() if n]
    return RowChanges(added, removed, changed, columns=columns, examples=sorted(examples))


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    """What equality of bits is: a NaN is itself, and -0.0 is not 0.0."""
    return values.view(f"u{values.dtype.itemsize}") if values.dtype.kind == "f" else values


_Part = tuple[NDArray[np.int64], pa.RecordBatch]


def _side_by_side(
    a: Path, b: Path, columns: list[str]
) -> Iterator[tuple[NDArray[np.int64], pa.RecordBatch, NDArray[np.int64], pa.RecordBatch]]:
    """Keys and rows of both files, the same range of keys of each at a time."""
    with open_parquet(a) as file_a, open_parquet(b) as file_b:
        streams = [_keyed(file, columns) for file in (file_a, file_b)]
        parts = [next(stream, None) for stream in streams]
        while parts != [None, None]:
            # Up to the lesser of the two last keys, nothing more can come on either side.
            last = min(part[0][-1] for part in parts if part)
            out: list[_Part] = []
            for side, stream in enumerate(streams):
                keys, rows = parts[side] or _EMPTY
                over = len(keys) > 0 and keys[-1] > last
                n = int(np.searchsorted(keys, last, side="right")) if over else len(keys)
                out.append((keys[:n], rows.slice(0, n)))
                rest = (keys[n:], rows.slice(n))
                parts[side] = rest if len(rest[0]) else next(stream, None)
            yield *out[0], *out[1]


_EMPTY: _Part = (
    np.empty(0, np.int64),
    pa.RecordBatch.from_pylist([], schema=schema.FILTERS.arrow),
)


def _keyed(file: pq.ParquetFile, columns: list[str]) -> Iterator[_Part]:
    """Batches of a file of filters with the key of each row as one number."""
    for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
        layer, out, in_ = (batch.column(k).to_numpy().astype(np.int64) for k in _FILTER_KEY)
        yield (layer << 48) | (out << 24) | in_, batch
