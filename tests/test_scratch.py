"""Temporary files and folders: gone at the end, and the next command's if there was no end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tiny_release import Tiny, write_tiny_release

from builder.files import replacing, scratch

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no locks on folders")

HOLD = """
import sys
from builder.files import scratch
with scratch() as folder:
    (folder / "spilled").write_bytes(b"x")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def tmp(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_process_leaves_goes_with_the_next_command(tmp: Path, signum: int):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD], **pipes, text=True) as process:
        left = Path(process.stdout.readline().strip())
        with scratch() as ours, scratch() as another:
            assert {left, ours, another} == set(tmp.iterdir())  # all three are in use
        process.send_signal(signum)
        process.wait()
        assert [left] == list(tmp.iterdir())
        with scratch() as ours:
            assert [ours] == list(tmp.iterdir())
    assert not list(tmp.iterdir())


def test_nothing_else_is_taken_for_a_leftover(tmp: Path):
    target = tmp / "target"
    target.mkdir()
    (tmp / "rfl-scratch-link").symlink_to(target)
    (tmp / "rfl-scratch-file").write_text("mine")
    kept = {"target", "rfl-scratch-link", "rfl-scratch-file"}
    if os.geteuid() == 0:
        (tmp / "rfl-scratch-others").mkdir()
        os.chown(tmp / "rfl-scratch-others", 12345, -1)
        kept.add("rfl-scratch-others")
    with scratch():
        pass
    assert {p.name for p in tmp.iterdir()} == kept


KILLED = """
import os, signal, sys
from builder.cli.main import main
os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
main()
"""


@pytest.mark.parametrize(
    "command",
    [
        "reference made",
        "export release MODEL -o weights.npz",
        "export release MODEL -o weights.safetensors",
        "export release --croissant -o croissant.json",
        "report release -o report.html",
    ],
)
def test_what_a_killed_writer_left_lay_beside_the_file_for_ever(tmp_path: Path, command: str):
    if "report" in command:
        pytest.importorskip("altair")
    model = Tiny("Alpha")
    write_tiny_release(tmp_path / "release", models=(model,))
    args = command.replace("MODEL", model.model_id).split()
    out = args[-1]
    killed = subprocess.run([sys.executable, "-c", KILLED, *args], cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(f".{out}.*")
    (tmp_path / f".{out}.mine.tmp").write_text("another's")
    done = subprocess.run([sys.executable, "-m", "builder", *args], cwd=tmp_path)
    assert done.returncode == 0 and not left.exists()
    assert {p.name for p in tmp_path.iterdir()} == {"release", out, f".{out}.mine.tmp"}


def test_a_file_that_is_being_written_is_no_leftover(tmp_path: Path):
    with replacing(tmp_path / "a") as one:
        with replacing(tmp_path / "a") as other:
            one.write(b"one")
            other.write(b"other")
        assert (tmp_path / "a").read_bytes() == b"other"
    assert (tmp_path / "a").read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
