"""Fit the tensors of a checkpoint to the keys a model expects, strictly where filters depend on it.

readings.py finds the tensors; here is what is right about them, and wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from builder.errors import BuilderError, UsageError
from builder.sources.checkpoint import Checkpoint
from builder.sources.readings import (
    Reading,
    Shape,
    Wanted,
    Weight,
    named,
    plain_key,
    preferred,
    read,
    readings,
)
from builder.sources.reparametrized import Computed
from builder.sources.stored import Leaf, StoredTensor, Unreadable

if TYPE_CHECKING:
    from torch import Tensor, nn

_SHOWN = 4
_COUNTER = "num_batches_tracked"  # not used in evaluation; old checkpoints lack it
_FLOATS = frozenset(
    f"torch.{name}"
    for name in (
        *("float64", "float32", "float16", "bfloat16"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    )
)

Found = dict[str, tuple[Checkpoint, Weight]]


@dataclass(frozen=True)
class _Expected:
    """What a model's state dict must hold."""

    shapes: dict[str, Shape]
    aliases: dict[str, int]  # key -> identity of its tensor; equal for shared tensors
    floating: frozenset[str]
    needed: frozenset[str]  # parameters, and all of convolutions and BatchNorms but counters
    core: frozenset[str]  # module paths of convolutions and BatchNorms, in plain

    def touches_core(self, key: str) -> bool:
        return plain_key(key).rpartition(".")[0] in self.core


class FittedState(Mapping[str, "Tensor"]):
    """Weights that stay in their files until asked for, and are then not kept.

    Attributes:
        reparametrized: of the weights that the file holds in parts, key -> `weight_norm`,
            `spectral_norm` or `pruning`.
    """

    def __init__(self, found: Mapping[str, tuple[Checkpoint, StoredTensor | Computed]]) -> None:
        self._found = found
        self.reparametrized = {
            k: weight.kind for k, (_, weight) in found.items() if isinstance(weight, Computed)
        }

    def __getitem__(self, key: str) -> Tensor:
        tensor: Tensor = read(*self._found[key])
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def fit_state(checkpoints: Sequence[Checkpoint], model: nn.Module, what: str) -> FittedState:
    """Tensors for the keys of `model.state_dict()`, in its order; shapes are the model's.

    A tensor is read when it is asked for, and not kept: whoever goes through the layers one by
    one never has more than a layer in memory. Element types are as stored, save float8, which
    comes as float32 (exact).

    Keys of shared tensors are all filled when one is there. Keys that filters do not depend on
    may be absent from the result, and keep the value the constructor gave them: BatchNorm's
    `num_batches_tracked`, and buffers outside convolutions and BatchNorms (an input
    normalisation's mean and deviation). All other keys of the model are present.

    Args:
        checkpoints: the files of the model; several for an ensemble, in the order of its members.
        model: the architecture, on any device (meta included).
        what: the model's name for messages.

    Raises:
        BuilderError: a key that is missing or too much and touches a convolution or BatchNorm, a
            missing parameter, a different shape, weights that are no floating-point numbers, or
            several networks that fit.
    """
    expected = _expected(model)
    found: Found = {}
    surplus: list[tuple[str, Checkpoint, Leaf]] = []
    read_as: list[tuple[Checkpoint, list[Reading]]] = []
    for checkpoint in checkpoints:
        missing = expected.shapes.keys() - found.keys()
        wanted = Wanted(
            {k: s for k, s in expected.shapes.items() if k in missing},
            {k: i for k, i in expected.aliases.items() if k in missing & expected.needed},
        )
        best, *others = preferred(readings(named(checkpoint), wanted))
        read_as.append((checkpoint, [best, *others]))
        for key, weight in best.weights.items():
            if not (key.endswith(_COUNTER) and _shape(weight) != expected.shapes[key]):
                found[key] = (checkpoint, weight)
        surplus += ((k, checkpoint, t) for k, t in best.rest.items())
        _fill_aliases(found, expected)
    files = ", ".join(c.name for c in checkpoints)
    fitting = _readable(expected, found, files)
    problems = _problems(expected, fitting)
    if not problems:
        for checkpoint, several in read_as:
            _refuse_several(checkpoint, several, expected.aliases)
    unexpected = dict(_harmful(expected, fitting, surplus))
    if unexpected:
        shown = [f"{k} {list(t.shape)}" for k, t in unexpected.items()]
        problems.insert(
            1 if problems and "missing" in problems[0] else 0, _said("unexpected", shown)
        )
    if problems:
        beside = [r for _, (r, *_) in read_as if unexpected.keys() <= r.outside]
        raise BuilderError(
            f"{files} is a checkpoint of another architecture than {what}. "
            f"Keys {'; '.join(problems)}.",
            hint=f"what fits is {beside[0].name!r}: to read that alone, end `checkpoint` in "
            f"#{beside[0].name}."
            if unexpected and not problems[1:] and beside
            else "check that `constructor` and `checkpoint` belong together.",
        )
    return FittedState({k: fitting[k] for k in expected.shapes if k in fitting})


def _expected(model: nn.Module) -> _Expected:
    from torch import nn

    tensors = model.state_dict(keep_vars=True)
    kinds = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)
    core = frozenset(
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, kinds)
    )
    return _Expected(
        shapes={k: tuple(t.shape) for k, t in tensors.items()},
        aliases={k: id(t) for k, t in tensors.items()},
        floating=frozenset(k for k, t in tensors.items() if t.is_floating_point()),
        needed=frozenset(
            k
            for k, t in tensors.items()
            if (isinstance(t, nn.Parameter) or k.rpartition(".")[0] in core)
            and not k.endswith(_COUNTER)
        ),
        core=frozenset(map(plain_key, core)),
    )


def _shape(weight: Weight) -> Shape | None:
    return None if isinstance(weight, Unreadable) else weight.shape


def _fill_aliases(found: Found, expected: _Expected) -> None:
    by_tensor = {expected.aliases[k]: v for k, v in found.items()}
    for key, tensor in expected.aliases.items():
        if key not in found and tensor in by_tensor:
            found[key] = by_tensor[tensor]


def _readable(
    expected: _Expected, found: Found, files: str
) -> dict[str, tuple[Checkpoint, StoredTensor | Computed]]:
    """What was found, without tensors that are not needed and cannot be read.

    Raises:
        BuilderError: a needed one that is no floating-point tensor.
    """
    kept: dict[str, tuple[Checkpoint, StoredTensor | Computed]] = {}
    for key, (checkpoint, weight) in found.items():
        if isinstance(weight, Unreadable):
            wrong = weight.what
        else:
            kept[key] = (checkpoint, weight)
            if key not in expected.floating or str(weight.dtype) in _FLOATS:
                continue
            wrong = f"of the element type {str(weight.dtype).removeprefix('torch.')}"
        if key in expected.needed:
            raise BuilderError(
                f"{files}: {key} is {wrong}; expected floating-point numbers.",
                hint="take the checkpoint from before the network was quantised or otherwise "
                "converted.",
            )
        kept.pop(key, None)  # a buffer that no filter depends on keeps the constructor's value
    return kept


def _problems(
    expected: _Expected, found: Mapping[str, tuple[Checkpoint, StoredTensor | Computed]]
) -> list[str]:
    missing = [
        f"{k} {list(s)}"
        for k, s in expected.shapes.items()
        if k not in found and k in expected.needed
    ]
    shapes = [
        f"{k} (expected {list(expected.shapes[k])}, found {list(w.shape)})"
        for k, (_, w) in found.items()
        if w.shape != expected.shapes[k]
    ]
    kinds = (("missing", missing), ("of another shape", shapes))
    return [_said(kind, keys) for kind, keys in kinds if keys]


def _said(kind: str, keys: Sequence[str]) -> str:
    return f"{len(keys)} {kind}: {', '.join(keys[:_SHOWN])}" + (", ..." if keys[_SHOWN:] else "")


def _refuse_several(
    checkpoint: Checkpoint, fitting: Sequence[Reading], aliases: dict[str, int]
) -> None:
    """Refuse to guess between readings of different numbers.

    Raises:
        UsageError: with what the user may call each of them.
    """
    distinct: list[Reading] = []
    for reading in fitting:
        if not any(_equal(checkpoint, reading, other, aliases) for other in distinct):
            distinct.append(reading)
    if len(distinct) > 1:
        names = [f"#{r.name}" for r in distinct]
        raise UsageError(
            f"{checkpoint.name} holds {len(names)} networks that fit equally well: "
            f"{', '.join(names[: 2 * _SHOWN])}{', ...' if names[2 * _SHOWN :] else ''}.",
            hint=f"end `checkpoint` in the one that is meant, e.g. FILE{names[0]}.",
        )


def _equal(checkpoint: Checkpoint, one: Reading, other: Reading, aliases: dict[str, int]) -> bool:
    """Whether two readings give a model the same numbers."""
    import torch

    if list(one.weights.values()) == list(other.weights.values()):
        return True  # the same part of the file, for one or another member of an ensemble
    ours, theirs = ({aliases[k]: w for k, w in r.weights.items()} for r in (one, other))
    both = ours.keys() & theirs.keys()

    def same(a: Weight, b: Weight) -> bool:
        if a == b or isinstance(a, Unreadable) or isinstance(b, Unreadable):
            return a == b
        return a.dtype == b.dtype and torch.equal(read(checkpoint, a), read(checkpoint, b))

    return bool(both) and all(same(ours[i], theirs[i]) for i in both)


def _harmful(
    expected: _Expected,
    found: Mapping[str, tuple[Checkpoint, StoredTensor | Computed]],
    surplus: Sequence[tuple[str, Checkpoint, Leaf]],
) -> Iterator[tuple[str, StoredTensor]]:
    """Surplus tensors of a convolution or BatchNorm, save copies of tensors the model does use.

    (Some training codes register a layer twice, so that their checkpoints repeat its weights
    under a second name, which says nothing about the architecture.)
    """
    names = {k for k, _, _ in surplus}
    for key, checkpoint, tensor in surplus:
        module = key.rpartition(".")[0]
        batchnorm = f"{module}.running_mean" in names
        if isinstance(tensor, Unreadable) or key.endswith(_COUNTER):
            continue
        convolution = key.endswith("weight") and len(tensor.shape) > 2
        if not (expected.touches_core(key) or convolution or batchnorm):
            continue
        if not _is_copy(checkpoint, tensor, found.values()):
            yield key, tensor


def _is_copy(
    checkpoint: Checkpoint,
    tensor: StoredTensor,
    used: Iterable[tuple[Checkpoint, StoredTensor | Computed]],
) -> bool:
    import torch

    return any(
        other.shape == tensor.shape
        and other.dtype == tensor.dtype
        and str(tensor.dtype) in _FLOATS
        and torch.equal(read(source, other), checkpoint.load(tensor))
        for source, other in used
    )
