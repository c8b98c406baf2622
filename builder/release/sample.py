"""filters_sample: a few filters of every layer, for a first look in the Hub's viewer.

They are taken while the filters are written, and kept as text until all models are there.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from builder import schema

PER_LAYER = 8
"""Rows of a layer, evenly spaced over it: no randomness, and every layer weighs the same."""


def positions(n: int) -> NDArray[np.int64]:
    """Which of the n filters of a layer are sampled, ascending."""
    k = min(n, PER_LAYER)
    return (2 * np.arange(k) + 1) * n // (2 * k)


def as_text(rows: pa.Table) -> str:
    """Rows of `filters` as an Arrow stream in base64: exact, NaN included."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    return base64.b64encode(sink.getvalue()).decode()


def table(texts: Iterable[str]) -> pa.Table:
    """The rows of filters_sample from those of its models, in the order given."""
    parts = [pa.ipc.open_stream(base64.b64decode(text)).read_all() for text in texts]
    return pa.concat_tables([schema.FILTERS.arrow.empty_table(), *parts]).unify_dictionaries()
