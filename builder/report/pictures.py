"""Filters as pictures: coefficients in eight bits, which a screen cannot tell from more."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from builder.report.tables import columnar

LEVELS = 127
"""Steps from 0 to the largest coefficient; a step is below 0.8 % of it."""


def packed(table: pa.Table, scale_by: str | None = None) -> dict[str, Any]:
    """A table of filters as JSON: the other columns as they are, `w` as base64 of int8.

    A coefficient is `w[9 * row + entry] / LEVELS * scale[row]`.

    Args:
        table: with `w`, lists of nine coefficients.
        scale_by: a column whose groups share one scale, so that their filters stay comparable;
            None: every filter has its own.
    """
    flat = pc.list_flatten(table.column("w")).to_numpy().astype(np.float64).reshape(-1, 9)
    scale: npt.NDArray[np.float64] = np.abs(flat).max(axis=1, initial=0.0)
    if scale_by is not None:
        groups, index = np.unique(table.column(scale_by).to_numpy(), return_inverse=True)
        largest = np.zeros(len(groups))
        np.maximum.at(largest, index, scale)
        scale = largest[index]
    steps = np.rint(flat / np.where(scale > 0, scale, 1.0)[:, None] * LEVELS)
    plain = table.drop_columns(["w"]).append_column("scale", pa.array(scale))
    data = np.nan_to_num(steps).astype(np.int8).tobytes()
    return {**columnar(plain), "levels": LEVELS, "w": base64.b64encode(data).decode()}
