"""Content hash of a table: same rows, same hash, whatever the order, encoding or file layout.

Each row has a 64-bit hash of the exact bits of its values and the names of its columns. It is
extended to 128 bits by a fixed function of itself, and those are added over the rows, both halves
modulo 2**64, so that repeated rows do not cancel.

What that protects from is accident. Two rows that differ by accident collide with probability
2**-64, and so does a table with one such row exchanged for another: the 128 bits of a sum hold no
more than the 64 of each row. The row hash is linear before its last mixing and has no key, so
whoever wants two rows of one hash computes them at once: tampering is what the SHA-256 of the
files is for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_U64 = NDArray[np.uint64]
_STEP = 1 << 16  # rows at a time: the working set stays in the cache of a core

FILTER_IDENTITY = ("dataset", "model_id")
"""Columns of `filters` left out of its hash, so that models with equal filters hash alike."""


@cache
def _weight(name: str) -> np.uint64:
    """Odd 64-bit multiplier of a column."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little") | 1)


def _text_codes(values: Iterable[str | None]) -> _U64:
    return np.array(
        [
            0
            if v is None
            else int.from_bytes(hashlib.blake2b(v.encode(), digest_size=8).digest(), "little")
            for v in values
        ],
        dtype=np.uint64,
    )


def _bits(array: pa.Array) -> _U64:
    """The bits of each value as uint64, (n,); null gives 0."""
    if pa.types.is_dictionary(array.type):
        codes = np.append(_text_codes(array.dictionary.to_pylist()), np.uint64(0))
        indices = pc.fill_null(array.indices, len(codes) - 1)
        coded: _U64 = codes[indices.to_numpy(zero_copy_only=False)]
        return coded
    if pa.types.is_string(array.type):
        return _bits(array.dictionary_encode())
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    if array.null_count:
        array = pc.fill_null(array, 0)
    values: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    if values.dtype.kind == "i":  # one value, one hash, whatever the width of the integer
        return values.astype(np.int64).view(np.uint64)
    return values.view(f"u{values.dtype.itemsize}").astype(np.uint64, copy=False)


def _terms(name: str, array: pa.Array) -> Iterable[tuple[str, _U64]]:
    if array.null_count:
        yield name + "?", array.is_null().to_numpy(zero_copy_only=False).astype(np.uint64)
    if pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size
        rows = pc.fill_null(array, [0.0] * width) if array.null_count else array
        values = _bits(rows.flatten()).reshape(-1, width)
        for i in range(width):
            yield f"{name}[{i}]", values[:, i]
    else:
        yield name, _bits(array)


def _mix(h: _U64) -> _U64:
    """Finaliser of SplitMix64 (Steele, Lea & Flood 2014)."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def hash_rows(data: pa.Table | pa.RecordBatch, skip: tuple[str, ...] = ()) -> int:
    """Sum of the row hashes, an integer below 2**128. Add those of the parts of a table.

    Args:
        data: rows to hash.
        skip: columns left out.
    """
    batches = data.to_batches() if isinstance(data, pa.Table) else [data]
    low = high = 0
    with np.errstate(over="ignore"):
        for batch in batches:
            for start in range(0, batch.num_rows, _STEP):
                part = batch.slice(start, _STEP)
                row = np.full(part.num_rows, _weight(""), dtype=np.uint64)
                for name, column in zip(part.schema.names, part.columns, strict=True):
                    if name not in skip:
                        for term, bits in _terms(name, column):
                            row += bits * _weight(term)
                row = _mix(row)
                low += int(row.sum(dtype=np.uint64))
                high += int(_mix(row + np.uint64(0x9E3779B97F4A7C15)).sum(dtype=np.uint64))
    mask = (1 << 64) - 1
    return (high & mask) << 64 | low & mask


def add(*hashes: int) -> int:
    """Hash of the concatenation of tables from the hashes of each."""
    mask = (1 << 64) - 1
    low = sum(h & mask for h in hashes) & mask
    high = sum(h >> 64 for h in hashes) & mask
    return high << 64 | low


def text(value: int) -> str:
    """A content hash as 32 hexadecimal digits."""
    return f"{value:032x}"
