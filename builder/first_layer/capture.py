"""What a network's first convolutions make of an image, before and behind the activation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from builder import schema
from builder.errors import BuilderError
from builder.sources.guest import tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

Features: TypeAlias = "dict[str, tuple[Tensor, Tensor]]"
"""Name of a first convolution -> output before and behind its activation, (n, c, h, w)."""

_POINTWISE_WITHOUT_TAG = {
    *("aten::_prelu_kernel", "aten::hardswish", "aten::hardswish_", "aten::rsub"),
    *("aten::threshold_", "aten::_to_copy", "aten::alias", "aten::contiguous", "aten::detach"),
}
"""Operators that act position by position though PyTorch does not tag them `pointwise`."""

_CONVOLUTION = {"aten::convolution", "aten::_convolution"}  # the second by torch.jit.trace
_NO_OTHER_WEIGHT = {"aten::_to_copy", "aten::alias", "aten::detach"}


class _Origin(NamedTuple):
    """What a tensor holds of the image."""

    layer: str  # the first convolution that it comes from, or one of the two below
    normalised: bool = False  # behind that convolution's BatchNorm
    raw: bool = False  # the convolution's own output


_IMAGE = _Origin("the image")  # no convolution yet
_DEEP = _Origin("deeper")


@dataclass
class _FirstLayer:
    """The outputs of one first convolution, as far as the forward pass has come."""

    pre: Tensor
    post: Tensor
    normalised: bool = False  # `pre` is the BatchNorm's output
    closed: bool = False  # an operator that is not pointwise has read what `post` comes from


class _Seen(BaseException):
    """Ends a forward pass behind its first layers; no network's own code swallows it."""


class _Follower:
    """Follows the image through the ATen operators of one forward pass."""

    def __init__(self, model: nn.Module, x: Tensor, until: Mapping[str, bool] | None) -> None:
        from torch.utils.weak import WeakTensorKeyDictionary

        names = {p: schema.layer_name(name) for name, p in model.named_parameters()}
        # Of casts and aliases too: autocast makes some.
        self.names: MutableMapping[Tensor, str] = WeakTensorKeyDictionary(names)
        self.layers: dict[str, _FirstLayer] = {}
        self.until = until
        # Parameters and constants are not in it. Weak keys: a freed tensor's identity is soon that
        # of another, and a constant made on the way must not inherit what the freed one held.
        self.origins: MutableMapping[Tensor, _Origin] = WeakTensorKeyDictionary({x: _IMAGE})

    def observe(self, func: Any, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
        """Record one operator that has just run."""
        inputs = list(tensors([*args, *kwargs.values()]))
        sources = {self.origins[t] for t in inputs if t in self.origins}
        results = list(tensors([output]))
        if func._schema.name in _NO_OTHER_WEIGHT and inputs[0] in self.names:
            self.names[results[0]] = self.names[inputs[0]]
        origin = self._origin(func, args, sources, results[0]) if sources and results else None
        for t in results:
            if origin is None:
                self.origins.pop(t, None)
            else:
                self.origins[t] = origin
        if origin is _DEEP and self.seen():
            raise _Seen

    def seen(self) -> bool:
        """Whether all that the pass is for has been seen, so that it may end."""
        return self.until is not None and self.until == {
            name: layer.normalised for name, layer in self.layers.items() if layer.closed
        }

    def _origin(
        self, func: Any, args: tuple[Any, ...], sources: set[_Origin], result: Tensor
    ) -> _Origin:
        name = func._schema.name
        source = next(iter(sources))
        if sources == {_IMAGE}:
            return self._first(args[1], result) if name in _CONVOLUTION else _IMAGE
        if sources == {_Origin(source.layer, raw=True)} and "batch_norm" in name:
            # Copied, here and below: an in-place operator may overwrite the original.
            kept = result.clone()
            self.layers[source.layer] = _FirstLayer(kept, kept, normalised=True)
            return _Origin(source.layer, normalised=True)
        if _is_pointwise(func) and len({(s.layer, s.normalised) for s in sources}) == 1:
            layer = self.layers.get(source.layer)
            if layer and source.normalised == layer.normalised and not layer.closed:
                layer.post = result.clone()
                return source._replace(raw=False)
        for s in sources:
            read = self.layers.get(s.layer)
            # The convolution's output may feed a shortcut besides its BatchNorm: no matter.
            if read and s.normalised == read.normalised:
                read.closed = True
        return _DEEP

    def _first(self, weight: Tensor, result: Tensor) -> _Origin:
        layer = self.names.get(weight)
        if layer is None:
            raise BuilderError(
                f"the first convolution's weight, of shape {tuple(weight.shape)}, is computed.",
                hint="only weights that are parameters of the model can be measured.",
            )
        if layer in self.layers:  # run again, say on a mirrored image: the first run counts
            return _DEEP
        kept = result.clone()
        self.layers[layer] = _FirstLayer(kept, kept)
        return _Origin(layer, raw=True)


def _is_pointwise(func: Any) -> bool:
    import torch

    return torch.Tag.pointwise in func.tags or func._schema.name in _POINTWISE_WITHOUT_TAG


def first_features(
    model: nn.Module,
    forward: Callable[[Tensor], Any],
    x: Tensor,
    until: Mapping[str, bool] | None = None,
) -> tuple[Features, Any, dict[str, bool]]:
    """The outputs of the first convolutions for the images `x`, and the network's own output.

    A convolution is a first one if no other lies between it and the image; an ensemble has several.
    "Before the activation" is the output of the BatchNorm that reads the convolution, whatever else
    reads it too, or, without one, the convolution's own output. "Behind the activation" is the last
    tensor computed from that alone by pointwise operators (ReLU; x * sigmoid(x) in two steps)
    before another operator reads it: the next convolution, a padding, a pooling. Where there is no
    activation the two are one tensor.

    Args:
        model: in evaluation mode; its parameters name the convolutions.
        forward: runs the model on images.
        x: floating point (n, 3, h, w) in [0, 1], on the model's device.
        until: what a whole pass of this model returned last: this one ends when it has seen those
            layers, instead of running the network behind them.

    Returns:
        Features, copies of (n, channels, h', w') each, in order of execution; what `forward`
        returned, None where it was ended; and whether each layer is read by a BatchNorm.

    Raises:
        BuilderError: no convolution reads the image, or one with a computed weight.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    follower = _Follower(model, x, until)
    output = None

    class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            output = func(*args, **(kwargs or {}))
            follower.observe(func, args, kwargs or {}, output)
            return output

    with torch.no_grad(), Recorder():  # type: ignore[no-untyped-call]
        try:
            output = forward(x)
        except (_Seen, RuntimeError):  # the second is what TorchScript makes of the first
            if not follower.seen():
                raise
    if not follower.layers:
        raise BuilderError(f"{type(model).__name__} runs no convolution on the image.")
    features = {name: (layer.pre, layer.post) for name, layer in follower.layers.items()}
    return features, output, {name: layer.normalised for name, layer in follower.layers.items()}
