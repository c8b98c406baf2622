"""Progress: a screen of any size for people, lines now and then in a log."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fcntl import ioctl
from struct import pack
from termios import TIOCSWINSZ

import pytest
from rich.live import Live

from builder import progress

WORK = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from builder import progress
n, jobs = 114, int(sys.argv[1])
with progress.show() as report:
    report("plan", "tracing", n, n)
    report(progress.WHOLE, "models", 0, n)
    def one(i):
        name = f"cifar10-robust-A{i}ndriushchenko2020UnderstandingExtra"
        if i < 10:
            return report(name, "already there", i, n)
        for step in range(3):
            report(name, "filters", step, 3)
            time.sleep(0.004 * jobs)
        report(name, "failed" if i == 50 else "done", i, n)
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, range(1, n + 1)))
    report("finish", "table layers", 0, None)
    time.sleep(0.3)
"""


def on_a_terminal(code: str, *args: object, rows: int, columns: int, **env: str) -> tuple[int, str]:
    """Run Python code on a terminal of that size; exit code, and all that was written to it."""
    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, pack("HHHH", rows, columns, 0, 0))
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdin=theirs, stdout=theirs, stderr=theirs, env={**kept, "TERM": "xterm-256color", **env},
    )  # fmt: skip
    os.close(theirs)
    written = b""
    try:
        while select.select([ours], [], [], 60)[0]:
            written += os.read(ours, 65536)
    except OSError:  # how a terminal ends when nobody holds it any more
        pass
    finally:
        os.close(ours)
    return process.wait(60), written.decode()


def screens(written: str, rows: int, columns: int) -> list[list[str]]:
    """What a terminal has shown: its lines, those scrolled away included, before each erasure."""
    lines, row, column, found = [""], 0, 0, []
    for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|[^\x1b]", written):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1] or 1)
            assert row >= max(0, len(lines) - rows), "moves above the top of the screen"
        elif part == "\x1b[2K":
            if lines[row] and (not found or found[-1] != lines):
                found.append(list(lines))
            lines[row] = ""
        elif not part.startswith("\x1b"):
            if column == columns:  # a full line goes on in the next
                row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
            lines[row] = lines[row].ljust(column)[:column] + part + lines[row][column + 1 :]
            column += 1
        lines += [""] * (row + 1 - len(lines))
    return [*found, lines]


@pytest.mark.parametrize(("rows", "columns"), [(24, 80), (10, 40), (50, 120)])
@pytest.mark.parametrize("jobs", [4, 30])
def test_114_models_leave_the_running_ones_and_the_whole_on_the_screen(
    rows: int, columns: int, jobs: int
):
    code, written = on_a_terminal(WORK, jobs, rows=rows, columns=columns)
    assert code == 0, written
    shown = screens(written, rows, columns)
    wholes = [i for i, lines in enumerate(shown) if lines[-1].startswith("models  ")]
    assert len(wholes) > 5, written
    for lines in (shown[i] for i in wholes):
        visible = lines[-rows:]
        running = [line for line in visible if line.startswith("cifar10-robust-A")]
        more = [int(line.split()[1]) for line in visible if re.match(r"and \d+ more", line)]
        assert len(running) + sum(more) <= jobs
        assert all(re.search(r"\d% +[\d:-]+ left$", line) for line in running), running
        assert max(map(len, [*running, visible[-1]])) < columns
    assert any(re.search(r"models  [1-9]\d*/114 .*\d:\d\d left$", shown[i][-1]) for i in wholes)
    ended = "\n".join(shown[-1])
    assert ended.count(": done (") == 113 - 9 and ended.count(": failed") == 1
    assert "left" not in ended and "already there" not in ended


def test_a_log_has_a_line_for_each_end_and_now_and_then_one_between(
    capsys: pytest.CaptureFixture[str],
):
    started = time.monotonic()
    with progress.show(every=0.2) as report:
        report("plan", "tracing", 4, 4)
        report(progress.WHOLE, "models", 0, 2)
        report("alpha", "already there", 1, 2)
        for step in range(1, 31):
            report("beta", "filters", 1000 * step, 30_000)
            time.sleep(0.02)
        report("beta", "first layer", 0, None)
        report("beta", "done", 2, 2)
    took = time.monotonic() - started
    first, second, *between, last, end = capsys.readouterr().err.splitlines()
    assert (first, second) == ("plan: tracing 4/4", "[1/2] alpha: already there")
    assert 1 <= len(between) <= took / 0.2, between
    assert all(re.fullmatch(r"beta: filters \d+,000/30,000", line) for line in between)
    assert last == "beta: filters 30,000/30,000"
    assert re.fullmatch(r"\[2/2\] beta: done \(\d\.\d s\)", end)


def test_quiet_work_says_nothing(capsys: pytest.CaptureFixture[str]):
    with progress.show(quiet=True, every=0) as report:
        report("alpha", "filters", 1, 2)
        report("alpha", "done", 1, 1)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_that_cannot_move_the_cursor_gets_the_lines_of_a_log():
    code = WORK.replace("n, jobs = 114", "n, jobs = 12")
    code, written = on_a_terminal(code, 2, rows=24, columns=80, TERM="dumb")
    assert code == 0
    assert "\x1b[" not in written and "[12/12] cifar10-robust-A" in written


def test_lines_that_move_are_not_drawn_while_a_word_is_on_its_way() -> None:
    """Else rich moves up by a height that is no longer theirs, over what was printed before."""
    drawn = threading.Event()

    class Slow:
        def __rich_console__(self, *_: object) -> Iterator[str]:
            drawn.clear()
            assert not drawn.wait(1)
            yield "word"

    def draw() -> str:
        drawn.set()
        return "moving"

    screen = progress._Turns(file=io.StringIO(), force_terminal=True)
    with screen.moving(Live(get_renderable=draw, console=screen, auto_refresh=False)):
        assert drawn.wait(10)
        screen.print(Slow())
        assert drawn.wait(10)
