"""Links that open a query in the Hub's SQL console."""

from __future__ import annotations

import re
from urllib.parse import quote_plus

import duckdb

from builder.files import project_file
from builder.hub import Place
from builder.sql.catalog import Query

HUB = "https://huggingface.co/datasets"


def _definitions(sql: str, files: str) -> list[str]:
    """The statements of views.sql that a query needs, over https (the console has no hf://)."""
    text = (project_file("queries") / "views.sql").read_text(encoding="utf-8")
    known: dict[str, str] = {}
    for statement in duckdb.extract_statements(text):
        body = re.sub(r"(?m)^\s*--.*\n?", "", statement.query).strip().rstrip(";")
        made = re.search(r"create or replace (?:view|macro) (\w+)", body)
        if made and made[1] != "filters":  # which is one file per model: too much for a browser
            known[made[1]] = body.replace("getvariable('release') || '", f"'{files}")
    wanted: dict[str, str] = {}
    waiting = [sql]
    while waiting:
        words = set(re.findall(r"\w+", waiting.pop()))
        for found in known.keys() & words - wanted.keys():
            wanted[found] = known[found]
            waiting.append(known[found])
    return [body for name, body in known.items() if name in wanted]


def console_link(query: Query, place: Place) -> str:
    """The address that opens a query in the SQL console of a data set, at the tag of `place`."""
    assert place.revision, "a query is linked at a tag, whose data cannot move"
    files = f"{HUB}/{place.repo_id}/resolve/{place.revision}"
    sql = ";\n\n".join([*_definitions(query.sql, files), query.sql.strip()])
    return f"{HUB}/{place.repo_id}?sql_console=true&sql={quote_plus(sql)}"
