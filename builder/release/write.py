"""Rows to Parquet: fixed order, fixed encodings, a temporary name until the file is whole.

Settings as measured on trained filters: BYTE_STREAM_SPLIT and zstd level 1 with pages of exactly
131,072 rows (one zstd block per byte stream) are 9 % smaller than the default pages and faster to
read; row groups of 524,288 rows suit a reader of one layer over HTTP.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from builder import schema
from builder.files import replacing
from builder.release import content, sample
from builder.release.manifest import FileFacts

ROWS_PER_GROUP = 524_288
ROWS_PER_PAGE = 131_072

_FLOATS = [c.name for c in schema.FILTERS.columns if c.type == pa.float32()]
_DICTIONARY = ["dataset", "model_id", "layer_index", "bn_scale"]
FILTER_SETTINGS: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": _DICTIONARY,
    "column_encoding": {
        **{name: "BYTE_STREAM_SPLIT" for name in _FLOATS if name not in _DICTIONARY},
        "out_channel": "DELTA_BINARY_PACKED",
        "in_channel": "DELTA_BINARY_PACKED",
    },
    "data_page_size": 8 << 20,  # larger than any page, so that the row count decides
    "max_rows_per_page": ROWS_PER_PAGE,
    "write_page_index": True,
    "write_page_checksum": True,
}
"""pyarrow.parquet.ParquetWriter options of the filter files."""

TABLE_SETTINGS: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 3,
    "write_page_index": True,
    "write_page_checksum": True,
    # Small tables get edited between versions: equal runs of rows then keep equal bytes.
    "use_content_defined_chunking": True,
}

CHUNKED = "use_content_defined_chunking"
"""Key in the footer of a table that was written so. The Hub's check for optimized Parquet looks for
it; pyarrow itself writes no such key, and that of `datasets` has another name."""


class _HashingFile:
    """A binary file that digests what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.bytes = 0
        self.closed = False
        self.abandoned = False

    def write(self, data: bytes) -> int:
        if self.abandoned:  # a writer that failed still writes a footer when it is collected
            return len(data)
        self.sha256.update(data)
        self._file.write(data)
        self.bytes += len(data)
        return len(data)

    def facts(self, rows: int, content_hash: int) -> FileFacts:
        """Facts of the file, as the manifest records them."""
        return {
            "rows": rows,
            "bytes": self.bytes,
            "sha256": self.sha256.hexdigest(),
            "content_hash": content.text(content_hash),
        }

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:  # pyarrow closes its sink; the file is closed by `replacing`
        self.closed = True

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


@contextmanager
def _hashing(path: Path) -> Iterator[_HashingFile]:
    """A file that is hashed as it is written, whole or not there at all."""
    with replacing(path) as file:
        sink = _HashingFile(file)
        try:
            yield sink
        except BaseException:
            sink.abandoned = True
            raise


def _with_metadata(arrow: pa.Schema, table: str, weights: str) -> pa.Schema:
    # No version here: a release that repeats a file byte for byte is stored once on the Hub.
    return arrow.with_metadata(
        {
            "rfl.table": table,
            "rfl.schema_version": str(schema.SCHEMA_VERSION),
            "rfl.weights": weights,
        }
    )


def write_table(path: Path, table: schema.Table, rows: pa.Table, weights: str) -> FileFacts:
    """Write a small table in one file.

    Args:
        path: final path.
        table: which table; `rows` must have exactly its columns and types.
        rows: the rows, already in the order to be stored.
        weights: kind of weights of the release, recorded in the file's metadata.
    """
    target = _with_metadata(table.arrow, table.name, weights)
    rows = rows.cast(target)
    with _hashing(path) as sink, pq.ParquetWriter(sink, target, **TABLE_SETTINGS) as writer:
        writer.write_table(rows)
        writer.add_key_value_metadata({CHUNKED: "true"})
    return sink.facts(rows.num_rows, content.hash_rows(rows))


def table_from_rows(table: schema.Table, rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as dictionaries to Arrow, in the order given. Missing keys are null."""
    return pa.Table.from_pylist(rows, schema=table.arrow)


@contextmanager
def filter_writer(path: Path, dataset: str, model_id: str, weights: str) -> Iterator[FilterWriter]:
    """The writer of the filters of one model, encoding on a thread of its own.

    The file has its final name only after a clean exit, and `FilterWriter.written` is set then.
    What fails in the encoder is raised by `FilterWriter.append` or here, at the end.
    """
    target = _with_metadata(schema.FILTERS.arrow, schema.FILTERS.name, weights)
    order = [
        pq.SortingColumn(target.get_field_index(name))
        for name in ("layer_index", "out_channel", "in_channel")
    ]
    with (
        _hashing(path) as sink,
        pq.ParquetWriter(sink, target, sorting_columns=order, **FILTER_SETTINGS) as encoder,
        ThreadPoolExecutor(1, "encode") as thread,
    ):
        writer = FilterWriter(encoder, thread, (dataset, model_id))
        yield writer
        content_hash = writer.finish()
    writer.written = sink.facts(writer.rows, content_hash)


class FilterWriter:
    """Takes the layers of a model and has them encoded in full row groups.

    Attributes:
        rows: filters appended so far.
        written: facts of the file, once it is whole.
    """

    def __init__(
        self, encoder: pq.ParquetWriter, thread: ThreadPoolExecutor, labels: tuple[str, str]
    ) -> None:
        self.rows = 0
        self.written: FileFacts | None = None
        self._encoder = encoder
        self._thread = thread
        self._labels = labels
        self._parts: list[list[NDArray[Any]]] = []  # columns of the row group being filled
        self._filled = 0
        self._sampled: list[list[NDArray[Any]]] = []
        self._encoding: deque[Future[int]] = deque()
        self._hash = 0

    def append(
        self,
        layer_index: int,
        in_channels: int,
        columns: NDArray[np.float32],
        linf: NDArray[np.float32],
        bn_scale: NDArray[np.float32] | None,
    ) -> None:
        """Append one layer.

        Args:
            layer_index: index of the layer; layers come in ascending order.
            in_channels: filters per output channel.
            columns: (9, n) float32, row-major coefficients.
            linf: (n,) float32.
            bn_scale: (out_channels,) float32, or None for 1.
        """
        n = linf.shape[0]

        def rows(position: NDArray[Any], at: slice | NDArray[Any]) -> list[NDArray[Any]]:
            out_channel, in_channel = np.divmod(position.astype(np.int32), np.int32(in_channels))
            return [
                np.full(len(position), layer_index, np.int16),
                out_channel.astype(np.int16),
                in_channel.astype(np.int16),
                *(column[at] for column in columns),
                linf[at],
                np.ones(len(position), np.float32) if bn_scale is None else bn_scale[out_channel],
            ]

        start = 0
        while start < n:
            stop = min(n, start + ROWS_PER_GROUP - self._filled)
            self._parts.append(rows(np.arange(start, stop, dtype=np.int32), slice(start, stop)))
            self._filled += stop - start
            if self._filled == ROWS_PER_GROUP:
                self._flush()
            start = stop
        self.rows += n
        self._sampled.append(rows(sample.positions(n), sample.positions(n)))

    def sample(self) -> pa.Table:
        """The rows of `filters_sample` of what was appended."""
        batches = [self._batch(columns) for columns in self._sampled]
        return pa.Table.from_batches(batches, schema.FILTERS.arrow)

    def finish(self) -> int:
        """Encode what is left; the content hash of all rows."""
        if self._filled:
            self._flush()
        while self._encoding:
            self._collect()
        return self._hash

    def _flush(self) -> None:
        # Two row groups in flight: the encoder never waits, and memory stays bounded.
        if len(self._encoding) == 2:
            self._collect()
        columns = [np.concatenate(parts) for parts in zip(*self._parts, strict=True)]
        self._encoding.append(self._thread.submit(self._encode, columns))
        self._parts, self._filled = [], 0

    def _collect(self) -> None:
        self._hash = content.add(self._hash, self._encoding.popleft().result())

    def _encode(self, columns: list[NDArray[Any]]) -> int:
        """Encode a row group; its content hash."""
        batch = self._batch(columns)
        self._encoder.write_batch(batch, row_group_size=ROWS_PER_GROUP)
        return content.hash_rows(batch, content.FILTER_IDENTITY)

    def _batch(self, columns: list[NDArray[Any]]) -> pa.RecordBatch:
        n = len(columns[0])
        labels = [
            pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), [label])
            for label in self._labels
        ]
        return pa.RecordBatch.from_arrays(
            [*labels, *(pa.array(c) for c in columns)], schema=schema.FILTERS.arrow
        )
