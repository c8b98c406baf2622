"""Readers of torch's zip and legacy formats and of safetensors, over mapped memory.

Each returns the tree of what a file describes, and where the bytes of each storage lie in the
mapped file (start, end). They copy no numbers and call nothing of torch.
"""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from builder.sources import unpickle
from builder.sources.foreign import of_zip, refuse_unknown
from builder.sources.instructions import MAX_BYTES, TooLong
from builder.sources.packing import Span, zip_entries, zip_extent
from builder.sources.stored import Malformed, Storage, StoredTensor, Unreadable

Extents = dict[str, tuple[int, int]]
"""Storage key -> first byte and end of its data in the mapped file."""

MAX_HEADER_BYTES = 100 << 20  # the safetensors library's own bound
_MAGIC = 0x1950A86A20F9469CFC6C
_MAGIC_BYTES = 1024  # more than its pickle has in any protocol: of other files no more is read
_PROTOCOL = 1001
_SAFETENSORS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}


def stored_tensors(tree: Any) -> Iterator[StoredTensor]:
    """Every tensor below a node of a tree; shared containers are visited once."""
    seen: set[int] = set()
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, StoredTensor):
            yield node
        elif isinstance(node, dict | list | tuple) and id(node) not in seen:
            seen.add(id(node))
            # Not node.values(): a pickle may have hidden it behind an attribute.
            todo += dict.values(node) if isinstance(node, dict) else node


def read_zip(span: Span) -> tuple[Any, Extents]:
    """torch's zip format: {folder}/data.pkl beside one uncompressed entry per storage."""
    entries = zip_entries(span)
    folders = [n.removesuffix("data.pkl") for n in entries if n.endswith("/data.pkl")]
    if len(folders) != 1:
        raise of_zip(sorted(entries))
    folder = folders[0]
    if f"{folder}constants.pkl" in entries:
        raise Malformed(
            "it is a TorchScript program, not weights",
            "save its weights alone: torch.save(torch.jit.load(FILE).state_dict(), ...).",
        )
    if (order := entries.get(f"{folder}byteorder")) is not None:
        begin, stop = zip_extent(span, order)
        if span.memory[begin : min(stop, begin + 8)] != b"little":
            raise Malformed("its numbers are big-endian")
    pickled = Span(span.memory, *zip_extent(span, entries[f"{folder}data.pkl"]), span.name)
    tree, _ = _load_pickle(pickled, pickled.start, _storage)
    prefix = f"{folder}data/"
    data = {n.removeprefix(prefix): i for n, i in entries.items() if n.startswith(prefix)}
    return tree, {key: zip_extent(span, entry) for key, entry in data.items()}


def damaged_entry(span: Span) -> str | None:
    """The first entry of a zip file whose bytes do not meet its checksum; None where all do.

    Where torch was told to write no checksums they are 0, and say nothing.
    """
    for name, entry in zip_entries(span).items():
        begin, stop = zip_extent(span, entry)
        if entry.CRC and zlib.crc32(memoryview(span.memory)[begin:stop]) != entry.CRC:
            return name
    return None


def read_legacy(span: Span) -> tuple[Any, Extents]:
    """torch's format before 1.6: five pickles (magic number, protocol, system, object, storage
    keys), then per key an int64 count and the elements."""
    widths: dict[str, int] = {}

    def storage(pid: tuple[Any, ...]) -> Any:
        stored = _storage(pid)
        if isinstance(stored, Storage):
            widths[stored.key] = stored.dtype.itemsize
        return stored

    other = Malformed("it is a pickle, but not one that torch.save writes")
    try:
        magic, at = _load_pickle(span, span.start, storage, _MAGIC_BYTES)
    except TooLong:
        if not re.match(rb"\x80[\x02-\x05]", span.head(2)):
            refuse_unknown(span, "its pickle is too long")
        raise other from None
    except Malformed as e:
        refuse_unknown(span, str(e))
    if magic != _MAGIC:
        raise other
    protocol, at = _load_pickle(span, at, storage)
    system, at = _load_pickle(span, at, storage)
    if protocol != _PROTOCOL or not isinstance(system, dict):
        raise Malformed(f"its legacy format has version {protocol!r}, not {_PROTOCOL}")
    if not system.get("little_endian", True):
        raise Malformed("its numbers are big-endian")
    tree, at = _load_pickle(span, at, storage)
    keys, at = _load_pickle(span, at, storage)
    if not isinstance(keys, list):
        raise Malformed("its list of storages is missing")
    extents: Extents = {}
    for key in map(str, keys):
        if at + 8 > span.end:
            raise Malformed(f"it is truncated: {len(keys) - len(extents)} storages are missing")
        (count,) = struct.unpack("<q", span.memory[at : at + 8])
        if count < 0 or key not in widths:
            raise Malformed(f"storage {key!r} is of no tensor, or has no size")
        extents[key] = (at + 8, at + 8 + count * widths[key])
        at = extents[key][1]
        if at > span.end:
            raise Malformed(f"it is truncated: at least {at - span.end:,} bytes are missing")
    return tree, extents


def read_safetensors(span: Span) -> tuple[Any, Extents]:
    """safetensors: length of a JSON header, the header, the data."""
    import torch

    data = span.start + 8 + int.from_bytes(span.head(8), "little")
    tree: dict[str, StoredTensor | Unreadable] = {}
    extents: Extents = {}
    if b"\0" in span.memory[span.start + 8 : min(span.end, data, span.start + 4096)]:
        raise Malformed("its safetensors header is damaged or truncated (it holds zeros)")
    try:
        header = json.loads(span.memory[span.start + 8 : min(span.end, data)])
        header.pop("__metadata__", None)
        for key, entry in header.items():
            shape = tuple(map(int, entry["shape"]))
            begin, stop = map(int, entry["data_offsets"])
            if data + stop > span.end:
                raise Malformed(f"it is truncated: {data + stop - span.end:,} bytes are missing")
            dtype = getattr(torch, _SAFETENSORS.get(entry["dtype"], ""), None)
            if dtype is None:
                tree[key] = Unreadable(f"a tensor of the element type {entry['dtype']}")
                continue
            numel = math.prod(shape)
            if not 0 <= begin <= stop or stop - begin != numel * dtype.itemsize:
                raise Malformed(f"tensor {key!r} has a shape that its bytes do not fill")
            stride = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
            tree[key] = StoredTensor(Storage(key, dtype, numel), dtype, 0, shape, stride)
            extents[key] = (data + begin, data + stop)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise Malformed(
            f"its safetensors header is damaged or truncated ({type(e).__name__}: {e})"
        ) from None
    return tree, extents


def _load_pickle(
    span: Span, start: int, storage: Callable[[tuple[Any, ...]], Any], limit: int = MAX_BYTES
) -> tuple[Any, int]:
    """One pickle out of the file, of `limit` bytes at most, and where it ends."""
    window = Span(span.memory, start, min(span.end, start + limit), span.name)
    value, length = unpickle.load(window.file(), span.name, storage, limit)
    return value, start + length


def _storage(pid: tuple[Any, ...]) -> Any:
    """A persistent id of torch: ('storage', element type, key, device, elements[, view]), or
    ('module', class, ...), whose class is a stub already."""
    import torch

    kind, *rest = pid
    if kind == "module" and rest:
        return rest[0]
    if kind != "storage" or len(rest) not in (4, 5):
        raise Malformed("it has a persistent id of a kind torch never writes")
    dtype, key, _device, numel = rest[:4]
    if isinstance(dtype, type) and issubclass(dtype, unpickle.Inert):
        return Unreadable(f"a tensor of {dtype.__name__}, which this torch does not know")
    if not isinstance(dtype, torch.dtype) or type(numel) is not int or numel < 0:
        raise Malformed("it has a storage without element type or size")
    view = rest[4] if len(rest) == 5 else None
    if view is None:
        return Storage(str(key), dtype, numel)
    if not isinstance(view, tuple) or len(view) != 3:
        raise Malformed("it has a view that is no triple")
    _, skip, length = view
    if type(skip) is not int or type(length) is not int or not 0 <= skip <= skip + length <= numel:
        raise Malformed("it has a view that reaches beyond its storage")
    return Storage(str(key), dtype, length, skip)
