"""Build, publish, ask and verify a release again and again, with random kills: what is left over?

    python tests/soak.py --rounds 20 --seed 0

A round builds a pair of the mini zoo from its real weights and publishes it to the loopback Hub:
each command is killed (SIGKILL) at random moments of its work, once or twice, and then run to its
end. Then query, findings and verify --full, and the public API on the folder and on the Hub, in
this process, which lives through all rounds and is the Hub, too. After each round: memory, open
files, threads and children of this process (who loses a parent becomes its child), what lies in
TMPDIR and beside the files of the release, and whether contents and answers are those of round 0,
which nothing disturbs. Exit code 0 only if nothing leaks and nothing differs. Linux only.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kill_and_resume import contents, left_over
from loopback_hub import Hub, running_hub

ID, TAG = "lens/soak", "v0.1.0"
COHORT = ("--cohort", "mini", "--models", "*WideResNet10_2*", "--no-first-layer")
GROWTH = 0.5
"""MiB of resident memory per round that are no leak: less than a quarter of what the filters of a
round take."""


@dataclass
class Soak:
    """One folder for everything, a Hub, and what round 0 came to."""

    folder: Path
    hub: Hub
    rng: random.Random
    lasts: dict[str, float] = field(default_factory=dict)
    expected: dict[str, Any] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return self.folder / "out" / "release"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "builder", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True)

    def run(self, *arguments: str) -> str:
        """A command to its end; its output."""
        process = self.start(*arguments)
        said, _ = process.communicate()
        if process.returncode:
            sys.exit(f"builder {' '.join(arguments)} ended with {process.returncode}:\n{said}")
        return said

    def work(self, arguments: tuple[str, ...], begun: Callable[[], Any], kills: int) -> list[int]:
        """A command killed so many times, then run to its end; the exit codes of the killed ones.

        A moment is drawn from the time that round 0 took between `begun` changing and the end.
        """
        codes = []
        for _ in range(kills):
            process = self._begin(arguments, begun)
            time.sleep(self.rng.uniform(0, self.lasts[arguments[0]]))
            process.kill()
            process.communicate()
            codes.append(process.returncode)
        if kills:
            self.run(*arguments)
        else:
            process = self._begin(arguments, begun)
            began = time.monotonic()
            said, _ = process.communicate()
            self.lasts[arguments[0]] = time.monotonic() - began
            if process.returncode:
                sys.exit(f"builder {' '.join(arguments)}:\n{said}")
        return codes

    def _begin(self, arguments: tuple[str, ...], begun: Callable[[], Any]) -> subprocess.Popen[str]:
        """A command that has just begun its work, behind its imports."""
        before, process = begun(), self.start(*arguments)
        while begun() == before and process.poll() is None:
            time.sleep(0.002)
        return process

    def round(self, disturbed: bool) -> tuple[list[int], list[str]]:
        """Everything once: exit codes of what was killed, and what is not as in round 0."""

        def kills() -> int:
            return self.rng.randint(1, 2) if disturbed else 0

        out, found = str(self.out), {}
        codes = self.work(("build", *COHORT, "-q", "--out", out), self._identity, kills())
        codes += self.work(
            ("publish", out, "--repo-id", ID, "-q"), lambda: len(self.hub.log), kills()
        )
        found["contents"] = contents(self.out)
        published = self.hub.repos[ID].resolve(TAG)
        tree = published.tree if published else {}
        found["published"] = {path: blob.sha256 for path, blob in tree.items()}
        sql = "select layer_index, count(*), sum(linf) from filters group by 1 order by 1"
        found["query"] = self.run("query", sql, "--release", out)
        found["findings"] = self.run("findings", "--release", out)
        found["verify"] = "good" in self.run("verify", "--full", "--quiet", out)
        found["api"] = ask(out)
        found["api on the Hub"] = ask(ID, TAG)
        found["measure"] = measured()
        if not disturbed:
            self.expected = found
        wrong = [f"another {name}" for name, is_ in found.items() if is_ != self.expected[name]]
        wrong += [f"{path} is left over" for path in left_over(self.out)]
        wrong += [f"{p.name} is left over" for p in self.out.parent.iterdir() if p != self.out]
        shutil.rmtree(self.out)
        shutil.rmtree(self.folder / "hf")
        self.hub.reset()
        return codes, wrong

    def _identity(self) -> int:
        """When a build last took hold of its folder, in ns."""
        try:
            return (self.out / ".build" / "identity.json").stat().st_mtime_ns
        except FileNotFoundError:
            return 0


def ask(*address: str) -> dict[str, Any]:
    """What the public API answers about a release."""
    import robust_filter_lens as rfl

    release = rfl.open_release(*address)
    digest = hashlib.sha256()
    for batch in release.filters(view="folded"):
        digest.update(batch.filters.tobytes())
    asked = release.sql("select model_id, count(*) as n from filters group by 1 order by 1")
    return {
        "models": release.table("models").to_pylist(),
        "sql": asked.to_pylist(),
        "filters": digest.hexdigest(),
    }


def measured() -> str:
    """What the public API measures of a network."""
    import torch

    import robust_filter_lens as rfl
    from builder.networks import wide_resnet_10_2

    torch.manual_seed(0)
    measurement = rfl.measure(wide_resnet_10_2(), dataset="cifar10")
    return repr((measurement.summary, measurement.compare()))


def memory() -> float:
    """MiB of this process that are resident, after all that can be given back was.

    Resident rather than allocated: this counts what any library holds, whatever it allocates with.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def use_one_heap() -> None:
    """Let all threads, and Arrow, allocate from one heap of malloc's, which `memory` trims.

    Free memory that stays resident looks like a leak. The Hub answers every connection in a thread
    of its own, and the heaps of ended threads are not trimmed. Arrow's default, mimalloc, has a
    heap per thread, too, and those of its pools' threads keep their free pages. Reading the files
    of this release with pyarrow alone, again and again, leaves 92 MiB resident after the first
    time, 98 after the 9th and 100 from the 17th on, with pa.total_allocated_bytes() at 0; where
    Arrow allocates from malloc, 70 after each. What is still held is resident either way.

    The commands that are run keep the allocators that they have for everyone.
    """
    m_arena_max = -8
    ctypes.CDLL(None).mallopt(m_arena_max, 1)
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    import pyarrow as pa

    chosen = pa.default_memory_pool().backend_name  # read from the environment once, now
    del os.environ["ARROW_DEFAULT_MEMORY_POOL"]
    if chosen != "system":
        sys.exit(f"Arrow allocates with {chosen}, expected system: was it imported before?")


def adopt_orphans() -> None:
    """Processes that lose their parent among our descendants become our children."""
    set_child_subreaper = 36
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def living_children() -> bool:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def counted() -> dict[str, int]:
    return {
        "open files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "threads": len(os.listdir("/proc/self/task")),  # noqa: PTH208
        "children": int(living_children()),
    }


def more_than(before: dict[str, int], patience: float = 5.0) -> list[str]:
    """What this process has more of; connections of killed clients may take a moment to close."""
    until = time.monotonic() + patience
    while True:
        now = counted()
        more = [f"{now[k]} {k}, {before[k]} before" for k in now if now[k] > before[k]]
        if not more or time.monotonic() > until:
            return more
        time.sleep(0.1)


def growth(held: list[float]) -> float:
    """MiB per round: the median slope between the rounds behind the first quarter (Theil-Sen).

    One step hardly moves it: Python's table of interned strings doubles once, by 3.7 MiB, near
    round 19.
    """
    kept = list(enumerate(held))[len(held) // 4 :]
    slopes = [(b - a) / (j - i) for i, a in kept for j, b in kept if j > i]
    return statistics.median(slopes) if slopes else 0.0


def soak(folder: Path, hub: Hub, rounds: int, seed: int) -> int:
    """All rounds; how many of them left something over or differ, memory included."""
    rng = random.Random(seed)
    this = Soak(folder, hub, rng)
    held: list[float] = []
    before: dict[str, int] = {}
    failed = 0
    for number in range(rounds + 1):
        began = time.monotonic()
        codes, wrong = this.round(disturbed=number > 0)
        before = before or counted()
        wrong += more_than(before)
        wrong += [f"{p.name} in TMPDIR" for p in (folder / "tmp").iterdir()]
        failed += bool(wrong)
        held.append(memory())
        now = counted()
        print(  # noqa: T201
            f"{number:3}: {codes.count(-signal.SIGKILL)} of {len(codes)} kills, {held[-1]:.1f} MiB,"
            f" {now['open files']} open files, {now['threads']} threads,"
            f" {time.monotonic() - began:.0f} s: {'; '.join(wrong) or 'nothing left, same'}",
            flush=True,
        )
    slope = growth(held)
    print(  # noqa: T201
        f"{rounds + 1 - failed} of {rounds + 1} rounds left nothing and had the same content; "
        f"memory grows by {slope:.2f} MiB a round ({'LEAK' if slope > GROWTH else 'no leak'})"
    )
    return failed + (slope > GROWTH)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    given = parser.parse_args()
    use_one_heap()
    adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="soak-") as name, running_hub() as hub:
        folder = Path(name)
        (folder / "tmp").mkdir()
        os.environ |= {
            "TMPDIR": str(folder / "tmp"),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "torch"),  # a cache, kept on purpose
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "hf"),
            "HF_TOKEN": "hf_writer",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        tempfile.tempdir = None  # read TMPDIR again
        return 1 if soak(folder, hub, given.rounds, given.seed) else 0


if __name__ == "__main__":
    sys.exit(main())
