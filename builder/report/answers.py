"""Every finding with its verdict, its SQL and the rows of its answer."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import duckdb

from builder.hub import Place
from builder.sql import catalog
from builder.sql.console import console_link
from builder.sql.findings import examine
from builder.sql.run import run_query


def _exact(value: Any) -> Any:
    """A value as JSON holds it, with every digit."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_exact(v) for v in value]
    return value if isinstance(value, int | float | str | None) else str(value)


def answered(
    con: duckdb.DuckDBPyConnection,
    release: str,
    place: Place | None,
    *,
    memory_limit: str | None = None,
    threads: int | None = None,
) -> list[dict[str, Any]]:
    """The findings in order: the fields of `Finding`, and `sql`, `note`, `columns`, `rows`, `link`.

    Args:
        con: with the views of the release.
        release: its address.
        place: where it is on the Hub, at a tag; None where it is not.
        memory_limit, threads: of DuckDB.
    """
    found = []
    verdicts = {f.query: f for f in examine(release, memory_limit=memory_limit, threads=threads)}
    for query in catalog.list_findings():
        answer = run_query(con, query)
        rows = [[_exact(v) for v in row.values()] for row in answer.rows()]
        found.append(
            {
                **asdict(verdicts[query.name]),
                "source": query.paper,
                "note": query.note,
                "sql": query.sql.strip(),
                "columns": answer.schema.names,
                "rows": rows,
                "link": console_link(query, place) if place else None,
            }
        )
    return found
