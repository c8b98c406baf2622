"""Open the Parquet files of a release: from their very path, a row group in memory at a time."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq


def open_parquet(path: Path) -> pq.ParquetFile:
    """A Parquet file to read from; close it, or use it as a context manager."""
    # Absolute, for of a relative one pyarrow takes `a:b/c` for a URI. Not buffered ahead, for that
    # keeps every byte of the file until the last batch (measured: 340 MB instead of 69 MB).
    return pq.ParquetFile(path.absolute(), pre_buffer=False)
