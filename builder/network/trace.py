"""What a network runs: its convolutions, their depth, and the BatchNorm each folds with.

One forward pass in evaluation mode, on the `meta` device where the network runs there (shapes only:
no memory, no arithmetic), under a dispatch mode that sees every ATen operator, and a function mode
that sees the casts which need none. From these a graph of values is kept, and read as the paper
read its ONNX exports (paper section 3; BatchNorm folding as in the evaluation-mode export): a
BatchNorm is folded in where it alone reads the convolution's output, the network does not return
that output, and the BatchNorm's operands are the very tensors of the state dict; so is another one
that alone reads the first one's. One with a computed scale, or with the statistics of its batch
(track_running_stats=False), has no fixed scale: there the two views are equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any

from builder import schema
from builder.errors import BuilderError
from builder.sources.guest import blamed, guest, tensors

if TYPE_CHECKING:
    import torch
    from torch import nn


class ForwardError(BuilderError):
    """The forward pass of a network failed."""


@dataclass(frozen=True)
class Norm:
    """A BatchNorm of fixed statistics, whose operands are all stored: state-dict names of its scale
    (None: 1) and running variance, and its epsilon."""

    weight: str | None
    var: str
    eps: float

    @property
    def layer(self) -> str:
        return self.var.rpartition(".")[0] or self.var


@dataclass(frozen=True)
class TracedConv:
    """One executed convolution. Names are dotted paths into the traced model."""

    layer: str  # unique: see schema.layer_name
    weight: str  # state-dict name of the weight
    conv_depth: int
    conv_depth_norm: float
    out_channels: int
    in_channels: int  # inside a group
    kernel_size: tuple[int, int]
    groups: int
    stride: int
    norms: tuple[Norm, ...] = ()  # the BatchNorms that fold with it, in their order

    @property
    def bn_layer(self) -> str | None:
        return ", ".join(n.layer for n in self.norms) or None

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
    consumers: list[_Value] = field(default_factory=list)
    conv: _Conv | None = None
    norm: Norm | None = None
    activation: str | None = None


@dataclass(frozen=True)
class _Conv:
    """A 2-d convolution. `weight` is a state-dict name, or None for one that is computed."""

    weight: str | None
    trained: bool  # else a fixed kernel, say a blur: nothing of it is learned
    shape: tuple[int, int, int, int]
    stride: int
    groups: int
    foldable: bool  # no bias, or one that is stored


_SAME = {"aten::alias", "aten::clone", "aten::detach", "aten::lift_fresh"}
"""Operators that make no new value; the ONNX export drops them."""
_CASTS = ("to", "type", "float", "double", "half", "bfloat16", "cpu")
"""Methods of a tensor that return it itself where it is already what they make it. They run no
operator then, and the ONNX export keeps each of them all the same, between whatever it stands."""
_CONVOLUTION = {
    "aten::convolution",
    "aten::_convolution",
}  # the second in what torch.jit.trace made
_ACTIVATION = {
    **{f: f for f in ("relu", "gelu", "leaky_relu", "elu", "hardtanh", "softplus", "tanh")},
    **dict.fromkeys(("silu", "sigmoid"), "silu"),  # also spelled x * sigmoid(x)
}
_EITHER_BATCH_NORM = "aten::native_batch_norm"  # its argument 5: whether by the batch's statistics
_BATCH_NORM = _EITHER_BATCH_NORM, "aten::_native_batch_norm_legit_no_training"


class _Graph:
    """The values of one forward pass in order of execution, as its operators come."""

    def __init__(self, model: nn.Module, image: torch.Tensor) -> None:
        self.order: list[_Value] = []
        # Keyed by identity: an in-place operator returns its argument, which then is a new value.
        # `alive` keeps every tensor, so that no identity is used twice.
        self.values = {id(image): _Value(depth=0)}
        self.views: dict[int, set[int]] = {image.untyped_storage()._cdata: {id(image)}}
        self.alive: list[Any] = [image]
        self.trained = {id(p) for p in model.parameters()}  # and what is computed from them alone
        self.stored: dict[int, str] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            self.stored.setdefault(id(tensor), name)
            self.alive.append(tensor)

    def observe(self, func: Any, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
        """Add one operator that has just run."""
        name = func._schema.name
        read = list(tensors([*args, *kwargs.values()]))
        results = list(tensors([output]))
        self.alive += results
        inputs = tuple(self.values[id(t)] for t in read if id(t) in self.values)
        if not inputs:
            self._observe_constant(name, read, results)
            return
        same = name in _SAME or (name == "aten::slice" and results[0].shape == read[0].shape)
        value = inputs[0] if same else _Value(1 + max(v.depth for v in inputs), inputs)
        if not same:
            value.activation = _ACTIVATION.get(name.removeprefix("aten::").removesuffix("_"))
        for t in results:
            views = self.views.setdefault(t.untyped_storage()._cdata, set())
            views.add(id(t))
            # A write into a part of a tensor, or through an alias, makes a new value of all of it.
            for changed in views if any(t is r for r in read) else (id(t),):
                self.values[changed] = value
        if same or not results:
            return
        self.order.append(value)
        for source in inputs:
            source.consumers.append(value)
        if name in _CONVOLUTION and args[1].dim() == 4 and not args[6]:
            value.conv = self._conv(args)
        elif name in _BATCH_NORM and id(args[0]) in self.values:
            value.norm = self._norm(name, args)

    def _observe_constant(
        self, name: str, read: list[torch.Tensor], results: list[torch.Tensor]
    ) -> None:
        """An operator on parameters, buffers and constants alone."""
        if any(id(t) in self.trained for t in read):
            self.trained |= {id(t) for t in results}
        for t in results:  # a buffer made on the way, into which the image may yet be written
            self.views.setdefault(t.untyped_storage()._cdata, set()).add(id(t))
        # A cast, say by autocast, is not of the network: the weight is what is stored.
        if (name in _SAME or name == "aten::_to_copy") and id(read[0]) in self.stored:
            self.stored[id(results[0])] = self.stored[id(read[0])]

    def cast(self, tensor: torch.Tensor) -> None:
        """A tensor was cast to what it is: whoever reads it from now on reads a new value."""
        if (source := self.values.get(id(tensor))) is not None:
            value = self.values[id(tensor)] = _Value(1 + source.depth, (source,))
            source.consumers.append(value)
            self.order.append(value)

    def _conv(self, args: tuple[Any, ...]) -> _Conv:
        weight, bias, stride, groups = args[1], args[2], args[3], args[8]
        out_channels, in_channels, height, width = weight.shape
        return _Conv(
            weight=self.stored.get(id(weight)),
            trained=id(weight) in self.trained,
            shape=(out_channels, in_channels, height, width),
            stride=int(stride[0]),
            groups=int(groups),
            foldable=bias is None or id(bias) in self.stored,
        )

    def _norm(self, name: str, args: tuple[Any, ...]) -> Norm | None:
        weight, var = args[1], args[4]
        by_batch = name == _EITHER_BATCH_NORM and bool(args[5])
        if by_batch or any(t is not None and id(t) not in self.stored for t in args[1:5]):
            return None
        return Norm(self.stored.get(id(weight)), self.stored[id(var)], float(args[-1]))


def _record(
    model: nn.Module, image_size: int, dtype: torch.dtype
) -> tuple[list[_Value], list[_Value]]:
    """Every value of one forward pass in order of execution, and the values returned."""
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    devices = {p.device for p in model.parameters()}
    without_memory = torch.device("meta")
    device = without_memory if without_memory in devices else next(iter(devices), "cpu")
    image = torch.zeros(1, 3, image_size, image_size, device=device, dtype=dtype)
    graph = _Graph(model, image)

    class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            args, kwargs = _constants_to_meta(func, args, kwargs)
            output = func(*args, **kwargs)
            graph.observe(func, args, kwargs, output)
            return output

    casts = {getattr(torch.Tensor, name) for name in _CASTS}

    class Casts(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            output = func(*args, **(kwargs or {}))
            if func in casts and output is args[0]:
                graph.cast(output)
            return output

    with torch.no_grad(), Recorder(), Casts():  # type: ignore[no-untyped-call]
        output = model(image)
    outputs = [graph.values[id(t)] for t in tensors(output) if id(t) in graph.values]
    if not outputs:
        raise BuilderError(
            f"the forward pass of {type(model).__name__} returns {type(output).__name__} without a "
            "tensor computed from the image.",
            hint="expected a tensor, or a list, tuple, dict or dataclass of tensors.",
        )
    return graph.order, outputs


def _constants_to_meta(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """An operator's arguments, those on the CPU moved beside those without memory: constants that
    a network keeps as plain tensors or makes on the way."""
    import torch
    from torch.utils._pytree import tree_map_only

    devices = {t.device.type for t in tensors([*args, *kwargs.values()]) if t.dim()}
    if devices != {"cpu", "meta"} or func._schema.is_mutable:
        return args, kwargs
    moved: tuple[Any, Any] = tree_map_only(torch.Tensor, lambda t: t.to("meta"), (args, kwargs))
    return moved


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


def _folding(value: _Value, live: set[int], returned: set[int]) -> Iterator[Norm]:
    """The BatchNorms behind a convolution of this value, as long as nothing else reads it."""
    while id(value) not in returned:
        readers = [c for c in value.consumers if id(c) in live]
        if len(readers) != 1 or readers[0].norm is None:
            return
        value = readers[0]
        yield readers[0].norm


def trace(model: nn.Module, image_size: int) -> list[TracedConv]:
    """Every 2-d convolution with a trained weight that `model` executes: see `trace_all`."""
    return trace_all(model, image_size)[0]


def trace_all(model: nn.Module, image_size: int) -> tuple[list[TracedConv], frozenset[str]]:
    """Every 2-d convolution with a trained weight that `model` executes, in order of execution;
    and the activation functions that it runs.

    Args:
        model: a network, best on the meta device; it is put into evaluation mode.
        image_size: height and width of the square RGB input, in pixels.

    Raises:
        ForwardError: the forward pass fails.
        BuilderError: it returns no tensor, runs no convolution, or convolves with a computed
            weight.
    """
    import torch

    with (
        guest(),
        blamed(
            f"tracing {type(model).__name__} failed on a {image_size}x{image_size} image",
            "expected a network that maps one RGB image, (1, 3, h, w) in [0, 1], to tensors.",
            ForwardError,
        ),
    ):
        own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        try:
            order, outputs = _record(model.eval(), image_size, torch.float32)
        except RuntimeError:
            if own == torch.float32:
                raise
            # A network in half precision that takes images of its own type.
            order, outputs = _record(model, image_size, own)
    live = _reachable(outputs)
    convolutions = [(v, v.conv) for v in order if v.conv and id(v) in live]
    if not any(conv.trained for _, conv in convolutions):
        raise BuilderError(f"{type(model).__name__} runs no 2-d convolution.")
    ranks = {d: i for i, d in enumerate(sorted({v.depth for v, _ in convolutions}))}
    returned = {id(v) for v in outputs}
    traced: dict[str, TracedConv] = {}
    for value, conv in convolutions:
        if not conv.trained:
            continue
        if conv.weight is None:
            raise BuilderError(
                f"{type(model).__name__} convolves with a computed weight of shape {conv.shape}.",
                hint="only weights that are parameters of the model can be extracted.",
            )
        rank, last = ranks[value.depth], len(ranks) - 1
        out_channels, in_channels, height, width = conv.shape
        described = TracedConv(
            layer=schema.layer_name(conv.weight),
            weight=conv.weight,
            conv_depth=rank,
            conv_depth_norm=rank / last if last else 0.0,
            out_channels=out_channels,
            in_channels=in_channels,
            kernel_size=(height, width),
            groups=conv.groups,
            stride=conv.stride,
            norms=tuple(_folding(value, live, returned)) if conv.foldable else (),
        )
        # One weight executed twice is one layer: it sits where it first runs.
        traced.setdefault(conv.weight, described)
    return list(traced.values()), frozenset(
        v.activation for v in order if v.activation and id(v) in live
    )
