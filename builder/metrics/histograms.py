"""Second pass over the stored filters: histograms of their coefficients on the full basis.

Paper section 3, divergence: every non-sparse folded filter, divided by its max |w|, is centred and
projected on the PCA basis of all models; each of the nine coefficients is counted in 70 equal bins
over the range of *all* coefficients of all models. The range is not known before every filter was
seen once, so the pass has two halves: ranges, then counts.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from builder.metrics.sums import TINY
from builder.release.moments import Array
from builder.release.parquet import open_parquet
from builder.schema import FILTER_COLUMNS, HISTOGRAMS, N_BINS, N_DEPTH_BINS

_STEP = 1 << 14  # filters at a time: nine float64 coefficients stay in the cache of a core
_COLUMNS = ["layer_index", *FILTER_COLUMNS, "linf", "bn_scale"]


class Projector:
    """Coefficients of one model's folded, scaled, non-sparse filters on a basis.

    Args:
        path: the model's filter file.
        layers: its folded rows of `layers`, by layer_index; layers without metrics are skipped.
        directions: (9, 9) rows of the basis. mean: (9,) its mean filter.
        stop: once set, whatever is under way ends early, without a result of use.
    """

    def __init__(
        self,
        path: Path,
        layers: list[dict[str, Any]],
        directions: Array,
        mean: Array,
        stop: threading.Event,
    ) -> None:
        self._path = path
        self._stop = stop
        self._directions = directions
        self._offset = directions @ mean
        n = 1 + max(row["layer_index"] for row in layers)
        self._threshold = np.full(n, np.inf)  # nothing passes in a layer without metrics
        self._depth_bin = np.zeros(n, np.int64)
        for row in layers:
            if row["layer_linf"] is not None:
                self._threshold[row["layer_index"]] = row["layer_linf"] / 100
            self._depth_bin[row["layer_index"]] = row["depth_bin"]

    def _parts(self) -> Iterator[list[NDArray[Any]]]:
        """The columns `_COLUMNS` of so many filters at a time."""
        with open_parquet(self._path) as file:
            for batch in file.iter_batches(1 << 17, columns=_COLUMNS, use_threads=False):
                if self._stop.is_set():
                    return
                columns = [c.to_numpy() for c in batch.columns]
                for start in range(0, batch.num_rows, _STEP):
                    yield [c[start : start + _STEP] for c in columns]

    def _scaled(self, part: list[NDArray[Any]]) -> tuple[NDArray[np.int64], Array]:
        """Depth bins (m,) and scaled filters (9, m) float64 of the m that are not sparse."""
        layer, *coefficients, linf, scale = part
        # In float32, as the folded weights are; what follows in float64.
        with np.errstate(over="ignore", invalid="ignore"):
            length = (linf * np.abs(scale)).astype(np.float64)
            keep = length > self._threshold[layer]
            folded = np.empty((9, len(layer)), np.float32)
            for row, c in zip(folded, coefficients, strict=True):
                np.multiply(c, scale, out=row)
        if not keep.all():
            folded, length, layer = folded[:, keep], length[keep], layer[keep]
        return self._depth_bin[layer], folded / length

    def extent(self, low: float = math.inf, high: float = -math.inf) -> tuple[float, float]:
        """The range of these coefficients and of [low, high]; (inf, -inf) where there is none.

        A coefficient about the origin is no larger than the norm of its filter, the directions
        being unit vectors. So only filters long enough to reach beyond the range are looked at.
        """
        offset = self._offset[:, None]
        for part in self._parts():
            reach = min(high + offset.min(), -low - offset.max())
            if reach > 0:
                near = _norms(part) > reach * (1 - 1e-5)
                length = part[-2] * np.abs(part[-1])
                near |= (length > 0) & (length < TINY)  # there, folding may change directions
                if not near.any():
                    continue
                part = [column[near] for column in part]
            _, unit = self._scaled(part)
            if unit.size:
                # No BLAS: its rounding depends on how many filters there are.
                found = (self._directions[:, :, None] * unit).sum(axis=1) - offset
                low, high = min(low, float(found.min())), max(high, float(found.max()))
        return low, high

    def counts(self, low: float, high: float) -> NDArray[np.int64]:
        """Counts (depth bins, 9 components, 70 bins) over [low, high]; the last bin is closed."""
        import torch

        total = np.zeros((9, N_DEPTH_BINS * N_BINS), np.int64)
        directions = torch.from_numpy(self._directions)
        width = (high - low) / N_BINS
        for part in self._parts():
            depth_bin, unit = self._scaled(part)
            first = depth_bin * N_BINS
            # A component at a time, in place: large temporary arrays cost more than the arithmetic.
            # torch has one thread in a build; NumPy's BLAS would wait for all cores at each step.
            projected = torch.mm(directions, torch.from_numpy(unit)).numpy()
            for counted, values, offset in zip(total, projected, self._offset, strict=True):
                values -= offset
                values -= low
                if width > 0:
                    values /= width
                index = values.astype(np.int64)
                np.clip(index, 0, N_BINS - 1, out=index)
                index += first
                counted += np.bincount(index, minlength=counted.size)
        return total.reshape(9, N_DEPTH_BINS, N_BINS).swapaxes(0, 1)


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
