"""What a release holds besides its tables: the card and the queries that belong to it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from builder.files import project_file, write_atomic
from builder.release.manifest import FileFacts, file_facts
from builder.schema import CARD

_SEAL = "\n<!-- SHA-256 of the lines above: {} -->\n"


def seal(card: str) -> bytes:
    """A card with its own digest as its last line.

    The manifest does not list the card, whose examples name the repository once it is published:
    so the manifest that is published is, byte for byte, the one that was built.
    """
    return (card + _SEAL.format(hashlib.sha256(card.encode()).hexdigest())).encode()


def is_whole(sealed: bytes) -> bool:
    """Whether a card is, to the byte, as `seal` made it."""
    card = sealed[: -len(seal(""))]
    try:
        return seal(card.decode()) == sealed
    except UnicodeDecodeError:
        return False


def write_texts(root: Path, card: str) -> dict[str, FileFacts]:
    """Write the card, sealed, and queries/ of a release; the manifest's entries of the queries."""
    folder = project_file("queries")
    queries = {
        f"queries/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in sorted(folder.rglob("*.sql"))
    }
    for path, data in {CARD: seal(card), **queries}.items():
        write_atomic(root / path, data)
    return {path: file_facts(data) for path, data in queries.items()}
