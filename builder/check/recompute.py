"""Reference metrics recomputed from the stored filters with NumPy, for `verify --full`.

Written apart from builder/metrics/ and builder/building/finish.py on purpose, straight from the
definitions and without their shortcuts (everything in float64, every view from its own filters),
so that a mistake in one shows against the other. Tolerance: 1e-6 relative, and what
the schema says is rounding; what is exact there (counts, texts, largest weights) is exact here.

Layers follow from the filters; what follows from the layers is in derived.py.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from builder import schema
from builder.check.parallel import Step, in_parallel
from builder.progress import Report
from builder.release.moments import Array, pack, random_entropy
from builder.release.parquet import open_parquet
from builder.workers import HERE, Workers

Wrong = Iterator[tuple[str, str]]
"""(file, what is wrong with it)."""

TOLERANCE = 1e-6
"""Relative: two ways to sum differ by more than one way on two machines."""

_METRICS = tuple(
    column
    for column in schema.LAYERS.columns
    if column.nullable and column not in schema.LAYER_GRAPH and column.name != "reparametrized"
)

_COLUMNS = [*schema.FILTER_COLUMNS, "linf", "bn_scale"]

_BLOCK = 1 << 21
"""Entries of the matrix of cosines at a time."""


def layer_filters(
    path: Path, layers: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], NDArray[np.float32]]]:
    """Layer by layer: its row of `layers`, and the columns `_COLUMNS` of its filters, (11, n)."""
    parts: list[NDArray[np.float32]] = []
    have = 0
    with open_parquet(path) as file:
        batches = file.iter_batches(1 << 18, columns=_COLUMNS, use_threads=False)
        for row in sorted(layers, key=lambda r: int(r["layer_index"])):
            while have < row["n_filters"]:
                batch = next(batches)
                parts.append(np.stack([c.to_numpy() for c in batch.columns]))
                have += batch.num_rows
            over = have - row["n_filters"]
            rest = parts[-1][:, parts[-1].shape[1] - over :]
            parts[-1] = parts[-1][:, : parts[-1].shape[1] - over]
            yield row, np.concatenate(parts, axis=1)
            parts, have = [rest], over


@dataclass(frozen=True)
class _Channels:
    """The output channels of a layer, normalised: (n, k) float64; and their orthogonality."""

    unit: Array
    orthogonality: float | None


def recompute(filters: NDArray[np.float32], out_channels: int) -> dict[str, Any]:
    """Every metric of `layers` of one layer, (n, 9) float32 filters grouped by output channel.

    All None where a weight is NaN or infinite.
    """
    return _recompute(filters.T, out_channels, None)[0]


def _recompute(
    columns: NDArray[np.float32], out_channels: int, like: _Channels | None
) -> tuple[dict[str, Any], _Channels | None]:
    """Metrics of (9, n) filters, and their channels.

    `like` are channels whose orthogonality is known: where these are the same up to their signs,
    it is not computed again.
    """
    x = columns.astype(np.float64)
    n = x.shape[1]
    length = np.abs(x).max(axis=0)
    layer_linf = float(length.max())
    if not math.isfinite(layer_linf):
        return dict.fromkeys(column.name for column in _METRICS), None
    channels = _channels(x.reshape(9, out_channels, -1).swapaxes(0, 1).reshape(out_channels, -1))
    if like is None or not _alike(channels, like.unit):
        like = _Channels(channels, _orthogonality(channels))
    keep = length > layer_linf / 100
    clean = x if keep.all() else x[:, keep]
    n_kept = clean.shape[1]
    of_raw = _scatter(x)
    of_clean = of_raw if clean is x else _scatter(clean)
    scaled = clean / length[keep]
    of_scaled = _scatter(scaled)
    metrics: dict[str, Any] = {
        "layer_linf": layer_linf,
        "n_sparse": n - n_kept,
        "sparsity": (n - n_kept) / n,
        "orthogonality": like.orthogonality,
        "norm_l1": float(np.abs(x).sum(axis=0).mean()),
        "norm_l2": float(np.sqrt(np.square(x).sum(axis=0)).mean()),
        "mean": scaled.mean(axis=1) if n_kept else np.zeros(9),
        "scatter": pack(of_scaled),
        "explained_variance_ratio": _ratios(of_scaled),
    }
    for name, scatter, size in (
        ("variance_entropy", of_scaled, n_kept),
        ("variance_entropy_raw", of_raw, n),
        ("variance_entropy_raw_clean", of_clean, n_kept),
    ):
        entropy = -sum(p * math.log10(p) for p in _ratios(scatter) if p > 0)
        threshold = random_entropy(size)
        metrics[name] = entropy
        metrics[name + "_norm"] = None if threshold is None else entropy / threshold
    return metrics, like


def _scatter(x: Array) -> Array:
    """(9, 9), sum of the products about the mean of (9, n)."""
    if x.shape[1] == 0:
        return np.zeros((9, 9))
    # Relative to one of the filters: filters that do not vary then have no rounding left.
    x = x - x[:, :1]
    x -= x.mean(axis=1, keepdims=True)
    scatter: Array = x @ x.T
    return scatter


def _ratios(scatter: Array) -> Array:
    values = np.clip(np.linalg.eigvalsh(scatter)[::-1], 0, None)
    return values / values.sum() if values.sum() > 0 else np.zeros(9)


def _channels(rows: Array) -> Array:
    """(n, k) rows, normalised; zeros stay."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Array = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return unit


def _alike(unit: Array, other: Array) -> bool:
    """Whether normalised rows are the same up to their signs, zeros included, to 2e-7."""
    cosines = np.abs(np.einsum("ij,ij->i", unit, other))
    zeros = ~unit.any(axis=1) & ~other.any(axis=1)
    return bool(((cosines >= 1 - 2e-14) | zeros).all())


def _orthogonality(unit: Array) -> float | None:
    """1 - sum |U U^T - I| / (n (n - 1)) of (n, k) normalised rows; None for n = 1."""
    n = len(unit)
    if n == 1:
        return None
    total = 0.0
    step = max(1, _BLOCK // n)
    for start in range(0, n, step):
        # The cosines right of the diagonal block stand for those below it, too.
        cosines = unit[start : start + step] @ unit[start:].T
        here = np.arange(len(cosines))
        cosines[here, here] -= 1
        np.abs(cosines, out=cosines)
        total += float(2 * cosines.sum() - cosines[:, : len(cosines)].sum())
    return 1 - total / (n * (n - 1))


def differs(found: Any, expected: Any, column: schema.Column) -> bool:
    """Whether a stored value is not the expected one of its column; NaN is never."""
    if column.tolerance == schema.EXACT or found is None or expected is None:
        return bool(found != expected)
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    allowed = TOLERANCE * np.abs(expected).max() + column.tolerance.absolute
    return not np.abs(found - expected).max() <= allowed


def wrong_metrics(root: Path, report: Report, workers: Workers = HERE) -> Wrong:
    """Numbers of `layers`, and `linf` of filters, that do not follow from the stored filters."""
    rows = pq.read_table(root / schema.table_path("layers")).to_pylist()
    by_model: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        path = schema.filters_path(row["dataset"], row["model_id"])
        by_model[path][row["weights"]].append(row)

    def one(path: str, step: Step) -> Wrong:
        views = by_model[path]
        stored = {(r["layer_index"], r["weights"]): r for v in views.values() for r in v}
        right = True
        for row, columns in layer_filters(root / path, views["trained"]):
            with np.errstate(over="ignore", invalid="ignore"):
                if right and not _is_linf(columns):
                    right = False
                    yield path, "linf is not max |w| of its filter"
                channels = None
                for view, scale in (("trained", None), ("folded", columns[10])):
                    weights = columns[:9] if scale is None else columns[:9] * scale
                    found, channels = _recompute(weights, row["out_channels"], channels)
                    yield from _contradicted(path, stored[row["layer_index"], view], found)
            step(row["n_filters"])

    total = sum(row["n_filters"] for row in rows if row["weights"] == "trained")
    yield from in_parallel(one, by_model, report, "metrics", total, workers)


def _contradicted(path: str, stored: dict[str, Any], found: dict[str, Any]) -> Wrong:
    for column in _METRICS:
        name = column.name
        if differs(stored[name], found[name], column):
            yield (
                path,
                f"layer {stored['layer']} ({stored['weights']}): {name} is {stored[name]}, "
                f"its filters give {found[name]}",
            )


def _is_linf(columns: NDArray[np.float32]) -> bool:
    return np.array_equal(np.abs(columns[:9]).max(axis=0), columns[9], equal_nan=True)
