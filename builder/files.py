"""Files and folders: the project's own, the user's cache, and writing one whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from errno import ENOTDIR
from glob import escape
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO


def project_file(name: str) -> Path:
    """A top-level file or folder of the project (`queries`, `dataset_card.md`).

    In a wheel they lie inside the package, in a checkout beside it.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    package = Path(__file__).resolve().parent
    for folder in (package, package.parent):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"{name} is missing from this installation of builder")


PINS = "checkpoints.lock"
"""Name of the file of pinned digests."""


def cache_folder() -> Path:
    """Where downloads are kept: $RFL_CACHE, else robust-filter-lens in the user's cache folder."""
    if own := os.environ.get("RFL_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "robust-filter-lens"


def pins_file() -> Path:
    """The pinned digests of checkpoints: in a checkout under version control, else in the cache."""
    root = Path(__file__).resolve().parent.parent
    folder = root / "release" if (root / "pyproject.toml").exists() else cache_folder()
    return folder / PINS


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file under a temporary name, flush it to disk, then rename it into place."""
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write piece by piece: under its name at the end, or gone after an error.

    Its name until then is no other writer's; what killed writers of `path` left goes first.
    """
    tmp = _unfinished(path)
    try:
        with _held(tmp, tmp.touch):
            with tmp.open("wb") as f:
                yield f
                f.flush()
                os.fsync(f.fileno())
            tmp.replace(path)
    except BaseException as e:
        if isinstance(e, OSError) and e.filename == str(tmp):
            e.filename = str(path)  # the name that somebody gave
        tmp.unlink(missing_ok=True)
        raise


@contextmanager
def making(path: Path) -> Iterator[Path]:
    """A folder to fill: under its name at the end, where nothing or an empty folder may be, or gone
    after an error. What killed makers of `path` left goes first."""
    tmp = _unfinished(path)
    try:
        with _held(tmp, tmp.mkdir):
            yield tmp
            tmp.replace(path)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def _unfinished(path: Path) -> Path:
    """A name beside `path` until it is whole. Its folder is there then, without the like of it that
    nobody finishes any more."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as e:  # a file where the folder should be
        raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR), e.filename) from None
    _sweep(path.parent.glob(f".{escape(path.name)}.{'[0-9a-f]' * 8}.tmp"))
    return path.with_name(f".{path.name}.{token_hex(4)}.tmp")


class Folder:
    """A folder of this machine, as `store.Bucket` is one elsewhere; paths are relative to it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def read(self, path: str) -> bytes | None:
        """The bytes of a file; None where there is none."""
        try:
            return (self.root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, path: str, data: bytes) -> None:
        """Write a file; it is there whole or not at all."""
        write_atomic(self.root / path, data)

    def size(self, path: str) -> int | None:
        """Bytes of a file; None where there is none."""
        file = self.root / path
        return file.stat().st_size if file.is_file() else None

    def names(self, folder: str = "") -> dict[str, int]:
        """{path: bytes} of all that lies below a folder, and of the folders in it."""
        found = (self.root / folder).rglob("*")
        return {p.relative_to(self.root).as_posix(): p.lstat().st_size for p in found}

    def delete(self, path: str) -> None:
        """Delete a file or a folder, if it is there."""
        target = self.root / path
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)


_SCRATCH = "rfl-scratch-"


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder, gone at the end; and those that killed processes left go first.

    On Windows what a killed process leaves is left to the system.
    """
    base = Path(tempfile.gettempdir())
    _sweep(p for p in base.glob(f"{_SCRATCH}*") if p.is_dir())
    folder = base / f"{_SCRATCH}{token_hex(8)}"
    with _held(folder, lambda: folder.mkdir(mode=0o700)):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _held(path: Path, make: Callable[[], None]) -> Iterator[None]:
    """Make a file or folder, and lock it for as long as this process lives, however it ends."""
    while True:
        make()
        try:
            held = _lock(path, wait=True)
        except OSError:  # gone, or a file system without locks
            held = None
        if path.exists():  # else another process took it for abandoned before it was locked
            break
        _unlock(held)
    try:
        yield
    finally:
        _unlock(held)


def _sweep(paths: Iterable[Path]) -> None:
    """Delete those of this user's temporary files and folders that no living process holds."""
    if sys.platform == "win32":  # where there are no such locks
        return
    for path in paths:
        try:
            if path.lstat().st_uid != os.geteuid():
                continue
            held = _lock(path, wait=False)
        except OSError:  # in use, a link, or gone meanwhile
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        _unlock(held)


def _lock(path: Path, wait: bool) -> int | None:
    """Lock a file or folder, no link to one; None where there are no such locks.

    Raises:
        OSError: somebody holds it, and we do not wait.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    held = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(held, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        raise
    return held


def _unlock(held: int | None) -> None:
    if held is not None:
        os.close(held)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
