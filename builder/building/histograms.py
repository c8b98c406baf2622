"""The table `histograms` of a build: the range of all coefficients, then the counts by model.

Counts are kept in the build folder as they come, so that a build that is interrupted goes on with
the models that were not counted yet.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from builder.building.workspace import Workspace
from builder.cohort.registry import unions
from builder.metrics import longest
from builder.metrics.histograms import Projector, histogram_table
from builder.network.plan import PlannedModel
from builder.progress import Report
from builder.workers import Workers, in_order


def histograms(
    workspace: Workspace,
    planned: Sequence[PlannedModel],
    entries: Sequence[dict[str, Any]],
    bases: Sequence[dict[str, Any]],
    jobs: int,
    workers: Workers,
    report: Report,
) -> pa.Table:
    """Histograms of every model on the basis `full`, see metrics/histograms.py.

    Args:
        workspace: of the build, every filter file in place.
        planned, entries: the models and their entries in the journal.
        bases: rows of `pca`.
        jobs: models at a time in this process, as elsewhere in a build.
        workers: who reads the filters.
    """
    full = [row for row in bases if row["basis"] == "full" and row["weights"] == "folded"]
    directions = np.array([row["direction"] for row in full])
    mean = np.array(full[0]["mean"])
    stop = threading.Event()
    projectors = [
        Projector(
            partial(workspace.file, entry["path"], entry["file"]),
            [row for row in entry["layers"] if row["weights"] == "folded"],
            directions,
            mean,
            stop,
        )
        for entry in entries
    ]
    low, high = math.inf, -math.inf
    full_models = set(unions(p.spec for p in planned)["full"])
    ranged = [i for i, p in enumerate(planned) if p.spec.model_id in full_models]
    above: dict[int, float] = {}
    tables = []
    # A model that is built keeps two threads busy, one that is counted here one.
    threads = workers.threads(2 * jobs, len(planned))
    with ThreadPoolExecutor(threads, "histograms") as pool:

        def extent(i: int) -> tuple[float, float]:
            if above[i] <= projectors[i].reach(low, high):
                return low, high
            found: tuple[float, float] = workers.call(_extent, projectors[i], low, high, stop=stop)
            return found  # beyond that of the models so far

        def counts(i: int) -> NDArray[np.int64]:
            model_id = planned[i].spec.model_id
            made_of = _digest(entries[i], full, low, high)
            if (kept := workspace.kept_histograms(model_id, made_of)) is not None:
                return np.array(kept, np.int64)
            beyond = i not in above
            found: NDArray[np.int64] = workers.call(
                _counts, projectors[i], low, high, beyond, stop=stop
            )
            if not stop.is_set():
                workspace.keep_histograms(model_id, made_of, found.tolist())
            return found

        everyone = range(len(planned))
        try:
            for i in ranged:
                kept, above[i] = longest.read(workspace.fetched_longest(planned[i].spec.model_id))
                low, high = projectors[i].extent(low, high, kept)
            for i, (lowest, highest) in enumerate(in_order(pool, extent, ranged), 1):
                low, high = min(low, lowest), max(high, highest)
                report("finish", "histograms, range", i, len(ranged))
            if low > high:  # no filter at all
                low = high = 0.0
            for p, found in zip(planned, in_order(pool, counts, everyone), strict=True):
                bins = sorted({conv.depth_bin for conv in p.layers})
                spec = p.spec
                tables.append(histogram_table(spec.dataset, spec.model_id, bins, found, low, high))
                report("finish", "histograms, counts", len(tables), len(planned))
        except BaseException:
            stop.set()
            raise
    return pa.concat_tables(tables).unify_dictionaries()


def _extent(projector: Projector, low: float, high: float, _: Report) -> tuple[float, float]:
    return projector.extent(low, high)


def _counts(
    projector: Projector, low: float, high: float, beyond_range: bool, _: Report
) -> NDArray[np.int64]:
    import torch

    torch.set_num_threads(1)  # as in build_model
    return projector.counts(low, high, beyond_range=beyond_range)


def _digest(entry: dict[str, Any], basis: Sequence[dict[str, Any]], low: float, high: float) -> str:
    """What the histograms of a model follow from: filters, sparse ones, bins of depth, range."""
    layers = [
        (row["layer_index"], row["depth_bin"], row["layer_linf"])
        for row in entry["layers"]
        if row["weights"] == "folded"
    ]
    follows = [entry["file"], layers, [(b["direction"], b["mean"]) for b in basis], low, high]
    return hashlib.sha256(json.dumps(follows).encode()).hexdigest()
