"""What the project keeps of a released version: its manifest, the answers of its queries, notes."""

from __future__ import annotations

import shutil
from pathlib import Path

from builder.errors import UsageError
from builder.files import write_atomic
from builder.release.manifest import read_manifest
from builder.schema import MANIFEST
from builder.sql.run import write_answers


def record(root: Path, folder: Path) -> Path:
    """Write folder/vX.Y.Z/ for a release; notes, and another release, that are there stay.

    Args:
        root: the release. folder: `release/` of the project.

    Returns:
        The folder of the version.

    Raises:
        UsageError: no release there, or another one of this version is kept already.
        BuilderError: a query does not run on it.
    """
    manifest = read_manifest(root)
    target = folder / f"v{manifest['version']}"
    kept = target / MANIFEST
    if kept.exists() and kept.read_bytes() != (root / MANIFEST).read_bytes():
        raise UsageError(
            f"{target} keeps another release of version {manifest['version']}.",
            hint=f"`builder build --version` gives {root} another version; if the kept one was "
            f"never published, remove {target} first.",
        )
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(root / MANIFEST, kept)
    write_answers(str(root), target / "answers")
    notes = target / "NOTES.md"
    if not notes.exists():
        totals = ", ".join(f"{n:,} {what}" for what, n in manifest["totals"].items())
        text = (
            f"# {manifest['name']} {manifest['version']}\n\n"
            f"Cohort `{manifest['cohort']['name']}`, weights `{manifest['weights']}`: {totals}.\n\n"
            "What changed, and why:\n\n- \n"
        )
        write_atomic(notes, text.encode())
    return target
