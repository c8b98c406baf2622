"""A tiny release with random numbers in every table: right in form, meaningless in content.

Its cohort is called `synthetic-tiny`; rows for every column come from builder.schema, and the one
writer of the tests' releases, synthetic_release.py, makes the folder.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from synthetic_release import sampled, write_tables

from builder import schema
from builder.files import file_sha256, write_atomic
from builder.release import content
from builder.release.card import render_card
from builder.release.manifest import file_facts, read_manifest, write_manifest
from builder.release.split import with_splits
from builder.release.texts import seal
from builder.release.write import write_table

LAYERS = (("conv1", 8, 3), ("layer1.0.conv1", 8, 8), ("layer1.0.conv2", 16, 8))
"""Module path, output channels, input channels."""


@dataclass(frozen=True)
class Tiny:
    network: str
    dataset: str = "cifar10"
    robust: bool = True
    partner: str | None = None
    seed: int = 0

    @property
    def model_id(self) -> str:
        return schema.model_id(self.dataset, self.robust, self.network)

    def rng(self, salt: str) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(f"{self.model_id}/{self.seed}/{salt}".encode()))


MODELS = (
    Tiny("Alpha", partner="Plain"),
    Tiny("Beta", partner="Plain"),
    Tiny("Plain", robust=False),
    Tiny("Gamma", "cifar100", partner="Plain"),
    Tiny("Plain", "cifar100", robust=False),
)


def _value(column: schema.Column, rng: np.random.Generator) -> Any:
    """A random value of the column's type."""
    if pa.types.is_dictionary(column.type) or pa.types.is_string(column.type):
        return f"synthetic-{int(rng.integers(10))}"
    if pa.types.is_boolean(column.type):
        return bool(rng.integers(2))
    if pa.types.is_integer(column.type):
        return int(rng.integers(10))
    if pa.types.is_floating(column.type):
        return float(np.float32(rng.random()))
    return [float(v) for v in rng.random(column.type.list_size)]


def _row(table: schema.Table, rng: np.random.Generator, **known: Any) -> dict[str, Any]:
    return {c.name: known[c.name] if c.name in known else _value(c, rng) for c in table.columns}


def filters(model: Tiny) -> pa.Table:
    """The filters table of one model, sorted as the schema says."""
    parts: list[pa.Table] = []
    for index, (_, outs, ins) in enumerate(LAYERS):
        rng = model.rng(f"layer{index}")
        n = outs * ins
        w = rng.normal(size=(n, 9)).astype(np.float32)
        scale = np.repeat(rng.normal(size=outs).astype(np.float32), ins)
        columns: dict[str, Any] = {
            "dataset": pa.array([model.dataset] * n).dictionary_encode(),
            "model_id": pa.array([model.model_id] * n).dictionary_encode(),
            "layer_index": np.full(n, index, np.int16),
            "out_channel": np.repeat(np.arange(outs, dtype=np.int16), ins),
            "in_channel": np.tile(np.arange(ins, dtype=np.int16), outs),
            **{c: w[:, i] for i, c in enumerate(schema.FILTER_COLUMNS)},
            "linf": np.abs(w).max(axis=1),
            "bn_scale": scale,
        }
        parts.append(pa.table(columns, schema=schema.FILTERS.arrow))
    return pa.concat_tables(parts).unify_dictionaries().combine_chunks()


def _rows(name: str, models: tuple[Tiny, ...]) -> list[dict[str, Any]]:
    table = schema.TABLES[name]
    everything = Tiny("+".join(m.model_id for m in models), seed=sum(m.seed for m in models))
    rows: list[dict[str, Any]] = []
    for m in models:
        rng = m.rng(name)
        about: dict[str, Any] = {
            "model_id": m.model_id,
            "dataset": m.dataset,
            "robust": m.robust,
            "network": m.network,
            "architecture": "Tiny-3",
            "license": "CC0-1.0",
            "source": "embedded",
            "source_url": "embedded:synthetic",
            "paper_url": f"https://example.org/{m.network}",
            "title": f"Synthetic {m.network}",
            "filters_hash": f"synthetic {m.model_id}",
            "same_filters_as": None,
            "n_layers": len(LAYERS),
            "n_filters": sum(o * i for _, o, i in LAYERS),
        }
        if name == "models":
            rows.append(_row(table, rng, **about))
        elif name == "pairs" and m.partner:
            other = schema.model_id(m.dataset, False, m.partner)
            rows.append(
                _row(table, rng, **about, robust_model_id=m.model_id, standard_model_id=other)
            )
        elif name == "layers":
            for index, (layer, outs, ins) in enumerate(LAYERS):
                for view in schema.WEIGHT_VIEWS:
                    known = {
                        **about,
                        "layer_index": index,
                        "layer": layer,
                        "weights": view,
                        "out_channels": outs,
                        "in_channels": ins,
                        "n_filters": outs * ins,
                        "depth_bin": index,
                        "n_sparse": index,
                        "variance_entropy": 0.9 * float(rng.random()),
                        "bn_layer": None if index else "bn1",
                    }
                    rows.append(_row(table, rng, **known))
        elif name == "first_layer":
            for channel in (None, 0, 1):
                known = {"layer": "conv1", "perturbation": "random", "out_channel": channel}
                rows.append(_row(table, rng, **about, **known))
        elif name == "histograms":
            source = everything.rng(m.model_id)  # the range of the bins depends on all models
            for number in range(4):
                known = {"depth_bin": 0, "component": 0, "bin": number, "n": 6}  # 24 filters
                rows.append(_row(table, source, **about, **known))
        elif name == "pca":
            for component in range(9):
                known = {"basis": m.model_id, "weights": "folded", "component": component}
                rows.append(_row(table, rng, **known))
    if name == "pca":
        for basis in ("full", "robust", "standard"):
            rng = everything.rng(basis)
            for component in range(9):
                known = {"basis": basis, "weights": "folded", "component": component}
                rows.append(_row(table, rng, **known))
    if name == "paper":
        rng = np.random.default_rng(0)
        known = {"finding": "synthetic", "source": "nowhere", "method": "printed"}
        rows += [_row(table, rng, **known, keys=f"k={i}") for i in range(3)]
    return with_splits(rows, _rows("pairs", models)) if name == "models" else rows


def _facts(root: Path, path: Path) -> dict[str, Any]:
    """What the manifest records of a table that a test has changed."""
    data = pq.ParquetFile(path).read()
    filters = schema.filters_key(path.relative_to(root).as_posix()) is not None
    skip = content.FILTER_IDENTITY if filters else ()
    return {
        "rows": data.num_rows,
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        "content_hash": content.text(content.hash_rows(data, skip)),
    }


def write_tiny_release(
    root: Path,
    version: str = "0.1.0",
    models: tuple[Tiny, ...] = MODELS,
    weights: str = "checkpoints",
) -> Path:
    """Write the release and return `root`. The same arguments write the same content."""
    write_tables(
        root,
        {
            name: pa.Table.from_pylist(_rows(name, models), schema=schema.TABLES[name].arrow)
            for name in schema.SMALL_TABLES
        },
        {schema.filters_path(m.dataset, m.model_id): filters(m) for m in models},
        cohort="synthetic-tiny",
        weights=weights,
    )
    manifest = read_manifest(root)
    manifest["name"], manifest["version"] = "robust-filter-lens", version
    manifest["cohort"]["digest"] = "0" * 64
    manifest["tools"] = {"builder": "0.1.0", "python": "3.11", "pyarrow": pa.__version__}
    manifest["totals"] |= {
        "layers": len(LAYERS) * len(models),
        "filters": sum(o * i for _, o, i in LAYERS) * len(models),
    }
    manifest["models"] = {
        m.model_id: {
            "source_url": "embedded:synthetic",
            "checkpoint_urls": [],
            "checkpoint_bytes": 1,
            "checkpoint_sha256": "0" * 64,
        }
        for m in models
    }
    ordered = sorted(models, key=lambda m: schema.filters_path(m.dataset, m.model_id))
    sample = pa.concat_tables([sampled(filters(m)) for m in ordered]).unify_dictionaries()
    manifest["files"][schema.SAMPLE] = write_table(
        root / schema.SAMPLE, schema.FILTERS, sample, weights
    )
    count = b"SELECT count(*) AS n FROM filters ORDER BY n;\n"
    write_atomic(root / "queries/count.sql", count)
    manifest["files"]["queries/count.sql"] = file_facts(count)
    write_atomic(root / schema.CARD, seal(render_card(manifest, root)))
    write_manifest(root, manifest)
    return root
