"""checkpoints.lock: the digest of every downloaded checkpoint, locked at first use.

Plain text, one line per address, sorted by address: sha256, bytes, address.
"""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

from builder.errors import BuilderError, UsageError
from builder.files import write_atomic

_LINE = re.compile(r"([0-9a-f]{64}) (\d+) (.+)")


class WrongContent(BuilderError):
    """A file that is damaged, hostile or not the one locked: a download to delete and repeat."""


def read_lock(lock: Path) -> dict[str, tuple[str, int]]:
    """Address -> (sha256, bytes); empty where there is no lock file yet.

    Raises:
        UsageError: unreadable, or a line that is no lock line.
    """
    try:
        lines = lock.read_text().splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"cannot read the lock file {lock}: {e}.") from None
    locked: dict[str, tuple[str, int]] = {}
    for i, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise UsageError(
                f"{lock}: line {i} is damaged; expected 'sha256 bytes address'.",
                hint="restore the file from version control, or correct the line.",
            )
        locked[match[3]] = (match[1], int(match[2]))
    return locked


def changed(address: str, lock: Path, locked: str, found: str) -> WrongContent:
    """The error for a file that is not the one whose digest was locked."""
    return WrongContent(
        f"{address} is not the file it was: its sha256 is {found}, locked is {locked}.",
        hint=f"if you know the new file to be good, delete the line of this address from {lock} "
        "and build again; otherwise get the original file back.",
    )


def enforce(lock: Path, address: str, sha256: str, size: int) -> None:
    """Lock the digest of an address, or check it against the one already locked.

    Safe beside other processes and threads that lock other addresses.

    Raises:
        WrongContent: another digest is locked.
        BuilderError: the lock file cannot be read or written.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(lock.parent, os.O_RDONLY)
    except OSError as e:
        raise BuilderError(f"cannot write the lock file {lock}: {e.strerror}.") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # the file itself is replaced, so it cannot be locked
        locked = read_lock(lock)
        if address in locked:
            if locked[address][0] != sha256:
                raise changed(address, lock, locked[address][0], sha256)
            return
        locked[address] = (sha256, size)
        lines = (f"{digest} {n} {a}\n" for a, (digest, n) in sorted(locked.items()))
        write_atomic(lock, "".join(lines).encode())
    except OSError as e:
        raise BuilderError(f"cannot write the lock file {lock}: {e.strerror}.") from None
    finally:
        os.close(folder)
