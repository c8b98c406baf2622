"""The table of a measurement: the columns of `layers`, and what became of each convolution."""

from __future__ import annotations

import pyarrow as pa

from builder import schema
from builder.schema import Column, Table

MEASURED, SKIPPED = "measured", "not measured"

_UNKNOWN = {
    c.name
    for c in (*schema.LAYER_GRAPH, *schema.LAYERS.columns)
    if c.name not in ("model_id", "layer", "weights", "out_channels", "in_channels", "n_filters")
}
"""Columns that may be null here: without an architecture nobody knows a layer's place."""

LAYERS = Table(
    "layers",
    "One row per convolution and weights view: the columns of `layers` of a release, and a status.",
    ("model_id", "layer", "weights"),
    (
        *(
            Column(
                c.name,
                pa.string() if pa.types.is_dictionary(c.type) else c.type,
                c.description,
                c.nullable or c.name in _UNKNOWN,
            )
            for c in schema.LAYERS.columns
        ),
        Column("kernel_size", pa.string(), "Height x width of the kernel, e.g. 3x3."),
        Column("status", pa.string(), "`measured` or `not measured`."),
        Column("reason", pa.string(), "Why not measured, or what is missing; null: nothing.", True),
    ),
)
