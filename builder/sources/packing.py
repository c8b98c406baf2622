"""How checkpoints are packed for download: gzip, bzip2, xz, tar and zip, down to one file.

What lies uncompressed in an archive is read where it lies. What is compressed is unpacked into an
unnamed temporary file, so a path inside an archive can lead nowhere.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import mmap
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from builder.errors import BuilderError, UsageError
from builder.sources.stored import Malformed

SUFFIXES = (".pt", ".pth", ".ckpt", ".tar", ".safetensors", ".bin")
"""How a checkpoint's file name may end (content decides what it is)."""
MAX_FILE_BYTES = 16 << 30
_MAX_MEMBERS = 10_000
_MAX_LAYERS = 4
_SHOWN = 5
_OPENERS: dict[bytes, tuple[str, Callable[[IO[bytes]], Any]]] = {
    b"\x1f\x8b": ("gzip", gzip.open),
    b"BZh": ("bzip2", bz2.open),
    b"\xfd7zXZ\0": ("xz", lzma.open),
}
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, zipfile.BadZipFile)

Names = tuple[str, ...]
"""What is meant inside a file, outermost first: a member of an archive, a network in that."""


@dataclass(frozen=True)
class Span:
    """A run of bytes of a mapped file, and what messages call it.

    The mapping is private (copy on write): torch wants writable memory, and the file must stay
    as it is.
    """

    memory: mmap.mmap
    start: int
    end: int
    name: str

    def head(self, n: int) -> bytes:
        return self.memory[self.start : min(self.end, self.start + n)]

    def file(self) -> IO[bytes]:
        """The span as a file of its own."""
        return io.BufferedReader(_Window(self), 1 << 18)


class _Window(io.RawIOBase):
    def __init__(self, span: Span) -> None:
        self._span, self._size, self._at = span, span.end - span.start, 0

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
        begin = self._span.start + self._at
        buffer[:n] = self._span.memory[begin : begin + n]
        self._at += n
        return n


def unpacked(path: Path, name: str, inside: Names = ()) -> tuple[Span, Names]:
    """The bytes of a checkpoint in a file, out of whatever it is packed in.

    Args:
        name: what messages call the file.
        inside: what is meant inside it; the first may name a member of an archive.

    Returns:
        The checkpoint, and those of `inside` that did not name a member.

    Raises:
        Malformed: empty, too large, damaged, or an archive without a checkpoint.
        UsageError: an archive with several checkpoints, none of which is named.
        BuilderError: a file that cannot be read.
    """
    try:
        with path.open("rb") as f:
            size = path.stat().st_size
            if not size:
                raise Malformed("it is empty")
            if size > MAX_FILE_BYTES:
                raise Malformed(f"it has {size:,} bytes; at most {MAX_FILE_BYTES:,} are read")
            span = _map(f, name)
        for _ in range(_MAX_LAYERS):
            inner = _without_a_layer(span, inside)
            if inner is None:
                return span, inside
            span, inside = inner
    except IsADirectoryError:
        raise BuilderError(f"{path} is a folder; expected a checkpoint file.") from None
    except OSError as e:
        raise BuilderError(f"cannot read the checkpoint {path}: {e.strerror or e}.") from None
    raise Malformed(f"it is packed more than {_MAX_LAYERS} times over")


def zip_entries(span: Span) -> dict[str, zipfile.ZipInfo]:
    """The entries of a zip file by name.

    Raises:
        Malformed: a damaged or truncated one.
    """
    try:
        with zipfile.ZipFile(span.file()) as z:
            return {i.filename: i for i in z.infolist()}
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, struct.error) as e:
        raise Malformed(f"it is a damaged or truncated zip file ({e})") from None


def zip_extent(span: Span, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """First byte and end of a stored entry in the mapped file (behind a header of variable length).

    Raises:
        Malformed: a damaged header, or data beyond the end.
    """
    header = span.start + entry.header_offset
    fixed = span.memory[header : header + 30]
    if entry.compress_type != zipfile.ZIP_STORED or fixed[:4] != b"PK\x03\x04":
        raise Malformed("its zip entries are damaged")
    name_length, extra_length = struct.unpack("<HH", fixed[26:30])
    begin = header + 30 + int(name_length) + int(extra_length)
    if begin + entry.file_size > span.end:
        raise Malformed("it is truncated: an entry lies beyond its end")
    return begin, begin + entry.file_size


def _map(f: IO[bytes], name: str) -> Span:
    memory = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)
    return Span(memory, 0, len(memory), name)


def _without_a_layer(span: Span, inside: Names) -> tuple[Span, Names] | None:
    """What one layer of packing holds, and the names not used up; None where it is not packed."""
    head = span.head(512)
    for magic, (kind, opener) in _OPENERS.items():
        if head.startswith(magic):
            return _unpack(f"{kind} stream", span.name, opener(span.file())), inside
    if _is_tar(head):
        return _tar_member(span, inside)
    return _unzip(span, inside) if head.startswith(b"PK\x03\x04") else None


def _unpack(what: str, name: str, packed: IO[bytes]) -> Span:
    """The content of a packed file in an unnamed temporary file."""
    with packed, tempfile.TemporaryFile() as out:
        try:
            _copy(packed, out, 0)
        except (*_DAMAGED, OSError) as e:
            if isinstance(e, OSError) and e.errno is not None:  # the disk's, not the stream's
                raise
            raise Malformed(f"its {what} is damaged or truncated ({e})") from None
        if not out.tell():
            raise Malformed("it unpacks to nothing")
        out.flush()
        return _map(out, name)  # which outlives the file's name and handle


def _copy(source: IO[bytes], out: IO[bytes], written: int) -> int:
    """Copy to the end; return the bytes written so far, those before included."""
    while block := source.read(1 << 20):
        written += out.write(block)
        if written > MAX_FILE_BYTES:
            raise Malformed(f"it unpacks to more than {MAX_FILE_BYTES:,} bytes")
    return written


def _unzip(span: Span, inside: Names) -> tuple[Span, Names] | None:
    """A checkpoint of a zip file, or torch's own zip file with its entries uncompressed;
    None where it is that already."""
    entries = zip_entries(span)
    if not any(n.endswith("/data.pkl") for n in entries):
        for i, (name, entry) in enumerate(entries.items()):
            _check_member("zip", name, i, not entry.is_dir() and entry.external_attr >> 28 == 0xA)
        files = [n for n, entry in entries.items() if not entry.is_dir()]
        member, rest = _chosen(span, "zip", files, inside)
        if member is None:
            return None  # formats.py says what it is
        return _zip_member(span, entries[member]), rest
    if all(e.compress_type == zipfile.ZIP_STORED for e in entries.values()):
        return None
    with tempfile.TemporaryFile() as out:
        written = 0
        try:
            with zipfile.ZipFile(span.file()) as z, zipfile.ZipFile(out, "w") as again:
                for name in entries:
                    with z.open(name) as source, again.open(name, "w", force_zip64=True) as to:
                        written = _copy(source, to, written)
        except (*_DAMAGED, RuntimeError, NotImplementedError) as e:
            raise Malformed(f"one of its compressed entries is damaged ({e})") from None
        out.flush()
        return _map(out, span.name), inside


def _zip_member(span: Span, entry: zipfile.ZipInfo) -> Span:
    name = f"{span.name}: {entry.filename}"
    if entry.compress_type == zipfile.ZIP_STORED:
        member = Span(span.memory, *zip_extent(span, entry), name)
        if zlib.crc32(memoryview(member.memory)[member.start : member.end]) != entry.CRC:
            raise Malformed("its zip entry is damaged: it does not meet its checksum")
        return member
    with zipfile.ZipFile(span.file()) as z:
        return _unpack("zip entry", name, z.open(entry))


def _is_tar(head: bytes) -> bool:
    """Whether a file begins as a tar does: with its magic, or (before 1988) with a right sum."""
    if head[257:262] == b"ustar":
        return True
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _tar_member(span: Span, inside: Names) -> tuple[Span, Names]:
    """A checkpoint inside a tar."""
    members: dict[str, tarfile.TarInfo] = {}  # the later of two of one name, as tar itself does
    try:
        with tarfile.open(fileobj=span.file(), mode="r:") as tar:
            for i, member in enumerate(tar):
                odd = not (member.isreg() or member.isdir())
                _check_member("tar", member.name, i, odd)
                if member.isreg():
                    members[member.name] = member
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as e:
        raise Malformed(f"it is a damaged or truncated tar file ({e})") from None
    name, rest = _chosen(span, "tar", list(members), inside)
    if name is None:
        raise Malformed("it is a tar file without a checkpoint")
    member = members[name]
    begin = span.start + member.offset_data
    if member.issparse() or begin + member.size > span.end:
        raise Malformed(f"it is a truncated tar file: {name!r} is not all there")
    return Span(span.memory, begin, begin + member.size, f"{span.name}: {name}"), rest


def _chosen(span: Span, kind: str, members: list[str], inside: Names) -> tuple[str | None, Names]:
    """Which of an archive's files is meant: the one that is named, by its path or the end of it,
    else its only checkpoint; None where it has none. And the names not used up.

    Raises:
        UsageError: several checkpoints.
    """
    checkpoints = [m for m in members if _is_checkpoint(m)]
    if inside:
        name = inside[0].removeprefix("./")
        exact = [m for m in members if m.removeprefix("./") == name]
        if len(hits := exact or [m for m in checkpoints if m.endswith(f"/{name}")]) == 1:
            return hits[0], inside[1:]
    if len(checkpoints) > 1:
        shown = ", ".join(map(repr, checkpoints[:_SHOWN])) + ", ..." * (len(checkpoints) > _SHOWN)
        called = f"; {inside[0]!r} names {len(hits) or 'none'} of them" if inside else ""
        raise UsageError(
            f"{span.name} is a {kind} file with {len(checkpoints)} checkpoints ({shown}){called}.",
            hint=f"end `checkpoint` in the one that is meant, e.g. FILE#{checkpoints[0]}.",
        )
    return (checkpoints[0] if checkpoints else None), inside


def _is_checkpoint(member: str) -> bool:
    """By its name; macOS puts a file ._NAME or __MACOSX/NAME of attributes beside each NAME."""
    path = PurePosixPath(member)
    attributes = path.name.startswith("._") or "__MACOSX" in path.parts
    return path.name.lower().endswith(SUFFIXES) and not attributes


def _check_member(kind: str, name: str, index: int, link: bool) -> None:
    """Refuse what no archive of weights holds. Nothing is unpacked, but somebody tried."""
    path = PurePosixPath(name.replace("\\", "/"))
    if index >= _MAX_MEMBERS:
        raise Malformed(f"it is a {kind} file with more than {_MAX_MEMBERS:,} members")
    if path.is_absolute() or ".." in path.parts:
        wrong = "points outside its folder"
    elif link:
        wrong = "is a link or a device"
    else:
        return
    raise Malformed(f"refused, its {kind} member {name!r} {wrong} (nothing was unpacked)")
