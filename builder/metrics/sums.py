"""The sums that the metrics of one layer follow from, in both weights views.

`both_views` passes over the filters once. With s the factor of a filter's output channel,

- the moments of the folded filters s w follow from those of the trained ones, channel by channel:
  their sum is s times, their second moment s^2 times, a norm |s| times that of w;
- a filter divided by its own max |w| is the same in both views up to the sign of s, so that only
  the sets of sparse filters differ.

This leaves out the float32 rounding of the product s w, and nothing else. Where more would be lost
`one_view` takes the sums from the filters themselves: where filters hardly vary, so that moments
about zero cancel, and where a view is so small that its products are rounded as denormal numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from builder.release.moments import Array, Moments

if TYPE_CHECKING:
    import torch

SPARSITY_FRACTION = 100
"""A filter is sparse when max |w| <= (largest |weight| of the layer) / 100."""

TINY = 1e-30
"""Below this max |w|, the rounding of denormal numbers (7e-46) is not negligible."""

_VARIES = 1e-2
"""Share of the variance in the second moment about zero from which on that is precise enough."""

_CHUNK = {"cpu": 1 << 13, "cuda": 1 << 22}
"""Filters per step: their float64 columns stay in the cache of a core, or fill a GPU."""


@dataclass(frozen=True)
class Sums:
    """What the metrics of n filters follow from, orthogonality apart.

    Attributes:
        largest: max |w| of all filters.
        scaled: moments of the non-sparse filters, each divided by its own max |w|.
        raw: moments of all filters.
        clean: moments of the non-sparse filters.
        norm_l1, norm_l2: sums of the norms of all filters.
    """

    largest: float
    scaled: Moments
    raw: Moments
    clean: Moments
    norm_l1: float
    norm_l2: float


def both_views(
    columns: torch.Tensor, linf: torch.Tensor, scale: torch.Tensor | None
) -> tuple[Sums | None, Sums | None, torch.Tensor, torch.Tensor]:
    """The sums of a layer, trained and folded, and norms of its channels and filters as trained.

    Args:
        columns: (9, n) float32, trained filters as columns, output channel by output channel.
        linf: (out_channels, in_channels) float32, max |w| of each filter.
        scale: (out_channels,) float32 that folding multiplies with; None for none.

    Returns:
        Either view's sums, None where a weight is not finite; L2 norms (out_channels,) float64 of
        the channels; and (out_channels, in_channels) float32 those of the scaled filters.
    """
    import torch

    raw, scaled, norms, squares = [], [], [], []
    lengths = torch.empty_like(linf)
    step = max(1, _CHUNK[columns.device.type] // linf.shape[1])
    for start in range(0, linf.shape[0], step):
        block = slice(start, start + step)
        x = columns.view(9, *linf.shape)[:, block].double()  # (9, b, in)
        square = x.square().sum(dim=0)
        squares.append(square.sum(dim=1))
        raw.append(_by_channel(x))
        inverse = _inverse(linf[block])
        scaled.append(_by_channel(x * inverse))
        norms.append(torch.stack([x.abs_().sum(dim=(0, 2)), square.sqrt_().sum(dim=1)], dim=1))
        lengths[block] = square.mul_(inverse)
    trained = _Trained(columns, linf, torch.cat(scaled), torch.cat(raw), torch.cat(norms))
    view = _scaled(trained, torch.ones_like(linf[:, 0]))
    folded = view if scale is None else _scaled(trained, scale)
    return view, folded, torch.cat(squares).sqrt(), lengths


@dataclass(frozen=True)
class _Trained:
    """The trained filters of a layer and their sums by output channel.

    Attributes:
        columns, linf: as `both_views` takes them.
        scaled, raw: (out_channels, 10, 9), moments about zero of all filters, scaled and raw.
        norms: (out_channels, 2), sums of the L1 and L2 norms.
    """

    columns: torch.Tensor
    linf: torch.Tensor
    scaled: torch.Tensor
    raw: torch.Tensor
    norms: torch.Tensor


def _scaled(trained: _Trained, scale: torch.Tensor) -> Sums | None:
    """The sums of the filters times the (out_channels,) `scale` of their output channel."""
    # Rounding is monotonic: max |s w| is |s| max |w| in float32, exactly.
    linf = trained.linf * scale.abs()[:, None]
    largest = float(linf.max())
    if not math.isfinite(largest):
        return None
    keep = linf.double() > largest / SPARSITY_FRACTION
    n, n_kept = keep.numel(), int(keep.sum())
    factor = scale.double()
    scaled, raw = _total(trained.scaled, factor.sign()), _total(trained.raw, factor)
    few = ~keep if 2 * n_kept > n else keep
    of_few = _of_chosen(trained, factor, few.flatten().nonzero().squeeze(1))
    kept = of_few if few is keep else (scaled - of_few[0], raw - of_few[1])
    of_scaled = _about_mean(n_kept, kept[0], scaled)
    of_raw = _about_mean(n, raw, raw)
    of_clean = _about_mean(n_kept, kept[1], raw)
    if largest < TINY or of_scaled is None or of_raw is None or of_clean is None:
        weights = trained.columns.view(9, *linf.shape) * scale[:, None]
        return one_view(weights.reshape(9, n), linf.reshape(n))
    norm_l1, norm_l2 = (factor.abs() @ trained.norms).tolist()
    return Sums(largest, of_scaled, of_raw, of_clean, norm_l1, norm_l2)


def _inverse(lengths: torch.Tensor) -> torch.Tensor:
    """1 / lengths in float64; something finite for 0, to multiply zeros with."""
    return lengths.double().clamp_(min=2.0**-149).reciprocal_()


def _by_channel(x: torch.Tensor) -> torch.Tensor:
    """(b, 10, 9) of (9, b, in): by channel the second moment about zero, then the sum."""
    import torch

    filters = x.transpose(0, 1)
    second = torch.bmm(filters, filters.transpose(1, 2))
    return torch.cat([second, filters.sum(dim=2)[:, None]], dim=1)


def _total(by_channel: torch.Tensor, factor: torch.Tensor) -> Array:
    """(10, 9), the moments about zero of all channels, each times its factor."""
    import torch

    second = torch.tensordot(factor.square(), by_channel[:, :9], 1)
    return torch.cat([second, (factor @ by_channel[:, 9])[None]]).cpu().numpy()


def _of_chosen(trained: _Trained, factor: torch.Tensor, chosen: torch.Tensor) -> Array:
    """(2, 10, 9), moments about zero of some filters times their factor: scaled, and raw."""
    import torch

    total = torch.zeros(2, 10, 9, dtype=torch.float64, device=chosen.device)
    for part in torch.split(chosen, _CHUNK[chosen.device.type]):
        x = trained.columns.index_select(1, part).double()
        factors = factor[part // trained.linf.shape[1]]
        lengths = trained.linf.reshape(-1)[part]
        total[0] += _by_channel((x * (_inverse(lengths) * factors.sign()))[:, None])[0]
        total[1] += _by_channel((x * factors)[:, None])[0]
    return total.cpu().numpy()


def _about_mean(n: int, about_zero: Array, terms: Array) -> Moments | None:
    """Moments from (10, 9) the second moment about zero and the sum.

    None where little is left of the second moment of all terms that went into it.
    """
    if n == 0:
        return None
    total = about_zero[9]
    scatter = about_zero[:9] - np.outer(total, total) / n
    varies = np.trace(scatter) > _VARIES * np.trace(terms[:9])
    return Moments(n, total / n, scatter) if varies else None


def one_view(columns: torch.Tensor, linf: torch.Tensor) -> Sums:
    """The sums of n filters, from the filters themselves.

    Moments are accumulated about one of the filters, not about zero: filters that do not vary
    then have a scatter of exactly zero, and large common offsets cancel nothing.

    Args:
        columns: (9, n) float32, one filter per column, finite.
        linf: (n,) float32, max |w| of each filter.
    """
    import torch

    n, largest = linf.numel(), float(linf.max())
    keep = linf.double() > largest / SPARSITY_FRACTION
    n_kept = int(keep.sum())
    first = int(keep.to(torch.uint8).argmax())  # a kept filter; filter 0 where none is
    origin = columns[:, first].double()
    length = linf[first].double()
    scaled_origin = origin / torch.where(length == 0, 1.0, length)
    scaled, raw, clean = torch.zeros(3, 10, 9, dtype=torch.float64, device=columns.device)
    norms = torch.zeros(2, dtype=torch.float64, device=columns.device)
    chunk = _CHUNK[columns.device.type]
    for start in range(0, n, chunk):
        part = slice(start, start + chunk)
        x = columns[:, part].double()
        norms[0] += x.abs().sum()
        norms[1] += x.square().sum(dim=0).sqrt().sum()
        lengths = linf[part].double()
        z = x / torch.where(lengths == 0, 1.0, lengths) - scaled_origin[:, None]
        x -= origin[:, None]
        for total, about_origin in (
            (scaled, z * keep[part]),
            (raw, x),
            (clean, x * keep[part]),
        ):
            total[:9] += about_origin @ about_origin.t()
            total[9] += about_origin.sum(dim=1)
    return Sums(
        largest,
        _moved(n_kept, scaled, scaled_origin),
        _moved(n, raw, origin),
        _moved(n_kept, clean, origin),
        *norms.tolist(),
    )


def _moved(n: int, about_origin: torch.Tensor, origin: torch.Tensor) -> Moments:
    """Moments from (10, 9) the second moment about `origin` and the sum of what was left."""
    if n == 0:
        return Moments(0, np.zeros(9), np.zeros((9, 9)))
    *second, total = about_origin.cpu().numpy()
    return Moments(n, origin.cpu().numpy() + total / n, second - np.outer(total, total) / n)
