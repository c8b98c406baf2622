"""Benchmarks: numbers to quote as ratios of one run, since machines are noisy. Never a test."""

from __future__ import annotations

import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builder import schema
from builder.building.model import build_model
from builder.building.options import Options
from builder.building.workspace import Workspace
from builder.cohort.registry import Cohort, load_cohort
from builder.metrics.layer import measure_layers
from builder.network.device import resolve_device
from builder.network.extract import Layer, iter_layers
from builder.network.plan import construct_on_meta, make_plan
from builder.progress import silent
from builder.release.manifest import datasets
from builder.release.write import FILTER_SETTINGS, ROWS_PER_GROUP
from builder.sources.seeded import SeededState

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

LARGE = "cifar10-robust-Gowal2020Uncovering_70_16"
"""A WideResNet-70-16: 29,560,880 filters."""

MEASURED = ("cifar10-robust-Addepalli2021Towards_RN18", "cifar10-robust-Carmon2019Unlabeled")
"""A ResNet-18 and a WideResNet-28-10."""


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
    (planned,) = make_plan(first, silent).models
    options = Options(weights=f"seeded:{seed}", first_layer=False)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        started = time.perf_counter()
        build_model(Workspace(root), planned, options, resolve_device(device), silent)
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


def bench_metrics(models: tuple[str, ...] = MEASURED, repeat: int = 3) -> list[dict[str, Any]]:
    """Our metrics in both views, next to torchconvquality and the paper's formulas in one.

    Seeded weights; each is timed `repeat` times in turn, and the best time counts. Ours takes one
    thread per layer and all cores, the others leave the cores to their libraries.

    Returns:
        Per model, seconds of each and the largest differences of the values both have.
    """
    from torchconvquality import measure_conv_weight_quality

    cores = os.cpu_count() or 1
    rows = []
    cohort = load_cohort("paper")
    chosen = tuple(spec for spec in cohort.models if spec.model_id in models)
    for planned in make_plan(Cohort(cohort.name, chosen), silent).models:
        meta = construct_on_meta(planned.spec)
        state = SeededState(meta, planned.spec.model_id, 0)
        layers = list(iter_layers(planned.convs, state))
        weights = [layer.weight for layer in layers]
        folded = [_folded(layer).numpy() for layer in layers]
        routes: dict[str, Callable[[], Any]] = {
            "ours": partial(measure_layers, layers, cores),
            "torchconvquality": partial(_each, measure_conv_weight_quality, weights),
            "paper": partial(_each, _paper_formulas, folded),
        }
        seconds = dict.fromkeys(routes, math.inf)
        found: dict[str, Any] = {}
        for _ in range(repeat):
            for name, route in routes.items():
                started = time.perf_counter()
                found[name] = route()
                seconds[name] = min(seconds[name], time.perf_counter() - started)
        trained, of_folded = (
            [measured.views[view] for measured in found["ours"]] for view in ("trained", "folded")
        )
        rows.append(
            {
                "model_id": planned.spec.model_id,
                "n_filters": planned.n_filters,
                "cores": cores,
                **{f"{name}_s": s for name, s in seconds.items()},
                "torchconvquality_over_ours": seconds["torchconvquality"] / seconds["ours"],
                "paper_over_ours": seconds["paper"] / seconds["ours"],
                "differs_from_torchconvquality": _largest_difference(
                    trained, found["torchconvquality"], _TORCHCONVQUALITY
                ),
                "differs_from_paper": _largest_difference(
                    of_folded, found["paper"], {name: name for name in found["paper"][0]}
                ),
            }
        )
    return rows


_TORCHCONVQUALITY = {
    "sparsity": "sparsity",
    "variance_entropy_raw": "variance_entropy",
    "variance_entropy_raw_clean": "variance_entropy_clean",
    "orthogonality": "orthogonality",
}
"""Our metrics that torchconvquality has, and its names for them."""


def _each(measure: Callable[[Any], Any], weights: list[Any]) -> list[Any]:
    return [measure(weight) for weight in weights]


def _folded(layer: Layer) -> torch.Tensor:
    scale = 1 if layer.bn_scale is None else layer.bn_scale.view(-1, 1, 1, 1)
    return layer.weight * scale


def _paper_formulas(weight: NDArray[np.float32]) -> dict[str, float]:
    """Sparsity, variance entropy and orthogonality of a layer as the paper states them."""
    x = weight.reshape(-1, 9).astype(np.float64)
    length = np.abs(x).max(axis=1)
    keep = length > length.max() / 100
    scaled = x[keep] / length[keep, None]
    variances = np.linalg.svd(scaled - scaled.mean(axis=0), compute_uv=False) ** 2
    ratios = variances[variances > 0] / variances.sum()
    rows = x.reshape(len(weight), -1)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    n = len(rows)
    return {
        "sparsity": 1 - float(keep.mean()),
        "variance_entropy": -float((ratios * np.log10(ratios)).sum()),
        "orthogonality": 1 - float(np.abs(rows @ rows.T - np.eye(n)).sum()) / (n * (n - 1)),
    }


def _largest_difference(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]], names: dict[str, str]
) -> float:
    return max(
        abs(float(a[mine]) - float(b[name]))
        for a, b in zip(ours, theirs, strict=True)
        for mine, name in names.items()
    )


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
