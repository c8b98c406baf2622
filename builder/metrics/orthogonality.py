"""Orthogonality of the output channels of a layer, in both weights views, from one product.

Paper section 3: 1 - sum |W W^T - I| / (n (n - 1)), the rows of W being the n output channels,
flattened and L2-normalised; zero rows stay zero and count 1 on the diagonal. None for n = 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from builder.metrics.sums import TINY

if TYPE_CHECKING:
    import torch

_BLOCK = {"cpu": 128, "cuda": 1024}
"""Rows of one block of the matrix of cosines; only blocks on or above the diagonal are computed."""

_SAFE = 1e10
"""Products of rows whose norms lie within this factor of 1 neither overflow nor vanish."""


def orthogonality(
    weight: torch.Tensor, scale: torch.Tensor | None, norms: torch.Tensor
) -> tuple[float | None, float | None]:
    """Orthogonality of a layer, trained and folded.

    Cosines do not change when rows are scaled, unless to zero or into the denormal numbers.

    Args:
        weight: (n, in_channels, 3, 3) float32, finite.
        scale: (n,) float32 that folding multiplies with, finite; None for none.
        norms: (n,) float64, L2 norms of the output channels of `weight`.
    """
    rows = weight.flatten(1)
    if scale is None or bool((scale != 0).all() & (norms * scale.abs() >= TINY).all()):
        (both,) = _orthogonality(rows, norms, (norms > 0)[:, None])
        return both, both
    folded_norms = norms * scale.abs()
    if bool(((folded_norms > 0) & (folded_norms < TINY)).any()):
        (trained,) = _orthogonality(rows, norms, (norms > 0)[:, None])
        product = rows * scale[:, None]
        exact = _norms(product)
        (folded,) = _orthogonality(product, exact, (exact > 0)[:, None])
        return trained, folded
    import torch

    trained, folded = _orthogonality(rows, norms, torch.stack([norms > 0, folded_norms > 0], dim=1))
    return trained, folded


def _norms(rows: torch.Tensor) -> torch.Tensor:
    """L2 norms through float64: the square of a float32 can overflow or vanish."""
    import torch

    return torch.cat([r.double().square().sum(dim=1).sqrt() for r in torch.split(rows, 64)])


def _orthogonality(
    rows: torch.Tensor, norms: torch.Tensor, alive: torch.Tensor
) -> list[float | None]:
    """Orthogonality of (n, k) rows of these norms, once for every column of `alive` (n, views)."""
    import torch

    n = rows.shape[0]
    if n == 1:
        return [None] * alive.shape[1]
    inverse = torch.where(norms > 0, 1 / norms, 0.0)
    if bool(((norms > 0) & ((norms < 1 / _SAFE) | (norms > _SAFE))).any()):
        parts = zip(torch.split(rows, 64), torch.split(inverse, 64), strict=True)
        rows = torch.cat([(r.double() * i[:, None]).float() for r, i in parts])
        inverse = torch.ones_like(norms)
    weights = inverse[:, None] * alive
    total = torch.zeros(alive.shape[1], dtype=torch.float64, device=rows.device)
    step = _BLOCK[rows.device.type]
    for start in range(0, n, step):
        block = slice(start, start + step)
        products = rows[block] @ rows[start:].t()
        products.fill_diagonal_(0)
        right = weights[start:].clone()
        right[step:] *= 2  # right of the diagonal block: for the block below it, too
        total += ((products.abs_().double() @ right) * weights[block]).sum(dim=0)
    zero_rows = n - alive.sum(dim=0)
    found = 1 - (total + zero_rows) / (n * (n - 1))
    return found.clamp(min=0).tolist()  # cosines of float32 can add up to more than n (n - 1)
