"""Links that open a query in the Hub's SQL console."""

from __future__ import annotations

from urllib.parse import quote_plus

from builder.hub import Place
from builder.sql.catalog import Query, definitions

HUB = "https://huggingface.co/datasets"


def console_link(query: Query, place: Place) -> str:
    """The address that opens a query in the SQL console of a data set, at the tag of `place`."""
    assert place.revision, "a query is linked at a tag, whose data cannot move"
    files = f"{HUB}/{place.repo_id}/resolve/{place.revision}"
    # `filters` is a file per model, too much for a browser; the console has no hf://.
    made = [
        body.replace("getvariable('release') || '", f"'{files}")
        for name, body in definitions(query.sql).items()
        if name != "filters"
    ]
    sql = ";\n\n".join([*made, query.sql.strip()])
    return f"{HUB}/{place.repo_id}?sql_console=true&sql={quote_plus(sql)}"
