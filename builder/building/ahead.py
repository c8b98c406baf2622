"""Work one item ahead: the next item is made on another thread while this one is used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield `items`, computing the next while the caller works on the current one.

    An exception of `items` is raised at the place where its item would come. Closing the
    generator stops the thread before the item after next.
    """
    ready: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def put(good: bool, item: T | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                ready.put((good, item), timeout=0.1)
                return
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for item in items:
                put(True, item)
                if stopped.is_set():
                    return
        except BaseException as e:  # raised again by the consumer
            put(False, e)
        else:
            put(False, None)

    thread = threading.Thread(target=produce, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            good, item = ready.get()
            if not good:
                if isinstance(item, BaseException):
                    raise item
                return
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
