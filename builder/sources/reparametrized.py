"""Weights that a checkpoint holds in parts, computed as torch computes them in evaluation mode.

torch's weight_norm, spectral_norm and pruning keep what a layer's weight is computed from, not the
weight: `weight_g` and `weight_v`, `parametrizations.weight.original0`, ... Networks are built
without them (`remove`), and their weights are computed from the parts when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from builder.sources.stored import Leaf, StoredTensor

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Computed:
    """A weight computed from tensors of a checkpoint.

    Attributes:
        kind: `weight_norm`, `spectral_norm` or `pruning`.
        keys: names of the parts in the state dict.
        parts: the parts; the weight has the shape and the element type of the first.
    """

    kind: str
    keys: tuple[str, ...]
    parts: tuple[StoredTensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parts[0].shape

    @property
    def dtype(self) -> object:
        return self.parts[0].dtype

    def load(self, load: Callable[[StoredTensor], Tensor]) -> Tensor:
        """The weight; `load` reads a part."""
        return _COMPUTE[self.kind](*map(load, self.parts))


def _weight_norm(direction: Tensor, length: Tensor) -> Tensor:
    """g v / |v| (Salimans & Kingma, 2016): one norm for each entry of g, over all other axes."""
    axes = [i for i in range(direction.dim()) if length.dim() == 0 or length.shape[i] == 1]
    squares = direction.square().sum(axes, keepdim=True) if axes else direction.square()
    return direction * (length / squares.sqrt())


def _spectral_norm(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """W / (u^T W v), W as a matrix (Miyato et al., 2018) whose rows are the axis that u is long
    as: the first, or the second of a transposed convolution."""
    axis = 0 if weight.shape[0] == left.numel() and weight[0].numel() == right.numel() else 1
    matrix = weight.transpose(0, axis).flatten(1)
    return weight / left.dot(matrix.mv(right))


def _pruning(weight: Tensor, mask: Tensor) -> Tensor:
    return weight * mask


_COMPUTE: dict[str, Callable[..., Tensor]] = {
    "weight_norm": _weight_norm,
    "spectral_norm": _spectral_norm,
    "pruning": _pruning,
}
_NEW = "{module}parametrizations.{name}."
_PATTERNS = (
    ("weight_norm", ("{module}{name}_v", "{module}{name}_g")),
    ("weight_norm", (f"{_NEW}original1", f"{_NEW}original0")),
    ("spectral_norm", ("{module}{name}_orig", "{module}{name}_u", "{module}{name}_v")),
    ("spectral_norm", (f"{_NEW}original", f"{_NEW}0._u", f"{_NEW}0._v")),
    ("pruning", ("{module}{name}_orig", "{module}{name}_mask")),
)
"""Kind, and what its parts are called."""


def computed_weights(tensors: Mapping[str, Leaf]) -> dict[str, Computed]:
    """The weights that a state dict holds in parts, by the names they have without."""
    found: dict[str, Computed] = {}
    for kind, patterns in _PATTERNS:
        ending = patterns[0].removeprefix("{module}").replace("{name}", "")
        for key in tensors:
            base = _base(key, patterns[0], ending)
            if base is None:
                continue
            module, name = base
            keys = tuple(p.format(module=module, name=name) for p in patterns)
            parts = tuple(p for k in keys if isinstance(p := tensors.get(k), StoredTensor))
            whole = f"{module}{name}"
            if len(parts) == len(keys) and whole not in tensors and _fit(kind, parts):
                found[whole] = Computed(kind, keys, parts)
    return found


def _base(key: str, pattern: str, ending: str) -> tuple[str, str] | None:
    """(module path with its dot, name) where a key is that of a first part."""
    if pattern.startswith(_NEW):
        module, found, rest = key.rpartition("parametrizations.")
        name, _, last = rest.partition(".")
        return (module, name) if found and last == pattern.removeprefix(_NEW) else None
    if not key.endswith(ending):
        return None
    module, dot, name = key.removesuffix(ending).rpartition(".")
    return module + dot, name


def _fit(kind: str, parts: tuple[StoredTensor, ...]) -> bool:
    """Whether the parts' shapes are those of this kind (names alone do not tell v from v)."""
    whole, *others = (p.shape for p in parts)
    if kind == "weight_norm":
        (length,) = others
        equal = len(length) == len(whole)
        return length == () or (
            equal and all(n in (1, m) for n, m in zip(length, whole, strict=True))
        )
    if kind == "spectral_norm":
        left, right = others
        return len(left) == len(right) == 1 and left[0] * right[0] == parts[0].numel
    return others[0] == whole


def remove(model: nn.Module) -> nn.Module:
    """The network without weight_norm, spectral_norm and pruning: plain parameters of the names
    and shapes they would have without; the network itself is changed."""
    from torch.nn.utils import parametrizations, parametrize, prune
    from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
    from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

    known = (parametrizations._WeightNorm, parametrizations._SpectralNorm)
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            applied: Any = module.parametrizations
            for name, steps in list(applied.items()):
                if len(steps) == 1 and isinstance(steps[0], known):
                    parametrize.remove_parametrizations(module, name)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
            elif isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
    return model
