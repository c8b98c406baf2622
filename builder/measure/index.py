"""Make the index of architectures: `python -m builder.measure.index [FILE]` writes it anew.

Every network is built and traced on the meta device; nothing is downloaded. One that cannot be
built so, or runs no 3x3 convolution, is left out and named.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.cohort.registry import load_cohort
from builder.errors import BuilderError
from builder.files import write_atomic
from builder.measure.recognise import INDEX, digest, split, without_prefix
from builder.network.plan import plan_network
from builder.network.trace import Norm, TracedConv
from builder.sources.compat import import_torchvision
from builder.sources.constructors import construct_on_meta

if TYPE_CHECKING:
    from torch import nn

OWN = (
    *(f"builder.networks:cifar_resnet{depth}" for depth in (20, 32, 44, 56, 110)),
    "builder.networks:autoattack_example",
    "builder.networks:resnet18_w32",
    "builder.networks:preact_resnet18_w16",
    "builder.networks:wide_resnet_10_2",
)
TIMM = re.compile(
    r"resnet\d+[dst]?|wide_resnet\d+_2|resnext\d+_\d+x\d+d|seresnet\d+|vgg\d+(_bn)?|densenet\d+"
    r"|mobilenetv2_\d+"
)
"""Names of timm's plain convolutional networks. Not those that only filter between the layers of
one of these (resnetblur, resnetaa): they share its keys and shapes, and are rarely meant."""


def constructors() -> Iterator[tuple[str, str]]:
    """(constructor, data set), the plainest name of an architecture first."""
    for name in OWN:
        yield name, "cifar10"
    for name in import_torchvision().models.list_models(module=import_torchvision().models):
        yield f"torchvision:{name}", "imagenet"
    import timm

    for name in timm.list_models():
        if TIMM.fullmatch(name):
            yield f"timm:{name}", "imagenet"
    for model in load_cohort("paper").models:
        yield model.constructor, model.dataset


def entry(constructor: str, dataset: str) -> dict[str, Any]:
    """The index's entry of one architecture.

    Raises:
        BuilderError: it cannot be built or traced, or runs no 3x3 convolution.
    """
    convs = plan_network(constructor, dataset).convs
    prefix, shapes = without_prefix(_essential(construct_on_meta(constructor)))
    core, rest = split(shapes)
    head = next((k for k in reversed(rest) if len(rest[k]) == 2), None)
    if head is not None:  # any number of classes
        for key in {head, head.removesuffix("weight") + "bias"} & rest.keys():
            rest[key] = (0, *rest[key][1:])
    return {
        "constructors": [constructor],
        "core": digest(core),
        "rest": rest,
        "n_keys": len(core) + len(rest),
        "convs": [asdict(_bare(conv, prefix)) for conv in convs],
    }


def _essential(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters, under each of their names, and of the BatchNorms' statistics."""
    parameters = {id(p) for p in model.parameters()}
    return {
        key: tuple(tensor.shape)
        for key, tensor in model.state_dict(keep_vars=True).items()
        if id(tensor) in parameters or key.rpartition(".")[2] in ("running_mean", "running_var")
    }


def _bare(conv: TracedConv, prefix: str) -> TracedConv:
    """A convolution named without the prefix that all keys share."""

    def bare(what: Norm | TracedConv) -> dict[str, Any]:
        texts = {k: v for k, v in vars(what).items() if isinstance(v, str)}
        return {k: v.removeprefix(prefix) for k, v in texts.items()}

    norms = tuple(replace(norm, **bare(norm)) for norm in conv.norms)
    return replace(conv, **bare(conv), norms=norms)


def make_index() -> dict[str, Any]:
    """The whole index: architectures, and the networks that were left out with the reason."""
    entries: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    for constructor, dataset in constructors():
        try:
            made = entry(constructor, dataset)
        except BuilderError as e:
            left_out[constructor] = str(e)
            continue
        same = json.dumps({**made, "constructors": None}, sort_keys=True)
        kept = entries.setdefault(same, made)
        if constructor not in kept["constructors"]:
            kept["constructors"].append(constructor)
    return {"architectures": list(entries.values()), "left_out": left_out}


def main() -> None:
    """Write the index, and say what is in it."""
    target = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / INDEX
    index = make_index()
    text = json.dumps(index, separators=(",", ":"))
    write_atomic(target, gzip.compress(text.encode(), mtime=0))
    for name, reason in index["left_out"].items():
        sys.stderr.write(f"left out {name}: {' '.join(reason.split())[:120]}\n")
    n = sum(len(a["constructors"]) for a in index["architectures"])
    sys.stderr.write(f"{target}: {len(index['architectures'])} architectures of {n} networks\n")


if __name__ == "__main__":
    main()
