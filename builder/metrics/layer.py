"""Reference metrics of one layer, in both weights views, on any torch device.

Definitions: Gavrikov & Keuper 2022, section 3, and their library torchconvquality 0.3.0. Filters
are held as columns, (9, n) float32; every sum that feeds a metric is float64. The verifier
recomputes the same numbers with NumPy (builder/check/recompute.py), on purpose by other code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from builder.release.moments import (
    Moments,
    explained_variance_ratio,
    pack,
    random_entropy,
    variance_entropy,
)

if TYPE_CHECKING:
    import torch

    from builder.network.extract import Layer

SPARSITY_FRACTION = 100
"""A filter is sparse when max |w| <= (largest |weight| of the layer) / 100."""

_CHUNK = {"cpu": 1 << 15, "cuda": 1 << 22}
"""Filters per step: nine float64 columns stay in the cache of a core, or fill a GPU."""

_BLOCK = 512
"""Rows of one block of the matrix of cosines; only blocks on or above the diagonal are computed."""


@dataclass(frozen=True)
class Measured:
    """One layer, ready to be written.

    Attributes:
        columns: (9, n) float32, trained weights, coefficients as rows.
        linf: (n,) float32, max |w| of each filter, trained.
        views: the metrics of `layers` by weights view; all None where a weight is not finite.
    """

    columns: torch.Tensor
    linf: torch.Tensor
    views: dict[str, dict[str, Any]]


METRICS = (
    "layer_linf",
    "n_sparse",
    "sparsity",
    "variance_entropy",
    "variance_entropy_norm",
    "variance_entropy_raw",
    "variance_entropy_raw_norm",
    "variance_entropy_raw_clean",
    "variance_entropy_raw_clean_norm",
    "orthogonality",
    "norm_l1",
    "norm_l2",
    "explained_variance_ratio",
    "mean",
    "scatter",
)


def measure_layer(layer: Layer) -> Measured:
    """Metrics of a layer in both views; see `schema.LAYERS` for each column."""
    import torch

    weight = layer.weight
    out_channels = weight.shape[0]
    columns = weight.reshape(-1, 9).t().contiguous()
    linf = columns.abs().amax(dim=0)
    trained = measure_columns(columns, linf)
    trained["orthogonality"] = orthogonality(weight) if trained["layer_linf"] is not None else None
    if layer.bn_scale is None:
        folded = trained
    else:
        scale = layer.bn_scale.repeat_interleave(weight.shape[1])
        # Rounding is monotonic: max |w * s| is max |w| * |s| in float32, exactly.
        folded = measure_columns(columns * scale, linf * scale.abs())
        if folded["layer_linf"] is None:
            folded["orthogonality"] = None
        elif bool((layer.bn_scale == 0).any()):
            alive = (layer.bn_scale != 0).to(weight.dtype)
            folded["orthogonality"] = orthogonality(weight * alive.view(out_channels, 1, 1, 1))
        else:  # cosines do not change when rows are scaled
            folded["orthogonality"] = trained["orthogonality"]
    if weight.device.type == "cuda":
        torch.cuda.synchronize()
    return Measured(columns, linf, {"trained": trained, "folded": folded})


def measure_columns(columns: torch.Tensor, linf: torch.Tensor) -> dict[str, Any]:
    """Every metric but orthogonality of n filters.

    Args:
        columns: (9, n) float32, one filter per column.
        linf: (n,) float32, max |w| of each filter.

    Returns:
        The keys of `METRICS`; every value None where a weight is NaN or infinite.
    """
    n = linf.numel()
    layer_linf = float(linf.max())
    if not math.isfinite(layer_linf):
        return dict.fromkeys(METRICS)
    keep = linf.double() > layer_linf / SPARSITY_FRACTION
    n_kept = int(keep.sum())
    scaled, raw, clean, norm_l1, norm_l2 = _accumulate(columns, linf, keep, n_kept)
    entropy = {
        "variance_entropy": (scaled, n_kept),
        "variance_entropy_raw": (raw, n),
        "variance_entropy_raw_clean": (clean, n_kept),
    }
    metrics: dict[str, Any] = {
        "layer_linf": layer_linf,
        "n_sparse": n - n_kept,
        "sparsity": (n - n_kept) / n,
        "norm_l1": norm_l1 / n,
        "norm_l2": norm_l2 / n,
        "explained_variance_ratio": explained_variance_ratio(scaled.scatter),
        "mean": scaled.mean,
        "scatter": pack(scaled.scatter),
    }
    for name, (moments, count) in entropy.items():
        metrics[name] = variance_entropy(moments.scatter)
        threshold = random_entropy(count)
        metrics[name + "_norm"] = None if threshold is None else metrics[name] / threshold
    return metrics


def _accumulate(
    columns: torch.Tensor, linf: torch.Tensor, keep: torch.Tensor, n_kept: int
) -> tuple[Moments, Moments, Moments, float, float]:
    """Moments of the scaled kept, all raw and kept raw filters; sums of L1 and L2 norms.

    Moments are accumulated about one of the filters, not about zero: filters that do not vary
    then have a scatter of exactly zero, and large common offsets cancel nothing.
    """
    import torch

    device, n = columns.device, linf.numel()
    chunk = _CHUNK[device.type]
    first = int(keep.to(torch.uint8).argmax())  # a kept filter; filter 0 where none is
    origin = columns[:, first].double()
    scale = linf[first].double()
    scaled_origin = origin / torch.where(scale == 0, 1.0, scale)

    def sums(x: torch.Tensor) -> torch.Tensor:
        """(10, 9): the scatter about the origin, then the sum."""
        return torch.cat([x @ x.t(), x.sum(dim=1, keepdim=True).t()])

    scaled, raw, clean = torch.zeros(3, 10, 9, dtype=torch.float64, device=device)
    norms = torch.zeros(2, dtype=torch.float64, device=device)
    for start in range(0, n, chunk):
        stop = min(start + chunk, n)
        x = columns[:, start:stop].double()
        norms[0] += x.abs().sum()
        norms[1] += x.square().sum(dim=0).sqrt().sum()
        lengths = linf[start:stop].double()
        z = x / torch.where(lengths == 0, 1.0, lengths)
        z -= scaled_origin[:, None]
        x -= origin[:, None]
        part = sums(x)
        raw += part
        kept = keep[start:stop]
        if not bool(kept.all()):
            z *= kept
            part = sums(x.mul_(kept))
        clean += part
        scaled += sums(z)
    return (
        _centre(n_kept, scaled, scaled_origin),
        _centre(n, raw, origin),
        _centre(n_kept, clean, origin),
        float(norms[0]),
        float(norms[1]),
    )


def _centre(n: int, sums: torch.Tensor, origin: torch.Tensor) -> Moments:
    """Moments about the mean from the (10, 9) sums about `origin`."""
    if n == 0:
        return Moments(0, np.zeros(9), np.zeros((9, 9)))
    total = sums[9].cpu().numpy()
    square = sums[:9].cpu().numpy()
    return Moments(n, origin.cpu().numpy() + total / n, square - np.outer(total, total) / n)


def orthogonality(weight: torch.Tensor) -> float | None:
    """1 - sum |W W^T - I| / (n (n - 1)) for n output channels; None for n = 1.

    Rows of W are the output channels, flattened and L2-normalised; zero rows stay zero and
    count 1 on the diagonal. Paper section 3, "orthogonality".

    Args:
        weight: (n, in_channels, 3, 3) float32, finite.
    """
    import torch

    n = weight.shape[0]
    if n == 1:
        return None
    rows = weight.reshape(n, -1)
    # Through float64: the square of a float32 can overflow or vanish.
    norms = torch.cat([r.double().square().sum(dim=1).sqrt() for r in torch.split(rows, 64)])
    alive = norms > 0
    inverse = torch.where(alive, 1.0 / norms, 0.0)
    unit = torch.cat(
        [
            (r.double() * s[:, None]).float()
            for r, s in zip(torch.split(rows, 64), torch.split(inverse, 64), strict=True)
        ]
    )
    total = torch.zeros((), dtype=torch.float64, device=weight.device)
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        block = unit[start:stop]
        inside = block @ block.t()
        inside.fill_diagonal_(0)
        total += inside.abs().sum(dtype=torch.float64)
        for right in range(stop, n, _BLOCK):
            across = block @ unit[right : right + _BLOCK].t()
            total += 2 * across.abs().sum(dtype=torch.float64)
    zero_rows = n - int(alive.sum())
    return 1 - (float(total) + zero_rows) / (n * (n - 1))
