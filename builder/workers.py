"""Where the work on a model is done: in this process, or on the machines of a Ray cluster."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, Protocol, TypeVar
from uuid import uuid4

from builder.errors import BuilderError, NetworkError, UsageError
from builder.progress import Report, silent

Item = TypeVar("Item")
Result = TypeVar("Result")

TICK = 0.1
"""Seconds that a thread which a Ctrl-C is to end waits at a time: an untimed wait is deaf to it on
Windows, and wherever the system hands the signal to another thread."""

RETRIES = 3
"""Times that Ray starts a task anew after its worker was lost."""

_EVERY = 0.5
"""Seconds between two looks at what a worker reports."""


@dataclass(frozen=True)
class Needs:
    """What a call takes of a machine: cores, bytes of memory, CUDA devices."""

    cpus: int = 1
    memory: int = 1 << 30
    gpus: int = 0


class Stopped(KeyboardInterrupt):
    """Ends a call whose result nobody waits for any more; no network's code swallows it."""


class Workers(Protocol):
    """Who does the work; asked by one thread per call."""

    def threads(self, at_once: int, calls: int) -> int:
        """How many calls to make at once, of so many; at most `at_once` of them in this process."""

    def call(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        stop: Event,
        needs: Needs = Needs(),
        report: Report = silent,
    ) -> Any:
        """`function(*arguments, report)`, wherever that is, until its first report after `stop`.

        Raises:
            Stopped: it was stopped.
        """


class Here:
    """This process."""

    def threads(self, at_once: int, calls: int) -> int:
        return at_once

    def call(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        stop: Event,
        needs: Needs = Needs(),
        report: Report = silent,
    ) -> Any:
        def report_or_stop(subject: str, what: str, done: int, total: int | None) -> None:
            if stop.is_set():
                raise Stopped
            report(subject, what, done, total)

        return function(*arguments, report_or_stop)


HERE = Here()


def each_done(futures: Iterable[Future[Result]]) -> Iterator[Result]:
    """What each work returns, as they end; raises what the first to fail raises."""
    pending = set(futures)
    while pending:
        done, pending = wait(pending, TICK, FIRST_COMPLETED)
        for future in done:
            yield future.result()


def in_order(
    pool: Executor, work: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    """What the work on each item returns, in the order of the items; all are begun at once.

    What has not begun when the caller stops listening never does.
    """
    futures = [pool.submit(work, item) for item in items]
    try:
        for future in futures:
            yield from each_done([future])
    finally:
        for future in futures:
            future.cancel()


@contextmanager
def ray_cluster(address: str | None) -> Iterator[Cluster]:
    """A Ray cluster; what was begun on it is over when this process leaves it.

    Args:
        address: of one that runs, "host:6379" or "auto"; default $RAY_ADDRESS, else this machine
            for as long as the work takes.

    Raises:
        NetworkError: no cluster answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone
    import ray

    address = address or os.environ.get("RAY_ADDRESS")
    try:
        if address and ":" in address:
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), 10).close()  # Ray would try for minutes
        # Workers print into Ray's logs: stdout is for data.
        ray.init(
            address, log_to_driver=False, logging_level="ERROR", include_dashboard=bool(address)
        )
    except (OSError, ValueError, RuntimeError) as e:
        raise NetworkError(
            f"no Ray cluster answers at {address} ({str(e).partition(chr(10))[0]}).",
            hint="`ray status` on its head node says whether it runs.",
        ) from None
    try:
        yield Cluster()
    finally:
        ray.shutdown()


class Cluster:
    """The Ray cluster that this process is connected to."""

    def __init__(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "scheduling_strategy": here}
        self._mailbox = ray.remote(_Mailbox).options(**options).remote()
        self._task = ray.remote(max_retries=RETRIES)(_work)
        self._place = str(Path.cwd()), list(sys.path)

    def threads(self, at_once: int, calls: int) -> int:
        return max(1, calls)  # Ray decides what runs when

    def device(self, asked: str) -> str:
        """`--device` as the machines have it: auto is CUDA where one has a GPU.

        Raises:
            UsageError: cuda, and none has.
        """
        has_gpu = any(machine.get("GPU") for machine in _machines())
        if asked == "cuda" and not has_gpu:
            raise UsageError("--device cuda: no machine of the Ray cluster has a GPU.")
        return "cuda" if has_gpu and asked != "cpu" else "cpu"

    def call(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        stop: Event,
        needs: Needs = Needs(),
        report: Report = silent,
    ) -> Any:
        """As `Workers.call`, in a task of its own, which is cancelled once it is stopped.

        It may run twice where a worker was lost, for a moment even at the same time.

        Raises:
            UsageError: no machine has what it needs.
            BuilderError: its workers were lost again and again.
            Exception: what the function raises.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        met = _met(needs)
        key = uuid4().hex
        task = self._task.options(num_cpus=met.cpus, memory=met.memory, num_gpus=met.gpus)
        ref = task.remote(function, arguments, self._mailbox, key, self._place)
        try:
            ended: list[Any] = []
            while not ended:
                if stop.is_set():
                    raise Stopped
                ended, _ = ray.wait([ref], timeout=_EVERY)
                for said in ray.get(self._mailbox.take.remote(key)):
                    report(*said)
            return ray.get(ref)
        except RayTaskError as e:
            raise e.cause from None
        except RayError as e:
            raise BuilderError(
                f"its worker was lost {RETRIES + 1} times ({type(e).__name__}).",
                hint="Ray's logs say why; often it is too little memory.",
            ) from None
        except BaseException:
            with suppress(RayError):
                ray.cancel(ref, force=True)
            raise


def _machines() -> list[dict[str, float]]:
    """What every machine of the cluster has: CPU, memory (bytes) and GPU, where there are any."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _met(needs: Needs) -> Needs:
    """Needs that some machine meets, with fewer cores where none has as many."""
    machines = _machines()
    cpus = max(1, min(needs.cpus, int(max(m.get("CPU", 0) for m in machines))))
    for m in machines:
        if (
            m.get("CPU", 0) >= cpus
            and m.get("memory", 0) >= needs.memory
            and m.get("GPU", 0) >= needs.gpus
        ):
            return Needs(cpus, needs.memory, needs.gpus)
    raise UsageError(
        f"no machine of the Ray cluster has {cpus} CPU, {needs.gpus} GPU and "
        f"{needs.memory / 1e9:.1f} GB of memory at once.",
        hint="`ray start` takes --num-cpus, --num-gpus and --memory.",
    )


class _Mailbox:
    """An actor beside the driver: what workers report, until the driver takes it."""

    def __init__(self) -> None:
        self._said: dict[str, list[tuple[Any, ...]]] = {}

    def add(self, key: str, said: list[tuple[Any, ...]]) -> None:
        self._said.setdefault(key, []).extend(said)

    def take(self, key: str) -> list[tuple[Any, ...]]:
        return self._said.pop(key, [])


def _work(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    mailbox: Any,
    key: str,
    place: tuple[str, list[str]],
) -> Any:
    """On a worker: a call as the driver would make it, from its folder and with its modules."""
    import ray

    folder, path = place
    with suppress(OSError):  # a machine that has no such folder
        os.chdir(folder)
    sys.path += [p for p in path if p not in sys.path]
    unsent: dict[str, tuple[Any, ...]] = {}
    sent = time.monotonic()

    def report(subject: str, what: str, done: int, total: int | None) -> None:
        nonlocal sent
        unsent[subject] = (subject, what, done, total)
        now = time.monotonic()
        if done == total or now - sent >= _EVERY:
            mailbox.add.remote(key, list(unsent.values()))
            unsent.clear()
            sent = now

    try:
        return function(*arguments, report)
    finally:
        ray.get(mailbox.add.remote(key, list(unsent.values())))  # before the result arrives
