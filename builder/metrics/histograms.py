"""Second pass over the stored filters: histograms of their coefficients on the full basis.

Paper section 3, divergence: every non-sparse folded filter, divided by its max |w|, is centred and
projected on the PCA basis of all models; each of the nine coefficients is counted in 70 equal bins
over the range of *all* coefficients of all models. The range is not known before every filter was
seen once, so the pass has two halves: ranges, then counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from builder.release.moments import Array
from builder.release.parquet import open_parquet
from builder.schema import FILTER_COLUMNS, HISTOGRAMS, N_BINS, N_DEPTH_BINS

_STEP = 1 << 15  # filters at a time: nine float64 coefficients stay in the cache of a core
_COLUMNS = ["layer_index", *FILTER_COLUMNS, "linf", "bn_scale"]


class Projector:
    """Coefficients of one model's folded, scaled, non-sparse filters on a basis.

    Args:
        path: the model's filter file.
        layers: its folded rows of `layers`, by layer_index; layers without metrics are skipped.
        directions: (9, 9) rows of the basis. mean: (9,) its mean filter.
    """

    def __init__(
        self, path: Path, layers: list[dict[str, Any]], directions: Array, mean: Array
    ) -> None:
        self._path = path
        self._directions = directions
        self._offset = directions @ mean
        n = 1 + max(row["layer_index"] for row in layers)
        self._threshold = np.full(n, np.inf)  # nothing passes in a layer without metrics
        self._depth_bin = np.zeros(n, np.int64)
        for row in layers:
            if row["layer_linf"] is not None:
                self._threshold[row["layer_index"]] = row["layer_linf"] / 100
            self._depth_bin[row["layer_index"]] = row["depth_bin"]

    def __iter__(self) -> Iterator[tuple[NDArray[np.int64], Array]]:
        """(depth bins (m,), coefficients (9, m) float64) of m filters at a time."""
        with open_parquet(self._path) as file:
            for batch in file.iter_batches(1 << 17, columns=_COLUMNS):
                layer, *coefficients, linf, scale = (c.to_numpy() for c in batch.columns)
                for start in range(0, len(layer), _STEP):
                    part = slice(start, start + _STEP)
                    # In float32, as the folded weights are; what follows in float64.
                    with np.errstate(over="ignore", invalid="ignore"):
                        length = (linf[part] * np.abs(scale[part])).astype(np.float64)
                        keep = length > self._threshold[layer[part]]
                        folded = np.stack([c[part] * scale[part] for c in coefficients])
                    if not keep.all():
                        folded, length = folded[:, keep], length[keep]
                    unit = folded / length
                    yield (
                        self._depth_bin[layer[part][keep]],
                        self._directions @ unit - self._offset[:, None],
                    )

    def extent(self) -> tuple[float, float]:
        """Smallest and largest coefficient; (inf, -inf) where there is none."""
        low, high = np.inf, -np.inf
        for _, coefficients in self:
            if coefficients.size:
                low = min(low, float(coefficients.min()))
                high = max(high, float(coefficients.max()))
        return low, high

    def counts(self, low: float, high: float) -> NDArray[np.int64]:
        """Counts (depth bins, 9 components, 70 bins) over [low, high]; the last bin is closed."""
        total = np.zeros(N_DEPTH_BINS * 9 * N_BINS, np.int64)
        component = (np.arange(9) * N_BINS)[:, None]
        width = (high - low) / N_BINS
        for depth_bin, coefficients in self:
            if width > 0:
                index = ((coefficients - low) / width).astype(np.int64)
            else:
                index = np.zeros(coefficients.shape, np.int64)
            np.clip(index, 0, N_BINS - 1, out=index)
            index += component + depth_bin * (9 * N_BINS)
            total += np.bincount(index.ravel(), minlength=total.size)
        return total.reshape(N_DEPTH_BINS, 9, N_BINS)


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
