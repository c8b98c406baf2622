"""filters_sample: a few filters of every layer, for a first look in the Hub's viewer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builder import schema
from builder.release.manifest import FileFacts
from builder.release.parquet import open_parquet
from builder.release.write import write_table

PER_LAYER = 8
"""Rows of a layer, evenly spaced over it: no randomness, and every layer weighs the same."""


def write_filters_sample(root: Path, weights: str) -> FileFacts:
    """Write data/filters_sample.parquet from the filters and layers of a release.

    Args:
        root: a release folder with its filters and `layers`.
        weights: kind of weights of the release, recorded in the file.
    """
    root = root.absolute()  # pyarrow takes a relative `a:b/c` for a URI
    layers = pq.read_table(
        root / schema.table_path("layers"),
        columns=["dataset", "model_id", "layer_index", "n_filters"],
        filters=[("weights", "=", "trained")],
    )
    counts: dict[str, dict[int, int]] = {}
    for row in layers.to_pylist():
        path = schema.filters_path(row["dataset"], row["model_id"])
        counts.setdefault(path, {})[row["layer_index"]] = row["n_filters"]
    parts = [part for path in sorted(counts) for part in _rows(root / path, counts[path])]
    table = pa.concat_tables([schema.FILTERS.arrow.empty_table(), *parts]).unify_dictionaries()
    return write_table(root / schema.SAMPLE, schema.FILTERS, table, weights)


def _rows(path: Path, layers: dict[int, int]) -> Iterator[pa.Table]:
    """The sampled rows of one model's file, which is sorted by layer."""
    start, wanted = 0, []
    for _, n in sorted(layers.items()):
        k = min(n, PER_LAYER)
        wanted.append(start + (2 * np.arange(k) + 1) * n // (2 * k))
        start += n
    positions = np.concatenate(wanted)
    first = 0
    with open_parquet(path) as file:
        for group in range(file.metadata.num_row_groups):
            stop = first + file.metadata.row_group(group).num_rows
            here = positions[(positions >= first) & (positions < stop)] - first
            if len(here):
                rows = file.read_row_group(group).take(pa.array(here))
                yield rows.cast(schema.FILTERS.arrow)
            first = stop
