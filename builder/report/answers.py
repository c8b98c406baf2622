"""Every finding with its verdict, its SQL and the rows of its answer."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import duckdb

from builder.hub import Place
from builder.release.manifest import Manifest
from builder.release.views import explained
from builder.sql import catalog
from builder.sql.console import console_link
from builder.sql.findings import examine_one


def _exact(value: Any) -> Any:
    """A value as JSON holds it, with every digit."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_exact(v) for v in value]
    return value if isinstance(value, int | float | str | None) else str(value)


def answered(
    con: duckdb.DuckDBPyConnection, manifest: Manifest, place: Place | None
) -> list[dict[str, Any]]:
    """The findings in order: the fields of `Finding`, and `sql`, `note`, `columns`, `rows`, `link`.

    Args:
        con: with the views of the release. manifest: of the release.
        place: where it is on the Hub, at a tag; None where it is not.
    """
    found = []
    for query in catalog.list_findings():
        with explained(query.name):
            finding = examine_one(con, manifest, query)
            answer = con.sql("from answer").to_arrow_table()
        rows = [[_exact(v) for v in row.values()] for row in answer.to_pylist()]
        found.append(
            {
                **asdict(finding),
                "source": query.paper,
                "note": query.note,
                "sql": query.sql.strip(),
                "columns": answer.column_names,
                "rows": rows,
                "link": console_link(query, place) if place else None,
            }
        )
    return found
