"""A release folder: its manifest, and where the project's own files are found."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from builder.errors import BuilderError, UsageError
from builder.schema import MANIFEST, SCHEMA_VERSION


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


def parse_version(text: str) -> tuple[int, int, int]:
    """(major, minor, patch) of "1.2.3" or "v1.2.3".

    Raises:
        UsageError: another form.
    """
    parts = text.removeprefix("v").split(".")
    if len(parts) != 3 or not all(p.isascii() and p.isdigit() for p in parts):
        raise UsageError(f"{text!r} is no version; expected MAJOR.MINOR.PATCH, e.g. 1.0.0.")
    major, minor, patch = map(int, parts)
    return major, minor, patch


def cache_folder() -> Path:
    """Where downloads are kept: $RFL_CACHE, else robust-filter-lens in the user's cache folder."""
    if own := os.environ.get("RFL_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "robust-filter-lens"


def lock_file() -> Path:
    """The locked digests of checkpoints: in a checkout under version control, else in the cache."""
    root = Path(__file__).resolve().parent.parent
    folder = root / "release" if (root / "pyproject.toml").exists() else cache_folder()
    return folder / "checkpoints.lock"


def _canonical(manifest: dict[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _digest(manifest: dict[str, Any]) -> str:
    rest = {k: v for k, v in manifest.items() if k != "sha256"}
    return hashlib.sha256(_canonical(rest)).hexdigest()


def write_manifest(root: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json in its one canonical form, with a digest of itself, atomically."""
    write_atomic(root / MANIFEST, _canonical({**manifest, "sha256": _digest(manifest)}))


def read_manifest(root: Path) -> dict[str, Any]:
    """Read and check manifest.json.

    The file must be byte for byte its own canonical form, so that any changed byte shows.

    Raises:
        UsageError: no release there, or one of a newer schema.
        BuilderError: a damaged manifest.
    """
    path = root / MANIFEST
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{root} is not a release: it has no {MANIFEST}.",
            hint=f"expected a folder that `builder build --out {root}` has completed.",
        ) from None
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}.") from None
    try:
        manifest = json.loads(raw)
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or raw != _canonical(manifest):
        raise BuilderError(f"{path} is damaged: it is not in the form that a build writes.")
    if manifest.get("sha256") != _digest(manifest):
        raise BuilderError(f"{path} is damaged: its digest does not match its content.")
    if manifest["schema_version"] > SCHEMA_VERSION:
        raise UsageError(
            f"{path} has schema version {manifest['schema_version']}; this builder knows "
            f"up to {SCHEMA_VERSION}.",
            hint="install a newer robust-filter-lens.",
        )
    return manifest


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file under a temporary name, flush it to disk, then rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.tmp")
    try:
        with tmp.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        tmp.replace(path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
