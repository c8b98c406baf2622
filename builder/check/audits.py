"""Every query of the project run on a release, and what the audits find in its filters.

An audit recomputes in SQL what a table says of every filter. On all of them at once each would
read the release again and hold what it groups by; here they run model by model, and what several
of them stand on (`moments`, `recounted`) is computed once and kept, so that the audits of all
models read that.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb

from builder import schema
from builder.errors import BuilderError
from builder.progress import Report
from builder.release.manifest import filter_files
from builder.release.reader import open_release
from builder.release.views import explained, literal, open_views, scan
from builder.sql.catalog import Query, definitions, list_queries
from builder.sql.run import run_query

_KEPT = {
    "moments": "moments(getvariable('model_id'), ['trained', 'folded'])",
    "recounted": "recounted(getvariable('model_id'))",
}
"""Table macros of views.sql that audits of every model stand on, and the call that is kept."""

_READ_KEPT = {
    "moments": """
        create or replace macro moments(model, views) as table
        select * from kept_moments
        where model_id = coalesce(model, model_id) and list_contains(views, weights)
        """,
    "recounted": """
        create or replace macro recounted(model) as table
        select * from kept_recounted where model_id = coalesce(model, model_id)
        """,
}


def wrong_answers(root: Path, report: Report) -> Iterator[tuple[str, str]]:
    """(query, what is wrong): a query that fails, an audit that contradicts what is stored."""
    queries = list_queries()
    release = open_release(root)
    of_model = [q for q in queries if _by_model(q) and not _stands_on(q)]
    with open_views(release) as connection:
        models = connection.execute(
            "select dataset::varchar, model_id::varchar, n_filters from models order by model_id"
        ).fetchall()
        if not filter_files(release.manifest):
            models, of_model = [], []
        done, total = 0, sum(n for _, _, n in models)
        try:
            for dataset, model_id, n in models:
                path = literal(root / schema.filters_path(dataset, model_id))
                parts = len(_KEPT) + len(of_model)
                with explained("the filters of a model"):
                    for i in _keep(connection, path, model_id):
                        report("verify", "audits", done + n * i // parts, total)
                for i, query in enumerate(of_model, 1 + len(_KEPT)):
                    yield from _run(connection, query, {"model_id": model_id})
                    report("verify", "audits", done + n * i // parts, total)
                done += n
        except BuilderError as e:
            yield "audit", str(e)
            return
        if models:
            connection.execute("reset variable model_id")
            connection.execute("drop view temp.filters")
            for sql in _READ_KEPT.values():
                connection.execute(sql)
        rest = [q for q in queries if q not in of_model]
        for i, query in enumerate(rest, 1):
            report("verify", "queries", i, len(rest))
            yield from _run(connection, query, {})


def _by_model(query: Query) -> bool:
    return any(p.startswith("model_id, one model; default every model") for p in query.params)


def _stands_on(query: Query) -> bool:
    """Whether a query reads what is kept."""
    return not _KEPT.keys().isdisjoint(definitions(query.sql))


def _keep(connection: duckdb.DuckDBPyConnection, path: str, model_id: str) -> Iterator[int]:
    """Let `filters` be those of one model, and keep what audits stand on; count what is kept."""
    connection.execute(f"create or replace temp view filters as select * from {scan(path)}")
    connection.execute("set variable model_id = ?", [model_id])
    for i, (name, call) in enumerate(_KEPT.items(), 1):
        connection.execute(f"create table if not exists kept_{name} as from {call} limit 0")
        connection.execute(f"insert into kept_{name} from {call}")
        yield i


def _run(
    connection: duckdb.DuckDBPyConnection, query: Query, params: dict[str, Any]
) -> Iterator[tuple[str, str]]:
    try:
        for row in run_query(connection, query, params).rows():
            if query.name.startswith("audit/") and row["within"] is False:
                yield query.name, f"differs from what is stored: {row}"
    except BuilderError as e:
        yield query.name, str(e)
