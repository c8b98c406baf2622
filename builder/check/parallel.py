"""Work on many files at once, and how far it is all in all."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from builder.progress import Report

Item = TypeVar("Item")
Found = TypeVar("Found")

Step = Callable[[int], None]
"""Says that so much more is done."""


class _Stopped(Exception):
    """Ends the work on an item whose results nobody waits for any more."""


def in_parallel(
    work: Callable[[Item, Step], Iterable[Found]],
    items: Iterable[Item],
    report: Report,
    what: str,
    total: int,
) -> Iterator[Found]:
    """What the work on each item finds, in the order of the items, which all cores work on.

    Whoever stops listening ends the work, at its next step.

    Args:
        work: called with an item and a `Step`, on a thread.
        items: what to work on.
        report: told ("verify", what, done, total) at every step.
        what: the name of the check. total: steps of all items together.
    """
    lock, stop, done = threading.Lock(), threading.Event(), 0

    def step(more: int) -> None:
        nonlocal done
        if stop.is_set():
            raise _Stopped
        with lock:
            done += more
            report("verify", what, done, total)

    def one(item: Item) -> list[Found]:
        return list(work(item, step))

    with ThreadPoolExecutor(os.cpu_count() or 1, "verify") as pool:
        try:
            for found in pool.map(one, items):
                yield from found
        finally:
            stop.set()
