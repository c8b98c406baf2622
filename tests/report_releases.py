"""Releases to look at: of the paper's size, of many models, of odd names, with parts missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from synthetic_release import sampled, write_tables

from builder import schema
from builder.cohort.registry import load_cohort
from builder.paper.published import paper_table
from builder.paper.reference import model_rows
from builder.release.manifest import FileFacts, read_manifest, write_manifest
from builder.release.write import table_from_rows, write_table

Rows = list[dict[str, Any]]

ODD_NAMES = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</script><!--<script>",
    "网络 模型",
    "شبكة",
    "{{ 7 * 7 }}",
)
"""Names that a page must show as they are."""


def model(dataset: str, robust: bool, network: str, **more: Any) -> dict[str, Any]:
    """A row of `models`."""
    return {
        "model_id": schema.model_id(dataset, robust, network),
        "network": network,
        "dataset": dataset,
        "robust": robust,
        "architecture": "Net-1",
        "constructor": "none:none",
        "source": "file",
        "n_layers": 2,
        "n_filters": 48,
        "group": schema.model_id(dataset, robust, network),
        "split": "train",
        **more,
    }


def pair(dataset: str, network: str) -> dict[str, Any]:
    """A row of `pairs`: networks of one name."""
    return {
        "robust_model_id": schema.model_id(dataset, True, network),
        "standard_model_id": schema.model_id(dataset, False, network),
        "dataset": dataset,
        "architecture": "Net-1",
    }


def layer_rows(row: dict[str, Any], n_layers: int, rng: np.random.Generator) -> Rows:
    """Rows of `layers` of a model, with random metrics; the first layer takes three channels."""
    rows = []
    for view in schema.WEIGHT_VIEWS:
        for i in range(n_layers):
            depth = i / max(n_layers - 1, 1)
            rows.append(
                {
                    "dataset": row["dataset"],
                    "model_id": row["model_id"],
                    "layer_index": i,
                    "layer": f"layer{i}.conv",
                    "weights": view,
                    "conv_depth": i,
                    "conv_depth_norm": depth,
                    "depth_bin": 0 if i == 0 else max(1, int(np.ceil(depth * 10))),
                    "out_channels": 64,
                    "in_channels": 3 if i == 0 else 64,
                    "groups": 1,
                    "stride": 1,
                    "n_filters": 192 if i == 0 else 4096,
                    "n_sparse": int(rng.integers(0, 190)),
                    "sparsity": float(rng.random()),
                    "variance_entropy": float(rng.random()),
                    "orthogonality": float(rng.random()),
                }
            )
    return rows


def basis_rows(basis: str, rng: np.random.Generator) -> Rows:
    """Rows of `pca` of one basis, both views."""
    rows = []
    for view in schema.WEIGHT_VIEWS:
        directions, _ = np.linalg.qr(rng.normal(size=(9, 9)))
        ratios = np.sort(rng.dirichlet(np.ones(9)))[::-1]
        rows += [
            {
                "basis": basis,
                "weights": view,
                "component": i,
                "n_samples": 1000,
                "explained_variance": float(ratios[i]),
                "explained_variance_ratio": float(ratios[i]),
                "direction": directions[i].tolist(),
                "mean": [0.0] * 9,
            }
            for i in range(9)
        ]
    return rows


def response_rows(row: dict[str, Any], rng: np.random.Generator) -> Rows:
    """Rows of `first_layer` of a model: 64 channels, two perturbations."""
    return [
        {
            "dataset": row["dataset"],
            "model_id": row["model_id"],
            "layer": "layer0.conv",
            "perturbation": perturbation,
            "out_channel": channel,
            "eps": 8 / 255,
            "n_images": 3,
            "response_pre": float(rng.random()),
            "response_post": float(rng.random()),
            "activation_pass": float(rng.random()),
        }
        for perturbation in ("random", "pgd")
        for channel in (None, *range(64))
    ]


def histogram_table(rows: Rows, bins: int, rng: np.random.Generator) -> pa.Table:
    """`histograms` of some models, whose filters fall anywhere."""
    n_models, shape = len(rows), (len(rows), bins, 9, schema.N_BINS)
    at = np.indices(shape).reshape(4, -1)
    edges = np.linspace(-3, 3, schema.N_BINS + 1)
    columns = {
        "dataset": pa.array([r["dataset"] for r in rows]).take(pa.array(at[0])),
        "model_id": pa.array([r["model_id"] for r in rows]).take(pa.array(at[0])),
        "depth_bin": at[1],
        "component": at[2],
        "bin": at[3],
        "bin_low": edges[at[3]],
        "bin_high": edges[at[3] + 1],
        "n": rng.integers(0, 1000, n_models * bins * 9 * schema.N_BINS),
    }
    return pa.table(columns).cast(schema.HISTOGRAMS.arrow)


def filter_table(row: dict[str, Any], keys: list[tuple[int, int, int]], seed: int) -> pa.Table:
    """Rows of `filters` at the given (layer, output channel, input channel)."""
    w = np.random.default_rng(seed).normal(size=(len(keys), 9)).astype(np.float32)
    layer, out, into = np.array(keys, np.int16).T
    columns = {
        "dataset": pa.array([row["dataset"]] * len(keys)),
        "model_id": pa.array([row["model_id"]] * len(keys)),
        "layer_index": layer,
        "out_channel": out,
        "in_channel": into,
        **{name: w[:, i] for i, name in enumerate(schema.FILTER_COLUMNS)},
        "linf": np.abs(w).max(axis=1),
        "bn_scale": np.full(len(keys), 0.5, np.float32),
    }
    return pa.table(columns).cast(schema.FILTERS.arrow)


def write(root: Path, tables: dict[str, Rows | pa.Table], **about: Any) -> Path:
    """A release of rows or Arrow tables."""
    made = {
        name: table_from_rows(schema.TABLES[name], rows) if isinstance(rows, list) else rows
        for name, rows in tables.items()
    }
    return write_tables(root, {"paper": paper_table(), **made}, about.pop("filters", {}), **about)


def write_paper_size(root: Path) -> Path:
    """Seeded rows of the paper cohort: every table at full size, of the filters the first layers.

    The sample is whole too, so that the page has the size of a full release's.
    """
    rng = np.random.default_rng(0)
    models = [{**r, "n_params": 1} for r in model_rows(load_cohort("paper"))]
    for row in models:
        for suffix in schema.VIEW_SUFFIX.values():
            row |= {
                f"{name}{suffix}": float(rng.random())
                for name in ("sparsity", "variance_entropy", "orthogonality")
            }
    unions = [b for basis in schema.UNIONS for b in basis_rows(basis, rng)]
    with_first = [r for r in models if r["dataset"] != "imagenet"]
    channels = [(0, o, i) for o in range(64) for i in range(3)]
    write(
        root,
        {
            "models": models,
            "pairs": load_cohort("paper").pair_rows(),
            "layers": [x for r in models for x in layer_rows(r, r["n_layers"], rng)],
            "pca": unions + [b for r in models for b in basis_rows(r["model_id"], rng)],
            "histograms": histogram_table(models, 11, rng),
            "first_layer": [x for r in models for x in response_rows(r, rng)],
        },
        filters={
            schema.filters_path(r["dataset"], r["model_id"]): filter_table(r, channels, 0)
            for r in with_first
        },
        cohort="paper",
        weights="seeded:0",
    )
    parts = [
        filter_table(r, [(layer, o, 0) for layer in range(r["n_layers"]) for o in range(8)], 1)
        for r in models
    ]
    return _add_sample(root, pa.concat_tables(parts).unify_dictionaries())


def with_sample(root: Path) -> Path:
    """A release with its sample of filters, as a build ends."""
    files = sorted((root / "data/filters").rglob("*.parquet"))
    table = pa.concat_tables([sampled(pq.read_table(f)) for f in files]).unify_dictionaries()
    return _listed(root, write_table(root / schema.SAMPLE, schema.FILTERS, table, "checkpoints"))


def _add_sample(root: Path, table: pa.Table) -> Path:
    return _listed(root, write_table(root / schema.SAMPLE, schema.FILTERS, table, "seeded:0"))


def _listed(root: Path, facts: FileFacts) -> Path:
    manifest = read_manifest(root)
    files = {**manifest["files"], schema.SAMPLE: facts}
    write_manifest(root, {**manifest, "files": files})
    return root


def write_many(root: Path, n: int) -> Path:
    """n models in n / 2 pairs, of two layers each."""
    rng = np.random.default_rng(0)
    names = [f"net{i:04d}" for i in range(n // 2)]
    models = [
        model("cifar10", robust, name, autoattack_acc=float(50 * rng.random()) * robust)
        | {"sparsity": float(rng.random()), "clean_acc": 90.0}
        for name in names
        for robust in (True, False)
    ]
    return write(
        root,
        {
            "models": models,
            "pairs": [pair("cifar10", name) for name in names],
            "layers": [x for r in models for x in layer_rows(r, 2, rng)],
            "pca": [b for r in models for b in basis_rows(r["model_id"], rng)],
        },
    )


def write_odd(root: Path) -> Path:
    """Models whose names are markup or of other scripts, in pairs, with layers."""
    rng = np.random.default_rng(0)
    models = [
        model(
            "<b>set</b>",
            robust,
            name,
            title=name,
            authors="A & B",
            paper_url="javascript:alert(3)",
            source_url="https://example.org/<x>",
            sparsity=0.5,
            autoattack_acc=40.0 + i,
        )
        for i, name in enumerate(ODD_NAMES)
        for robust in (True, False)
    ]
    return write(
        root,
        {
            "models": models,
            "pairs": [pair("<b>set</b>", name) for name in ODD_NAMES],
            "layers": [x for r in models for x in layer_rows(r, 3, rng)],
            "pca": [b for r in models for b in basis_rows(r["model_id"], rng)],
        },
    )
