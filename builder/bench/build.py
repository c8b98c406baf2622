"""The first pass over a model, next to a bare Parquet writer of its rows and to a plain write."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from builder import schema
from builder.building.model import build_model
from builder.building.options import Options
from builder.building.workspace import Workspace
from builder.cohort.registry import Cohort, load_cohort
from builder.files import scratch
from builder.network.device import resolve_device
from builder.network.plan import make_plan
from builder.progress import silent
from builder.release.write import FILTER_SETTINGS, ROWS_PER_GROUP
from builder.sources.hosts import Resolves

LARGE = "cifar10-robust-Gowal2020Uncovering_70_16"
"""A WideResNet-70-16: 29,560,880 filters."""


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    with suppress(OSError):  # Linux: ru_maxrss would count the process that started this one, too
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(frozen=True)
class Took:
    """Seconds on the clock, and of all cores together."""

    wall_s: float
    cpu_s: float


def timed(work: Callable[[], object]) -> Took:
    """What a piece of work takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Took(time.perf_counter() - wall, time.process_time() - cpu)


def bench_build(model: str = LARGE, device: str = "auto", seed: int = 0) -> dict[str, Any]:
    """First pass (make weights, extract, measure both views, write) of one seeded model.

    Beside it, what a bare pyarrow writer needs to encode and write the same columns with the
    same settings, from memory, a row group at a time, on one thread; and a plain write of as many
    bytes, flushed to the disk.
    """
    import torch

    torch.set_num_threads(1)
    cohort = load_cohort("paper").select(model)
    (planned,) = make_plan(Cohort(cohort.name, cohort.models[:1]), silent).models
    options = Options(weights=f"seeded:{seed}", first_layer=False)
    with scratch() as root:
        on = resolve_device(device)
        workspace = Workspace(root)
        workspace.begin({}, fresh=True)
        build = timed(lambda: build_model(workspace, planned, options, on, Resolves(), silent))
        memory = peak_memory()
        path = root / schema.filters_path(planned.spec.dataset, planned.spec.model_id)
        bare = bare_writer(path, root / "bare.parquet")
        plain = timed(lambda: plain_write(root / "plain", path.stat().st_size))
        return {
            "model_id": planned.spec.model_id,
            "weights": options.weights,
            "device": on,
            "n_filters": planned.n_filters,
            "bytes": path.stat().st_size,
            "build_s": build.wall_s,
            "build_cpu_s": build.cpu_s,
            "filters_per_s": planned.n_filters / build.wall_s,
            "peak_memory_bytes": memory,
            "bare_writer_s": bare.wall_s,
            "bare_writer_cpu_s": bare.cpu_s,
            "bare_writer_filters_per_s": planned.n_filters / bare.wall_s,
            "plain_write_s": plain.wall_s,
            "build_over_bare_writer": build.wall_s / bare.wall_s,
            "build_over_bare_writer_cpu": build.cpu_s / bare.cpu_s,
        }


def bare_writer(source: Path, target: Path) -> Took:
    """What it takes to encode and write the row groups of `source`; reading is not counted."""
    wall = cpu = 0.0
    with (
        pq.ParquetFile(source, pre_buffer=False) as file,
        pq.ParquetWriter(target, file.schema_arrow, **FILTER_SETTINGS) as writer,
    ):
        for i in range(file.num_row_groups):
            group = file.read_row_group(i)
            took = timed(partial(writer.write_table, group, row_group_size=ROWS_PER_GROUP))
            wall, cpu = wall + took.wall_s, cpu + took.cpu_s
    return Took(wall, cpu)


def plain_write(path: Path, size: int) -> None:
    """Write so many bytes that do not compress, and flush them to the disk."""
    block = os.urandom(1 << 24)
    with path.open("wb") as file:
        for start in range(0, size, len(block)):
            file.write(block[: size - start])
        file.flush()
        os.fsync(file.fileno())
