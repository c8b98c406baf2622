"""What follows from the layers of a release, recomputed: models, bases, which histograms there are.

Written apart from builder/building/finish.py, as recompute.py is from builder/metrics/.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from builder import schema
from builder.check.recompute import TOLERANCE, Wrong, differs
from builder.release.manifest import Manifest
from builder.release.moments import Array, Moments, merge, unpack


def wrong_models(root: Path, manifest: Manifest) -> Wrong:
    """Rows of `models` that do not follow from `layers` and the manifest.

    What the cohort says of a model is in no other place of a release. Of `n_params` it holds the
    3x3 filters alone, so they are a lower bound.
    """
    path = schema.table_path("models")
    of_model: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for layer in pq.read_table(root / schema.table_path("layers")).to_pylist():
        of_model[layer["model_id"], layer["weights"]].append(layer)
    if not of_model:
        return  # published values, of which no release can hold the layers
    alike: dict[str, list[str]] = defaultdict(list)
    for model in pq.read_table(root / path).to_pylist():
        model_id = model["model_id"]
        facts: dict[str, Any] = {**manifest["models"].get(model_id, {})}
        path_of_filters = schema.filters_path(model["dataset"], model_id)
        filters_hash = manifest["files"][path_of_filters]["content_hash"] or ""
        alike[filters_hash].append(model_id)
        first = alike[filters_hash][0]
        expected = {
            **{name: facts.get(name) for name in _PROVENANCE},
            "n_layers": len(of_model[model_id, "folded"]),
            "filters_hash": filters_hash,
            "same_filters_as": None if first == model_id else first,
        }
        for view, suffix in schema.VIEW_SUFFIX.items():
            of_view = _model_metrics(of_model[model_id, view])
            expected |= {name + suffix: value for name, value in of_view.items()}
        for name, value in expected.items():
            if differs(model[name], value, schema.MODELS.column(name)):
                yield path, f"{model_id}: {name} is {model[name]}, the release gives {value}"
        if model["n_params"] is not None and model["n_params"] < 9 * model["n_filters"]:
            yield path, f"{model_id}: n_params is {model['n_params']}, less than its filters hold"
    if manifest["models"].keys() != {model_id for ids in alike.values() for model_id in ids}:
        yield schema.MANIFEST, "lists other models than the table `models`"
    if sorted(manifest["duplicates"]) != sorted(ids for ids in alike.values() if len(ids) > 1):
        yield schema.MANIFEST, "lists other duplicates than the filters show"


_PROVENANCE = ("source_url", "checkpoint_sha256", "checkpoint_bytes")


def _model_metrics(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Metrics of `models` in one view of the weights, from the rows of `layers` in that view."""
    names = ("n_sparse", "sparsity", "variance_entropy", "orthogonality")
    if any(layer["layer_linf"] is None for layer in layers):
        return dict.fromkeys(names)
    column = {name: np.array([layer[name] for layer in layers], float) for name in _WEIGHED}
    kept = column["n_filters"] - column["n_sparse"]
    known = ~np.isnan(column["orthogonality"])
    n_sparse = sum(layer["n_sparse"] for layer in layers)
    values = (
        n_sparse,
        n_sparse / float(column["n_filters"].sum()),
        _mean(column["variance_entropy"], kept),
        _mean(column["orthogonality"][known], column["out_channels"][known]),
    )
    return dict(zip(names, values, strict=True))


_WEIGHED = ("n_filters", "n_sparse", "out_channels", "variance_entropy", "orthogonality")


def _mean(values: Array, weights: Array) -> float | None:
    return float(values @ weights / weights.sum()) if weights.any() else None


def wrong_bases(root: Path) -> Wrong:
    """Bases of `pca` that do not follow from the moments in `layers`, are missing or too many."""
    path = schema.table_path("pca")
    columns = ["model_id", "robust", "threat_model"]
    models = pq.read_table(root / schema.table_path("models"), columns=columns).to_pylist()
    layers = pq.read_table(root / schema.table_path("layers")).to_pylist()
    if not layers:
        return  # published bases, of which no release can hold the moments
    of_model: dict[tuple[str, str], list[Moments]] = defaultdict(list)
    for layer in layers:
        if layer["layer_linf"] is not None:
            of_model[layer["model_id"], layer["weights"]].append(
                Moments(
                    layer["n_filters"] - layer["n_sparse"],
                    np.array(layer["mean"]),
                    unpack(np.array(layer["scatter"])),
                )
            )
    members = {m["model_id"]: [m["model_id"]] for m in models}
    members |= schema.unions((m["model_id"], m["robust"], m["threat_model"]) for m in models)
    totals = {
        (basis, view): merge(part for m in chosen for part in of_model[m, view])
        for basis, chosen in members.items()
        for view in schema.WEIGHT_VIEWS
    }
    stored: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(pq.read_table(root / path).to_pylist(), key=lambda r: int(r["component"])):
        stored[row["basis"], row["weights"]].append(row)
    for basis, view in sorted(stored.keys() | totals.keys()):
        rows, total = stored[basis, view], totals.get((basis, view))
        if total is None or [row["component"] for row in rows] != list(range(9)):
            yield path, f"basis {basis} ({view}) is incomplete, or is none of this release"
            continue
        for name in _wrong_columns(rows, total):
            yield path, f"basis {basis} ({view}): {name} does not follow from `layers`"


def _wrong_columns(rows: list[dict[str, Any]], total: Moments) -> Iterator[str]:
    """Columns of the nine rows of a basis that the moments of its filters contradict."""
    variances = np.clip(np.linalg.eigvalsh(total.scatter)[::-1], 0, None)
    spread = max(variances.sum(), 1e-300)
    if any(row["n_samples"] != total.n for row in rows):
        yield "n_samples"
    column = schema.PCA.column
    if any(differs(row["mean"], total.mean, column("mean")) for row in rows):
        yield "mean"
    for name, expected in (
        ("explained_variance", variances / max(total.n - 1, 1)),
        ("explained_variance_ratio", variances / spread),
    ):
        if differs(_column(rows, name), expected, column(name)):
            yield name
    vectors = [row["direction"] for row in rows]
    if None in vectors:
        yield "direction"
        return
    directions = np.array(vectors, float)
    orthonormal = np.abs(directions @ directions.T - np.eye(9)).max() <= TOLERANCE
    residual = np.abs(total.scatter @ directions.T - directions.T * variances).max()
    signed = (directions.max(axis=1) + directions.min(axis=1)).min() >= -TOLERANCE
    if not (orthonormal and residual <= TOLERANCE * spread and signed):
        yield "direction"


def _column(rows: list[dict[str, Any]], name: str) -> Array:
    """A column as an array; null is NaN."""
    return np.array([row[name] for row in rows], float)


def wrong_histograms(root: Path) -> Wrong:
    """Histograms that are missing, or too many; audit/histograms recomputes those that are there.

    A model has nine, one per component, in every depth bin that holds one of its layers.
    """
    path = schema.table_path("histograms")
    layers = pq.read_table(root / schema.table_path("layers"), columns=["model_id", "depth_bin"])
    bins = {(row["model_id"], row["depth_bin"]) for row in layers.to_pylist()}
    expected = {(*key, component): schema.N_BINS for key in bins for component in range(9)}
    key = ["model_id", "depth_bin", "component"]
    rows = pq.read_table(root / path, columns=[*key, "bin"]).group_by(key)
    stored = {
        (row["model_id"], row["depth_bin"], row["component"]): row["bin_count_distinct"]
        for row in rows.aggregate([("bin", "count_distinct")]).to_pylist()
    }
    for model_id, depth_bin, component in sorted(expected.keys() | stored.keys()):
        at = (model_id, depth_bin, component)
        if expected.get(at) != stored.get(at):
            yield (
                path,
                f"{model_id}, depth bin {depth_bin}, component {component}: "
                f"{stored.get(at, 0)} bins, expected {expected.get(at, 0)}",
            )
