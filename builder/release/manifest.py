"""manifest.json: what a release is made of, and the digest of every file but the card."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import builder
from builder import schema
from builder.errors import BuilderError, UsageError
from builder.files import write_atomic
from builder.schema import MANIFEST, SCHEMA_VERSION


class FileFacts(TypedDict):
    """A file of a release. `rows` and `content_hash` are those of a table, null of other files."""

    rows: int | None
    bytes: int
    sha256: str
    content_hash: str | None


class Provenance(TypedDict):
    """Where the numbers of a model came from.

    The checkpoint is null where none was read, `made_with` where nothing was measured; else it
    holds the versions of Python, of this package, torch and NumPy, the device, and the version of
    our metrics.
    """

    source_url: str
    checkpoint_urls: list[str] | None
    checkpoint_bytes: int | None
    checkpoint_sha256: str | None
    made_with: dict[str, str] | None


class CohortFacts(TypedDict):
    """The cohort that a release was built from, and the pattern of the models chosen of it."""

    name: str
    digest: str
    models: str | None


class Totals(TypedDict):
    """How much a release holds."""

    models: int
    pairs: int
    layers: int
    filters: int


class Manifest(TypedDict):
    """manifest.json. `sha256` is the digest of everything else in it."""

    name: str
    version: str
    schema_version: int
    cohort: CohortFacts
    weights: str  # checkpoints, seeded:N or published
    options: dict[str, Any]
    tools: dict[str, str]
    totals: Totals
    models: dict[str, Provenance]
    mixed: dict[str, list[str]]  # of `made_with`, what is not the same for all models
    duplicates: list[list[str]]
    problems: list[str]
    files: dict[str, FileFacts]
    sha256: NotRequired[str]


def file_facts(data: bytes) -> FileFacts:
    """Facts of a file that is no table."""
    digest = hashlib.sha256(data).hexdigest()
    return {"rows": None, "bytes": len(data), "sha256": digest, "content_hash": None}


def filter_files(manifest: Manifest) -> dict[str, str]:
    """{model_id: path} of every filter file, in the order of the paths."""
    keys = {path: schema.filters_key(path) for path in sorted(manifest["files"])}
    return {key[1]: path for path, key in keys.items() if key}


def datasets(manifest: Manifest) -> list[str]:
    """Image data sets that have filters here, sorted."""
    keys = map(schema.filters_key, manifest["files"])
    return sorted({key[0] for key in keys if key})


def tools(*packages: str) -> dict[str, str]:
    """Versions of Python, of this package and of others, as a manifest records them."""
    return {
        "python": platform.python_version(),
        "builder": builder.__version__,
        **{name: metadata.version(name) for name in packages},
    }


def _canonical(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _digest(manifest: Mapping[str, Any]) -> str:
    rest = {k: v for k, v in manifest.items() if k != "sha256"}
    return hashlib.sha256(_canonical(rest)).hexdigest()


def as_bytes(manifest: Manifest) -> bytes:
    """The one form of manifest.json, with a digest of itself."""
    return _canonical({**manifest, "sha256": _digest(manifest)})


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write manifest.json atomically."""
    write_atomic(root / MANIFEST, as_bytes(manifest))


def read_manifest(root: Path) -> Manifest:
    """Read and check the manifest.json of a folder, see `parse_manifest`.

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
    return parse_manifest(raw, root)


def parse_manifest(raw: bytes, root: object) -> Manifest:
    """Check the bytes of a manifest.json.

    They must be its own canonical form, so that any changed byte shows.

    Args:
        raw: the bytes.
        root: where the release is, for messages.

    Raises:
        UsageError: one of a newer schema.
        BuilderError: a damaged manifest.
    """
    path = f"{str(root).rstrip('/')}/{MANIFEST}"
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
    return cast(Manifest, manifest)
