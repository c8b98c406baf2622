"""Work on many files at once, and how far it is all in all."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from builder.progress import Report
from builder.workers import Workers, in_order

Item = TypeVar("Item")
Found = TypeVar("Found")

Step = Callable[[int], None]
"""Says that so much more is done."""


def in_parallel(
    work: Callable[[Item, Step], Iterable[Found]],
    items: Iterable[Item],
    report: Report,
    what: str,
    total: int,
    workers: Workers,
) -> Iterator[Found]:
    """What the work on each item finds, in the order of the items, which all cores work on.

    Whoever stops listening ends the work, at its next step.

    Args:
        work: called with an item and a `Step`, on a thread.
        items: what to work on.
        report: told ("verify", what, done, total) at every step.
        what: the name of the check. total: steps of all items together.
        workers: whose cores.
    """
    lock, stop, done = threading.Lock(), threading.Event(), 0

    def one(item: Item) -> list[Found]:
        before = 0

        def reported(_: str, what: str, so_far: int, __: int | None) -> None:
            nonlocal done, before
            with lock:
                done += so_far - before
                before = so_far
                report("verify", what, done, total)

        found: list[Found] = workers.call(_all, work, item, what, stop=stop, report=reported)
        return found

    todo = list(items)
    threads = workers.threads(os.cpu_count() or 1, len(todo))
    with ThreadPoolExecutor(threads, "verify") as pool:
        try:
            for found in in_order(pool, one, todo):
                yield from found
        finally:
            stop.set()


def _all(
    work: Callable[[Item, Step], Iterable[Found]], item: Item, what: str, report: Report
) -> list[Found]:
    """What the work on an item finds; `report` is told how far it is."""
    done = 0

    def step(more: int) -> None:
        nonlocal done
        done += more
        report("verify", what, done, None)

    return list(work(item, step))
