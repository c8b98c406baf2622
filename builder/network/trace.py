"""What a network runs: its convolutions, their depth, and the BatchNorm each folds with.

One forward pass in evaluation mode on the `meta` device (shapes only: no memory, no arithmetic)
under a dispatch mode that sees every ATen operator. From the operators a graph of values is kept,
and read as the paper read its ONNX exports (paper section 3; BatchNorm folding as in the
evaluation-mode export). A BatchNorm that uses the statistics of its batch even in evaluation mode
(track_running_stats=False) has no fixed scale and is not folded: there the two views are equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any

from builder.errors import BuilderError
from builder.sources.constructors import FAILURES

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class TracedConv:
    """One executed convolution. Names are dotted module paths into the traced model."""

    layer: str
    weight: str  # state-dict name of the weight
    conv_depth: int
    conv_depth_norm: float
    out_channels: int
    in_channels: int  # inside a group
    kernel_size: tuple[int, int]
    groups: int
    stride: int
    bn_layer: str | None  # BatchNorm with running statistics that alone consumes the output
    bn_eps: float | None

    @property
    def is_3x3(self) -> bool:
        return self.kernel_size == (3, 3)

    @property
    def n_filters(self) -> int:
        return self.out_channels * self.in_channels

    @property
    def depth_bin(self) -> int:
        return depth_bin(self.conv_depth, self.conv_depth_norm)


def depth_bin(conv_depth: int, conv_depth_norm: float) -> int:
    """0 for the first convolution, else the right-closed decile of conv_depth_norm, 1 to 10."""
    if conv_depth == 0:
        return 0
    # 3/30 * 10 is 1.0000000000000002 in floating point; an edge belongs to the bin below it.
    return max(1, ceil(round(conv_depth_norm * 10, 9)))


@dataclass
class _Value:
    """One tensor value of the graph: what made it, and from what."""

    depth: int
    inputs: tuple[_Value, ...] = ()
    operator: str = ""
    parameters: tuple[str, ...] = ()  # names of the parameters the operator read
    details: dict[str, Any] = field(default_factory=dict)
    consumers: list[_Value] = field(default_factory=list)


_CONVOLUTION = "aten::convolution"
_EITHER_BATCH_NORM = "aten::native_batch_norm"  # its argument 5: whether by the batch's statistics
_BATCH_NORM = _EITHER_BATCH_NORM, "aten::_native_batch_norm_legit_no_training"


def _flatten(items: Iterable[Any]) -> Iterable[Any]:
    for item in items:
        if isinstance(item, list | tuple):
            yield from _flatten(item)
        elif isinstance(item, Mapping):
            yield from _flatten(item.values())
        else:
            yield item


def _record(model: nn.Module, image_size: int) -> tuple[list[_Value], list[_Value]]:
    """Every value of one forward pass in order of execution, and the values returned."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    names = {id(t): name for name, t in [*model.named_parameters(), *model.named_buffers()]}
    order: list[_Value] = []
    # Keyed by identity: an in-place operator returns its argument, which then is a new value.
    # `alive` keeps every tensor, so that no identity is used twice.
    values: dict[int, _Value] = {}
    alive: list[torch.Tensor] = []

    class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            out = func(*args, **kwargs)
            tensors = [
                a for a in _flatten([*args, *kwargs.values()]) if isinstance(a, torch.Tensor)
            ]
            inputs = tuple(values[id(t)] for t in tensors if id(t) in values)
            results = [t for t in _flatten([out]) if isinstance(t, torch.Tensor)]
            if not inputs or not results:
                return out  # computed from constants alone, or no tensor
            value = _Value(
                depth=1 + max(v.depth for v in inputs),
                inputs=inputs,
                operator=func._schema.name,
                parameters=tuple(names[id(t)] for t in tensors if id(t) in names),
            )
            if value.operator == _CONVOLUTION:
                weight, stride, transposed, groups = args[1], args[3], args[6], args[8]
                value.details = {
                    "shape": tuple(weight.shape),
                    "stride": int(stride[0]),
                    "groups": int(groups),
                    "counts": weight.dim() == 4 and not transposed,
                    "named": id(weight) in names,
                }
            elif value.operator in _BATCH_NORM:
                by_batch = value.operator == _EITHER_BATCH_NORM and bool(args[5])
                value.details = {"eps": float(args[-1]), "folds": not by_batch}
            for source in inputs:
                source.consumers.append(value)
            for t in results:
                values[id(t)] = value
                alive.append(t)
            order.append(value)
            return out

    image = torch.empty(1, 3, image_size, image_size, device="meta")
    values[id(image)] = _Value(depth=0)
    alive.append(image)
    with torch.no_grad(), Recorder():  # type: ignore[no-untyped-call]
        output = model(image)
    outputs = [values[id(t)] for t in _flatten([output]) if id(t) in values]
    if not outputs:
        raise BuilderError(
            f"the forward pass of {type(model).__name__} returns {type(output).__name__} without a "
            "tensor computed from the image.",
            hint="expected a tensor, or a list, tuple or dict of tensors.",
        )
    return order, outputs


def _reachable(outputs: list[_Value]) -> set[int]:
    """Identities of the values the outputs depend on: the rest is dead code."""
    seen: set[int] = set()
    stack = list(outputs)
    while stack:
        value = stack.pop()
        if id(value) not in seen:
            seen.add(id(value))
            stack.extend(value.inputs)
    return seen


def trace(model: nn.Module, image_size: int) -> list[TracedConv]:
    """Every 2-d convolution that `model` executes, in order of execution.

    Args:
        model: a network built on the meta device; it is put into evaluation mode.
        image_size: height and width of the square RGB input, in pixels.

    Raises:
        BuilderError: the forward pass fails, returns no tensor, runs no convolution, or convolves
            with a weight that is no parameter of the model.
    """
    model.eval()
    try:
        order, outputs = _record(model, image_size)
    except FAILURES as e:
        raise BuilderError(
            f"tracing {type(model).__name__} failed on a {image_size}x{image_size} image: "
            f"{type(e).__name__}: {e}",
            hint="its forward pass must run on the meta device: no .item(), no data-dependent "
            "branches, three input channels.",
        ) from e
    live = _reachable(outputs)
    convolutions = [
        v for v in order if v.operator == _CONVOLUTION and v.details["counts"] and id(v) in live
    ]
    if not convolutions:
        raise BuilderError(f"{type(model).__name__} runs no 2-d convolution.")
    ranks = {d: i for i, d in enumerate(sorted({v.depth for v in convolutions}))}
    traced: dict[str, TracedConv] = {}
    for value in convolutions:
        if not value.details["named"]:
            raise BuilderError(
                f"{type(model).__name__} convolves with a computed weight "
                f"of shape {value.details['shape']}.",
                hint="only weights that are parameters of the model can be extracted.",
            )
        conv = _describe(value, ranks[value.depth], len(ranks), live)
        # One weight executed twice is one layer: it sits where it first runs.
        traced.setdefault(conv.weight, conv)
    return list(traced.values())


def _describe(value: _Value, rank: int, n_depths: int, live: set[int]) -> TracedConv:
    weight = value.parameters[0]
    out_channels, in_channels, height, width = value.details["shape"]
    bn_layer, bn_eps = None, None
    consumers = [c for c in value.consumers if id(c) in live]
    if len(consumers) == 1 and consumers[0].details.get("folds"):
        bn_layer = consumers[0].parameters[0].rpartition(".")[0]
        bn_eps = consumers[0].details["eps"]
    return TracedConv(
        layer=weight.rpartition(".")[0],
        weight=weight,
        conv_depth=rank,
        conv_depth_norm=rank / (n_depths - 1) if n_depths > 1 else 0.0,
        out_channels=out_channels,
        in_channels=in_channels,
        kernel_size=(height, width),
        groups=value.details["groups"],
        stride=value.details["stride"],
        bn_layer=bn_layer,
        bn_eps=bn_eps,
    )
