"""The metrics of a layer, next to torchconvquality and to the formulas of the paper in NumPy."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from builder.cohort.registry import Cohort, load_cohort
from builder.metrics.layer import measure_layers
from builder.network.extract import Layer, iter_layers
from builder.network.plan import construct_on_meta, make_plan
from builder.progress import silent
from builder.sources.seeded import SeededState

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

MEASURED = ("cifar10-robust-Addepalli2021Towards_RN18", "cifar10-robust-Carmon2019Unlabeled")
"""A ResNet-18 and a WideResNet-28-10."""


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
