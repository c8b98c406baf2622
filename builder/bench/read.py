"""Reading the filters of a release back, by this package and by others."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from builder import schema
from builder.errors import UsageError
from builder.release.manifest import datasets, filter_files, read_manifest
from builder.release.reader import open_release
from builder.release.views import connect


def stored_filters(release: Path) -> list[Path]:
    """The files of filters of a release, in order."""
    return [release / path for path in filter_files(read_manifest(release)).values()]


def bench_read(release: Path, rows: int = 131_072) -> dict[str, Any]:
    """All columns of the filters of a release read back in batches, by several libraries.

    Args:
        release: a folder with filters.
        rows: filters per batch.

    Returns:
        Millions of filters per second of each route, best of three passes over all filters.
    """
    import polars as pl
    from datasets import load_dataset

    opened = open_release(release)
    if not opened.manifest["totals"]["filters"]:
        raise UsageError(
            f"{release} holds no filters.", hint="expected a release built from networks."
        )
    names = datasets(opened.manifest)

    def streamed() -> int:
        return sum(
            batch.num_rows
            for name in names
            for batch in load_dataset(
                str(release), f"filters_{name}", split="train", streaming=True
            )
            .with_format("arrow")
            .iter(rows)
        )

    files = [str(path) for path in stored_filters(release)]

    def arrow() -> int:
        return sum(
            batch.num_rows
            for path in files
            for batch in pq.ParquetFile(path, pre_buffer=False).iter_batches(rows)
        )

    def in_duckdb() -> int:
        sums = ", ".join(f"sum({column})" for column in schema.FILTER_COLUMNS)
        with connect() as connection:
            query = f"select count(*), {sums} from read_parquet({files})"
            ((n, *_),) = connection.execute(query).fetchall()
        return int(n)

    def in_polars() -> int:
        sums = [pl.len().alias("n"), *(pl.col(c).sum() for c in schema.FILTER_COLUMNS)]
        return int(pl.scan_parquet(files).select(sums).collect(engine="streaming")["n"][0])

    routes = {
        "open_release, trained": lambda: sum(map(len, opened.filters(batch_rows=rows))),
        "open_release, folded": lambda: sum(
            map(len, opened.filters(view="folded", batch_rows=rows))
        ),
        "datasets, streaming Arrow": streamed,
        "pyarrow, all columns": arrow,
        "DuckDB, sums of the nine weights": in_duckdb,
        "Polars, sums of the nine weights": in_polars,
    }
    n = opened.manifest["totals"]["filters"]
    result: dict[str, Any] = {"release": str(release), "n_filters": n, "batch_rows": rows}
    for route, read in routes.items():
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            count = read()
            seconds.append(time.perf_counter() - started)
            assert count == n, f"{route} read {count} of {n} filters"
        result[route] = n / min(seconds) / 1e6
    return result
