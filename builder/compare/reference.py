"""What a network is compared with: published values, or the rows of a release.

A population holds one number per (depth bin, pair member), as in the paper's depth figures, and one
per model. The paper published quartiles of the first and every number of the second; a release
has every number of both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from builder import schema
from builder.cohort.registry import load_cohort
from builder.csvfile import read_csv
from builder.errors import UsageError
from builder.paper.published import read_published
from builder.release.moments import Array
from builder.release.reader import Release, open_release

KINDS = ("robust", "standard")
DEPTH_METRICS = ("sparsity", "variance_entropy", "orthogonality")
_READING = {"variance_entropy": "weighted by filters"}
"""Which of two published figures is meant: the one that weighs layers as its text says."""


@dataclass(frozen=True)
class Box:
    """Quartiles of `n` numbers; `values` holds them all, where they are known."""

    n: int
    q1: float
    median: float
    q3: float
    values: Array | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Basis:
    """A PCA basis: explained variance ratios (9,) and unit rows (9, 9)."""

    ratios: Array
    directions: Array

    @property
    def entropy(self) -> float:
        """Entropy, log base 10, of the ratios; 0 log 0 = 0 (paper section 3)."""
        kept = self.ratios[self.ratios > 0]
        return float(-(kept * np.log10(kept)).sum()) + 0.0

    def distance(self, other: Basis) -> float:
        """Frobenius norm of the difference of the two covariances, each with trace 1.

        0 for the same basis with the same ratios, at most sqrt(2). Unlike angles between
        components it does not jump where two components explain nearly the same.
        """
        return float(np.linalg.norm(self._shape() - other._shape()))

    def _shape(self) -> Array:
        shape: Array = (self.directions.T * self.ratios) @ self.directions
        return shape


@dataclass(frozen=True)
class Reference:
    """Robust and standard models to compare with.

    Attributes:
        name: what it is, in words.
        boxes: by (data set, kind, metric of DEPTH_METRICS, depth bin).
        sparsity: by kind, one number per model: its share of sparse filters.
        bases: by kind, the PCA basis of each model.
        unions: by kind, the basis of all its models together.
    """

    name: str
    boxes: Mapping[tuple[str, str, str, int], Box]
    sparsity: Mapping[str, Array]
    bases: Mapping[str, list[Basis]]
    unions: Mapping[str, Basis]

    @property
    def datasets(self) -> list[str]:
        """Image data sets it has depth figures of."""
        return sorted({key[0] for key in self.boxes})


def load_reference(against: str) -> Reference:
    """`paper`, or a release: a folder, or hf://datasets/org/name@tag.

    Raises:
        UsageError: neither, or a release without layers.
        NetworkError: a release on the Hub that cannot be read.
    """
    return published() if against == "paper" else of_release(open_release(against))


def published() -> Reference:
    """The paper's 71 robust and 43 standard models, from its published values."""
    robust = {m.model_id: m.robust for m in load_cohort("paper").models}
    boxes = {
        (row["dataset"], row["kind"], row["metric"], int(row["depth_bin"])): Box(
            int(row["n_points"]), float(row["q1"]), float(row["median"]), float(row["q3"])
        )
        for row in read_published("boxplots")
        if row["reading"] == _READING.get(row["metric"], "")
    }
    sparsity: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for row in read_published("models"):
        sparsity[_kind(robust[row["model_id"]])].append(
            int(row["n_sparse"]) / int(row["n_filters"])
        )
    bases: dict[str, list[Basis]] = {kind: [] for kind in KINDS}
    unions: dict[str, Basis] = {}
    for row in read_published("pca"):
        basis = Basis(
            np.array([float(row[f"ratio{i}"]) for i in range(9)]),
            np.array([[float(row[f"direction{i}{j}"]) for j in range(9)] for i in range(9)]),
        )
        if row["basis"] in robust:
            bases[_kind(robust[row["basis"]])].append(basis)
        else:
            unions[row["basis"]] = basis
    return Reference(
        "the paper's published values (71 robust, 43 standard models)",
        boxes,
        {kind: np.array(values) for kind, values in sparsity.items()},
        bases,
        {kind: unions[kind] for kind in KINDS},
    )


def of_release(release: Release) -> Reference:
    """Every number of a release, in the folded view; of its robust models, those of the threat
    model that its findings are about (`schema.studied`).

    Raises:
        UsageError: the release has no layers.
    """
    models = release.table("models", columns=["model_id", "robust", "threat_model"]).to_pylist()
    studied = schema.studied(row["threat_model"] for row in models if row["robust"])
    robust = {
        row["model_id"]: row["robust"]
        for row in models
        if not row["robust"] or (row["threat_model"] or "Linf") == studied
    }
    layers = release.table(
        "layers",
        columns=["model_id", "depth_bin", *WEIGHED],
        where=[("weights", "=", "folded")],
    ).to_pylist()
    if not layers:
        raise UsageError(
            f"{release.address} has no layers to compare with.",
            hint="expected a release built from networks, or `paper` for the published values.",
        )
    by_model: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in layers:
        if row["model_id"] in robust:
            by_model[row["model_id"]].append(row)
    pairs = [p for p in release.table("pairs").to_pylist() if p["robust_model_id"] in robust]
    points: dict[tuple[str, str, str, int], list[float]] = defaultdict(list)
    for pair in pairs:
        for kind in KINDS:
            rows = by_model[pair[f"{kind}_model_id"]]
            for depth_bin in sorted({row["depth_bin"] for row in rows}):
                inside = [row for row in rows if row["depth_bin"] == depth_bin]
                for metric, value in weighted_means(inside).items():
                    if value is not None:
                        points[pair["dataset"], kind, metric, depth_bin].append(value)
    means = {model_id: weighted_means(rows) for model_id, rows in by_model.items()}
    bases, unions = _stored_bases(release, robust)
    return Reference(
        f"{release.address} ({sum(robust.values())} robust, "
        f"{len(robust) - sum(robust.values())} standard models, {len(pairs)} pairs)",
        {key: _box(values) for key, values in points.items()},
        {
            kind: np.array(
                [
                    float(m["sparsity"])
                    for model_id, m in means.items()
                    if _kind(robust[model_id]) == kind and m["sparsity"] is not None
                ]
            )
            for kind in KINDS
        },
        bases,
        unions,
    )


WEIGHED = ("n_filters", "n_sparse", "out_channels", "variance_entropy", "orthogonality")
"""Columns of `layers` that the means below need."""


def weighted_means(rows: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """Metrics of several layers together, as the paper weighs them; null where there is none.

    Sparsity is a ratio of sums, entropy is weighted by non-sparse filters, orthogonality by output
    channels (paper section 3). Layers without metrics (NaN weights) are left out.
    """
    known = [row for row in rows if row["n_sparse"] is not None]
    kept = [(r["variance_entropy"], r["n_filters"] - r["n_sparse"]) for r in known]
    across = [(r["orthogonality"], r["out_channels"]) for r in known]
    return {
        "sparsity": _mean([(r["n_sparse"] / r["n_filters"], r["n_filters"]) for r in known]),
        "variance_entropy": _mean(kept),
        "orthogonality": _mean([(v, n) for v, n in across if v is not None]),
    }


def mini_first_layer() -> list[dict[str, str]]:
    """First-layer responses of the mini release's pairs, whole layers, by architecture.

    The file was written by this query on a build of the mini cohort, and a test holds it to one:
    `builder query tests/mini_first_layer.sql --release out/mini --format csv`.
    """
    path = Path(str(files("builder") / "compare" / "mini_first_layer.csv"))
    return [row for _, row in read_csv(path)]


def _mean(weighted: list[tuple[float, int]]) -> float | None:
    """Weighted mean; None without weight."""
    values, weights = np.array(weighted, float).reshape(-1, 2).T
    return float(values @ weights / weights.sum()) if weights.any() else None


def _box(values: list[float]) -> Box:
    array: NDArray[np.float64] = np.array(values)
    q1, median, q3 = (float(q) for q in np.percentile(array, [25, 50, 75]))
    return Box(len(values), q1, median, q3, array)


def _stored_bases(
    release: Release, robust: Mapping[str, bool]
) -> tuple[dict[str, list[Basis]], dict[str, Basis]]:
    """By kind: the bases of the models, and their union; of a release."""
    table = release.table("pca", where=[("weights", "=", "folded")]).to_pylist()
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(table, key=lambda r: int(r["component"])):
        rows[row["basis"]].append(row)
    found = {
        name: Basis(
            np.array([r["explained_variance_ratio"] for r in nine]),
            np.array([r["direction"] for r in nine]),
        )
        for name, nine in rows.items()
        if nine[0]["n_samples"] and all(r["direction"] is not None for r in nine)
    }
    return (
        {
            kind: [found[m] for m in robust if m in found and _kind(robust[m]) == kind]
            for kind in KINDS
        },
        {kind: found[kind] for kind in KINDS if kind in found},
    )


def _kind(robust: bool) -> str:
    return "robust" if robust else "standard"
