"""The longest filters of a model, which alone may hold the extremes of the histograms.

The range of the histograms is that of all coefficients on a basis that is known only when every
model is measured. But the coefficients of a filter, divided by its max |w|, are no larger than its
L2 norm, whatever the basis: kept aside while a model is measured, its longest filters save reading
the others again (histograms.py says when they do not).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from builder.files import replacing
from builder.metrics.sums import TINY
from builder.schema import FILTER_COLUMNS

if TYPE_CHECKING:
    import torch

    from builder.metrics.layer import Measured
    from builder.network.extract import Layer

COLUMNS = ["layer_index", *FILTER_COLUMNS, "linf", "bn_scale"]
"""What a coefficient of a folded filter is computed from."""

_LEAST = 1 << 12
_SHARE = 1 << 9
"""A model keeps one filter of so many, and no fewer than the least."""


class Longest:
    """Collects the longest filters of a model, layer by layer.

    Args:
        n_filters: filters of the model.
        room: filters to keep; by default a small share of them.
    """

    def __init__(self, n_filters: int, room: int | None = None) -> None:
        self._room = max(_LEAST, n_filters // _SHARE) if room is None else room
        self._above = 0.0  # every longer filter is among those kept
        self._lengths = [np.empty(0, np.float32)]
        self._parts = [_nothing()]

    def add(self, layer: Layer, measured: Measured) -> None:
        """Take the layer's filters that are longer than what was left out so far."""
        if measured.views["folded"]["layer_linf"] is None:
            return  # no histogram counts it
        lengths = _lengths(layer, measured)
        chosen = (lengths > self._above).nonzero().squeeze(1)
        if len(chosen) > self._room:
            top = lengths.topk(self._room + 1)
            self._above, chosen = float(top.values[-1]), top.indices[:-1].sort().values
        scale = np.ones(len(chosen), np.float32)
        if layer.bn_scale is not None:
            scale = layer.bn_scale[chosen // layer.weight.shape[1]].cpu().numpy()
        columns = measured.columns[:, chosen].cpu().numpy()
        linf = measured.linf[chosen].cpu().numpy()
        self._lengths.append(lengths[chosen].cpu().numpy())
        self._parts.append([np.full(len(chosen), layer.index, np.int16), *columns, linf, scale])
        if sum(map(len, self._lengths)) > 2 * self._room:
            self._shorten()

    def _shorten(self) -> None:
        """Leave the shortest out, so that no more are kept than there is room for."""
        lengths = np.concatenate(self._lengths)
        columns = [np.concatenate(parts) for parts in zip(*self._parts, strict=True)]
        if len(lengths) > self._room:
            order = np.argpartition(lengths, len(lengths) - self._room - 1)
            left_out, kept = np.split(order, [len(lengths) - self._room])
            kept.sort()  # by layer, as they came
            self._above = max(self._above, float(lengths[left_out].max()))
            lengths, columns = lengths[kept], [column[kept] for column in columns]
        self._lengths, self._parts = [lengths], [columns]

    def write(self, path: Path) -> None:
        """Write what is kept as an Arrow file; `read` reads it."""
        self._shorten()
        (columns,) = self._parts
        batch = pa.record_batch([pa.array(c) for c in columns], COLUMNS)
        schema = batch.schema.with_metadata({"above": repr(self._above)})
        with replacing(path) as file, pa.ipc.new_file(file, schema) as arrow:
            arrow.write_batch(batch.cast(schema))


def _nothing() -> list[NDArray[Any]]:
    """The columns `COLUMNS` of no filter."""
    return [np.empty(0, np.int16), *(np.empty(0, np.float32) for _ in COLUMNS[1:])]


def _lengths(layer: Layer, measured: Measured) -> torch.Tensor:
    """(n,) L2 norms of the scaled filters; infinity where folding may change their directions."""
    lengths, scale = measured.lengths, layer.bn_scale
    if scale is None or float(measured.linf.min()) * float(scale.abs().min()) >= TINY:
        return lengths
    folded = (measured.linf.view(layer.weight.shape[:2]) * scale.abs()[:, None]).flatten()
    return lengths.masked_fill((folded > 0) & (folded < TINY), math.inf)


def read(path: Path) -> tuple[list[NDArray[Any]], float]:
    """The columns `COLUMNS` of the longest filters, and the length of the longest left out.

    Where there is no such file all were left out.
    """
    if not path.is_file():
        return _nothing(), math.inf
    with path.open("rb") as file:
        table = pa.ipc.open_file(file).read_all()
    above = float(table.schema.metadata[b"above"])
    return [column.to_numpy() for column in table.columns], above
