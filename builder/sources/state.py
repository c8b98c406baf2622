"""Fit the tensors of a checkpoint to the keys a model expects, strictly where filters depend on it.

Checkpoints wrap their weights (`state_dict`, `last`, ...) and prefix their keys (`module.`,
`model.`, ...) in many ways. No list of models says which: of all wrappers and prefixes that the
file itself offers, those are taken that meet the model's keys and shapes best.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from builder.errors import BuilderError
from builder.sources.checkpoint import Checkpoint
from builder.sources.unpickle import StoredTensor

if TYPE_CHECKING:
    from torch import Tensor, nn

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "last")
"""Where equally fitting weights lie in several places, these win over other names, in this order
(so `last` wins over `best`, and a model over its moving average, as RobustBench loads them)."""

_MAX_DEPTH = 4
_MAX_NODES = 10_000
_SHOWN = 4
_COUNTER = "num_batches_tracked"  # not used in evaluation; old checkpoints lack it

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Expected:
    """What a model's state dict must hold."""

    shapes: dict[str, Shape]
    aliases: dict[str, int]  # key -> identity of its tensor; equal for shared tensors
    parameters: frozenset[str]
    core: frozenset[str]  # module paths of convolutions and BatchNorms

    def touches_core(self, key: str) -> bool:
        return key.rpartition(".")[0] in self.core


@dataclass(frozen=True)
class _Match:
    """One reading of a checkpoint: weights at `path`, keys with `strip` replaced by `add`."""

    path: tuple[str, ...]
    tensors: Mapping[str, StoredTensor]
    strip: str
    add: str
    score: tuple[int, int]  # expected keys met with equal shape; expected keys met

    def renamed(self) -> Iterator[tuple[str, StoredTensor]]:
        for key, tensor in self.tensors.items():
            yield _rename(key, self.strip, self.add), tensor


class _LazyState(Mapping[str, "Tensor"]):
    """Weights that stay in their files until asked for."""

    def __init__(self, stored: Mapping[str, tuple[Checkpoint, StoredTensor]]) -> None:
        self._stored = stored

    def __getitem__(self, key: str) -> Tensor:
        checkpoint, tensor = self._stored[key]
        return checkpoint.load(tensor)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def fit_state(
    checkpoints: Sequence[Checkpoint], model: nn.Module, what: str
) -> Mapping[str, Tensor]:
    """Tensors for the keys of `model.state_dict()`, in its order; shapes are the model's.

    A tensor is read when it is asked for, and not kept: whoever goes through the layers one by
    one never has more than a layer in memory.

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
            missing parameter, a different shape, or several readings that fit equally well.
    """
    expected = _expected(model)
    found: dict[str, tuple[Checkpoint, StoredTensor]] = {}
    surplus: list[tuple[str, Checkpoint, StoredTensor]] = []
    for checkpoint in checkpoints:
        match = _best_match(checkpoint, expected, found)
        for key, tensor in match.renamed():
            if key not in expected.shapes:
                surplus.append((key, checkpoint, tensor))
            elif key not in found and not (
                key.endswith(_COUNTER) and tensor.shape != expected.shapes[key]
            ):
                found[key] = (checkpoint, tensor)
        _fill_aliases(found, expected)
    _check(expected, found, surplus, f"{', '.join(c.name for c in checkpoints)}", what)
    return _LazyState({k: found[k] for k in expected.shapes if k in found})


def _expected(model: nn.Module) -> _Expected:
    from torch import nn

    tensors = model.state_dict(keep_vars=True)
    kinds = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)
    return _Expected(
        shapes={k: tuple(t.shape) for k, t in tensors.items()},
        aliases={k: id(t) for k, t in tensors.items()},
        parameters=frozenset(k for k, t in tensors.items() if isinstance(t, nn.Parameter)),
        core=frozenset(
            name
            for name, module in model.named_modules(remove_duplicate=False)
            if isinstance(module, kinds)
        ),
    )


def _rename(key: str, strip: str, add: str) -> str:
    return add + key.removeprefix(strip) if key.startswith(strip) else key


def state_dicts(tree: Any) -> Iterator[tuple[tuple[str, ...], dict[str, StoredTensor]]]:
    """Every dictionary that names tensors, with the keys that lead to it; breadth first."""
    seen: set[int] = set()
    level: list[tuple[tuple[str, ...], Any]] = [((), tree)]
    for _ in range(_MAX_DEPTH):
        deeper: list[tuple[tuple[str, ...], Any]] = []
        for path, node in level:
            if not isinstance(node, dict) or id(node) in seen or len(seen) > _MAX_NODES:
                continue
            seen.add(id(node))
            named = {k: v for k, v in node.items() if isinstance(k, str)}
            tensors = {k: v for k, v in named.items() if isinstance(v, StoredTensor)}
            if tensors:
                yield path, tensors
            deeper += (((*path, k), v) for k, v in named.items() if isinstance(v, dict))
        level = deeper


def _prefixes(keys: Iterable[str], at_least: float) -> list[str]:
    """The dotted beginnings that at least so many keys share, in order of appearance; '' first."""
    counts: Counter[str] = Counter()
    for key in keys:
        parts = key.split(".")
        counts.update(".".join(parts[:i]) + "." for i in range(1, len(parts)))
    return ["", *(p for p, n in counts.items() if n >= at_least)]


def _preference(path: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(WRAPPERS.index(p) if p in WRAPPERS else len(WRAPPERS) for p in path)


def _best_match(checkpoint: Checkpoint, expected: _Expected, found: Mapping[str, object]) -> _Match:
    """The reading that meets most of the keys that no earlier file of the ensemble has met."""
    open_shapes = {k: s for k, s in expected.shapes.items() if k not in found}
    matches: list[_Match] = []
    for path, tensors in state_dicts(checkpoint.tree):
        quarter = len(tensors) / 4
        readings = [
            _Match(path, tensors, strip, add, _score(tensors, strip, add, open_shapes))
            for strip in _prefixes(tensors, quarter)
            for add in _prefixes(open_shapes, quarter)
        ]
        matches.append(max(readings, key=lambda m: m.score))
    if not matches:
        raise BuilderError(
            f"{checkpoint.name} holds no weights: no dictionary of named tensors was found.",
            hint="expected a state dict, bare or under a name such as 'state_dict'.",
        )
    matches.sort(key=lambda m: _preference(m.path))
    best = max(matches, key=lambda m: m.score)
    for other in matches:
        if (
            other.score == best.score
            and other.tensors != best.tensors
            and best.path
            and best.path[-1] not in WRAPPERS
        ):
            raise BuilderError(
                f"{checkpoint.name} holds two sets of weights that fit equally well, under "
                f"{'.'.join(best.path)!r} and {'.'.join(other.path)!r}.",
                hint=f"save the one that is meant alone, or under {WRAPPERS[0]!r}.",
            )
    return best


def _score(
    tensors: Mapping[str, StoredTensor], strip: str, add: str, shapes: Mapping[str, Shape]
) -> tuple[int, int]:
    keys = {_rename(k, strip, add): t.shape for k, t in tensors.items()}
    met = keys.keys() & shapes.keys()
    return sum(keys[k] == shapes[k] for k in met), len(met)


def _fill_aliases(found: dict[str, tuple[Checkpoint, StoredTensor]], expected: _Expected) -> None:
    by_tensor = {expected.aliases[k]: v for k, v in found.items()}
    for key, tensor in expected.aliases.items():
        if key not in found and tensor in by_tensor:
            found[key] = by_tensor[tensor]


def _check(
    expected: _Expected,
    found: Mapping[str, tuple[Checkpoint, StoredTensor]],
    surplus: Sequence[tuple[str, Checkpoint, StoredTensor]],
    files: str,
    what: str,
) -> None:
    missing = [
        f"{k} {list(s)}"
        for k, s in expected.shapes.items()
        if k not in found
        and (k in expected.parameters or expected.touches_core(k))
        and not k.endswith(_COUNTER)
    ]
    shapes = [
        f"{k} (expected {list(expected.shapes[k])}, found {list(t.shape)})"
        for k, (_, t) in found.items()
        if t.shape != expected.shapes[k]
    ]
    unexpected = [f"{k} {list(t.shape)}" for k, t in _harmful(expected, found, surplus)]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    said = [
        f"{len(keys)} {kind}: {', '.join(keys[:_SHOWN])}" + (", ..." if keys[_SHOWN:] else "")
        for kind, keys in kinds
        if keys
    ]
    if said:
        raise BuilderError(
            f"{files} is a checkpoint of another architecture than {what}. Keys {'; '.join(said)}.",
            hint="check the columns `constructor` and `checkpoint` of the cohort's line.",
        )


def _harmful(
    expected: _Expected,
    found: Mapping[str, tuple[Checkpoint, StoredTensor]],
    surplus: Sequence[tuple[str, Checkpoint, StoredTensor]],
) -> Iterator[tuple[str, StoredTensor]]:
    """Surplus tensors of a convolution or BatchNorm, save copies of tensors the model does use.

    (Some training codes register a layer twice, so that their checkpoints repeat its weights
    under a second name, which says nothing about the architecture.)
    """
    names = {k for k, _, _ in surplus}
    for key, checkpoint, tensor in surplus:
        module = key.rpartition(".")[0]
        batchnorm = f"{module}.running_mean" in names
        convolution = key.endswith("weight") and len(tensor.shape) > 2
        if not (expected.touches_core(key) or convolution or batchnorm):
            continue
        if key.endswith(_COUNTER) or _is_copy(checkpoint, tensor, found.values()):
            continue
        yield key, tensor


def _is_copy(
    checkpoint: Checkpoint,
    tensor: StoredTensor,
    used: Iterable[tuple[Checkpoint, StoredTensor]],
) -> bool:
    import torch

    numbers = checkpoint.load(tensor)
    return any(
        other.shape == tensor.shape and torch.equal(source.load(other), numbers)
        for source, other in used
    )
