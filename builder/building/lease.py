"""A hold on a prefix in object storage: one build at a time, wherever it runs."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from builder.errors import BuilderError
from builder.store import Bucket

LOCK = ".build/lock"
LASTS = 60.0
"""Seconds after which a hold that was not renewed is nobody's any more."""


_held: set[str] = set()
"""Tokens of the holds of this process."""


class Lease:
    """A hold, renewed on a thread of its own by writes that succeed only over the last one."""

    def __init__(self, bucket: Bucket, tag: str, ours: dict[str, Any]) -> None:
        self._bucket, self._tag, self._ours = bucket, tag, ours
        self._renewed = time.monotonic()
        self._ended = threading.Event()
        _held.add(ours["token"])
        self._taken = False
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """
        Raises:
            BuilderError: the hold was lost: nothing more may be written.
        """
        if self._taken or time.monotonic() - self._renewed > LASTS:
            raise BuilderError(
                f"the hold on {self._bucket} was lost: it could not be renewed for {LASTS:.0f} s, "
                "or another build took it.",
                hint="run the same command again: it goes on from there.",
            )

    def end(self) -> None:
        """Let go of it."""
        self._ended.set()
        self._thread.join()
        _held.discard(self._ours["token"])
        if not self._taken:
            with suppress(BuilderError):  # it ends by itself
                self._bucket.delete(LOCK)

    def _renew(self) -> None:
        while not self._ended.wait(LASTS / 4):
            self._ours["renewed"] += 1  # another text, so that its tag is another, too
            try:
                tag = self._bucket.replace(LOCK, _text(self._ours), self._tag)
            except BuilderError:  # no answer: again, for as long as it lasts
                self._ours["renewed"] -= 1
                continue
            if tag is None and (tag := _of_a_lost_answer(self._bucket, self._ours)) is None:
                self._taken = True
                return
            self._tag, self._renewed = tag, time.monotonic()


@contextmanager
def lease(bucket: Bucket) -> Iterator[Lease]:
    """Hold a prefix against other builds; they are refused by conditional writes.

    A hold is over when its build ends. One of a build that was killed is taken at once by another
    process of its machine, and by other machines when it was not renewed for `LASTS` seconds.

    Raises:
        BuilderError: another build holds it.
        NetworkError: the bucket cannot be reached or written.
    """
    machine = f"{platform.node()}-{uuid.getnode():x}"
    ours = {"machine": machine, "pid": os.getpid(), "token": uuid.uuid4().hex, "renewed": 0}
    tag = bucket.create(LOCK, _text(ours)) or _of_a_lost_answer(bucket, ours)
    if tag is None:
        tag = _taken_over(bucket, ours)
    held = Lease(bucket, tag, ours)
    try:
        yield held
    finally:
        held.end()


def _text(ours: dict[str, Any]) -> bytes:
    return json.dumps(ours).encode()


def _of_a_lost_answer(bucket: Bucket, ours: dict[str, Any]) -> str | None:
    """The tag of the lock where it is just ours: written, but the answer did not arrive."""
    found = bucket.facts(LOCK)
    return str(found["e_tag"]) if found and bucket.read(LOCK) == _text(ours) else None


def _taken_over(bucket: Bucket, ours: dict[str, Any]) -> str:
    """The tag of the lock, taken from a build that is over, though it did not say so."""
    found = bucket.facts(LOCK)
    if found is None:  # let go just now
        tag = bucket.create(LOCK, _text(ours))
    else:
        try:
            theirs = json.loads(bucket.read(LOCK) or b"{}")
        except ValueError:
            theirs = {}
        age = (datetime.now(UTC) - found["last_modified"]).total_seconds()
        if age < LASTS and not _is_dead(theirs, ours):
            raise _refused(bucket, theirs, f"If it was killed, wait {max(1, LASTS - age):.0f} s.")
        tag = bucket.replace(LOCK, _text(ours), str(found["e_tag"]))
    if tag is None:
        raise _refused(bucket, {}, "")
    return tag


def _is_dead(theirs: dict[str, Any], ours: dict[str, Any]) -> bool:
    """Whether a hold was of this machine, and its process is no more, or let go in vain."""
    if theirs.get("machine") != ours["machine"]:
        return False
    if theirs.get("pid") == ours["pid"]:
        return theirs.get("token") not in _held
    try:
        os.kill(int(theirs["pid"]), 0)
    except ProcessLookupError:
        return True
    except (KeyError, ValueError, OSError):
        pass
    return False


def _refused(bucket: Bucket, theirs: dict[str, Any], more: str) -> BuilderError:
    where = f" on {theirs['machine'].rpartition('-')[0]}" if theirs.get("machine") else ""
    return BuilderError(
        f"another build is running in {bucket}{where}.",
        hint=f"wait for it, or choose another --out. {more}".rstrip(),
    )
