"""Ctrl-C while something keeps a download waiting, in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fileserver import Fault, serve

from builder.sources.watch import watch

BUILD = """
import sys
from pathlib import Path
from builder.cohort.registry import ModelSpec
from builder.sources.fetch import fetch

folder = Path(sys.argv[2])
model = ModelSpec("Net", "cifar10", True, "Tiny", "m:Tiny", sys.argv[1])
print("ready", flush=True)
try:
    fetch(
        model,
        cache=folder / "cache",
        checkpoints=None,
        pins=folder / "pins",
        report=lambda *words: None,
    )
except KeyboardInterrupt:
    sys.exit(130)
"""


def seconds_until_stopped(url: str, folder: Path) -> float:
    """From Ctrl-C to the end of a process that fetches `url`."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, url, str(folder)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    time.sleep(1)  # until it waits
    assert process.poll() is None
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    process.stdout.close()
    return time.monotonic() - started


def test_ctrl_c_in_a_pause_between_attempts_took_until_its_end(tmp_path: Path) -> None:
    with serve() as server:
        server.faults["/w.pt"] = [Fault(status=503, headers={"Retry-After": "200"})] * 9
        assert seconds_until_stopped(f"{server.url}/w.pt", tmp_path) < 3


def test_ctrl_c_before_a_server_that_never_answers_took_a_minute(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/w.pt"
        assert seconds_until_stopped(url, tmp_path) < 3


def test_ctrl_c_while_another_process_fetches_the_same_file_took_as_long_as_that(
    tmp_path: Path,
) -> None:
    with serve() as server:
        server.files["/w.pt"] = bytes(1 << 22)
        server.faults["/w.pt"] = [Fault(slow=1)]
        url = f"{server.url}/w.pt"
        first = subprocess.Popen(
            [sys.executable, "-c", BUILD, url, str(tmp_path)],
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        while not server.log:
            time.sleep(0.05)
        try:
            assert seconds_until_stopped(url, tmp_path) < 3
            assert len(server.log) == 1
        finally:
            first.kill()
            first.wait()


def test_work_that_nobody_waits_for_stops_at_its_next_report() -> None:
    running, ended = threading.Event(), threading.Event()

    def work(report: object) -> None:
        try:
            for i in range(10_000):
                report("net", "w.pt", i, None)  # type: ignore[operator]
                running.set()
                time.sleep(0.01)
        finally:
            ended.set()

    def stop(*words: object) -> None:
        assert running.wait(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch(work, "net", stop)
    assert ended.wait(5)


def test_a_whole_file_is_told_once_however_long_its_check_takes() -> None:
    told: list[tuple[str, str, int, int | None]] = []

    def work(report: object) -> str:
        report("net", "w.pt", 7, 7)  # type: ignore[operator]
        time.sleep(0.5)
        return "digest"

    assert watch(work, "net", lambda *words: told.append(words)) == "digest"
    assert told.count(("net", "w.pt", 7, 7)) == 1
    assert told[-1] == ("net", "checking", 0, None)
