"""Second pass over the stored filters: histograms of their coefficients on the full basis.

Paper section 3, divergence: every non-sparse folded filter, divided by its max |w|, is centred and
projected on the PCA basis of all models; each of the nine coefficients is counted in 70 equal bins
over the range of *all* coefficients of all models. That range follows from the longest filters,
kept since the first pass (longest.py), as far as none that was left out can reach beyond it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from builder.metrics.longest import COLUMNS
from builder.metrics.sums import TINY
from builder.release.moments import Array
from builder.release.parquet import open_parquet
from builder.schema import HISTOGRAMS, N_BINS, N_DEPTH_BINS

_STEP = 1 << 13  # filters at a time: nine float64 coefficients stay in the cache of a core

_NARROW = 1e-6
"""Width of bins below which a coefficient is taken relative to the range before it is scaled."""

_SLACK = 1e-5
"""Share by which a length in float32 may be short of the true one, and far more."""


class Projector:
    """Coefficients of one model's folded, scaled, non-sparse filters on a basis.

    Args:
        file: fetches the model's filter file, if need be; picklable.
        layers: its folded rows of `layers`, by layer_index; layers without metrics are skipped.
        directions: (9, 9) rows of the basis. mean: (9,) its mean filter.
        stop: once set, whatever is under way ends early, without a result of use.
    """

    def __init__(
        self,
        file: Callable[[], Path],
        layers: list[dict[str, Any]],
        directions: Array,
        mean: Array,
        stop: threading.Event,
    ) -> None:
        self._file = file
        self._stop = stop
        self._directions = directions
        self._offset = directions @ mean
        self._layers = {row["layer_index"]: row for row in layers}

    def __reduce__(self) -> tuple[Any, ...]:
        # For a worker on another machine, which is stopped as a whole.
        return _of_state, ({**vars(self), "_stop": None},)

    def _parts(self) -> Iterator[list[NDArray[Any]]]:
        """The columns `COLUMNS` of filters of one layer at a time, so many at most."""
        with open_parquet(self._file()) as file:
            for batch in file.iter_batches(1 << 17, columns=COLUMNS, use_threads=False):
                if self._stop.is_set():
                    return
                yield from _by_layer([c.to_numpy() for c in batch.columns])

    def _scaled(self, part: list[NDArray[Any]]) -> Array:
        """(9, m) float64, the m of these filters of a layer that are not sparse, scaled."""
        layers, *coefficients, linf, scale = part
        largest = self._layers[layers[0]]["layer_linf"]
        if largest is None:  # a layer without metrics
            return np.empty((9, 0))
        # In float32, as the folded weights are; what follows in float64.
        length = (linf * np.abs(scale)).astype(np.float64)
        keep = length > largest / 100
        folded = np.empty((9, len(length)), np.float32)
        for row, c in zip(folded, coefficients, strict=True):
            np.multiply(c, scale, out=row)
        if not keep.all():
            folded, length = folded[:, keep], length[keep]
        unit: Array = folded / length
        return unit

    def reach(self, low: float, high: float) -> float:
        """The length up to which no filter has a coefficient outside of [low, high].

        About the origin a coefficient is no larger than the norm of its filter, directions being
        unit vectors, nor than the L1 norm of its direction, entries being no larger than 1.
        """
        limits = np.concatenate([high + self._offset, -low - self._offset])
        largest = np.tile(np.abs(self._directions).sum(axis=1), 2)
        near = limits * (1 - _SLACK)
        return float(near[near < largest].min(initial=math.inf))

    def extent(
        self,
        low: float = math.inf,
        high: float = -math.inf,
        longest: list[NDArray[Any]] | None = None,
    ) -> tuple[float, float]:
        """The range of these coefficients and of [low, high]; (inf, -inf) where there is none.

        Only filters long enough to reach beyond the range so far are projected.

        Args:
            longest: columns `COLUMNS` of the filters to look at, by layer; by default all that are
                stored.
        """
        offset = self._offset[:, None]
        for part in self._parts() if longest is None else _by_layer(longest):
            reach = self.reach(low, high)
            if reach > 0:
                near = _norms(part) > reach
                length = part[-2] * np.abs(part[-1])
                near |= (length > 0) & (length < TINY)  # there, folding may change directions
                if not near.any():
                    continue
                part = [column[near] for column in part]
            unit = self._scaled(part)
            if unit.size:
                # Term by term: how BLAS and sum() round depends on how many filters there are.
                found = np.zeros_like(unit)
                for direction, row in zip(self._directions.T, unit, strict=True):
                    found += direction[:, None] * row
                found -= offset
                low, high = min(low, float(found.min())), max(high, float(found.max()))
        return low, high

    def counts(self, low: float, high: float, beyond_range: bool = False) -> NDArray[np.int64]:
        """Counts (depth bins, 9 components, 70 bins) over [low, high]; the last bin is closed.

        With `beyond_range`, what may lie outside counts in the first or the last bin.
        """
        import torch

        width = (high - low) / N_BINS
        slope = 1 / width if width > _NARROW else 0.0
        directions = torch.from_numpy(self._directions * slope)
        # One bin too high: there is room on either side for what rounding takes out of the range.
        start = torch.from_numpy(1 - (self._offset + low) * slope)[:, None]
        total = np.zeros((N_DEPTH_BINS, 9, N_BINS + 2), np.int64)
        # Large temporary arrays cost more than the arithmetic, so these are used again and again.
        # torch has one thread in a build; NumPy's BLAS would wait for all cores at each step.
        projected = torch.empty(9 * _STEP, dtype=torch.float64)
        indices = np.empty(9 * _STEP, np.int64)
        for part in self._parts():
            unit = self._scaled(part)
            index = indices[: unit.size].reshape(unit.shape)
            if width > _NARROW:
                out = projected[: unit.size].view(unit.shape)
                bins = torch.addmm(start, directions, torch.from_numpy(unit), out=out).numpy()
                np.copyto(index, bins, casting="unsafe")
                if beyond_range:
                    np.clip(index, 0, N_BINS + 1, out=index)
            elif width > 0:
                beyond = self._directions @ unit - self._offset[:, None] - low
                index[:] = np.clip(beyond / width, 0, N_BINS - 1) + 1
            else:
                index[:] = 1
            depth_bin = self._layers[part[0][0]]["depth_bin"]
            for counted, row in zip(total[depth_bin], index, strict=True):
                counted += np.bincount(row, minlength=N_BINS + 2)
        total[..., 1] += total[..., 0]
        total[..., -2] += total[..., -1]
        return total[..., 1:-1].copy()


def _of_state(state: dict[str, Any]) -> Projector:
    projector = object.__new__(Projector)
    vars(projector).update(state, _stop=threading.Event())
    return projector


def _by_layer(columns: list[NDArray[Any]]) -> Iterator[list[NDArray[Any]]]:
    """Columns `COLUMNS` of sorted filters in pieces: one layer each, and no longer than a step."""
    ends = [*(np.flatnonzero(np.diff(columns[0])) + 1), len(columns[0])]
    start = 0
    for end in ends:
        for here in range(start, end, _STEP):
            yield [c[here : min(end, here + _STEP)] for c in columns]
        start = end


def _norms(part: list[NDArray[Any]]) -> NDArray[np.float32]:
    """(m,) L2 norms of the filters, each divided by its max |w|; NaN for zeros. To 1e-6."""
    _, *coefficients, linf, _ = part
    squares = np.zeros(len(linf), np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        for column in coefficients:
            squares += (column / linf) ** 2
    norms: NDArray[np.float32] = np.sqrt(squares)
    return norms


def histogram_table(
    dataset: str,
    model_id: str,
    depth_bins: list[int],
    counts: NDArray[np.int64],
    low: float,
    high: float,
) -> pa.Table:
    """Rows of `histograms` of one model, dense over the depth bins it has, in key order."""
    edges = np.linspace(low, high, N_BINS + 1)
    kept = counts[depth_bins]
    depth, component, index = np.indices(kept.shape).reshape(3, -1)
    values: dict[str, Any] = {
        "dataset": pa.array([dataset] * depth.size),
        "model_id": pa.array([model_id] * depth.size),
        "depth_bin": np.array(depth_bins)[depth],
        "component": component,
        "bin": index,
        "bin_low": edges[index],
        "bin_high": edges[index + 1],
        "n": kept.ravel(),
    }
    table = HISTOGRAMS.arrow
    return pa.table([pa.array(values[f.name]).cast(f.type) for f in table], schema=table)
