"""Links that open a query in the Hub's SQL console, and what the card of a release says of them."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote_plus

from builder.hub import Place
from builder.sql.catalog import Query, definitions, list_findings
from builder.sql.reads import audit_readings

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


def card_section(place: Place, root: Path) -> str:
    """What a card says of its queries, as Markdown: a link per finding, the cost of each audit.

    Args:
        place: where the release is published, at its tag.
        root: the release as it lies here.

    Raises:
        UsageError: no release there, or a file of filters that is not whole.
    """
    lines = ["Each opens in the Hub's SQL console, which reads the small tables only:", ""]
    for query in list_findings():
        ours = " (ours)" if query.origin == "ours" else ""
        lines.append(f"- [{query.title}]({console_link(query, place)}){ours}: {query.finding}")
    lines += [
        "",
        "Audits recompute the tables from the filters. They read, by the plan of each and the "
        "footers of the files:",
        "",
        "| audit | reads | range requests, at most |",
        "|---|---|---|",
    ]
    for r in audit_readings(root):
        lines.append(f"| `{r.query}` | {r.bytes / 1e6:,.1f} MB | {r.requests:,} |")
    return "\n".join(lines)
