"""After publishing: read the release back the way its users will, and compare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from builder import hub, schema
from builder.files import scratch
from builder.progress import Report
from builder.release import content
from builder.release.card import configs
from builder.release.manifest import FileFacts, Manifest
from builder.release.manifest import datasets as datasets_of
from builder.release.views import connect, scan

BUDGET = 1 << 30
"""Bytes of filters that are read back through `datasets`; of the rest, the digests are compared."""


def read_back(
    repo_id: str, tag: str, manifest: Manifest, report: Report, budget: int = BUDGET
) -> list[str]:
    """Load a published release with `datasets` and DuckDB; return what differs from the manifest.

    Every small table is loaded and its content hash compared. Filters are streamed and hashed
    model by model, the smallest files of each data set first, up to `budget` bytes (one model of
    each data set at least). DuckDB counts the rows of every file.

    Args:
        repo_id: the repository.
        tag: the tag to read at.
        manifest: of the release that was published.
        report: called as ("publish", "read back", done, total).
        budget: bytes of filters to read.

    Raises:
        NetworkError: the Hub does not answer.
    """
    from datasets.exceptions import DatasetsError

    files = manifest["files"]
    datasets = datasets_of(manifest)
    names = configs(files, datasets)
    wrong: list[str] = []
    with scratch() as cache, _quiet():
        for i, (name, pattern) in enumerate(names.items(), start=1):
            report("publish", "read back", i, len(names) + 1)
            with hub.network_errors(
                f"load {name} of {repo_id}@{tag}", DatasetsError, OSError, ValueError
            ):
                if pattern in files:
                    wrong += _check_table(repo_id, tag, name, files[pattern], cache)
                else:
                    chosen = _within(files, pattern.split("*")[0], budget // len(datasets))
                    wrong += _check_filters(repo_id, tag, name, chosen)
    with hub.network_errors(f"query {repo_id}@{tag} with DuckDB", duckdb.Error):
        wrong += _check_counts(repo_id, tag, files)
    report("publish", "read back", len(names) + 1, len(names) + 1)
    return wrong


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of `datasets`: ours says how far it is."""
    import datasets

    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()


def _within(files: dict[str, FileFacts], prefix: str, budget: int) -> dict[str, FileFacts]:
    """The smallest files of a data set whose sizes add up to the budget; one at least."""
    found: dict[str, FileFacts] = {}
    mine = {p: f for p, f in files.items() if p.startswith(prefix)}
    for path in sorted(mine, key=lambda p: (mine[p]["bytes"], p)):
        budget -= mine[path]["bytes"]
        if found and budget < 0:
            break
        found[path] = mine[path]
    return dict(sorted(found.items()))


def _hash(rows: pa.Table, table: schema.Table, skip: tuple[str, ...] = ()) -> int | None:
    """Content hash of rows that another reader loaded; None if they have not the table's form."""
    try:
        return content.hash_rows(rows.cast(table.arrow), skip)
    except (ValueError, pa.ArrowException):
        return None


def _check_table(repo_id: str, tag: str, name: str, facts: FileFacts, cache: Path) -> Iterator[str]:
    from datasets import load_dataset

    table = schema.FILTERS if name == "filters_sample" else schema.TABLES[name]
    loaded = load_dataset(repo_id, name, split="train", revision=tag, cache_dir=str(cache))
    rows = loaded.with_format("arrow")[:]
    if rows.num_rows != facts["rows"]:
        yield f"{name}: datasets loads {rows.num_rows} rows, not {facts['rows']}"
        return
    found = _hash(rows, table)
    if found is None or content.text(found) != facts["content_hash"]:
        yield f"{name}: what datasets loads has another content"


def _check_filters(
    repo_id: str, tag: str, name: str, chosen: dict[str, FileFacts]
) -> Iterator[str]:
    from datasets import load_dataset

    rows = load_dataset(
        repo_id, revision=tag, data_files=list(chosen), split="train", streaming=True
    )
    counts: dict[str, int] = {}
    hashes: dict[str, int] = {}
    for batch in rows.with_format("arrow").iter(batch_size=131_072):
        column = batch.column("model_id")
        for model_id in column.unique().to_pylist():
            part = batch.filter(pc.equal(column, model_id))
            counts[model_id] = counts.get(model_id, 0) + part.num_rows
            hashed = _hash(part, schema.FILTERS, content.FILTER_IDENTITY)
            hashes[model_id] = content.add(hashes.get(model_id, 0), hashed or 0)
    for path, facts in chosen.items():
        model_id = Path(path).stem
        if counts.get(model_id, 0) != facts["rows"]:
            found = counts.get(model_id, 0)
            yield f"{path}: {name} streams {found} rows of it, not {facts['rows']}"
        elif content.text(hashes[model_id]) != facts["content_hash"]:
            yield f"{path}: what {name} streams has another content"


def _check_counts(repo_id: str, tag: str, files: dict[str, FileFacts]) -> Iterator[str]:
    """Rows per model and per small table, as DuckDB counts them on the Hub."""
    base = f"{hub.SCHEME}{repo_id}@{tag}/"
    with connect() as con:
        con.register_filesystem(hub.duckdb_filesystem())
        paths = [p for p in files if schema.filters_key(p)]
        sql = (
            "SELECT model_id, count(*) FROM read_parquet($paths, hive_partitioning = false) "
            "GROUP BY ALL"
        )
        counts: dict[str, int] = dict(
            con.execute(sql, {"paths": [base + p for p in paths]}).fetchall()
        )
        for name in schema.SMALL_TABLES:
            path = schema.table_path(name)
            if path in files:
                ((n,),) = con.execute(f"SELECT count(*) FROM {scan(base + path)}").fetchall()
                if n != files[path]["rows"]:
                    yield f"{name}: DuckDB counts {n} rows, not {files[path]['rows']}"
    for path in paths:
        n = counts.get(Path(path).stem, 0)
        if n != files[path]["rows"]:
            yield f"{path}: DuckDB counts {n} rows, not {files[path]['rows']}"
