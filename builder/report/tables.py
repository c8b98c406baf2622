"""The tables behind the page: one SELECT each, in builder/report/sql/."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import duckdb
import pyarrow as pa

from builder import schema
from builder.release.reader import Release
from builder.release.views import explained, open_views

DETAILED_MODELS = 300
"""Models whose layers, bases and filters the page holds; figures over all models know every one."""

SIGNIFICANT = 6
"""Digits of a number on the page; the answers of the queries keep more."""

_SHARED = ("chosen", "model_values")
"""Tables that others read, in this order."""


def _sql(name: str) -> str:
    return (files("builder.report") / "sql" / f"{name}.sql").read_text(encoding="utf-8")


@contextmanager
def open_tables(
    release: Release,
    *,
    memory_limit: str | None = None,
    threads: int | None = None,
    details: int = DETAILED_MODELS,
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with the views of a release, and the tables that others are made of.

    Args:
        release: from open_release.
        memory_limit, threads: of DuckDB.
        details: models whose details the page holds.
    """
    with (
        open_views(release, memory_limit=memory_limit, threads=threads) as con,
        explained("the report"),
    ):
        con.execute("set variable details = ?", [details])
        if schema.SAMPLE in release.manifest["files"]:
            con.execute(
                "create temp view filters_sample as select * from "
                f"read_parquet(getvariable('release') || '/{schema.SAMPLE}')"
            )
        else:
            con.register("filters_sample", schema.FILTERS.arrow.empty_table())
        for name in _SHARED:
            con.execute(f"create temp table {name} as {_sql(name)}")
        yield con


def read(con: duckdb.DuckDBPyConnection, name: str) -> pa.Table:
    """The answer of builder/report/sql/{name}.sql."""
    with explained(f"the report's table {name}"):
        return con.sql(_sql(name)).to_arrow_table()


def rounded(value: Any) -> Any:
    """A value as JSON holds it: `SIGNIFICANT` digits, null for what is no number."""
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT}g}") if math.isfinite(value) else None
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return value


def columnar(table: pa.Table) -> dict[str, Any]:
    """A table as JSON: per column its values, or a list of distinct texts and indices into it."""
    columns: dict[str, Any] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_string(column.type) or pa.types.is_dictionary(column.type):
            plain = column.cast(pa.string()).combine_chunks()
            coded = plain.dictionary_encode()
            columns[name] = {
                "texts": coded.dictionary.to_pylist(),
                "index": coded.indices.to_pylist(),
            }
        else:
            columns[name] = [rounded(v) for v in column.to_pylist()]
    return {"n": table.num_rows, "columns": columns}
