"""A checkpoint file of any format, as a tree of dictionaries whose leaves describe tensors.

Nothing is executed and nothing unpacked: the pickle is read by unpickle.py, an archive's
member is read where it lies inside the archive, and a tensor's numbers are mapped from the file
when they are asked for. So a path inside an archive can lead nowhere, and a large checkpoint is
never in memory twice.
"""

from __future__ import annotations

import gzip
import io
import mmap
import tarfile
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from builder.errors import BuilderError
from builder.sources.digests import WrongContent
from builder.sources.formats import (
    MAX_HEADER_BYTES,
    Extents,
    Window,
    check_sums,
    read_legacy,
    read_safetensors,
    read_zip,
    stored_tensors,
)
from builder.sources.unpickle import Malformed, StoredTensor

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".pt", ".pth", ".ckpt", ".tar", ".safetensors", ".bin")
"""How a checkpoint's file name may end (content decides what it is)."""
MAX_FILE_BYTES = 16 << 30
_MAX_MEMBERS = 10_000
_EXPECTED = (
    "expected weights as torch.save writes them (zip or legacy format), safetensors, or a tar "
    "that holds one such file"
)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint file.

    Attributes:
        name: path of the file, and of the archive's member where there is one.
        tree: what the file holds: dictionaries, numbers, text, StoredTensor leaves.
    """

    name: str
    tree: Any
    _memory: mmap.mmap = field(repr=False)
    _extents: Extents = field(repr=False)

    def load(self, stored: StoredTensor) -> Tensor:
        """The tensor itself, element type and shape as stored; mapped, not copied, where aligned.

        The mapping is private: writing to the tensor never changes the file.
        """
        import torch

        storage, width = stored.storage, stored.dtype.itemsize
        if not stored.numel:
            return torch.empty(stored.shape, dtype=stored.dtype)
        begin = self._extents[storage.key][0] + storage.skip * width
        raw: Any = self._memory
        if begin % width:  # the legacy format aligns nothing
            raw, begin = bytearray(memoryview(raw)[begin : begin + storage.numel * width]), 0
        flat = torch.frombuffer(raw, dtype=stored.dtype, count=storage.numel, offset=begin)
        return flat.as_strided(stored.shape, stored.stride, stored.offset)


def read_checkpoint(path: Path, name: str | None = None) -> Checkpoint:
    """Open a checkpoint and check that every tensor it describes lies inside the file.

    Args:
        name: what messages call the file, if not by its path.

    Raises:
        WrongContent: truncated, of no known format, or a pickle that would run code.
        BuilderError: a file that cannot be read.
    """
    name = name or str(path)
    try:
        memory = _map(path)
        end = len(memory)
        if memory[257:262] == b"ustar":
            member, start, end = _tar_member(memory)
            name = f"{name}: {member}"
        else:
            start = 0
        tree, extents = _read(memory, start, end, name)
    except Malformed as e:
        raise WrongContent(
            f"{name} is no usable checkpoint: {e}; {_EXPECTED}.",
            hint="if it was downloaded, delete it and fetch it again.",
        ) from None
    return Checkpoint(name, tree, memory, extents)


def check_integrity(path: Path, name: str) -> None:
    """Read a zip checkpoint whole, against its checksums; other formats have none.

    For a file that no digest is known of yet: `read_checkpoint` reads what it is asked for, and a
    flipped bit in a weight is a weight.

    Raises:
        WrongContent: a damaged entry.
    """
    memory = _map(path)
    start, end = 0, len(memory)
    if memory[257:262] == b"ustar":
        _, start, end = _tar_member(memory)
    if memory[start : start + 4] != b"PK\x03\x04":
        return
    try:
        check_sums(memory, start, end)
    except Malformed as e:
        raise WrongContent(
            f"{name} is no usable checkpoint: {e}.",
            hint="if it was downloaded, delete it and fetch it again.",
        ) from None


def _map(path: Path) -> mmap.mmap:
    """A file's content, or what it unpacks to if it is gzipped, as private memory."""
    try:
        with path.open("rb") as f:
            size = path.stat().st_size
            if not size:
                raise Malformed("it is empty")
            if size > MAX_FILE_BYTES:
                raise Malformed(f"it has {size:,} bytes; at most {MAX_FILE_BYTES:,} are read")
            source = _gunzip(f) if f.read(2) == b"\x1f\x8b" else f
            # Copy on write: torch wants writable memory, and the file must stay as it is.
            return mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_COPY)
    except IsADirectoryError:
        raise BuilderError(f"{path} is a folder; expected a checkpoint file.") from None
    except OSError as e:
        raise BuilderError(f"cannot read the checkpoint {path}: {e.strerror or e}.") from None


def _gunzip(f: IO[bytes]) -> IO[bytes]:
    """The content of a gzip file in an unnamed temporary file."""
    f.seek(0)
    out = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as its mapping)
    written = 0
    try:
        with gzip.open(f) as packed:
            while block := packed.read(1 << 20):
                written += out.write(block)
                if written > MAX_FILE_BYTES:
                    raise Malformed(f"it unpacks to more than {MAX_FILE_BYTES:,} bytes")
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise Malformed(f"its gzip stream is damaged or truncated ({e})") from None
    if not written:
        raise Malformed("it unpacks to nothing")
    out.flush()
    return out


def _read(memory: mmap.mmap, start: int, end: int, name: str) -> tuple[Any, Extents]:
    """Recognise the format by content, read it, check that all tensors lie inside the file."""
    head = memory[start : min(end, start + 1024)]
    if not head:
        raise Malformed("it is empty")
    if head.startswith(b"PK\x03\x04"):
        tree, extents = read_zip(memory, start, end, name)
    elif head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES:
        tree, extents = read_safetensors(memory, start, end)
    elif head.lstrip().startswith(b"<"):
        raise Malformed(
            "it is a web page (a server's refusal, or the page that shows the file, saved in its "
            "place)"
        )
    elif head.startswith(b"version https://git-lfs"):
        raise Malformed(
            "it is a Git LFS pointer, which stands for the file (`git lfs pull` in its repository "
            "fetches the file itself)"
        )
    else:
        tree, extents = read_legacy(memory, start, end, name)
    for t in stored_tensors(tree):
        begin, stop = extents.get(t.storage.key, (0, -1))
        if begin + (t.storage.skip + t.storage.numel) * t.dtype.itemsize > stop:
            raise Malformed(f"the data of storage {t.storage.key!r} are missing or too short")
    return tree, extents


def _tar_member(memory: mmap.mmap) -> tuple[str, int, int]:
    """The one checkpoint inside a tar: its name, and where its bytes begin and end."""
    found: list[tarfile.TarInfo] = []
    try:
        window = io.BufferedReader(Window(memory, 0, len(memory)))
        with tarfile.open(fileobj=window, mode="r:") as tar:
            for i, member in enumerate(tar):
                _check_member(member, i)
                if member.isreg() and member.name.lower().endswith(SUFFIXES):
                    found.append(member)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as e:
        raise Malformed(f"it is a damaged or truncated tar file ({e})") from None
    if len(found) != 1:
        names = ", ".join(repr(m.name) for m in found[:5]) or "none"
        raise Malformed(f"it is a tar file with {len(found)} checkpoints ({names}), not one")
    (member,) = found
    end = member.offset_data + member.size
    if member.issparse() or end > len(memory):
        raise Malformed(f"it is a truncated tar file: {member.name!r} is not all there")
    return member.name, member.offset_data, end


def _check_member(member: tarfile.TarInfo, index: int) -> None:
    """Refuse what no archive of weights holds. Nothing is unpacked, but somebody tried."""
    path = PurePosixPath(member.name.replace("\\", "/"))
    if index >= _MAX_MEMBERS:
        raise Malformed(f"it is a tar file with more than {_MAX_MEMBERS:,} members")
    if path.is_absolute() or ".." in path.parts:
        wrong = "points outside its folder"
    elif not (member.isreg() or member.isdir()):
        wrong = "is a link or a device"
    else:
        return
    raise Malformed(f"refused, its tar member {member.name!r} {wrong} (nothing was unpacked)")
