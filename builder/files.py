"""Files and folders: the project's own, the user's cache, and writing one whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOTDIR
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


def temporary(path: Path) -> Path:
    """A name beside `path` until the file is whole; no other writer of it has the same."""
    return path.with_name(f".{path.name}.{token_hex(4)}.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write piece by piece: under its name at the end, or gone after an error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as e:  # a file where the folder should be
        raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR), e.filename) from None
    tmp = temporary(path)
    try:
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


_SCRATCH = "rfl-scratch-"


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder, gone at the end; and those that killed processes left go first.

    A process holds a lock on each of its own for as long as it lives, however it ends. On Windows
    there are no such locks, and what a killed process leaves is left to the system.
    """
    _sweep()
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_SCRATCH))
        try:
            held = _lock(folder, wait=True)
        except OSError:  # gone, or a file system without locks
            held = None
        if folder.exists():  # else another process took it for abandoned before it was locked
            break
        _unlock(held)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(held)


def _sweep() -> None:
    """Delete this user's scratch folders that no living process holds."""
    if sys.platform == "win32":
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*"):
        try:
            if folder.lstat().st_uid != os.geteuid():
                continue
            held = _lock(folder, wait=False)
        except OSError:  # in use, no folder, or gone meanwhile
            continue
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(held)


def _lock(folder: Path, wait: bool) -> int | None:
    """Lock a folder of this user, no link to one; None where folders cannot be locked.

    Raises:
        OSError: somebody holds it, and we do not wait.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
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
