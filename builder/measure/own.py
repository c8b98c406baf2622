"""Measure one network: a module in memory, a state dict, or what a cohort takes as checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from builder import schema
from builder.cohort.registry import IMAGE_SIZE, N_CLASSES
from builder.compare.columns import MEASURED, SKIPPED
from builder.compare.measurement import Measurement, layers_table
from builder.errors import BuilderError, UsageError
from builder.first_layer.response import measure_response
from builder.measure.recognise import Recognised, recognise
from builder.metrics.layer import measure_layer, one_thread
from builder.network.extract import iter_layers
from builder.network.plan import layer_graph
from builder.network.trace import TracedConv, trace

if TYPE_CHECKING:
    from torch import Tensor, nn

    from builder.progress import Report

IMAGE_SIZES = (32, 224, 64, 96, 128, 28, 299)
"""Sizes of the square image that are tried, in pixels, where none is given."""


@dataclass(frozen=True)
class Graph:
    """A network as far as it is known: what runs, and where its tensors are.

    Attributes:
        convs: every convolution that runs, in order; empty where the architecture is unknown.
        constructor, recognised, unknown: as in `Measurement`.
    """

    convs: tuple[TracedConv, ...] = ()
    constructor: str | None = None
    recognised: str = ""
    unknown: tuple[str, ...] = ()


def measure_module(
    model: nn.Module,
    *,
    image_size: int | None = None,
    dataset: str | None = None,
    name: str | None = None,
    layers: Sequence[str] | None = None,
    first_layer: bool = False,
    report: Report | None = None,
) -> Measurement:
    """Measure a network in memory, on whatever device it is.

    It is neither moved nor changed: its mode, its gradients and its weights stay as they are.
    `DataParallel`, `DistributedDataParallel` and `torch.compile` are looked through.

    Args:
        model: takes (n, 3, h, w) images.
        image_size: height and width; default what its own configuration says, else what fits.
        dataset: cifar10, cifar100 or imagenet, to compare on.
        name: what to call it; default its class.
        layers: patterns of layers to measure, e.g. "layer4.*"; default all.
        first_layer: measure a copy's first-layer response to perturbations, too (attacks it).

    Raises:
        BuilderError: no forward pass succeeds, or it runs no convolution.
    """
    model = _unwrapped(model)
    size = image_size or (IMAGE_SIZE[dataset] if dataset else None)
    convs, size = _trace(model, size)
    state = {key: value.detach() for key, value in model.state_dict(keep_vars=True).items()}
    graph = Graph(tuple(convs), _class_name(model))
    measured = measure_graph(name or type(model).__name__, state, graph, dataset, layers, report)
    return with_response(measured, copy.deepcopy(model), convs, size) if first_layer else measured


def with_response(
    measured: Measurement, model: nn.Module, convs: Sequence[TracedConv], image_size: int
) -> Measurement:
    """The measurement with the first-layer response of `model`, which is moved to the CPU."""
    rows = measure_response(
        model,
        layers=[conv.layer for conv in convs if conv.conv_depth == 0],
        eps=4 / 255 if measured.dataset == "imagenet" else 8 / 255,
        image_size=image_size,
        n_classes=N_CLASSES[measured.dataset or "cifar10"],
    )
    return replace(measured, first_layer=tuple(rows))


def measure_state(
    state: Mapping[str, Tensor],
    *,
    dataset: str | None = None,
    name: str = "state dict",
    layers: Sequence[str] | None = None,
    report: Report | None = None,
) -> Measurement:
    """Measure a state dict; its architecture is recognised by keys and shapes, or stays unknown."""
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    found = recognise(shapes)
    if found is not None and len(found.architectures) == 1:
        state = _Renamed(state, found.prefix)
    return measure_graph(name, state, graph_of(found), dataset, layers, report)


def graph_of(found: Recognised | None) -> Graph:
    """What a recognised state dict runs, or what is unknown of one that was not."""
    if found is None:
        return Graph(
            unknown=(
                "Its keys and shapes are those of no architecture that is known here, so the order "
                "in which layers run, their depth, layers that never run and BatchNorm folding are "
                "unknown: layers are in stored order, in the trained view, and nothing is compared "
                "by depth. --constructor, or in Python the module itself, makes all of this known.",
            )
        )
    names = [a.constructors[0] for a in found.architectures]
    if len(names) > 1:
        return Graph(
            unknown=(
                f"Its keys and shapes are those of {' and of '.join(names)}, which run different "
                "graphs, so depth and BatchNorm folding are unknown: layers are in stored order, "
                "in the trained view. --constructor, or in Python the module itself, names one.",
            )
        )
    (architecture,) = found.architectures
    also = architecture.constructors[1:3]
    return Graph(
        architecture.convs,
        architecture.constructors[0],
        f"recognised as {architecture.constructors[0]} by all {architecture.n_keys} keys and shapes"
        + (f" (also {', '.join(also)})" if also else ""),
    )


class _Renamed(Mapping[str, "Tensor"]):
    """A state dict whose keys lose a prefix; tensors are read when asked for."""

    def __init__(self, state: Mapping[str, Tensor], prefix: str) -> None:
        self._keys = {key.removeprefix(prefix): key for key in state}
        self._state = state

    def __getitem__(self, key: str) -> Tensor:
        return self._state[self._keys[key]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel and torch.compile."""
    from torch import nn

    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner: Any = model.module
        elif hasattr(model, "_orig_mod"):
            inner = model._orig_mod
        else:
            return model
        model = inner


def _class_name(model: nn.Module) -> str | None:
    """module:Class, as a constructor is written; null for one that cannot be imported."""
    cls = type(model)
    importable = cls.__module__ != "__main__" and "<" not in cls.__qualname__
    return f"{cls.__module__}:{cls.__qualname__}" if importable else None


def _trace(model: nn.Module, image_size: int | None) -> tuple[list[TracedConv], int]:
    """What runs, and the size of the image that it was traced with."""
    shadow = _shadow(model)
    own = getattr(model, "pretrained_cfg", None)
    if image_size is None and isinstance(own, dict) and "input_size" in own:
        image_size = int(own["input_size"][-1])
    sizes = IMAGE_SIZES if image_size is None else (image_size,)
    for size in sizes:
        try:
            return trace(shadow, size), size
        except BuilderError as e:
            failure = e
    raise failure


def _shadow(model: nn.Module) -> nn.Module:
    """A copy of the network whose parameters and buffers are on the meta device: no memory."""
    import torch

    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        empty = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        memo[id(tensor)] = torch.nn.Parameter(empty, False) if is_parameter else empty
    return copy.deepcopy(model, memo).eval()


def measure_graph(
    name: str,
    state: Mapping[str, Tensor],
    graph: Graph,
    dataset: str | None,
    patterns: Sequence[str] | None,
    report: Report | None,
) -> Measurement:
    """The rows of every convolution, and the measurement made of them."""
    rows: list[dict[str, Any]] = []
    about = {"model_id": name, "dataset": dataset}
    wanted = [
        conv
        for conv in (graph.convs or _as_stored(state))
        if patterns is None or any(fnmatchcase(conv.layer, pattern) for pattern in patterns)
    ]
    if not any(conv.is_3x3 for conv in wanted):
        kernels = sorted({conv.kernel_size for conv in wanted})
        found = ", ".join(f"{height}x{width}" for height, width in kernels) or "none at all"
        raise UsageError(
            f"{name} has no 3x3 convolution"
            + (f" that matches {', '.join(patterns)}." if patterns else "."),
            hint=f"expected at least one; kernels of its convolutions: {found}.",
        )
    views = schema.WEIGHT_VIEWS if graph.convs else ("trained",)
    indices = {c.weight: i for i, c in enumerate(c for c in (graph.convs or wanted) if c.is_3x3)}
    for done, conv in enumerate(wanted, 1):
        place = _place(conv, graph)
        reason = _skipped(conv, state)
        if reason:
            rows.append(
                {**about, **place, "weights": "trained", "status": SKIPPED, "reason": reason}
            )
        else:
            (layer,) = iter_layers([conv], state, str(state[conv.weight].device))
            with one_thread():
                metrics = measure_layer(layer).views
            for view in views:
                row = {**about, **place, "layer_index": indices[conv.weight], "weights": view}
                row |= {"status": MEASURED, "reason": _lacking(metrics[view], conv)}
                rows.append(row | {k: _plain(v) for k, v in metrics[view].items()})
        if report is not None:
            report(name, "layers", done, len(wanted))
    if graph.convs and patterns is None:
        rows += _never_run(state, graph.convs, about)
    return Measurement(
        name,
        layers_table(rows),
        constructor=graph.constructor,
        recognised=graph.recognised,
        dataset=dataset,
        unknown=graph.unknown,
    )


def _place(conv: TracedConv, graph: Graph) -> dict[str, Any]:
    """Where a convolution sits; without an architecture only its shape is known."""
    known = layer_graph(conv) if graph.convs else {}
    height, width = conv.kernel_size
    return {
        "layer": conv.layer,
        **known,
        "out_channels": conv.out_channels,
        "in_channels": conv.in_channels,
        "n_filters": conv.n_filters,
        "kernel_size": f"{height}x{width}",
    }


def _as_stored(state: Mapping[str, Tensor]) -> list[TracedConv]:
    """Every 4-d weight of a state dict, as if it were a convolution that runs alone."""
    return [
        TracedConv(
            layer=schema.layer_name(key),
            weight=key,
            conv_depth=0,
            conv_depth_norm=0.0,
            out_channels=value.shape[0],
            in_channels=value.shape[1],
            kernel_size=(value.shape[2], value.shape[3]),
            groups=1,
            stride=1,
        )
        for key, value in state.items()
        if value.dim() == 4
    ]


def _skipped(conv: TracedConv, state: Mapping[str, Tensor]) -> str | None:
    """Why a convolution is not measured; None where it is."""
    if not conv.is_3x3:
        return f"its kernel is {conv.kernel_size[0]}x{conv.kernel_size[1]}, not 3x3"
    if conv.weight not in state:
        return "its weight is computed in the forward pass"
    if not state[conv.weight].is_floating_point():
        return f"its weight is of type {state[conv.weight].dtype}, not floating point"
    return None


def _lacking(metrics: Mapping[str, Any], conv: TracedConv) -> str | None:
    """What a measured layer has no number for, and why."""
    if metrics["layer_linf"] is None:
        return "NaN or infinite weights: no metrics"
    return "one output channel: no orthogonality" if conv.out_channels == 1 else None


def _never_run(
    state: Mapping[str, Tensor], convs: Sequence[TracedConv], about: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Rows of 4-d weights that the forward pass never convolves with."""
    run = {conv.weight for conv in convs}
    same = {state[key].data_ptr() for key in run & state.keys()}
    for conv in _as_stored(state):
        if conv.weight not in run and state[conv.weight].data_ptr() not in same:
            yield {
                **about,
                **_place(conv, Graph()),
                "weights": "trained",
                "status": SKIPPED,
                "reason": "the forward pass never convolves with it (dead, or transposed)",
            }


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float) else value.tolist()
