"""The place of a build in progress: whose it is, what is finished in it, and nobody else's.

`OUT/.build` exists from the first moment of a build to the last: it holds a lock, the identity of
the build, and a journal, one JSON entry per finished model. An entry is written after the model's
filter file has its final name, so whatever the moment a build stops, the next one goes on there.

OUT is a folder, or a prefix in object storage. There, files are made in a folder of the cache and
sent when they are whole; the journal is in the bucket alone, so any machine goes on.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from builder.building.lease import Lease, lease
from builder.errors import BuilderError, NetworkError, UsageError
from builder.files import Folder, cache_folder, file_sha256
from builder.release.manifest import FileFacts, Manifest, as_bytes, parse_manifest
from builder.schema import CARD, MANIFEST, filters_key
from builder.store import Bucket, is_address
from builder.workers import in_order

OWN = ("data", "queries", "README.md")
"""What a build writes at the top of its folder, besides the manifest and `.build`."""
IDENTITY = ".build/identity.json"
JOURNAL = 2
"""Format of the journal's entries; those of another one are made anew."""
_MODELS = ".build/models"
_HISTOGRAMS = ".build/histograms"
_AT_ONCE = 8
"""Small files that are sent to a bucket at the same time."""
_NOT_BEGUN = (".build", ".build/lock", ".build/.identity.json.*tmp")
"""All that a build leaves that was killed before it wrote its identity."""


class Workspace:
    """Where a build makes its files, and the journal of its finished models.

    Attributes:
        root: the folder that files are made in.
        name: what people call the place of the build.
    """

    def __init__(
        self, root: Path | None, bucket: Bucket | None = None, held: Lease | None = None
    ) -> None:
        """
        Args:
            root: the build folder; None: one in the cache of this machine.
            bucket: where files are kept, if not in the folder.
            held: the hold on the bucket, in the process that has it.
        """
        if root is None:
            digest = hashlib.sha256(str(bucket).encode()).hexdigest()
            root = cache_folder() / "builds" / digest[:16]
        self.root = root
        self.name = str(bucket or root)
        self._bucket = bucket
        self._held = held
        self._place: Folder | Bucket = bucket or Folder(root)

    def __reduce__(self) -> tuple[Any, ...]:
        # For a worker on another machine: its own cache, or the folder that all machines see.
        return Workspace, (None if self._bucket else self.root, self._bucket)

    @property
    def begun(self) -> bool:
        """Whether a build is under way here, as a worker on another machine should find it."""
        return self._place.read(IDENTITY) is not None

    @property
    def released(self) -> bool:
        """Whether an earlier build of this place was completed."""
        return self._place.read(MANIFEST) is not None

    def begin(self, identity: dict[str, Any], fresh: bool) -> None:
        """Make the place this build's: go on with what is finished, or delete it if `fresh`.

        Killed at any point of this, the place is still a build's, and one that is never taken for
        complete: the journal goes before the identity changes, and the manifest before the data.
        """
        if fresh:
            self._place.delete(_MODELS)
            self._place.delete(_HISTOGRAMS)
        self._place.write(IDENTITY, json.dumps(identity).encode())
        self._place.delete(MANIFEST)
        if not self._place.names(_MODELS):  # nothing is finished: what is here is of earlier builds
            for name in OWN:
                self._place.delete(name)
        for name in (*OWN, MANIFEST, ".build"):
            for leftover in self.root.glob(f".{name}.*tmp"):
                leftover.unlink()
            for leftover in (self.root / name).rglob(".*.tmp"):
                leftover.unlink()

    def note(self, model_id: str, facts: dict[str, Any], moved: Callable[[int], None]) -> None:
        """Enter a finished model in the journal, after its files.

        Args:
            facts: the entry; must survive JSON.
            moved: told the bytes that have gone to a bucket.
        """
        text = json.dumps({"journal": JOURNAL, **facts}, allow_nan=False)
        self._send(facts["path"], moved)
        self._send(_longest(model_id))
        self._place.write(f"{_MODELS}/{model_id}.json", text.encode())

    def release(self, manifest: Manifest) -> None:
        """The manifest, after all files that it lists but the filters: now it is a release."""
        paths = sorted(p for p in {*manifest["files"], CARD} if not filters_key(p))
        with ThreadPoolExecutor(_AT_ONCE, "send") as pool:
            for _ in in_order(pool, self._send, paths):
                pass
        self._still_held()
        self._place.write(MANIFEST, as_bytes(manifest))

    def file(self, path: str, facts: FileFacts) -> Path:
        """A finished file on this machine, fetched where another one made it."""
        local = self.root / path
        if self._bucket and not (local.is_file() and file_sha256(local) == facts["sha256"]):
            self._bucket.fetch(path, local, facts["sha256"])
        return local

    def longest(self, model_id: str) -> Path:
        """Where the longest filters of a model are kept until its histograms are there."""
        return self.root / _longest(model_id)

    def fetched_longest(self, model_id: str) -> Path:
        """The same on this machine, fetched where another one may have made it."""
        if self._bucket and self._bucket.size(_longest(model_id)) is not None:
            self._bucket.fetch(_longest(model_id), self.longest(model_id))
        return self.longest(model_id)

    def keep_histograms(self, model_id: str, made_of: str, counts: list[Any]) -> None:
        """Keep the histograms of a model, and what they were made of."""
        text = json.dumps({"made_of": made_of, "counts": counts})
        self._place.write(f"{_HISTOGRAMS}/{model_id}.json", text.encode())

    def kept_histograms(self, model_id: str, made_of: str) -> list[Any] | None:
        """Histograms that an earlier run kept, where they were made of just the same."""
        text = self._place.read(f"{_HISTOGRAMS}/{model_id}.json")
        kept = json.loads(text) if text else {"made_of": None, "counts": None}
        counts: list[Any] | None = kept["counts"]
        return counts if kept["made_of"] == made_of else None

    def forget(self, model_id: str) -> None:
        """Before a model is made anew: its old entry must not vouch for the new file."""
        self._place.delete(f"{_MODELS}/{model_id}.json")

    def entry(self, model_id: str) -> dict[str, Any] | None:
        """The journal's entry of a model whose filter file is in place, else None."""
        text = self._place.read(f"{_MODELS}/{model_id}.json")
        facts: dict[str, Any] = json.loads(text) if text else {}
        if facts.get("journal") != JOURNAL:
            return None
        return facts if self._place.size(facts["path"]) == facts["file"]["bytes"] else None

    def _send(self, path: str, moved: Callable[[int], None] = lambda _: None) -> None:
        self._still_held()
        if self._bucket is not None:
            self._bucket.send(path, self.root / path, moved)

    def _still_held(self) -> None:
        if self._held is not None:
            self._held.check()


def _longest(model_id: str) -> str:
    return f".build/longest/{model_id}.arrow"


@contextmanager
def open_workspace(
    out: Path | str, identity: dict[str, Any], fresh: bool
) -> Iterator[Workspace | None]:
    """Take hold of the place of a build; None where it already holds exactly this release.

    What it holds is left alone until `Workspace.begin`. A place is a build's if it has a manifest
    that `parse_manifest` accepts, or the identity of a build in progress.

    Args:
        out: the output folder, created if absent; or an address in object storage.
        identity: what the build is made of; a place of another identity is refused.
        fresh: accept an earlier build, whatever it is made of: `begin` will delete it.

    Raises:
        UsageError: the place holds something else, or another build.
        BuilderError: another build is running in it, or it cannot be written.
        NetworkError: the bucket cannot be reached, or written.
    """
    bucket = Bucket(str(out)) if is_address(str(out)) else None
    place = bucket or Folder(Path(out))
    if _is_complete(place, identity, fresh) and not _in_progress(place):
        yield None
        return
    with lease(bucket) if bucket else _locked(Path(out)) as held:
        if _is_complete(place, identity, fresh):  # killed before the sweeping, or just finished
            place.delete(".build")
            yield None
            return
        root = None if bucket else Path(out).absolute()
        workspace = Workspace(root, bucket, held if isinstance(held, Lease) else None)
        try:
            yield workspace
        finally:
            with suppress(NetworkError):  # whatever ended the build is what is said
                done = place.read(MANIFEST) is not None
                if done or place.read(IDENTITY) is None:  # finished, or not begun
                    place.delete(".build")
                    if bucket:
                        shutil.rmtree(workspace.root, ignore_errors=True)


def _in_progress(place: Folder | Bucket) -> bool:
    if isinstance(place, Folder):
        return (place.root / ".build").exists()
    return bool(place.names(".build"))


def _locked(root: Path) -> AbstractContextManager[object]:
    """The lock of a build folder, held until it is left; the folder is made if absent."""
    from filelock import FileLock, Timeout

    try:
        (root / ".build").mkdir(parents=True, exist_ok=True)
        return FileLock(root / ".build" / "lock", timeout=0).acquire()
    except Timeout:
        raise BuilderError(
            f"another build is running in {root}.", hint="wait for it, or choose another --out."
        ) from None
    except OSError as e:
        raise BuilderError(
            f"cannot write to {root}: {e.strerror}.", hint="choose another --out."
        ) from None


def _is_complete(place: Folder | Bucket, identity: dict[str, Any], fresh: bool) -> bool:
    """Whether a place holds exactly this release, and may keep it; changes nothing.

    Raises:
        UsageError: it holds something else, or, unless `fresh`, another build.
    """
    if isinstance(place, Folder):
        if not place.root.exists():
            return False
        if not place.root.is_dir():
            raise UsageError(f"{place} is not a folder.", hint="choose another --out.")
    released, reason = None, "."
    try:
        if (raw := place.read(MANIFEST)) is not None:
            released = parse_manifest(raw, place)
    except NetworkError:
        raise
    except (BuilderError, OSError) as e:
        reason = f": {e}"
    found = released or _begun(place, identity)
    if found is None:
        if not all(any(fnmatchcase(n, known) for known in _NOT_BEGUN) for n in place.names()):
            raise UsageError(
                f"{place} is not empty and holds no build{reason}",
                hint="choose an empty or new --out.",
            )
    elif not fresh:
        _refuse_other(place, found, identity)
    return released is not None and not fresh


def _begun(place: Folder | Bucket, form: dict[str, Any]) -> dict[str, Any] | None:
    """The identity of the build in progress; None where there is none, or not of our `form`."""
    try:
        found = json.loads(place.read(IDENTITY) or b"null")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() >= form.keys() else None


def _refuse_other(place: object, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    differing = sorted(k for k in expected if found.get(k) != expected[k])
    if differing:
        details = "; ".join(
            f"{k}: there {_short(found.get(k))}, asked {_short(expected.get(k))}" for k in differing
        )
        raise UsageError(
            f"{place} holds a different build ({details}).",
            hint="choose another --out, or --fresh to delete that one and start over.",
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
