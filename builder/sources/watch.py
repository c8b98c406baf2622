"""Work that cannot be interrupted, on a thread that can be left."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from builder.progress import Report
from builder.workers import TICK

T = TypeVar("T")


class _Left(BaseException):
    """Raised in the work when nobody waits for it any more."""


def watch(work: Callable[[Report], T], subject: str, report: Report) -> T:
    """What `work` returns or raises, given a `Report` of its own to call.

    A server that stalls, a pause between two attempts and a lock that another process holds
    end neither on Ctrl-C nor on what `report` raises to end a build. So the work runs on a daemon
    thread; this one repeats to `report` what the work said last, every tenth of a second, and
    leaves it alone when that raises. The work's own next report then raises, too.
    """
    said = (subject, "fetching", 0, None)
    left = threading.Event()
    outcome: Future[T] = Future()

    def listen(*words: object) -> None:
        nonlocal said
        if left.is_set():
            raise _Left
        said = words  # type: ignore[assignment]

    def run() -> None:
        try:
            outcome.set_result(work(listen))
        except BaseException as e:
            outcome.set_exception(e)

    threading.Thread(target=run, name=f"fetch {subject}", daemon=True).start()
    told = None
    try:
        while not wait([outcome], TICK).done:
            # A whole file is told once, then its check is what takes the time.
            again = said is told and said[3] is not None and said[2] == said[3]
            told = said
            report(*((subject, "checking", 0, None) if again else said))
        if said is not told:
            report(*said)
    except BaseException:
        left.set()
        raise
    return outcome.result()
