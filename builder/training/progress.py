"""The progress line of a training run, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from builder.training.train import Progress


@contextmanager
def progress_line(name: str, console: Console) -> Iterator[Callable[[Progress], None]]:
    """Show one run; yields the function to pass to `train` as `on_step`.

    On a terminal one line is kept up to date; elsewhere (a log) one line is printed per epoch.
    """
    if not console.is_terminal:
        yield lambda p: _log(name, console, p)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(name, total=None, state="")
        yield lambda p: bar.update(task, total=p.steps, completed=p.step, state=_state(p))


def _state(p: Progress) -> str:
    return f"epoch {p.epoch}/{p.epochs} loss {p.loss:.3f} accuracy {p.accuracy:.1f} %"


def _log(name: str, console: Console, p: Progress) -> None:
    if p.step % (p.steps // p.epochs) == 0:
        minutes = p.seconds_left / 60
        console.print(f"{name}: {_state(p)}, {minutes:.0f} min left", highlight=False)
