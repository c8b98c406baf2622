"""Reference metrics recomputed from the stored filters with NumPy, for `verify --full`.

Written apart from builder/metrics/ and builder/building/finish.py on purpose, straight from the
definitions and without their shortcuts (everything in float64, covariances by numpy.cov, every
cosine twice), so that a mistake in one shows against the other. Tolerance: 1e-6 relative, and what
the schema says is rounding; what is exact there (counts, texts, largest weights) is exact here.

Layers follow from the filters; models and bases follow from the layers.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from builder import schema
from builder.progress import Report
from builder.release.manifest import Manifest
from builder.release.moments import Array, Moments, merge, pack, random_entropy, unpack
from builder.release.parquet import open_parquet

Wrong = Iterator[tuple[str, str]]
"""(file, what is wrong with it)."""

TOLERANCE = 1e-6
"""Relative: two ways to sum differ by more than one way on two machines."""

_METRICS = tuple(
    column
    for column in schema.LAYERS.columns
    if column.nullable and column not in schema.LAYER_GRAPH and column.name != "reparametrized"
)

_BLOCK = 1 << 21
"""Entries of the matrix of cosines at a time."""


def layer_filters(
    path: Path, layers: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], NDArray[np.float32], NDArray[np.float32]]]:
    """Layer by layer: its row of `layers`, its filters (n, 9) and their bn_scale (n,), float32."""
    columns = [*schema.FILTER_COLUMNS, "bn_scale"]
    pending: list[NDArray[np.float32]] = []
    with open_parquet(path) as file:
        batches = file.iter_batches(1 << 18, columns=columns)
        for row in sorted(layers, key=lambda r: int(r["layer_index"])):
            have = sum(len(p) for p in pending)
            while have < row["n_filters"]:
                batch = next(batches)
                pending.append(np.stack([c.to_numpy() for c in batch.columns], axis=1))
                have += batch.num_rows
            rows = np.concatenate(pending)
            pending = [rows[row["n_filters"] :]]
            rows = rows[: row["n_filters"]]
            yield row, rows[:, :9], rows[:, 9]


def recompute(filters: NDArray[np.float32], out_channels: int) -> dict[str, Any]:
    """Every metric of `layers` of one layer, (n, 9) float32 filters grouped by output channel.

    All None where a weight is NaN or infinite.
    """
    x = filters.astype(np.float64)
    n = len(x)
    length = np.abs(x).max(axis=1)
    layer_linf = float(length.max())
    if not math.isfinite(layer_linf):
        return dict.fromkeys(column.name for column in _METRICS)
    keep = length > layer_linf / 100
    clean = x[keep]
    scaled = clean / length[keep, None]
    n_kept = len(clean)
    metrics: dict[str, Any] = {
        "layer_linf": layer_linf,
        "n_sparse": n - n_kept,
        "sparsity": (n - n_kept) / n,
        "orthogonality": _orthogonality(x.reshape(out_channels, -1)),
        "norm_l1": float(np.abs(x).sum(axis=1).mean()),
        "norm_l2": float(np.linalg.norm(x, axis=1).mean()),
        "mean": scaled.mean(axis=0) if n_kept else np.zeros(9),
        "scatter": pack(_scatter(scaled)),
        "explained_variance_ratio": _ratios(scaled),
    }
    for name, sample in (
        ("variance_entropy", scaled),
        ("variance_entropy_raw", x),
        ("variance_entropy_raw_clean", clean),
    ):
        ratios = _ratios(sample)
        entropy = -sum(p * math.log10(p) for p in ratios if p > 0)
        threshold = random_entropy(len(sample))
        metrics[name] = entropy
        metrics[name + "_norm"] = None if threshold is None else entropy / threshold
    return metrics


def _scatter(x: Array) -> Array:
    if len(x) == 0:
        return np.zeros((9, 9))
    # Relative to one of the filters: filters that do not vary then have no rounding left.
    return np.cov(x - x[0], rowvar=False, bias=True) * len(x)


def _ratios(x: Array) -> Array:
    values = np.clip(np.linalg.eigvalsh(_scatter(x))[::-1], 0, None)
    return values / values.sum() if values.sum() > 0 else np.zeros(9)


def _orthogonality(rows: Array) -> float | None:
    n = len(rows)
    if n == 1:
        return None
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    total = 0.0
    step = max(1, _BLOCK // n)
    for start in range(0, n, step):
        cosines = unit[start : start + step] @ unit.T
        cosines[np.arange(len(cosines)), np.arange(start, start + len(cosines))] -= 1
        total += float(np.abs(cosines).sum())
    return 1 - total / (n * (n - 1))


def _differs(found: Any, expected: Any, column: schema.Column) -> bool:
    """Whether a stored value is not the expected one of its column; NaN is never."""
    if column.tolerance == schema.EXACT or found is None or expected is None:
        return bool(found != expected)
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    allowed = TOLERANCE * np.abs(expected).max() + column.tolerance.absolute
    return not np.abs(found - expected).max() <= allowed


def wrong_metrics(root: Path, report: Report) -> Wrong:
    """Numbers of `layers`, and `linf` of filters, that do not follow from the stored filters."""
    rows = pq.read_table(root / schema.table_path("layers")).to_pylist()
    by_model: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in rows:
        by_model[row["dataset"], row["model_id"]][row["weights"]].append(row)
    for i, ((dataset, model_id), views) in enumerate(by_model.items(), 1):
        report("verify", "metrics", i, len(by_model))
        path = schema.filters_path(dataset, model_id)
        stored = {(r["layer_index"], r["weights"]): r for v in views.values() for r in v}
        with np.errstate(over="ignore", invalid="ignore"):
            yield from _wrong_linf(root, path)
            for row, filters, scale in layer_filters(root / path, views["trained"]):
                for view, values in (
                    ("trained", filters),
                    ("folded", filters * scale[:, None]),
                ):
                    have = stored[row["layer_index"], view]
                    found = recompute(values, row["out_channels"])
                    for column in _METRICS:
                        name = column.name
                        if _differs(have[name], found[name], column):
                            yield (
                                path,
                                f"layer {row['layer']} ({view}): {name} is {have[name]}, "
                                f"its filters give {found[name]}",
                            )


def _wrong_linf(root: Path, path: str) -> Wrong:
    with open_parquet(root / path) as file:
        for batch in file.iter_batches(1 << 18, columns=[*schema.FILTER_COLUMNS, "linf"]):
            *coefficients, linf = (c.to_numpy() for c in batch.columns)
            largest = np.abs(coefficients[0])
            for values in coefficients[1:]:
                np.maximum(largest, np.abs(values), out=largest)
            if not np.array_equal(largest, linf, equal_nan=True):
                yield (path, "linf is not max |w| of its filter")
                return


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
            if _differs(model[name], value, schema.MODELS.column(name)):
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
    table = pq.read_table(root / schema.table_path("models"), columns=["model_id", "robust"])
    robust: dict[str, bool] = {m["model_id"]: m["robust"] for m in table.to_pylist()}
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
    members = {model_id: [model_id] for model_id in robust}
    for union in schema.UNIONS:
        members[union] = [m for m in robust if schema.in_union(union, robust[m])]
    totals = {
        (basis, view): merge(part for m in models for part in of_model[m, view])
        for basis, models in members.items()
        if models
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
    if any(_differs(row["mean"], total.mean, column("mean")) for row in rows):
        yield "mean"
    for name, expected in (
        ("explained_variance", variances / max(total.n - 1, 1)),
        ("explained_variance_ratio", variances / spread),
    ):
        if _differs(_column(rows, name), expected, column(name)):
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
