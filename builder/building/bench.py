"""Benchmarks: numbers to quote as ratios of one run, since machines are noisy. Never a test."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builder import schema
from builder.building.run import Options, build_model
from builder.building.workspace import Workspace
from builder.cohort.registry import Cohort, load_cohort
from builder.network.device import resolve_device
from builder.network.plan import make_plan
from builder.release.manifest import datasets
from builder.release.write import FILTER_SETTINGS, ROWS_PER_GROUP

LARGE = "cifar10-robust-Gowal2020Uncovering_70_16"
"""A WideResNet-70-16: 29,560,880 filters."""


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def bench_build(model: str = LARGE, device: str = "auto", seed: int = 0) -> dict[str, Any]:
    """First pass (make weights, extract, measure both views, write) of one seeded model.

    Beside it, what a bare pyarrow writer needs to encode and write the same columns with the
    same settings, from memory, a row group at a time, on one thread.
    """
    import torch

    torch.set_num_threads(1)
    cohort = load_cohort("paper").select(model)
    first = Cohort(cohort.name, cohort.models[:1])
    (planned,) = make_plan(first, lambda *progress: None).models
    options = Options(weights=f"seeded:{seed}", first_layer=False)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        started = time.perf_counter()
        build_model(
            Workspace(root), planned, options, resolve_device(device), lambda *progress: None
        )
        build_s = time.perf_counter() - started
        memory = peak_memory()
        path = root / schema.filters_path(planned.spec.dataset, planned.spec.model_id)
        size = path.stat().st_size
        write_s = _bare_writer(path, root / "bare.parquet")
    return {
        "model_id": planned.spec.model_id,
        "weights": options.weights,
        "device": resolve_device(device),
        "n_filters": planned.n_filters,
        "bytes": size,
        "build_s": build_s,
        "filters_per_s": planned.n_filters / build_s,
        "peak_memory_bytes": memory,
        "bare_writer_s": write_s,
        "bare_writer_filters_per_s": planned.n_filters / write_s,
        "build_over_bare_writer": build_s / write_s,
    }


def _bare_writer(source: Path, target: Path) -> float:
    """Seconds to encode and write the row groups of `source` again; reading is not counted."""
    seconds = 0.0
    with (
        pq.ParquetFile(source) as file,
        pq.ParquetWriter(target, file.schema_arrow, **FILTER_SETTINGS) as writer,
    ):
        for i in range(file.num_row_groups):
            group: pa.Table = file.read_row_group(i)
            started = time.perf_counter()
            writer.write_table(group, row_group_size=ROWS_PER_GROUP)
            seconds += time.perf_counter() - started
    return seconds


def bench_read(release: Path, rows: int = 131_072) -> dict[str, Any]:
    """Filters of a release read back in batches: by `open_release`, and by `datasets` as Arrow.

    Args:
        release: a folder with filters.
        rows: filters per batch.

    Returns:
        Millions of filters per second of each route, best of three passes over all filters.
    """
    from datasets import load_dataset

    from builder.release.reader import open_release

    opened = open_release(release)
    names = datasets(opened.manifest)

    def streamed() -> int:
        return sum(
            batch.num_rows
            for name in names
            for batch in load_dataset(
                str(release), f"filters_{name}", split="train", streaming=True
            )
            .with_format("arrow")
            .iter(rows)
        )

    routes = {
        "open_release, trained": lambda: sum(map(len, opened.filters(batch_rows=rows))),
        "open_release, folded": lambda: sum(
            map(len, opened.filters(view="folded", batch_rows=rows))
        ),
        "datasets, streaming Arrow": streamed,
    }
    n = opened.manifest["totals"]["filters"]
    result: dict[str, Any] = {"release": str(release), "n_filters": n, "batch_rows": rows}
    for route, read in routes.items():
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            count = read()
            seconds.append(time.perf_counter() - started)
            assert count == n, f"{route} read {count} of {n} filters"
        result[route] = n / min(seconds) / 1e6
    return result
