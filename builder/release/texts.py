"""What a release holds besides its tables: the card and the queries that belong to it."""

from __future__ import annotations

from pathlib import Path

from builder.files import project_file, write_atomic
from builder.release.manifest import FileFacts, file_facts


def write_texts(root: Path, card: str) -> dict[str, FileFacts]:
    """Write README.md and queries/ of a release; their entries in the manifest."""
    folder = project_file("queries")
    texts = {"README.md": card.encode()} | {
        f"queries/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in sorted(folder.rglob("*.sql"))
    }
    for path, data in texts.items():
        write_atomic(root / path, data)
    return {path: file_facts(data) for path, data in texts.items()}
