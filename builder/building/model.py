"""One model of a build: fetched, extracted, measured, written, entered in the journal."""

from __future__ import annotations

import math
import platform
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from builder import schema
from builder.building.options import Options
from builder.building.workspace import Workspace
from builder.cohort.registry import N_CLASSES
from builder.errors import UsageError
from builder.metrics.layer import METRICS_VERSION, measure_layer
from builder.metrics.longest import Longest
from builder.network.extract import iter_layers
from builder.network.plan import COEFFICIENT_BYTES, PlannedModel, construct_on_meta, layer_graph
from builder.progress import Report
from builder.release import sample
from builder.release.manifest import tools
from builder.release.write import filter_writer
from builder.sources import fetch as sources
from builder.sources.hosts import Resolves
from builder.sources.seeded import SeededState
from builder.workers import Needs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

T = TypeVar("T")

_BASE = 1 << 30
"""Bytes of memory of a process with torch, and of the row groups that it encodes."""
_COPIES = 12
"""How often the largest layer is in memory: two views, sums in float64, rows to be encoded."""


def build_model(
    workspace: Workspace,
    p: PlannedModel,
    options: Options,
    device: str,
    resolves: Resolves,
    report: Report,
) -> None:
    """Fetch, extract, measure, write and journal one model; torch is left with one thread.

    Raises:
        UsageError: the folder is not that of a build; on another machine it may be another one.
        BuilderError: whatever is wrong with the model.
    """
    import torch

    # One thread measures while another encodes, so sums do not depend on the number of cores;
    # more cores take more models at once.
    torch.set_num_threads(1)
    if not workspace.begun:
        raise UsageError(
            f"{workspace.name} is not the folder of this build on {platform.node()}.",
            hint="--out must be a folder that every machine sees under the same path.",
        )
    spec = p.spec
    workspace.forget(spec.model_id)
    meta = construct_on_meta(spec)
    state: Mapping[str, torch.Tensor]
    fetched = None
    if options.weights_seed is not None:
        state = SeededState(meta, spec.model_id, options.weights_seed)
    else:
        report(spec.model_id, "fetching", 0, None)
        fetched = sources.fetch(
            spec,
            cache=options.cache,
            checkpoints=options.checkpoints,
            pins=options.pins,
            report=report,
            resolves=resolves,
        )
        state = sources.load_state(spec, fetched, meta)
    path = schema.filters_path(spec.dataset, spec.model_id)
    layers: list[dict[str, Any]] = []
    problems: list[str] = []
    longest = Longest(p.n_filters)
    n = 0
    with filter_writer(
        workspace.root / path, spec.dataset, spec.model_id, options.weights
    ) as writer:
        for layer in _ahead(iter_layers(p.convs, state, device)):
            measured = measure_layer(layer)
            scale = None if layer.bn_scale is None else layer.bn_scale.cpu().numpy()
            writer.append(
                layer.index,
                layer.conv.in_channels,
                measured.columns.cpu().numpy(),
                measured.linf.cpu().numpy(),
                scale,
            )
            longest.add(layer, measured)
            for view, metrics in measured.views.items():
                if metrics["layer_linf"] is None:
                    problems.append(
                        f"{spec.model_id}: layer {layer.conv.layer} has NaN or infinite "
                        f"{view} weights; its metrics are null."
                    )
                layers.append(
                    {
                        "dataset": spec.dataset,
                        "model_id": spec.model_id,
                        "layer_index": layer.index,
                        "layer": layer.conv.layer,
                        "weights": view,
                        **layer_graph(layer.conv),
                        "reparametrized": layer.reparametrized,
                        **{k: _plain(v) for k, v in metrics.items()},
                    }
                )
            n += layer.conv.n_filters
            report(spec.model_id, "filters", n, p.n_filters)
    first_layer = []
    if options.first_layer:
        first_layer = _first_layer(p, state, options, device, report)
    written = writer.written
    assert written is not None
    longest.write(workspace.longest(spec.model_id))
    workspace.note(
        spec.model_id,
        {
            "path": path,
            "file": written,
            "layers": layers,
            "first_layer": first_layer,
            "checkpoint": None
            if fetched is None
            else {"urls": fetched.urls, "sha256": fetched.sha256, "bytes": fetched.bytes},
            "problems": problems,
            "sample": sample.as_text(writer.sample()),
            "made_with": {**tools("torch", "numpy"), "device": device, "metrics": METRICS_VERSION},
        },
        lambda moved: report(spec.model_id, "sending", moved, written["bytes"]),
    )
    if fetched is not None and options.discard_checkpoints:
        sources.discard(fetched)


def needs(p: PlannedModel, device: str) -> Needs:
    """What `build_model` takes: a core to measure and one to encode, memory as the plan has it."""
    largest = max(conv.n_filters for conv in p.layers) * COEFFICIENT_BYTES
    return Needs(2, _BASE + 4 * p.n_params + _COPIES * largest, int(device == "cuda"))


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield `items`, the next of which is made on another thread while the caller works on one."""
    with ThreadPoolExecutor(1, "ahead") as thread:
        upcoming = thread.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = thread.submit(next, items, None)
            yield item


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float) else value.tolist()


def _first_layer(
    p: PlannedModel,
    state: Mapping[str, torch.Tensor],
    options: Options,
    device: str,
    report: Report,
) -> list[dict[str, Any]]:
    import torch

    from builder.first_layer.response import measure_response, unmeasured

    def reached(*forward: object) -> None:  # a report may end the build: hence one per module
        report(p.spec.model_id, "first layer", 0, None)

    reached()
    eps, layers = p.spec.eps_value, [c.layer for c in p.convs if c.conv_depth == 0]
    try:
        if eps is None:
            raise UsageError(
                f"trained against {p.spec.threat_model}: there is no Linf radius to measure at."
            )
        model = sources.instantiate(p.spec, dict(state)).to(device)
        for module in model.modules():
            if not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
                module.register_forward_pre_hook(reached)
        rows = measure_response(
            model,
            layers=layers,
            eps=eps,
            image_size=p.image_size,
            n_classes=N_CLASSES[p.spec.dataset],
            seed=options.seed,
            device=device,
        )
    except UsageError as e:  # the constructor works without memory alone
        rows = [row for kind in ("random", "pgd") for row in unmeasured(layers, kind, eps, e)]
    return [
        {
            "dataset": p.spec.dataset,
            "model_id": p.spec.model_id,
            **{
                k: None if isinstance(v, float) and not math.isfinite(v) else v
                for k, v in row.items()
            },
        }
        for row in rows
    ]
