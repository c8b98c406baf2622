"""Which architecture a state dict is of: its keys and shapes against an index made ahead.

The index (architectures.json.gz, made by index.py) holds, for architectures that this project,
torchvision, timm and RobustBench build, what their keys and shapes are and what a forward pass
runs. An architecture is met when every tensor of its convolutions and BatchNorms is there in its
shape, every other parameter too (the classifier may have another number of classes), and nothing
is left over. Names and shapes say nothing of the forward pass: where two indexed networks share
them and run different graphs, both are returned.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from builder.network.trace import Norm, TracedConv

INDEX = "architectures.json.gz"
Shape = tuple[int, ...]

_STATISTICS = ("running_mean", "running_var")
_CONSTANTS = ("mean", "std", "mu", "sigma", "num_batches_tracked", "n_averaged")
"""Last parts of keys that no architecture is told by: counters, an input normalisation."""


@dataclass(frozen=True)
class Architecture:
    """An indexed architecture.

    Attributes:
        constructors: what builds it; all have the same keys, shapes and graph.
        core: digest of the keys and shapes of its convolutions and BatchNorms.
        rest: shapes of its other parameters by key; 0 is any number of classes.
        n_keys: keys of core and rest.
        convs: what a forward pass runs, named without the prefix that all keys share.
    """

    constructors: tuple[str, ...]
    core: str
    rest: dict[str, Shape]
    n_keys: int
    convs: tuple[TracedConv, ...]


@dataclass(frozen=True)
class Recognised:
    """Architectures that a state dict meets; more than one where their graphs differ.

    `prefix` is what the keys of the state dict have in front of the architecture's.
    """

    architectures: tuple[Architecture, ...]
    prefix: str


def split(shapes: Mapping[str, Shape]) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """(core, rest): tensors of convolutions and BatchNorms, and the other ones that matter."""
    modules = {
        key.rpartition(".")[0]
        for key, shape in shapes.items()
        if len(shape) > 2 or key.rpartition(".")[2] in _STATISTICS
    }
    core: dict[str, Shape] = {}
    rest: dict[str, Shape] = {}
    for key, shape in shapes.items():
        module, _, name = key.rpartition(".")
        if name not in _CONSTANTS:
            (core if module in modules else rest)[key] = shape
    return core, rest


def digest(core: Mapping[str, Shape]) -> str:
    """Digest of keys and shapes, whatever their order."""
    lines = sorted(f"{key} {list(shape)}" for key, shape in core.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def shared_prefix(keys: Iterable[str]) -> str:
    """The longest dotted beginning that all keys share, e.g. `module.model.`; '' for none."""
    split_keys = [key.split(".")[:-1] for key in keys]
    shared: list[str] = []
    for parts in zip(*split_keys, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "".join(f"{part}." for part in shared)


def without_prefix(shapes: Mapping[str, Shape]) -> tuple[str, dict[str, Shape]]:
    """The prefix that all tensors of convolutions and BatchNorms share, and the shapes without it.

    Tensors outside the prefix (of a wrapper) keep their keys.
    """
    prefix = shared_prefix(split(shapes)[0])
    return prefix, {key.removeprefix(prefix): shape for key, shape in shapes.items()}


def recognise(shapes: Mapping[str, Shape]) -> Recognised | None:
    """The architecture(s) whose keys and shapes a state dict has; None where there is none."""
    prefix, bare = without_prefix(shapes)
    core, rest = split(bare)
    found = [a for a in _index().get(digest(core), ()) if _fits(rest, a)]
    return Recognised(tuple(found), prefix) if found else None


def _fits(rest: Mapping[str, Shape], architecture: Architecture) -> bool:
    return rest.keys() == architecture.rest.keys() and all(
        len(rest[key]) == len(shape)
        and all(n == expected or not expected for n, expected in zip(rest[key], shape, strict=True))
        for key, shape in architecture.rest.items()
    )


@cache
def _index() -> dict[str, list[Architecture]]:
    """The indexed architectures by the digest of their core."""
    packed = (files("builder") / "measure" / INDEX).read_bytes()
    by_core: dict[str, list[Architecture]] = {}
    for entry in json.loads(gzip.decompress(packed))["architectures"]:
        architecture = _from_json(entry)
        by_core.setdefault(architecture.core, []).append(architecture)
    return by_core


def indexed() -> list[Architecture]:
    """Every architecture that is recognised."""
    return [a for group in _index().values() for a in group]


def _from_json(entry: dict[str, Any]) -> Architecture:
    convs = []
    for row in entry["convs"]:
        row["kernel_size"] = tuple(row["kernel_size"])
        row["norms"] = tuple(Norm(**norm) for norm in row["norms"])
        convs.append(TracedConv(**row))
    return Architecture(
        tuple(entry["constructors"]),
        entry["core"],
        {key: tuple(shape) for key, shape in entry["rest"].items()},
        entry["n_keys"],
        tuple(convs),
    )
