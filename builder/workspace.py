"""The folder of a build in progress: whose it is, what is finished in it, and nobody else's.

`OUT/.build` exists from the first moment of a build to the last: it holds a lock, the identity of
the build, and one JSON record per finished model. A record is written after the model's filter
file has its final name, so whatever the moment a build stops, the next one goes on from there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.errors import BuilderError, UsageError
from builder.release import read_manifest, write_atomic
from builder.schema import MANIFEST

if TYPE_CHECKING:
    from filelock import FileLock

OWN = ("data", "queries", "README.md", MANIFEST, ".build")
"""Everything a build writes at the top of its folder."""


class Workspace:
    """Records of finished models under OUT/.build."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._records = root / ".build" / "models"

    def record(self, model_id: str, facts: dict[str, Any]) -> None:
        """Note a finished model. `facts` must survive JSON."""
        text = json.dumps(facts, allow_nan=False)
        write_atomic(self._records / f"{model_id}.json", text.encode())

    def finished(self, model_id: str) -> dict[str, Any] | None:
        """The record of a model whose filter file is in place, else None."""
        try:
            facts: dict[str, Any] = json.loads((self._records / f"{model_id}.json").read_bytes())
        except FileNotFoundError:
            return None
        file = self.root / facts["path"]
        return facts if file.is_file() and file.stat().st_size == facts["file"]["bytes"] else None


@contextmanager
def open_workspace(root: Path, identity: dict[str, Any], fresh: bool) -> Iterator[Workspace | None]:
    """Take hold of a build folder; None where it already holds exactly this release.

    Args:
        root: the output folder; created if absent.
        identity: what the build is made of; a folder of another identity is refused.
        fresh: delete what an earlier build left in the folder.

    Raises:
        UsageError: the folder holds something else, or another build.
        BuilderError: another build is running in it, or it cannot be written.
    """
    _refuse_foreign(root)
    if (root / MANIFEST).exists() and not fresh:
        _refuse_other(root, read_manifest(root), identity)
        if not (root / ".build").exists():
            yield None
            return
    with _locked(root):
        if fresh:
            _clear(root)
        elif (root / MANIFEST).exists():  # killed after the manifest, before the sweeping
            shutil.rmtree(root / ".build")
            yield None
            return
        for leftover in root.rglob(".*.tmp"):
            leftover.unlink()
        own = root / ".build" / "identity.json"
        if own.exists():
            _refuse_other(root, json.loads(own.read_bytes()), identity)
        else:
            write_atomic(own, json.dumps(identity).encode())
        yield Workspace(root)
        if (root / MANIFEST).exists():
            shutil.rmtree(root / ".build")


def _locked(root: Path) -> FileLock:
    """The lock of a build folder, held; the folder is made if absent."""
    from filelock import FileLock, Timeout

    try:
        (root / ".build").mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / ".build" / "lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise BuilderError(
            f"another build is running in {root}.", hint="wait for it, or choose another --out."
        ) from None
    except OSError as e:
        raise BuilderError(
            f"cannot write to {root}: {e.strerror}.", hint="choose another --out."
        ) from None
    return lock


def _refuse_foreign(root: Path) -> None:
    if not root.exists():
        return
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder.", hint="choose another --out.")
    known = (root / ".build").exists() or (root / MANIFEST).exists()
    if not known and any(root.iterdir()):
        raise UsageError(
            f"{root} is not empty and holds no build.", hint="choose an empty or new --out."
        )


def _refuse_other(root: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
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


def _clear(root: Path) -> None:
    for name in OWN:
        path = root / name
        if name == ".build":  # its lock is held
            for inner in path.iterdir():
                if inner.name == "lock":
                    continue
                shutil.rmtree(inner) if inner.is_dir() else inner.unlink()
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
