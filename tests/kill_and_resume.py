"""Kill a build at every rename that it makes, resume it, and compare with an undisturbed one.

    python tests/kill_and_resume.py -- --cohort paper --weights seeded:0 \
        --models 'cifar10-*R18*' --no-first-layer

What follows `--` is passed to `builder build`. A file of a build gets its name by os.replace, whole
or not at all: so the moment before each of them, when the next file lies there under its temporary
name, is every state that a build can be left in. Each round starts in an empty folder, is killed
(SIGKILL) at the next one, and is then run again to its end. Exit code 0 only if every round ended
with the same content. Rounds are forks of the process that made the undisturbed build.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any


def build(out: Path, options: list[str], kill_at: int = 0) -> tuple[int, int]:
    """Run `builder build` here: its exit code, and how many files it renamed.

    Args:
        kill_at: the rename before which this process is killed, from 1.
    """
    from builder.cli.main import main

    replace, begun = os.replace, 0

    def counting(*paths: Any) -> None:
        nonlocal begun
        begun += 1
        if begun == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*paths)

    sys.argv = ["builder", "build", "--quiet", "--jobs", "1", "--out", str(out), *options]
    os.replace = counting
    try:
        main()
    except SystemExit as e:
        return int(e.code or 0), begun
    finally:
        os.replace = replace
    return 0, begun


def forked(out: Path, options: list[str], kill_at: int = 0) -> int:
    """The same in a fork: its exit code, negative if it was killed."""
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        code = 1
        try:
            code, _ = build(out, options, kill_at)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def contents(out: Path) -> dict[str, Any]:
    files = json.loads((out / "manifest.json").read_bytes())["files"]
    return {path: facts["content_hash"] or facts["sha256"] for path, facts in files.items()}


def left_over(out: Path) -> list[str]:
    listed = contents(out).keys() | {"manifest.json", "README.md"}  # the card seals itself
    found = (p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    return [path for path in found if path not in listed]


def stage(out: Path) -> str:
    """How far a killed build came, for the log."""
    if (out / "manifest.json").exists():
        return "after the manifest"
    finished = len(list((out / ".build" / "models").glob("*.json")))
    tables = len(list((out / "data").glob("*.parquet")))
    return f"{finished} models finished, {tables} tables written"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("options", nargs="*", help="options of `builder build`, after --")
    options = parser.parse_args().options
    with tempfile.TemporaryDirectory() as folder:
        reference, out = Path(folder) / "reference", Path(folder) / "killed"
        code, renames = build(reference, options)
        if code or renames < 2:
            print(f"the undisturbed build ended with {code}, after {renames} renames")  # noqa: T201
            return 2
        expected = contents(reference)
        print(f"undisturbed: {len(expected)} files, {renames} renames")  # noqa: T201
        failed = 0
        for i in range(1, renames + 1):
            killed = forked(out, options, kill_at=i)
            reached = stage(out)
            resumed = forked(out, options)
            found = contents(out) if resumed == 0 else {}
            differing = sorted({k for k, _ in found.items() ^ expected.items()})
            differing += left_over(out) if found else []
            failed += bool(differing) or killed != -signal.SIGKILL
            print(  # noqa: T201
                f"{i:3}: exit code {killed} before rename {i} ({reached}), resumed: "
                f"{'DIFFERENT: ' + ', '.join(differing) if differing else 'same content'}",
                flush=True,
            )
            shutil.rmtree(out)
    print(f"{renames - failed} of {renames} killed builds ended with the same content")  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
