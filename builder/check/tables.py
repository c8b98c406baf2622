"""Are the tables of a release of one piece: their columns, keys, references, ranges and counts?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder import schema
from builder.check.fault import Fault
from builder.release import split
from builder.release.manifest import Manifest, filter_files
from builder.release.parquet import open_parquet
from builder.release.views import connect


def stored_tables(root: Path, manifest: Manifest) -> Iterator[tuple[str, schema.Table]]:
    """(path, table) of every Parquet file of the manifest that holds a known table."""
    for path in sorted(manifest["files"]):
        if table := schema.table_at(path):
            yield path, table


def check_schemas(root: Path, manifest: Manifest) -> Iterator[Fault]:
    """Every table file has its table's columns and types, the manifest's rows, our metadata."""
    tables = dict(stored_tables(root, manifest))
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
        yield from _check_splits(root)
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


def _check_splits(root: Path) -> Iterator[Fault]:
    """Groups and splits are those that follow from the models and their pairs."""
    path = schema.table_path("models")
    models, pairs = (
        pq.read_table(root / schema.table_path(name)).to_pylist() for name in ("models", "pairs")
    )
    expected = split.assign(models, pairs)
    for model in models:
        for column, value in expected[model["model_id"]].items():
            if model[column] != value:
                said = f"{column} is {model[column]}, the models give {value}"
                yield Fault("tables", path, f"{model['model_id']}: {said}")


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
