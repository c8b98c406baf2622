"""Reference metrics recomputed from the stored filters with NumPy, for `verify --full`.

Written apart from builder/measure.py on purpose, straight from the definitions and without its
shortcuts (everything in float64, covariances by numpy.cov, the whole matrix of cosines), so that
a mistake in one shows against the other. Tolerance: 1e-6 relative; counts are exact.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from builder import schema
from builder.moments import Array, Moments, merge, pack, random_entropy, unpack

Wrong = Iterator[tuple[str, str]]
"""(file, what is wrong with it)."""

TOLERANCE = 1e-6


def layer_filters(
    path: Path, layers: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], NDArray[np.float32], NDArray[np.float32]]]:
    """Layer by layer: its row of `layers`, its filters (n, 9) and their bn_scale (n,), float32."""
    columns = [*schema.FILTER_COLUMNS, "bn_scale"]
    pending: list[NDArray[np.float32]] = []
    with pq.ParquetFile(path) as file:
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
        return {"layer_linf": None}
    keep = length > layer_linf / 100
    clean = x[keep]
    scaled = clean / length[keep, None]
    n_kept = len(clean)
    metrics: dict[str, Any] = {
        "layer_linf": layer_linf,
        "n_sparse": n - n_kept,
        "sparsity": 1 - n_kept / n,
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
    return float(1 - np.abs(unit @ unit.T - np.eye(n)).sum() / (n * (n - 1)))


def _differs(found: Any, expected: Any) -> bool:
    if found is None or expected is None:
        return (found is None) != (expected is None)
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    scale = max(np.abs(expected).max(), 1e-12)
    return bool(np.abs(found - expected).max() > TOLERANCE * scale)


def wrong_metrics(root: Path, report: Callable[[str, int, int], None]) -> Wrong:
    """Numbers of `layers`, and `linf` of filters, that do not follow from the stored filters."""
    rows = pq.read_table(root / schema.table_path("layers")).to_pylist()
    by_model: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in rows:
        by_model[row["dataset"], row["model_id"]][row["weights"]].append(row)
    for i, ((dataset, model_id), views) in enumerate(by_model.items(), 1):
        report("metrics", i, len(by_model))
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
                    for name, value in recompute(values, row["out_channels"]).items():
                        if _differs(have[name], value):
                            yield (
                                path,
                                f"layer {row['layer']} ({view}): {name} is {have[name]}, "
                                f"its filters give {value}",
                            )


def _wrong_linf(root: Path, path: str) -> Wrong:
    with pq.ParquetFile(root / path) as file:
        for batch in file.iter_batches(1 << 18, columns=[*schema.FILTER_COLUMNS, "linf"]):
            *coefficients, linf = (c.to_numpy() for c in batch.columns)
            largest = np.abs(coefficients[0])
            for values in coefficients[1:]:
                np.maximum(largest, np.abs(values), out=largest)
            if not np.array_equal(largest, linf, equal_nan=True):
                yield (path, "linf is not max |w| of its filter")
                return


def wrong_bases(root: Path) -> Wrong:
    """Bases of `pca` that do not follow from the moments in `layers`."""
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
    members = {"full": list(robust)} | {model_id: [model_id] for model_id in robust}
    members["robust"] = [m for m in robust if robust[m]]
    members["standard"] = [m for m in robust if not robust[m]]
    totals = {
        (basis, view): merge(part for m in models for part in of_model[m, view])
        for basis, models in members.items()
        for view in schema.WEIGHT_VIEWS
    }
    for row in pq.read_table(root / path).to_pylist():
        total = totals[row["basis"], row["weights"]]
        direction = np.array(row["direction"])
        variance = row["explained_variance"] * max(total.n - 1, 1)
        residual = total.scatter @ direction - variance * direction
        spread = max(np.trace(total.scatter), 1e-300)
        if (
            total.n != row["n_samples"]
            or _differs(row["mean"], total.mean)
            or np.abs(residual).max() > TOLERANCE * spread
            or abs(np.linalg.norm(direction) - 1) > TOLERANCE
        ):
            where = f"basis {row['basis']} ({row['weights']}), component {row['component']}"
            yield (path, f"{where} does not follow from `layers`")
