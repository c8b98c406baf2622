"""Second moments of filters, and what follows from them alone: entropy, PCA bases, their unions.

NumPy only: the build (left of the release) and the verifier (right of it) share these formulas.
A set of n filters is summarised by its count, its mean (9,) and its scatter (9, 9), the sum of
(x - mean)(x - mean)^T, all float64. Two summaries merge exactly (Chan, Golub & LeVeque 1979), so
the PCA basis of any union of layers follows without another look at the filters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from builder.schema import SCATTER_PAIRS

Array = NDArray[np.float64]

_ROWS, _COLS = (np.array(index) for index in zip(*SCATTER_PAIRS, strict=True))


@dataclass(frozen=True)
class Moments:
    """Count, mean (9,) and scatter (9, 9) of a set of filters, float64."""

    n: int
    mean: Array
    scatter: Array


def pack(scatter: Array) -> Array:
    """The 45 entries of the upper triangle, in the order of `schema.SCATTER_PAIRS`."""
    packed: Array = scatter[_ROWS, _COLS]
    return packed


def unpack(packed: Array) -> Array:
    """The symmetric (9, 9) matrix of 45 packed entries."""
    scatter = np.zeros((9, 9))
    scatter[_ROWS, _COLS] = packed
    scatter[_COLS, _ROWS] = packed
    return scatter


def merge(parts: Iterable[Moments]) -> Moments:
    """Moments of the union of disjoint sets, in the order given (so the result is reproducible)."""
    n, mean, scatter = 0, np.zeros(9), np.zeros((9, 9))
    for part in parts:
        if part.n == 0:
            continue
        total = n + part.n
        delta = part.mean - mean
        scatter = scatter + part.scatter + np.outer(delta, delta) * (n * part.n / total)
        mean = mean + delta * (part.n / total)
        n = total
    return Moments(n, mean, scatter)


def explained_variance_ratio(scatter: Array) -> Array:
    """Shares (9,) of the variance along the principal directions, descending.

    All zeros where the filters do not vary.
    """
    values = np.clip(np.linalg.eigvalsh(scatter)[::-1], 0.0, None)
    total = values.sum()
    return values / total if total > 0 else np.zeros(9)


def variance_entropy(scatter: Array) -> float:
    """Entropy, log base 10, of the explained variance ratios: 0 to log10(9) = 0.954.

    Paper section 3, "variance entropy"; 0 log 0 = 0.
    """
    ratio = explained_variance_ratio(scatter)
    ratio = ratio[ratio > 0]
    return float(-(ratio * np.log10(ratio)).sum()) + 0.0  # + 0.0 turns -0.0 into 0.0


def random_entropy(n: int) -> float | None:
    """T(n): least variance entropy of n random filters; None where the fit is not positive.

    The fit of Gavrikov & Keuper, "CNN Filter DB" (CVPR 2022), constants as in their library
    torchconvquality 0.3.0.
    """
    if n < 1:
        return None
    fit = 1.2618047 / (1 + math.exp(-0.88767525 * (math.log2(n) - 2.30436435))) - 0.31050834
    return fit if fit > 0 else None


def principal_directions(moments: Moments) -> tuple[Array, Array]:
    """PCA basis of a set: variances (9,), n - 1 in the denominator, and unit rows (9, 9).

    Rows descend by variance; the entry of largest magnitude of each is positive.
    """
    values, vectors = np.linalg.eigh(moments.scatter)
    directions = vectors[:, ::-1].T
    largest = np.abs(directions).argmax(axis=1)
    directions = directions * np.sign(directions[np.arange(9), largest])[:, None]
    variances = np.clip(values[::-1], 0.0, None) / max(moments.n - 1, 1)
    return variances, directions


def basis_rows(basis: str, view: str, total: Moments) -> list[dict[str, Any]]:
    """The nine rows of `pca` of a set of filters."""
    variances, directions = principal_directions(total)
    ratios = explained_variance_ratio(total.scatter)
    return component_rows(basis, view, total.n, total.mean, variances, ratios, directions)


def component_rows(
    basis: str,
    view: str,
    n: int,
    mean: Array,
    variances: Array,
    ratios: Array,
    directions: Array,
) -> list[dict[str, Any]]:
    """The nine rows of `pca` of a basis that is known: (9,) variances and ratios, unit rows."""
    return [
        {
            "basis": basis,
            "weights": view,
            "component": i,
            "n_samples": n,
            "explained_variance": float(variances[i]),
            "explained_variance_ratio": float(ratios[i]),
            "direction": directions[i].tolist(),
            "mean": mean.tolist(),
        }
        for i in range(9)
    ]
