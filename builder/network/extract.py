"""The 3x3 filters of a network: the one place that says what a filter is.

A filter is one 3x3 slice weight[out_channel, in_channel] of a 2-d convolution that the network
runs. Layers come one at a time, so that memory holds a layer, never a network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from builder.errors import BuilderError
from builder.sources.state import FittedState

if TYPE_CHECKING:
    import torch

    from builder.network.trace import TracedConv


@dataclass(frozen=True)
class Layer:
    """The filters of one layer.

    Attributes:
        index: order among the 3x3 layers of the network.
        conv: where the layer sits.
        weight: (out_channels, in_channels, 3, 3) float32, as trained.
        bn_scale: (out_channels,) float32, the factor of what BatchNorm is folded in; None for none.
        reparametrized: how `weight` was computed (`schema.LAYERS`); None where it was stored.
    """

    index: int
    conv: TracedConv
    weight: torch.Tensor
    bn_scale: torch.Tensor | None
    reparametrized: str | None = None


def bn_scale(conv: TracedConv, state: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """gamma / sqrt(running_var + eps), (out_channels,) float32, of the BatchNorm `conv` folds with.

    None where `conv` folds with none (trace.py says when); of several, the product.
    The operations, their order and their precision are those of PyTorch's ONNX export in
    evaluation mode, so `weight * bn_scale` is bit for bit the exported weight (with several
    BatchNorms, which the export multiplies in one after the other, to the last digits).
    """
    import torch

    scale: torch.Tensor | None = None
    for norm in conv.norms:
        deviation = state[norm.var].float().add(norm.eps).sqrt()
        gamma = torch.ones_like(deviation) if norm.weight is None else state[norm.weight]
        factor = gamma.float().div(deviation)
        scale = factor if scale is None else scale * factor
    return scale


def iter_layers(
    convs: Sequence[TracedConv], state: Mapping[str, torch.Tensor], device: str = "cpu"
) -> Iterator[Layer]:
    """The 3x3 layers of a network in order of execution, on `device`.

    Raises:
        BuilderError: a weight is missing or has another shape than the trace says.
    """
    for index, conv in enumerate(c for c in convs if c.is_3x3):
        expected = (conv.out_channels, conv.in_channels, 3, 3)
        weight = state.get(conv.weight)
        if weight is None or tuple(weight.shape) != expected:
            found = "none" if weight is None else f"shape {tuple(weight.shape)}"
            raise BuilderError(f"weight {conv.weight}: expected shape {expected}, found {found}.")
        scale = bn_scale(conv, state)
        yield Layer(
            index,
            conv,
            weight.to(device).float(),
            None if scale is None else scale.to(device),
            state.reparametrized.get(conv.weight) if isinstance(state, FittedState) else None,
        )
