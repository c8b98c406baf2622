"""Reference metrics of one layer, in both weights views, on any torch device.

Definitions: Gavrikov & Keuper 2022, section 3, and their library torchconvquality 0.3.0. Every sum
that feeds a metric is float64. The verifier recomputes the same numbers with NumPy
(builder/check/recompute.py), on purpose by other code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from builder.metrics.orthogonality import orthogonality
from builder.metrics.sums import Sums, both_views
from builder.release.moments import (
    explained_variance_ratio,
    pack,
    random_entropy,
    variance_entropy,
)
from builder.workers import in_order

if TYPE_CHECKING:
    import torch

    from builder.network.extract import Layer


@dataclass(frozen=True)
class Measured:
    """One layer, ready to be written.

    Attributes:
        columns: (9, n) float32, trained weights, coefficients as rows.
        linf: (n,) float32, max |w| of each filter, trained.
        lengths: (n,) float32, L2 norm of each filter divided by its max |w|.
        views: the metrics of `layers` by weights view; all None where a weight is not finite.
    """

    columns: torch.Tensor
    linf: torch.Tensor
    lengths: torch.Tensor
    views: dict[str, dict[str, Any]]


METRICS_VERSION = "1"
"""Another one whenever a number may come out otherwise: a resumed build then measures again."""

METRICS = (
    "layer_linf",
    "n_sparse",
    "sparsity",
    "variance_entropy",
    "variance_entropy_norm",
    "variance_entropy_raw",
    "variance_entropy_raw_norm",
    "variance_entropy_raw_clean",
    "variance_entropy_raw_clean_norm",
    "orthogonality",
    "norm_l1",
    "norm_l2",
    "explained_variance_ratio",
    "mean",
    "scatter",
)


def measure_layer(layer: Layer) -> Measured:
    """Metrics of a layer in both views; see `schema.LAYERS` for each column."""
    import torch

    weight, scale = layer.weight, layer.bn_scale
    columns = weight.reshape(-1, 9).t().contiguous()
    linf = torch.maximum(columns.amax(dim=0).abs(), columns.amin(dim=0).abs())
    trained, folded, norms, lengths = both_views(columns, linf.view(weight.shape[:2]), scale)
    finite = scale if folded is not None else None
    cosines = orthogonality(weight, finite, norms) if trained is not None else (None, None)
    if weight.device.type == "cuda":
        torch.cuda.synchronize()
    views = {"trained": _metrics(trained, cosines[0]), "folded": _metrics(folded, cosines[1])}
    return Measured(columns, linf, lengths.flatten(), views)


def measure_layers(layers: Iterable[Layer], workers: int) -> list[Measured]:
    """Measure layers on so many threads.

    Each layer is the work of one thread, so that no number depends on how many there are.
    """
    with one_thread(), ThreadPoolExecutor(workers, "measure") as pool:
        return list(in_order(pool, measure_layer, layers))


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes each operation on one thread, as a build does.

    Sums split among threads end in other digits, so that numbers would depend on the machine.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _metrics(sums: Sums | None, orthogonal: float | None) -> dict[str, Any]:
    """The metrics of one view; every value None where a weight is NaN or infinite."""
    if sums is None:
        return dict.fromkeys(METRICS)
    n, n_kept = sums.raw.n, sums.scaled.n
    metrics: dict[str, Any] = {
        "layer_linf": sums.largest,
        "n_sparse": n - n_kept,
        "sparsity": (n - n_kept) / n,
        "orthogonality": orthogonal,
        "norm_l1": sums.norm_l1 / n,
        "norm_l2": sums.norm_l2 / n,
        "explained_variance_ratio": explained_variance_ratio(sums.scaled.scatter),
        "mean": sums.scaled.mean,
        "scatter": pack(sums.scaled.scatter),
    }
    for name, moments in (
        ("variance_entropy", sums.scaled),
        ("variance_entropy_raw", sums.raw),
        ("variance_entropy_raw_clean", sums.clean),
    ):
        metrics[name] = variance_entropy(moments.scatter)
        threshold = random_entropy(moments.n)
        metrics[name + "_norm"] = None if threshold is None else metrics[name] / threshold
    return metrics
