"""What people see while a command works, on stderr: a moving screen, or plain lines in a log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

Report = Callable[[str, str, int, int | None], None]
"""(subject, what is done with it, how much of that is done, of how much); the last None: unknown.

A subject (a model, a command) takes one step after the other, and a step ends at its total. One
of `FINAL` ends the subject; its total is the number of subjects. Where there are several, the
subject `WHOLE` says how many before the first has ended.
"""


def silent(subject: str, what: str, done: int, total: int | None) -> None:
    """A `Report` that shows nothing."""


FINAL = ("done", "already there", "failed")
WHOLE = ""

EVERY = 5.0
"""Seconds without a line, in a log, after which a step that goes on has one."""

_REDRAWN = 0.25
"""Seconds between two looks of a screen."""

BAR = 20
"""Characters of a bar."""


def console() -> Console:
    """The console for words; NO_COLOR and TERM=dumb are respected by rich."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def show(quiet: bool = False, every: float = EVERY) -> Iterator[Report]:
    """A `Report` to pass to the work, which may call it from several threads."""
    screen = console()
    if quiet:
        yield silent
    elif screen.is_terminal and not screen.is_dumb_terminal:
        words = _Turns(stderr=True, highlight=False, soft_wrap=True)
        seen = _Screen(words)
        live = Live(get_renderable=seen.render, console=words, transient=True, auto_refresh=False)
        with words.moving(live):
            yield seen
    else:
        yield _Lines(screen, every)


class _Turns(Console):
    """A console on which words and the lines that move below them take turns.

    Rich moves the cursor up by the height that those lines had when a thread began to print;
    another thread may have drawn fewer meanwhile.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._turn = threading.RLock()

    def print(self, *objects: Any, **how: Any) -> None:
        with self._turn:
            super().print(*objects, **how)

    @contextmanager
    def moving(self, live: Live) -> Iterator[None]:
        """Show `live` and draw it again and again; gone at the end."""
        ended = threading.Event()

        def draw() -> None:
            while not ended.wait(_REDRAWN):
                with self._turn:
                    live.refresh()

        drawing = threading.Thread(target=draw, name="progress", daemon=True)
        live.start()
        drawing.start()
        try:
            yield
        finally:
            ended.set()
            drawing.join()
            with self._turn:
                live.stop()


class _Lines:
    """A line when a subject or one of its steps is over, and now and then in between."""

    def __init__(self, screen: Console, every: float) -> None:
        self._screen = screen
        self._every = every
        self._last = time.monotonic()
        self._begun: dict[str, float] = {}
        self._over = 0
        self._lock = threading.Lock()

    def __call__(self, subject: str, what: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        with self._lock:
            begun = self._begun.setdefault(subject, now)
            if what in FINAL:
                self._over += 1
                line = _ending(subject, what, self._over, total, now - begun)
            elif subject != WHOLE and (done == total or now - self._last >= self._every):
                of = f" {done:,}/{total:,}" if total else f" {done:,}" if done else ""
                line = f"{subject}: {what}{of}"
            else:
                return
            self._last = now
            self._screen.print(line, markup=False)


def _ending(subject: str, what: str, over: int, total: int | None, seconds: float) -> str:
    count = f"[{over}/{total}] " if total else ""
    return f"{count}{subject}: {what}" + (f" ({seconds:.1f} s)" if what == "done" else "")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class _Step:
    """What one subject is at. `begun`: time of the first report, which had `first` done."""

    what: str
    done: int
    total: int | None
    begun: float
    first: int

    def right(self, now: float) -> str:
        """Share and time left, or the time it has taken so far; 17 characters."""
        took = now - self.begun
        if not self.total or self.done > self.total:
            return f"{'':4}  {_clock(took):>8}   "
        left = "-:--"
        if self.done > self.first:
            left = _clock(took / (self.done - self.first) * (self.total - self.done))
        return f"{100 * self.done // self.total:3}%  {left:>8} left"


class _Screen:
    """The subjects that are being worked on, below those that are over; the whole underneath."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._begun: dict[str, float] = {}
        self._running: dict[str, _Step] = {}
        self._whole: _Step | None = None
        self._lock = threading.Lock()
        self._ends = threading.Lock()

    def __call__(self, subject: str, what: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if what in FINAL:
            self._end(subject, what, total, now)
            return
        with self._lock:
            self._begun.setdefault(subject, now)
            if subject == WHOLE:
                self._whole = _Step(what, done, total, now, done)
            elif done == total:  # the next step, if there is one, puts it back
                self._running.pop(subject, None)
            else:
                step = self._running.get(subject)
                if step is None or step.total != total or done < step.done:
                    step = self._running[subject] = _Step(what, done, total, now, done)
                step.what, step.done = what, done

    def _end(self, subject: str, what: str, total: int | None, now: float) -> None:
        with self._ends:  # printed in the order of their numbers
            with self._lock:
                self._running.pop(subject, None)
                whole = self._whole = self._whole or _Step("in all", 0, total, now, 0)
                whole.done += 1
                whole.first += what == "already there"
                line = _ending(
                    subject, what, whole.done, total, now - self._begun.get(subject, now)
                )
            if what != "already there":
                self._screen.print(line, markup=False)  # renders, and so takes the lock

    def render(self) -> Group:
        """Lines that fit the terminal as it is now, the whole last."""
        now, (width, height) = time.monotonic(), self._screen.size
        with self._lock:
            rows = [_row(*item, now, width - 1) for item in self._running.items()]
            last = [_row("", self._whole, now, width - 1)] if self._whole else []
        room = max(1, height - 1 - len(last))  # one line is the cursor's
        if len(rows) > room:
            rows[room - 1 :] = [Text(f"and {len(rows) - room + 1} more", style="dim")]
        return Group(*rows, *last)


def _row(subject: str, step: _Step, now: float, width: int) -> Text:
    """One line of `width` columns: subject and step, a bar where there is room, time left."""
    right = Text(step.right(now))
    if step.total and width >= 4 * BAR:
        full = BAR * min(step.done, step.total) // step.total
        bar = Text.assemble(("━" * full, "bar.complete"), ("━" * (BAR - full), "bar.back"))
        right = Text.assemble(bar, " ", right)
    left = Text(subject and f"{subject}  ")
    left.append(step.what, style="dim" if subject else "")
    if not subject:
        left.append(f"  {step.done:,}/{step.total:,}" if step.total else f"  {step.done:,}")
    left.truncate(max(1, width - len(right) - 1), overflow="ellipsis", pad=True)
    row = Text.assemble(left, " ", right)
    row.truncate(width, overflow="crop")
    return row
