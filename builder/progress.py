"""What people see while a command works, on stderr: moving bars on a terminal, plain lines else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

Report = Callable[[str, str, int, int | None], None]
"""(model or stage, what is being done, done, total); total None: unknown."""


def silent(subject: str, what: str, done: int, total: int | None) -> None:
    """A `Report` that shows nothing."""


FINAL = ("done", "already there", "failed")


def console() -> Console:
    """The console for words; NO_COLOR and TERM=dumb are respected by rich."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def show(quiet: bool = False) -> Iterator[Report]:
    """A `Report` to pass to the work."""
    screen = console()
    if quiet:
        yield silent
    elif screen.is_terminal:
        with Progress(
            TextColumn("{task.description}"),
            TextColumn("[dim]{task.fields[what]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=screen,
        ) as bars:
            yield _Bars(bars)
    else:
        yield _Lines(screen)


class _Bars:
    """One line per subject, kept when finished."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def __call__(self, subject: str, what: str, done: int, total: int | None) -> None:
        with self._lock:
            if subject not in self._tasks:
                self._tasks[subject] = self._bars.add_task(subject, what=what, total=None)
            task = self._tasks[subject]
            if what in FINAL:  # keep the count of filters, say how it ended
                self._bars.update(task, what=what)
                self._bars.stop_task(task)
            else:
                self._bars.update(task, what=what, completed=done, total=total)


class _Lines:
    """One line per subject and stage, when it is over."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._started: dict[str, float] = {}
        self._lock = threading.Lock()

    def __call__(self, subject: str, what: str, done: int, total: int | None) -> None:
        with self._lock:
            started = self._started.setdefault(subject, time.monotonic())
            if what in FINAL:
                count = f"[{done}/{total}] " if total else ""
                took = f" ({time.monotonic() - started:.1f} s)" if what == "done" else ""
                self._screen.print(f"{count}{subject}: {what}{took}", markup=False)
            elif total and done == total:
                self._screen.print(f"{subject}: {what} {done:,}", markup=False)
