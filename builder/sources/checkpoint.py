"""A checkpoint file of any format, as a tree of dictionaries whose leaves describe tensors.

Nothing is executed: the pickle is read by unpickle.py, an archive's member is read where it lies
inside the archive or unpacked without a name (packing.py), and a tensor's numbers are mapped from
the file when they are asked for. So a large checkpoint is never in memory twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.sources.digests import WrongContent
from builder.sources.foreign import refuse_foreign
from builder.sources.formats import (
    MAX_HEADER_BYTES,
    Extents,
    damaged_entry,
    read_legacy,
    read_safetensors,
    read_zip,
    stored_tensors,
)
from builder.sources.packing import Names, Span, unpacked
from builder.sources.stored import Malformed, StoredTensor

if TYPE_CHECKING:
    from torch import Tensor

_EXPECTED = (
    "expected weights as torch.save writes them (zip or legacy format), safetensors, or an archive "
    "that holds one such file"
)
_ZIP = b"PK\x03\x04"


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint file.

    Attributes:
        name: path of the file, and of the archive's member where there is one.
        tree: what the file holds: dictionaries, numbers, text, StoredTensor leaves.
        inside: which of several networks in it is meant, if any: a dotted path or a prefix of its
            keys.
    """

    name: str
    tree: Any
    inside: str
    _span: Span = field(repr=False)
    _extents: Extents = field(repr=False)

    def load(self, stored: StoredTensor) -> Tensor:
        """The tensor itself, element type and shape as stored; mapped, not copied, where aligned.

        Elements of one byte (float8) come as float32, which holds each of them exactly. The
        mapping is private: writing to the tensor never changes the file.
        """
        import torch

        storage, width = stored.storage, stored.dtype.itemsize
        if not stored.numel:
            return torch.empty(stored.shape, dtype=stored.dtype)
        begin = self._extents[storage.key][0] + storage.skip * width
        raw: Any = self._span.memory
        if begin % width:  # the legacy format aligns nothing
            raw, begin = bytearray(memoryview(raw)[begin : begin + storage.numel * width]), 0
        flat = torch.frombuffer(raw, dtype=stored.dtype, count=storage.numel, offset=begin)
        if width == 1 and stored.dtype.is_floating_point:
            flat = flat.float()
        tensor = flat.as_strided(stored.shape, stored.stride, stored.offset)
        return tensor.contiguous() if stored.repeats else tensor

    def damaged_entry(self) -> str | None:
        """The first part of the file whose bytes do not meet its checksum (a flipped bit); None
        where all do, and for formats without checksums. Reads the whole file."""
        return damaged_entry(self._span) if self._span.head(4) == _ZIP else None


def read_checkpoint(path: Path, name: str | None = None, inside: Names = ()) -> Checkpoint:
    """Open a checkpoint and check that every tensor it describes lies inside the file.

    Args:
        name: what messages call the file, if not by its path.
        inside: what is meant inside it: a member of an archive, a network.

    Raises:
        WrongContent: truncated, of no known format, or a pickle that would run code.
        UsageError: an archive with several checkpoints, none of which is named.
        BuilderError: a file that cannot be read.
    """
    name = name or str(path)
    try:
        span, inside = unpacked(path, name, inside)
        name = span.name
        tree, extents = _read(span)
    except Malformed as e:
        raise WrongContent(
            f"{name} is no usable checkpoint: {e}; {_EXPECTED}.",
            hint=e.hint or "if it was downloaded, delete it and fetch it again.",
        ) from None
    return Checkpoint(name, tree, "#".join(inside), span, extents)


def _read(span: Span) -> tuple[Any, Extents]:
    """Recognise the format by content, read it, check that all tensors lie inside the file."""
    head = span.head(9)
    if not head:
        raise Malformed("it is empty")
    if head.startswith(_ZIP):
        tree, extents = read_zip(span)
    elif head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES:
        tree, extents = read_safetensors(span)
    else:
        refuse_foreign(span)
        tree, extents = read_legacy(span)
    for t in stored_tensors(tree):
        begin, stop = extents.get(t.storage.key, (0, -1))
        if begin + (t.storage.skip + t.storage.numel) * t.dtype.itemsize > stop:
            raise Malformed(f"the data of storage {t.storage.key!r} are missing or too short")
    return tree, extents
