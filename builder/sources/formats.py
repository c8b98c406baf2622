"""Readers of torch's zip and legacy formats and of safetensors, over mapped memory.

Each returns the tree of what a file describes, and where the bytes of each storage lie in the
mapped file (start, end). They copy no numbers and call nothing of torch.
"""

from __future__ import annotations

import io
import json
import math
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from builder.sources import unpickle
from builder.sources.unpickle import Malformed, Storage, StoredTensor

Extents = dict[str, tuple[int, int]]
"""Storage key -> first byte and end of its data in the mapped file."""

MAX_HEADER_BYTES = 100 << 20  # the safetensors library's own bound
_MAGIC = 0x1950A86A20F9469CFC6C
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
}


class Window(io.RawIOBase):
    """Part of a mapped file as a file of its own, for zipfile and tarfile."""

    def __init__(self, memory: mmap.mmap, start: int, end: int) -> None:
        self._memory, self._start, self._size, self._at = memory, start, end - start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        n = max(0, min(len(buffer), self._size - self._at))
        begin = self._start + self._at
        buffer[:n] = self._memory[begin : begin + n]
        self._at += n
        return n


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
            todo += node.values() if isinstance(node, dict) else node


def read_zip(memory: mmap.mmap, start: int, end: int, name: str) -> tuple[Any, Extents]:
    """torch's zip format: {folder}/data.pkl beside one uncompressed entry per storage."""
    try:
        with zipfile.ZipFile(io.BufferedReader(Window(memory, start, end))) as z:
            entries = {i.filename: i for i in z.infolist()}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError) as e:
        raise Malformed(f"it is a damaged or truncated zip file ({e})") from None
    folders = [n.removesuffix("data.pkl") for n in entries if n.endswith("/data.pkl")]
    if len(folders) != 1:
        found = ", ".join(sorted(entries)[:3]) or "nothing"
        raise Malformed(f"it is a zip file, but none of torch's (it holds {found})")
    folder = folders[0]
    if f"{folder}constants.pkl" in entries:
        raise Malformed("it is a TorchScript program, not weights")

    def extent(entry: zipfile.ZipInfo) -> tuple[int, int]:
        """An entry's bytes; they begin behind a local header of variable length."""
        header = start + entry.header_offset
        fixed = memory[header : header + 30]
        if entry.compress_type != zipfile.ZIP_STORED or fixed[:4] != b"PK\x03\x04":
            raise Malformed("it was packed again: its entries are compressed, or damaged")
        name_length, extra_length = struct.unpack("<HH", fixed[26:30])
        begin = header + 30 + int(name_length) + int(extra_length)
        if begin + entry.file_size > end:
            raise Malformed("it is truncated: an entry lies beyond its end")
        return begin, begin + entry.file_size

    if (order := entries.get(f"{folder}byteorder")) is not None:
        begin, stop = extent(order)
        if memory[begin : min(stop, begin + 8)] != b"little":
            raise Malformed("its numbers are big-endian")
    tree, _ = _load_pickle(memory, *extent(entries[f"{folder}data.pkl"]), name, _storage)
    prefix = f"{folder}data/"
    data = {n.removeprefix(prefix): i for n, i in entries.items() if n.startswith(prefix)}
    return tree, {key: extent(entry) for key, entry in data.items()}


def check_sums(memory: mmap.mmap, start: int, end: int) -> None:
    """Read every entry of a zip file against its checksum, which torch may have left out (0).

    Raises:
        Malformed: an entry that has changed since it was written.
    """
    with zipfile.ZipFile(io.BufferedReader(Window(memory, start, end))) as z:
        for entry in z.infolist():
            try:
                with z.open(entry) as f:
                    while entry.CRC and f.read(1 << 20):
                        pass
            except (zipfile.BadZipFile, zlib.error, EOFError):
                raise Malformed(
                    f"its entry {entry.filename} is damaged: it does not meet its checksum"
                ) from None


def read_legacy(memory: mmap.mmap, start: int, end: int, name: str) -> tuple[Any, Extents]:
    """torch's format before 1.6: five pickles (magic number, protocol, system, object, storage
    keys), then per key an int64 count and the elements."""
    widths: dict[str, int] = {}

    def storage(pid: tuple[Any, ...]) -> Any:
        stored = _storage(pid)
        if isinstance(stored, Storage):
            widths[stored.key] = stored.dtype.itemsize
        return stored

    try:
        magic, at = _load_pickle(memory, start, end, name, storage)
    except Malformed as e:
        first = memory[start : min(end, start + 8)]
        raise Malformed(f"it begins with {first!r}, as no known format does ({e})") from None
    if magic != _MAGIC:
        raise Malformed("it is a pickle, but not one that torch.save writes")
    protocol, at = _load_pickle(memory, at, end, name, storage)
    system, at = _load_pickle(memory, at, end, name, storage)
    if protocol != _PROTOCOL or not isinstance(system, dict):
        raise Malformed(f"its legacy format has version {protocol!r}, not {_PROTOCOL}")
    if not system.get("little_endian", True):
        raise Malformed("its numbers are big-endian")
    tree, at = _load_pickle(memory, at, end, name, storage)
    keys, at = _load_pickle(memory, at, end, name, storage)
    if not isinstance(keys, list):
        raise Malformed("its list of storages is missing")
    extents: Extents = {}
    for key in map(str, keys):
        if at + 8 > end:
            raise Malformed(f"it is truncated: {len(keys) - len(extents)} storages are missing")
        (count,) = struct.unpack("<q", memory[at : at + 8])
        if count < 0 or key not in widths:
            raise Malformed(f"storage {key!r} is of no tensor, or has no size")
        extents[key] = (at + 8, at + 8 + count * widths[key])
        at = extents[key][1]
        if at > end:
            raise Malformed(f"it is truncated: at least {at - end:,} bytes are missing")
    return tree, extents


def read_safetensors(memory: mmap.mmap, start: int, end: int) -> tuple[Any, Extents]:
    """safetensors: length of a JSON header, the header, the data."""
    import torch

    data = start + 8 + int.from_bytes(memory[start : start + 8], "little")
    tree: dict[str, StoredTensor] = {}
    extents: Extents = {}
    try:
        header = json.loads(memory[start + 8 : min(end, data)])
        header.pop("__metadata__", None)
        for key, entry in header.items():
            dtype = getattr(torch, _SAFETENSORS[entry["dtype"]])
            shape = tuple(map(int, entry["shape"]))
            begin, stop = map(int, entry["data_offsets"])
            numel = math.prod(shape)
            if not 0 <= begin <= stop or stop - begin != numel * dtype.itemsize:
                raise Malformed(f"tensor {key!r} has a shape that its bytes do not fill")
            stride = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
            tree[key] = StoredTensor(Storage(key, dtype, numel), dtype, 0, shape, stride)
            extents[key] = (data + begin, data + stop)
            if data + stop > end:
                raise Malformed(f"it is truncated: {data + stop - end:,} bytes are missing")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise Malformed(
            f"its safetensors header is damaged or truncated ({type(e).__name__}: {e})"
        ) from None
    return tree, extents


def _load_pickle(
    memory: mmap.mmap, start: int, end: int, name: str, storage: Callable[[tuple[Any, ...]], Any]
) -> tuple[Any, int]:
    """One pickle out of the file, and where it ends."""
    window = memory[start : min(end, start + unpickle.MAX_BYTES)]
    length = unpickle.scan(window)
    return unpickle.load(window[:length], name, storage), start + length


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
