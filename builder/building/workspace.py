"""The folder of a build in progress: whose it is, what is finished in it, and nobody else's.

`OUT/.build` exists from the first moment of a build to the last: it holds a lock, the identity of
the build, and a journal, one JSON entry per finished model. An entry is written after the model's
filter file has its final name, so whatever the moment a build stops, the next one goes on there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from builder.errors import BuilderError, UsageError
from builder.files import write_atomic
from builder.release.manifest import read_manifest
from builder.schema import MANIFEST

OWN = ("data", "queries", "README.md")
"""What a build writes at the top of its folder, besides the manifest and `.build`."""
IDENTITY = ".build/identity.json"
JOURNAL = 2
"""Format of the journal's entries; those of another one are made anew."""
_NOT_BEGUN = (".build", ".build/lock", ".build/.identity.json.*tmp")
"""All that a build leaves that was killed before it wrote its identity."""


class Workspace:
    """A build folder, and the journal of its finished models under OUT/.build."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._journal = root / ".build" / "models"
        self._histograms = root / ".build" / "histograms"

    @property
    def begun(self) -> bool:
        """Whether a build is under way here, as a worker on another machine should find it."""
        return (self.root / IDENTITY).exists()

    def begin(self, identity: dict[str, Any], fresh: bool) -> None:
        """Make the folder this build's: go on with what is finished, or delete it if `fresh`.

        Killed at any point of this, the folder is still a build's, and one that is never taken for
        complete: the journal goes before the identity changes, and the manifest before the data.
        """
        if fresh:
            _remove(self._journal)
            _remove(self._histograms)
        write_atomic(self.root / IDENTITY, json.dumps(identity).encode())
        _remove(self.root / MANIFEST)
        if not self._journal.exists():  # nothing is finished: what is here is of an earlier build
            for name in OWN:
                _remove(self.root / name)
        for name in (*OWN, MANIFEST, ".build"):
            for leftover in self.root.glob(f".{name}.*tmp"):
                leftover.unlink()
            for leftover in (self.root / name).rglob(".*.tmp"):
                leftover.unlink()

    def note(self, model_id: str, facts: dict[str, Any]) -> None:
        """Enter a finished model in the journal. `facts` must survive JSON."""
        text = json.dumps({"journal": JOURNAL, **facts}, allow_nan=False)
        write_atomic(self._journal / f"{model_id}.json", text.encode())

    def longest(self, model_id: str) -> Path:
        """Where the longest filters of a model are kept until its histograms are there."""
        return self.root / ".build" / "longest" / f"{model_id}.arrow"

    def keep_histograms(self, model_id: str, made_of: str, counts: list[Any]) -> None:
        """Keep the histograms of a model, and what they were made of."""
        text = json.dumps({"made_of": made_of, "counts": counts})
        write_atomic(self._histograms / f"{model_id}.json", text.encode())

    def kept_histograms(self, model_id: str, made_of: str) -> list[Any] | None:
        """Histograms that an earlier run kept, where they were made of just the same."""
        try:
            kept = json.loads((self._histograms / f"{model_id}.json").read_bytes())
        except FileNotFoundError:
            return None
        counts: list[Any] = kept["counts"]
        return counts if kept["made_of"] == made_of else None

    def forget(self, model_id: str) -> None:
        """Before a model is made anew: its old entry must not vouch for the new file."""
        (self._journal / f"{model_id}.json").unlink(missing_ok=True)

    def entry(self, model_id: str) -> dict[str, Any] | None:
        """The journal's entry of a model whose filter file is in place, else None."""
        try:
            facts: dict[str, Any] = json.loads((self._journal / f"{model_id}.json").read_bytes())
        except FileNotFoundError:
            return None
        if facts.get("journal") != JOURNAL:
            return None
        file = self.root / facts["path"]
        return facts if file.is_file() and file.stat().st_size == facts["file"]["bytes"] else None


@contextmanager
def open_workspace(root: Path, identity: dict[str, Any], fresh: bool) -> Iterator[Workspace | None]:
    """Take hold of a build folder; None where it already holds exactly this release.

    What it holds is left alone until `Workspace.begin`. A folder is a build's if it has a manifest
    that `read_manifest` accepts, or the identity of a build in progress.

    Args:
        root: the output folder; created if absent.
        identity: what the build is made of; a folder of another identity is refused.
        fresh: accept an earlier build, whatever it is made of: `begin` will delete it.

    Raises:
        UsageError: the folder holds something else, or another build.
        BuilderError: another build is running in it, or it cannot be written.
    """
    if _is_complete(root, identity, fresh) and not (root / ".build").exists():
        yield None
        return
    with _locked(root):
        if _is_complete(root, identity, fresh):  # killed before the sweeping, or just finished
            shutil.rmtree(root / ".build")
            yield None
            return
        try:
            yield Workspace(root.absolute())
        finally:
            if (root / MANIFEST).exists() or not (root / IDENTITY).exists():  # finished, not begun
                shutil.rmtree(root / ".build")


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


def _is_complete(root: Path, identity: dict[str, Any], fresh: bool) -> bool:
    """Whether the folder holds exactly this release, and may keep it; changes nothing.

    Raises:
        UsageError: it holds something else, or, unless `fresh`, another build.
    """
    if not root.exists():
        return False
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder.", hint="choose another --out.")
    released, reason = None, "."
    if (root / MANIFEST).exists():
        try:
            released = read_manifest(root)
        except BuilderError as e:
            reason = f": {e}"
    found = released or _begun(root, identity)
    if found is None:
        names = (p.relative_to(root).as_posix() for p in root.rglob("*"))
        if not all(any(fnmatchcase(name, known) for known in _NOT_BEGUN) for name in names):
            raise UsageError(
                f"{root} is not empty and holds no build{reason}",
                hint="choose an empty or new --out.",
            )
    elif not fresh:
        _refuse_other(root, found, identity)
    return released is not None and not fresh


def _begun(root: Path, form: dict[str, Any]) -> dict[str, Any] | None:
    """The identity of the build in progress; None where there is none, or not of our `form`."""
    try:
        found = json.loads((root / IDENTITY).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() >= form.keys() else None


def _refuse_other(root: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    differing = sorted(k for k in expected if found.get(k) != expected[k])
    if differing:
        details = "; ".join(
            f"{k}: there {_short(found.get(k))}, asked {_short(expected.get(k))}" for k in differing
        )
        raise UsageError(
            f"{root} holds a different build ({details}).",
            hint="choose another --out, or --fresh to delete that one and start over.",
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
