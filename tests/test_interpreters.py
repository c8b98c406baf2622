"""The mini release under two interpreters: one content. Needs another Python, and PyPI once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_wheel import ROOT, pip

pytestmark = pytest.mark.slow
SUPPORTED = ("3.11", "3.12", "3.13")
OURS = f"{sys.version_info.major}.{sys.version_info.minor}"


def interpreters() -> Iterator[tuple[str, str]]:
    """(version, path) of every other supported Python that starts, the newest first."""
    for version in sorted(set(SUPPORTED) - {OURS}, reverse=True):
        found = [shutil.which(f"python{version}")]
        found += map(str, sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))
        for path in filter(None, found):
            says = "import sys, ensurepip; print('%d.%d' % sys.version_info[:2])"
            done = subprocess.run([path, "-c", says], capture_output=True, text=True)
            if done.stdout.strip() == version:  # a shim of pyenv may stand for no interpreter
                yield version, path


@pytest.fixture(scope="module")
def other_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another interpreter with the package and what it builds with, in the versions of the lock:
    RFL_OTHER_PYTHON, else an environment made here, which takes minutes.
    """
    if made := os.environ.get("RFL_OTHER_PYTHON"):
        return Path(made)
    _, path = next(interpreters(), (None, None))
    if path is None:
        pytest.skip(f"no second interpreter: none of {SUPPORTED} but {OURS} on PATH or in pyenv")
    folder = tmp_path_factory.mktemp("other") / "venv"
    subprocess.run([path, "-m", "venv", folder], check=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    lock = ROOT / "requirements.lock"
    pinned = lock.read_text().split()
    torch = [p for p in pinned if p.startswith(("torch==", "torchvision=="))]
    pip(python, "install", *torch)  # as the Makefile does
    pip(python, "install", "-c", lock, f"{ROOT}[build]")
    return python


def test_another_interpreter_gave_other_last_digits(other_python: Path, tmp_path: Path):
    made = {}
    for python in (sys.executable, other_python):
        out = tmp_path / f"out{len(made)}"
        command = [python, "-m", "builder", "build", "--quiet", "--device", "cpu", "--out", out]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        made[out] = json.loads((out / "manifest.json").read_bytes())
    ours, theirs = made.values()
    versions = [{m["made_with"]["python"] for m in r["models"].values()} for r in (ours, theirs)]
    assert versions[0].isdisjoint(versions[1])
    assert ours["files"].keys() == theirs["files"].keys()
    for path, facts in ours["files"].items():
        for hashed in ("content_hash", "rows"):
            assert facts[hashed] == theirs["files"][path][hashed], path
    done = subprocess.run(
        [sys.executable, "-m", "builder", "diff", *map(str, made)],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0 and "nothing changed" in done.stdout, done.stdout + done.stderr
