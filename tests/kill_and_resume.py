"""Kill a build with SIGKILL at random moments, resume it, and compare with an undisturbed one.

    python tests/kill_and_resume.py --kills 20 -- --cohort paper --weights seeded:0 \
        --models 'cifar10-*R18*' --no-first-layer

What follows `--` is passed to `builder build`. Each round starts in an empty folder, is killed
once at a moment drawn uniformly from the duration of the undisturbed build, and is then run
again to its end. Exit code 0 only if every round ended with the same content hashes.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def command(out: Path, options: list[str]) -> list[str]:
    return [sys.executable, "-m", "builder", "build", "--quiet", "--out", str(out), *options]


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
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("options", nargs="*", help="options of `builder build`, after --")
    args = parser.parse_args()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / "reference"
        started = time.monotonic()
        subprocess.run(command(reference, args.options), check=True)
        duration = time.monotonic() - started
        expected = contents(reference)
        print(f"undisturbed: {duration:.1f} s, {len(expected)} files")  # noqa: T201
        failed = 0
        for i in range(1, args.kills + 1):
            out = Path(folder) / "killed"
            moment = draw.uniform(0, duration)
            process = subprocess.Popen(command(out, args.options), stderr=subprocess.DEVNULL)
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            reached = stage(out)
            resumed = subprocess.run(command(out, args.options), stderr=subprocess.DEVNULL)
            found = contents(out) if resumed.returncode == 0 else {}
            differing = sorted(k for k, _ in found.items() ^ expected.items()) + left_over(out)
            failed += bool(differing)
            print(  # noqa: T201
                f"{i:2}: killed after {moment:5.1f} s ({reached}), resumed: "
                f"{'DIFFERENT: ' + ', '.join(differing) if differing else 'same content'}",
                flush=True,
            )
            shutil.rmtree(out)
    print(f"{args.kills - failed} of {args.kills} killed builds ended with the same content")  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
