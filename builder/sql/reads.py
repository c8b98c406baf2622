"""What the audits read of a release's filters, from DuckDB's plan and the footers of the files."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder import schema
from builder.release.manifest import filter_files
from builder.release.parquet import open_parquet
from builder.release.reader import open_release
from builder.release.views import explained, open_views
from builder.sql import catalog

_OF_FILTERS = {*schema.FILTER_COLUMNS, "linf", "bn_scale"}
"""Columns that no other table has: a scan that asks for one reads filters."""

PER_FILE = 2
"""Requests for a file's footer: its length, then itself."""


@dataclass(frozen=True)
class Reading:
    """What an audit reads of a release.

    Attributes:
        query: its name. title: its title.
        bytes: of the column chunks that its plan names, as compressed, once per scan.
        requests: one per column chunk and `PER_FILE` per file and scan, the most that a client
            needs; one that joins neighbouring ranges needs fewer.
    """

    query: str
    title: str
    bytes: int
    requests: int


def audit_readings(root: Path) -> list[Reading]:
    """What every audit of a whole release reads, in the order of the queries.

    The audit of a single layer is none of them: how little it reads depends on the layer.

    Raises:
        UsageError: no release there, or a file of filters that is not whole.
    """
    release = open_release(root)
    chunks: defaultdict[str, int] = defaultdict(int)
    groups, files = 0, list(filter_files(release.manifest).values())
    for path in files:
        with open_parquet(root / path) as file:
            found = file.metadata
            groups += found.num_row_groups
            for group in map(found.row_group, range(found.num_row_groups)):
                for column in map(group.column, range(found.num_columns)):
                    chunks[column.path_in_schema] += column.total_compressed_size
    readings = []
    with open_views(release) as con:
        for query in catalog.list_queries():
            if "/" not in query.name or "layer_index" in query.param_names:
                continue
            with explained(query.name):
                row = con.execute(f"explain (format json) {query.sql}").fetchone()
            assert row is not None
            scans = [set(s) for s in _scans(json.loads(row[1])) if _OF_FILTERS & set(s)]
            readings.append(
                Reading(
                    query.name,
                    query.title,
                    sum(chunks[name] for scan in scans for name in scan),
                    sum(groups * len(scan) + PER_FILE * len(files) for scan in scans),
                )
            )
    return readings


def _scans(nodes: list[dict[str, Any]]) -> Iterator[list[str]]:
    """The columns that each scan of a plan asks for."""
    for node in nodes:
        names = node["extra_info"].get("Projections", [])
        if not node["children"]:  # else a step behind a scan, that repeats its columns
            yield [names] if isinstance(names, str) else names
        yield from _scans(node["children"])
