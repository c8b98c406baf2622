"""checkpoints.lock: the digest of every downloaded checkpoint, pinned at first use.

Plain text, one line per address, sorted by address: sha256, bytes, address.
"""

from __future__ import annotations

import re
from pathlib import Path

from filelock import FileLock

from builder.errors import BuilderError, UsageError
from builder.files import write_atomic

_LINE = re.compile(r"([0-9a-f]{64}) (\d+) (.+)")


class WrongContent(BuilderError):
    """A file that is damaged, hostile or not the one pinned: a download to delete and repeat."""


def read_pins(pins: Path) -> dict[str, tuple[str, int]]:
    """Address -> (sha256, bytes); empty where there is no such file yet.

    Raises:
        UsageError: unreadable, or a line that pins nothing.
    """
    try:
        lines = pins.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"cannot read the digests in {pins}: {e}.") from None
    pinned: dict[str, tuple[str, int]] = {}
    for i, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise UsageError(
                f"{pins}: line {i} is damaged; expected 'sha256 bytes address'.",
                hint="restore the file from version control, or correct the line.",
            )
        pinned[match[3]] = (match[1], int(match[2]))
    return pinned


def changed(address: str, pins: Path, pinned: str, found: str) -> WrongContent:
    """The error for a file that is not the one whose digest was pinned."""
    return WrongContent(
        f"{address} is not the file it was: its sha256 is {found}, pinned is {pinned}.",
        hint=f"if you know the new file to be good, delete the line of this address from {pins} "
        "and build again; otherwise get the original file back.",
    )


def enforce(pins: Path, address: str, sha256: str, size: int) -> None:
    """Pin the digest of an address, or check it against the one already pinned.

    Safe beside other processes and threads that pin other addresses.

    Raises:
        WrongContent: another digest is pinned.
        BuilderError: the file of pins cannot be read or written.
    """
    try:
        pins.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(pins.with_name(f".{pins.name}.lock")):  # the file itself is replaced
            pinned = read_pins(pins)
            if address in pinned:
                if pinned[address][0] != sha256:
                    raise changed(address, pins, pinned[address][0], sha256)
                return
            pinned[address] = (sha256, size)
            lines = (f"{digest} {n} {a}\n" for a, (digest, n) in sorted(pinned.items()))
            write_atomic(pins, "".join(lines).encode())
    except OSError as e:
        raise BuilderError(f"cannot write the digests to {pins}: {e.strerror or e}.") from None
