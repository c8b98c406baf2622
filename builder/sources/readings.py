"""Which of the tensors in a checkpoint are a model's, and what the model calls them.

Checkpoints wrap their weights (`state_dict`, `last`, ...) and prefix their keys (`module.`,
`model.`, ...) in many ways. No list of models says which: of all places and prefixes that the
file itself offers, those are taken that meet the model's keys and shapes best. Where several fit,
nothing is guessed: the user names one by a suffix of its address, `file.pt#student.model`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from builder.errors import BuilderError, UsageError
from builder.sources.checkpoint import Checkpoint
from builder.sources.reparametrized import Computed, computed_weights
from builder.sources.stored import Leaf, Malformed, StoredTensor, Unreadable
from builder.sources.unpickle import Inert, named_tensors

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "last")
"""Where equally fitting weights lie under several names at the top of a file, these win over other
names, in this order (so `last` wins over `best`, and a model over its moving average, as
RobustBench loads them). Anywhere else nothing decides but the user."""

_TRANSPARENT = frozenset(
    ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
)
"""Parts of a key that torch's wrappers add wherever they wrap (DataParallel, compile, ...)."""
_MAX_DEPTH = 16
_SHOWN = 8

Shape = tuple[int, ...]
Weight = Leaf | Computed


@dataclass(frozen=True)
class StateDict:
    """Named tensors of a checkpoint, and where in it they lie.

    Attributes:
        path: names and numbers that lead to them.
        tensors: as they are called there, or as far as one is left of them.
    """

    path: tuple[str, ...]
    tensors: Mapping[str, Leaf]

    def address(self, key: str) -> str:
        return ".".join((*self.path, key))


@dataclass(frozen=True)
class Wanted:
    """What is to be found: keys of a model.

    Attributes:
        shapes: key -> shape.
        needed: key -> identity of its tensor, equal for shared ones; only of what must be found.
    """

    shapes: Mapping[str, Shape]
    needed: Mapping[str, int]


@dataclass(frozen=True)
class Reading:
    """One way to read a checkpoint.

    Attributes:
        source: the state dict read.
        weights: key of the model -> the tensor.
        rest: what else is in `source`, under the names the model would have for it.
        outside: those names of `rest` that do not lie below `name`.
        score: needed tensors met with their shape; keys met with their shape; keys met.
        name: what a user calls it behind the address of the file.
    """

    source: StateDict
    weights: Mapping[str, Weight]
    rest: Mapping[str, Leaf]
    outside: frozenset[str]
    score: tuple[int, int, int]
    name: str


def state_dicts(tree: Any) -> Iterator[StateDict]:
    """Everything in a checkpoint that names tensors, breadth first: dictionaries, lists of (name,
    tensor), whole pickled networks.

    Raises:
        Malformed: a pickled network without end.
    """
    seen: set[int] = set()
    level: list[tuple[tuple[str, ...], Any]] = [((), tree)]
    for _ in range(_MAX_DEPTH):
        deeper: list[tuple[tuple[str, ...], Any]] = []
        for path, node in level:
            if id(node) in seen:
                continue
            seen.add(id(node))
            if isinstance(node, Inert) and node.is_module:
                yield StateDict(path, named_tensors(node))
                continue
            if not isinstance(node, dict | list | tuple):
                continue  # a lone tensor, a number: the whole file is no more
            items: list[tuple[Any, Any]]
            if isinstance(node, dict):
                items = list(dict.items(node))  # a pickle may have hidden the method node.items
            else:
                items = list(_named_pairs(node).items() or enumerate(node))
            named = {k: v for k, v in items if isinstance(k, str | int)}
            tensors = {k: v for k, v in named.items() if isinstance(v, Leaf) and isinstance(k, str)}
            if tensors:
                yield StateDict(path, tensors)
            deeper += (((*path, str(k)), v) for k, v in named.items() if _holds_more(v))
        level = deeper


def _holds_more(node: Any) -> bool:
    return isinstance(node, dict | list | tuple) and bool(len(node))


def _named_pairs(node: list[Any] | tuple[Any, ...]) -> dict[str, Leaf]:
    """The (name, tensor) items of a list of nothing else; else nothing."""
    found: dict[str, Leaf] = {}
    for item in node:
        if not (isinstance(item, list | tuple) and len(item) == 2):
            return {}
        name, tensor = item
        if not (isinstance(name, str) and isinstance(tensor, Leaf)):
            return {}
        found[name] = tensor
    return found


def named(checkpoint: Checkpoint) -> list[StateDict]:
    """The state dicts of a checkpoint; of one with a name inside, what is below the outermost place
    of that name: a dotted path through the file, or a prefix of the keys of one state dict.

    Raises:
        BuilderError: no weights, or none below `inside`.
    """
    try:
        found = list(state_dicts(checkpoint.tree))
    except Malformed as e:
        raise BuilderError(f"{checkpoint.name} is no usable checkpoint: {e}.") from None
    if not found:
        raise BuilderError(
            f"{checkpoint.name} holds no weights: no dictionary of named tensors was found.",
            hint="expected a state dict, bare or under a name such as 'state_dict'.",
        )
    inside = checkpoint.inside
    if not inside:
        return found
    depths: dict[int, dict[int, dict[str, Leaf]]] = defaultdict(lambda: defaultdict(dict))
    for i, source in enumerate(found):
        for key, tensor in source.tensors.items():
            before, there, _ = f".{source.address(key)}".partition(f".{inside.strip('.')}.")
            if there:
                depths[before.count(".")][i][key] = tensor
    if not depths:
        raise UsageError(
            f"{checkpoint.name} has nothing below {inside!r}.",
            hint=f"what there is: {_contents(found)}.",
        )
    return [StateDict(found[i].path, kept) for i, kept in depths[min(depths)].items()]


def _contents(found: Iterable[StateDict]) -> str:
    """The first names that a user could ask for."""
    names: dict[str, None] = {}
    for source in found:
        if source.path:
            names[".".join(source.path)] = None
        first = Counter(k.partition(".")[0] for k in source.tensors if "." in k)
        names |= dict.fromkeys(source.address(k) for k in first)
    shown = list(names)
    return ", ".join(f"#{n}" for n in shown[:_SHOWN]) + (", ..." if shown[_SHOWN:] else "")


def plain_key(key: str) -> str:
    """A key without the parts that wrappers of torch add."""
    return ".".join(p for p in key.split(".") if p not in _TRANSPARENT)


def _plain(keys: Iterable[str]) -> dict[str, str]:
    """Keys -> the same in plain, unless two of them would be one."""
    keys = list(keys)
    plain = {k: plain_key(k) for k in keys}
    return plain if len(set(plain.values())) == len(keys) else {k: k for k in keys}


def _beginnings(key: str) -> Iterator[str]:
    """The dotted beginnings of a key, the empty one first."""
    yield ""
    at = key.find(".") + 1
    while at:
        yield key[:at]
        at = key.find(".", at) + 1


def readings(sources: Iterable[StateDict], wanted: Wanted) -> list[Reading]:
    """The readings that meet most of what is needed, in order of appearance."""
    parts = _parts(_plain(wanted.shapes))
    found: list[Reading] = []
    for source in sources:
        found += _best_of(source, wanted, parts)
    most = max((r.score[0] for r in found), default=0)
    return [r for r in found if r.score[0] == most]


@dataclass(frozen=True)
class _Parts:
    """What a file may be asked for: all of a model, or a part of it (a member of an ensemble, the
    network behind a normalisation), by a beginning that keys share."""

    sizes: Counter[str]  # beginning -> how many keys have it
    keys: Mapping[str, list[tuple[str, str]]]  # rest of a key -> beginnings, and the whole key


def _parts(plain: Mapping[str, str]) -> _Parts:
    keys: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for key, short in plain.items():
        for begin in _beginnings(short):
            keys[short[len(begin) :]].append((begin, key))
    return _Parts(Counter(b for short in plain.values() for b in _beginnings(short)), keys)


def _best_of(source: StateDict, wanted: Wanted, parts: _Parts) -> list[Reading]:
    """The best reading for every prefix of a state dict that has one as good as any other."""
    offered: dict[str, Weight] = {**source.tensors, **computed_weights(source.tensors)}
    plain = _plain(offered)
    sizes = Counter(b for short in plain.values() for b in _beginnings(short))
    fewest = min(len(offered), len(wanted.shapes)) / 4  # less is a layer, not a network
    met: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # (prefix, part) -> keys
    for key, short in plain.items():
        for prefix in _beginnings(short):
            if sizes[prefix] < fewest:
                break
            for begin, wanted_key in parts.keys.get(short[len(prefix) :], ()):
                if parts.sizes[begin] >= fewest:
                    met[prefix, begin][wanted_key] = key
    scored = []
    for (prefix, begin), keys in met.items():
        fits = [w for w, k in keys.items() if _shape(offered[k]) == wanted.shapes[w]]
        needed = {wanted.needed[w] for w in fits if w in wanted.needed}
        scored.append(((len(needed), len(fits), len(keys)), prefix, begin, keys))
    if not scored:
        return [Reading(source, {}, source.tensors, frozenset(), (0, 0, 0), ".".join(source.path))]
    most = max(s[0][0] for s in scored)
    best: dict[str, Reading] = {}  # by prefix
    for score, prefix, begin, keys in sorted(
        (s for s in scored if s[0][0] == most), key=lambda s: s[0], reverse=True
    ):
        if prefix not in best:
            names = {
                k: begin + short.removeprefix(prefix) if short.startswith(prefix) else k
                for k, short in plain.items()
            }
            best[prefix] = _reading(source, offered, keys, names, score)
    return list(best.values())


def _reading(
    source: StateDict,
    offered: Mapping[str, Weight],
    keys: Mapping[str, str],
    names: Mapping[str, str],
    score: tuple[int, int, int],
) -> Reading:
    """The reading that takes `keys` (the model's -> the file's); `names` are the file's renamed."""
    used = set(keys.values())
    for key in keys.values():
        weight = offered[key]
        if isinstance(weight, Computed):
            used.update(weight.keys)
    name = _common([source.address(k) for k in keys.values()])
    rest = [k for k in source.tensors if k not in used]
    return Reading(
        source,
        {w: offered[k] for w, k in keys.items()},
        {names[k]: source.tensors[k] for k in rest},
        frozenset(names[k] for k in rest if not source.address(k).startswith(f"{name}.")),
        score,
        name,
    )


def _shape(weight: Weight) -> Shape | None:
    return None if isinstance(weight, Unreadable) else weight.shape


def _common(addresses: list[str]) -> str:
    """The dotted beginning that all addresses share, without its last dot."""
    first, last = min(addresses).split("."), max(addresses).split(".")
    shared = 0
    while shared < min(len(first), len(last)) - 1 and first[shared] == last[shared]:
        shared += 1
    return ".".join(first[:shared])


def _rank(source: StateDict) -> int:
    """Place of a state dict in the order of `WRAPPERS`: the smaller, the rather meant."""
    if not source.path:
        return -1
    top = source.path[0]
    return WRAPPERS.index(top) if top in WRAPPERS else len(WRAPPERS)


def top_ranked(sources: list[StateDict]) -> list[StateDict]:
    """The state dicts with weights of convolutions that `WRAPPERS` does not decide between."""
    kernels = [s for s in sources if any(len(_shape(t) or ()) == 4 for t in s.tensors.values())]
    first = min(map(_rank, kernels), default=0)
    return [source for source in kernels if _rank(source) == first]


def preferred(found: list[Reading]) -> list[Reading]:
    """Of equally good readings those that `WRAPPERS` does not decide between, the best first."""
    first = min(_rank(reading.source) for reading in found)
    kept = [reading for reading in found if _rank(reading.source) == first]
    return sorted(kept, key=lambda r: r.score, reverse=True)


def read(checkpoint: Checkpoint, weight: StoredTensor | Computed) -> Any:
    """The tensor itself, of a weight as stored or as computed."""
    if isinstance(weight, Computed):
        return weight.load(checkpoint.load)
    return checkpoint.load(weight)
