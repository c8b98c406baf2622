"""Is this folder the release its manifest says? Two tiers of checks, without torch.

Fast: manifest, digests of every file, schemas, counts, keys and ranges. Full: content hashes,
every metric of layers, models and bases recomputed from the stored filters (recompute.py),
every query run, with the audits that recompute histograms. Each check is a small function that
yields faults; no fault means the release is good.

What no filter tells is taken at its word: where a layer sits in its network, what the cohort says
of a model, `n_params` (beyond a lower bound), and `first_layer`, which needs networks and images.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder import schema
from builder.check.recompute import wrong_bases, wrong_histograms, wrong_metrics, wrong_models
from builder.errors import BuilderError
from builder.files import file_sha256
from builder.progress import Report, silent
from builder.release import content
from builder.release.manifest import Manifest, filter_files, read_manifest
from builder.release.parquet import open_parquet
from builder.release.texts import is_whole
from builder.release.views import connect


@dataclass(frozen=True)
class Fault:
    """Something that is not as it must be: which check, in which file, what."""

    check: str
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.check}: {self.path}: {self.message}"


def verify(root: Path, full: bool = False, report: Report = silent) -> list[Fault]:
    """Check a release folder.

    Args:
        root: the release.
        full: recompute content hashes and metrics and run the queries, too.
        report: called as checks proceed, as ("verify", check, done, total).

    Raises:
        BuilderError: no release, or a damaged manifest.
    """
    manifest = read_manifest(root)
    root = root.absolute()  # pyarrow takes a relative `a:b/c` for a URI
    faults = list(check_files(root, manifest, report))
    if faults:
        return faults  # what is inside damaged files says nothing
    faults += check_schemas(root, manifest)
    if not faults:
        faults += check_tables(root, manifest)
    if full and not faults:
        faults += check_content(root, manifest, report)
        wrong_layers = list(wrong_metrics(root, report))
        faults += (Fault("metrics", *wrong) for wrong in wrong_layers)
        if not wrong_layers:  # what follows from wrong layers says nothing
            faults += (Fault("metrics", *wrong) for wrong in wrong_models(root, manifest))
            faults += (Fault("pca", *wrong) for wrong in wrong_bases(root))
            faults += (Fault("histograms", *wrong) for wrong in wrong_histograms(root))
        faults += check_sample(root, manifest)
        faults += check_queries(root, report)
    return faults


def check_files(root: Path, manifest: Manifest, report: Report) -> Iterator[Fault]:
    """Every file of the manifest is there, whole and unchanged, and there is no other.

    Links count as what they lead to: a snapshot in the Hub's cache is made of them. What the Hub
    adds to a repository, and huggingface_hub to a download, may be there.
    """
    listed = manifest["files"]
    for path in sorted(_present(root, listed) - listed.keys() - {schema.MANIFEST, schema.CARD}):
        if path != ".gitattributes" and not path.startswith(".cache/huggingface/"):
            yield Fault("files", path, "is not in the manifest")
    if schema.CARD not in listed:
        yield from _check_card(root)
    for i, (path, facts) in enumerate(sorted(listed.items()), 1):
        report("verify", "files", i, len(listed))
        if not (root / path).is_file():
            yield _missing(root, path)
            continue
        size = (root / path).stat().st_size
        if size != facts["bytes"]:
            yield Fault("files", path, f"has {size} bytes, the manifest says {facts['bytes']}")
        elif file_sha256(root / path) != facts["sha256"]:
            yield Fault("files", path, "has changed: its SHA-256 is not the manifest's")


def _present(root: Path, listed: Iterable[str]) -> set[str]:
    """Every file below a folder, through the links that lead to a folder of the release.

    Any other link to a folder stands for itself: what is behind it is none of ours, and endless
    where it leads back up.
    """
    folders = {parent.as_posix() for path in listed for parent in PurePosixPath(path).parents}
    found: set[str] = set()
    for folder, names, files in os.walk(root, followlinks=True):
        here = PurePosixPath(Path(folder).relative_to(root).as_posix())
        links = [
            n for n in names if (Path(folder) / n).is_symlink() and str(here / n) not in folders
        ]
        names[:] = [n for n in names if n not in links]
        found |= {str(here / name) for name in (*files, *links)}
    return found


def _missing(root: Path, path: str) -> Fault:
    link = (root / path).is_symlink()
    return Fault("files", path, "is a link that leads to no file" if link else "is missing")


def _check_card(root: Path) -> Iterator[Fault]:
    """The card, which the manifest does not list, is as it was sealed."""
    if not (root / schema.CARD).is_file():
        yield _missing(root, schema.CARD)
    elif not is_whole((root / schema.CARD).read_bytes()):
        yield Fault("files", schema.CARD, "has changed: its last line is not its digest")


def _tables(root: Path, manifest: Manifest) -> Iterator[tuple[str, schema.Table]]:
    """(path, table) of every Parquet file of the manifest that holds a known table."""
    for path in sorted(manifest["files"]):
        if table := schema.table_at(path):
            yield path, table


def check_schemas(root: Path, manifest: Manifest) -> Iterator[Fault]:
    """Every table file has its table's columns and types, the manifest's rows, our metadata."""
    tables = dict(_tables(root, manifest))
    for name in schema.SMALL_TABLES:
        if schema.table_path(name) not in tables:
            yield Fault("schema", schema.table_path(name), "is missing")
    for path, table in tables.items():
        try:
            with open_parquet(root / path) as file:
                found, rows = file.schema_arrow, file.metadata.num_rows
        except pa.ArrowInvalid as e:
            yield Fault("schema", path, f"is no Parquet file: {e}")
            continue
        if not found.equals(table.arrow):
            yield Fault("schema", path, f"columns differ from table '{table.name}'")
        if rows != manifest["files"][path]["rows"]:
            expected = manifest["files"][path]["rows"]
            yield Fault("schema", path, f"has {rows} rows, the manifest says {expected}")
        metadata = found.metadata or {}
        if metadata.get(b"rfl.weights", b"").decode() != manifest["weights"]:
            yield Fault("schema", path, "does not carry the manifest's kind of weights")


_CHECKS = {
    "layers without their model": """
        SELECT model_id FROM layers ANTI JOIN models USING (dataset, model_id)
        """,
    "pairs without their robust model": """
        SELECT robust_model_id FROM pairs
        ANTI JOIN models ON robust_model_id = model_id AND robust AND pairs.dataset = models.dataset
        """,
    "pairs without their standard model": """
        SELECT standard_model_id FROM pairs
        ANTI JOIN models
        ON standard_model_id = model_id AND NOT robust AND pairs.dataset = models.dataset
        """,
    "pairs of another architecture than their models": """
        SELECT robust_model_id FROM pairs
        JOIN models ON model_id IN (robust_model_id, standard_model_id)
        WHERE pairs.architecture <> models.architecture
        """,
    "histograms without their model": """
        SELECT DISTINCT model_id FROM histograms ANTI JOIN models USING (dataset, model_id)
        """,
    "first_layer without its model": """
        SELECT DISTINCT model_id FROM first_layer ANTI JOIN models USING (dataset, model_id)
        """,
    "model_id that is not dataset-kind-network": """
        SELECT model_id FROM models
        WHERE model_id <> concat_ws('-', dataset, if(robust, 'robust', 'standard'), network)
        """,
    "unknown data set": """
        SELECT model_id FROM models WHERE dataset NOT IN ('cifar10', 'cifar100', 'imagenet')
        """,
    "layers that do not add up to their model": """
        SELECT model_id FROM models
        JOIN (
            SELECT model_id, count(*) AS layers, sum(n_filters) AS filters
            FROM layers WHERE weights = 'folded' GROUP BY model_id
        ) USING (model_id)
        WHERE layers <> n_layers OR filters <> n_filters
        """,
    "layers without both weights views": """
        SELECT model_id FROM layers GROUP BY model_id, layer_index
        HAVING list_sort(list(weights::VARCHAR)) <> ['folded', 'trained']
        """,
    "layer out of range": f"""
        SELECT model_id FROM layers
        WHERE depth_bin NOT BETWEEN 0 AND {schema.N_DEPTH_BINS - 1}
        OR conv_depth_norm NOT BETWEEN 0 AND 1 OR n_filters <> out_channels * in_channels
        OR sparsity NOT BETWEEN 0 AND 1 OR n_sparse NOT BETWEEN 0 AND n_filters
        OR variance_entropy NOT BETWEEN 0 AND log10(9) + 1e-9
        OR orthogonality NOT BETWEEN -1e-6 AND 1 + 1e-6 OR layer_linf < 0
        """,
    "accuracy out of range": """
        SELECT model_id FROM models
        WHERE clean_acc NOT BETWEEN 0 AND 100 OR autoattack_acc NOT BETWEEN 0 AND 100
        """,
    "histogram that does not hold every non-sparse filter": """
        SELECT model_id FROM (
            SELECT model_id, depth_bin, component, sum(n) AS counted FROM histograms GROUP BY ALL
        )
        JOIN (
            SELECT model_id, depth_bin, sum(n_filters - n_sparse) AS expected
            FROM layers WHERE weights = 'folded' GROUP BY ALL
        ) USING (model_id, depth_bin)
        WHERE counted <> coalesce(expected, 0)
        """,
}
"""Queries over the small tables; each names the rows that break its rule."""


def check_tables(root: Path, manifest: Manifest) -> Iterator[Fault]:
    """Keys are unique, references lead somewhere, values are in range, counts agree."""
    with connect() as connection:
        for name in schema.SMALL_TABLES:
            path = schema.table_path(name)
            rows = pq.read_table(root / path)
            connection.register(name, rows)
            table = schema.TABLES[name]
            key = ", ".join(table.key)
            repeated = connection.execute(
                f"SELECT {key} FROM {name} GROUP BY {key} HAVING count(*) > 1 LIMIT 1"
            ).fetchall()
            if repeated:
                yield Fault("keys", path, f"key ({key}) occurs twice: {repeated[0]}")
            yield from _check_values(path, table, rows)
        for rule, sql in _CHECKS.items():
            broken = connection.execute(f"SELECT * FROM ({sql}) LIMIT 3").fetchall()
            if broken:
                yield Fault("tables", "data", f"{rule}: {', '.join(str(r[0]) for r in broken)}")
        models = connection.execute(
            "SELECT dataset::VARCHAR, model_id::VARCHAR, n_filters FROM models"
        ).fetchall()
        counted = connection.execute(
            "SELECT (SELECT count(*) FROM models), (SELECT count(*) FROM pairs), count(*), "
            "coalesce(sum(n_filters), 0)::BIGINT FROM layers WHERE weights = 'folded'"
        ).fetchall()
    totals = tuple(manifest["totals"][k] for k in ("models", "pairs", "layers", "filters"))
    if counted != [totals]:
        yield Fault("counts", schema.MANIFEST, f"totals are {totals}, the tables hold {counted[0]}")
    yield from _check_filter_files(root, manifest, models)


def _check_values(path: str, table: schema.Table, rows: pa.Table) -> Iterator[Fault]:
    for column in table.columns:
        values = rows[column.name]
        if values.null_count and not column.nullable:
            yield Fault("values", path, f"column {column.name} has nulls")
        if pa.types.is_floating(column.type) and pc.any(pc.is_nan(values)).as_py():
            yield Fault("values", path, f"column {column.name} has NaN")


def _check_filter_files(root: Path, manifest: Manifest, models: list[Any]) -> Iterator[Fault]:
    """One filter file per model, in its place, with its rows and nobody else's."""
    if not filter_files(manifest):
        return  # a release of published values alone has no filters
    expected = {schema.filters_path(d, m): (d, m, n) for d, m, n in models}
    for path in manifest["files"]:
        if schema.filters_key(path) and path not in expected:
            yield Fault("filters", path, "belongs to no model")
    for path, (dataset, model_id, n_filters) in expected.items():
        if path not in manifest["files"]:
            yield Fault("filters", path, "is missing")
            continue
        with open_parquet(root / path) as file:
            meta = file.metadata
        if meta.num_rows != n_filters:
            yield Fault("filters", path, f"has {meta.num_rows} rows, models says {n_filters}")
        for group in (meta.row_group(i) for i in range(meta.num_row_groups)):
            for index, value in enumerate((dataset, model_id)):
                statistics = group.column(index).statistics
                if statistics is None or {statistics.min, statistics.max} != {value}:
                    yield Fault("filters", path, f"holds rows of other models than {model_id}")


def check_content(root: Path, manifest: Manifest, report: Report) -> Iterator[Fault]:
    """The content hash of every table is the manifest's, and filters are sorted by their key."""
    paths = dict(_tables(root, manifest))
    for i, path in enumerate(paths, 1):
        report("verify", "content", i, len(paths))
        filters = schema.filters_key(path) is not None
        total, previous = 0, -math.inf
        with open_parquet(root / path) as file:
            for batch in file.iter_batches(1 << 17):
                skip = content.FILTER_IDENTITY if filters else ()
                total = content.add(total, content.hash_rows(batch, skip))
                if filters:
                    key = _filter_key(batch)
                    if key[0] <= previous or (key[1:] <= key[:-1]).any():
                        yield Fault("order", path, "is not sorted by its key, or repeats one")
                        break
                    previous = key[-1]
        if content.text(total) != manifest["files"][path]["content_hash"]:
            yield Fault("content", path, "content hash is not the manifest's")


def _filter_key(batch: pa.RecordBatch) -> Any:
    layer, out, in_ = (
        batch[name].to_numpy().astype("int64")
        for name in ("layer_index", "out_channel", "in_channel")
    )
    return (layer << 32) | (out << 16) | in_


def check_sample(root: Path, manifest: Manifest) -> Iterator[Fault]:
    """The rows of filters_sample are rows of the filters."""
    from builder.release.reader import open_release
    from builder.release.views import open_views

    if schema.SAMPLE not in manifest["files"]:
        return
    with open_views(open_release(root)) as connection:
        connection.register("sample", pq.read_table(root / schema.SAMPLE))
        columns = ", ".join(schema.FILTERS.names)
        foreign = connection.execute(
            f"SELECT model_id FROM sample ANTI JOIN filters USING ({columns})"
        ).fetchall()
    if foreign:
        yield Fault("filters", schema.SAMPLE, f"{len(foreign)} rows are none of the filters")


def check_queries(root: Path, report: Report) -> Iterator[Fault]:
    """Every query runs, and what the audits recompute from the raw filters is what is stored."""
    from builder.release.reader import open_release
    from builder.release.views import open_views
    from builder.sql.catalog import list_queries
    from builder.sql.run import run_query

    queries = list_queries()
    with open_views(open_release(root)) as connection:
        for i, query in enumerate(queries, 1):
            report("verify", "queries", i, len(queries))
            try:
                for row in run_query(connection, query).rows():
                    if query.name.startswith("audit/") and row["within"] is False:
                        yield Fault("queries", query.name, f"differs from what is stored: {row}")
            except BuilderError as e:
                yield Fault("queries", query.name, str(e))
