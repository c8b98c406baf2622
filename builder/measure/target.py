"""Whatever a person points at: a module, a state dict, or the address of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from builder.cohort.registry import ModelSpec
from builder.compare.measurement import Measurement
from builder.errors import BuilderError, UsageError
from builder.files import PINS, cache_folder
from builder.measure.own import (
    Graph,
    graph_of,
    measure_graph,
    measure_module,
    measure_state,
    with_response,
)
from builder.measure.recognise import Recognised, recognise
from builder.network.plan import construct_on_meta, plan_network
from builder.sources import fetch as sources
from builder.sources.addresses import split_inside
from builder.sources.checkpoint import Checkpoint, read_checkpoint
from builder.sources.readings import StateDict, named, plain_key, top_ranked
from builder.sources.reparametrized import Computed, computed_weights
from builder.sources.state import FittedState
from builder.sources.stored import StoredTensor, Unreadable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from builder.progress import Report


def measure(
    target: nn.Module | Mapping[str, Tensor] | str | Path,
    *,
    constructor: str | None = None,
    dataset: str | None = None,
    image_size: int | None = None,
    name: str | None = None,
    layers: Sequence[str] | None = None,
    first_layer: bool = False,
    report: Report | None = None,
) -> Measurement:
    """Measure the 3x3 filters of one network, in both views of its weights.

    Args:
        target: a torch.nn.Module (on any device; left as it is), a state dict, or the address of a
            checkpoint as a cohort takes it: a path, a URL, `hf://ORG/REPO/PATH`, `timm:TAG`,
            `robustbench:DATASET/THREAT_MODEL/NAME`.
        constructor: what builds the architecture of a checkpoint, as in a cohort; without it the
            architecture is recognised by keys and shapes, or stays unknown. Of an address only.
        dataset: cifar10, cifar100 or imagenet, to compare on.
        image_size: height and width of the input of a module, in pixels; default: found by trying.
            Of a module only.
        name: what to call it.
        layers: patterns of layers to measure, e.g. ["layer4.*"]; default all.
        first_layer: measure the first layer's response to perturbations, too; not of a state dict,
            nor where the architecture is unknown.
        report: called with (name, "layers", done, total).

    Raises:
        UsageError: a wrong argument, or a file that is no checkpoint.
        NetworkError: a checkpoint that cannot be downloaded.
        BuilderError: a checkpoint of another architecture, or a forward pass that fails.
    """
    import torch

    given: dict[str, Any] = {"dataset": dataset, "layers": layers, "report": report}
    is_state, is_module = isinstance(target, Mapping), isinstance(target, torch.nn.Module)
    of = "a state dict" if is_state else "a module" if is_module else "a checkpoint"
    for argument, value, has_it in (
        ("constructor", constructor, not is_state and not is_module),
        ("image_size", image_size, is_module),
        ("first_layer", first_layer or None, not is_state),
    ):
        if value is not None and not has_it:
            raise UsageError(
                f"{argument} says nothing about {of}.",
                hint="load it into its module, and measure that." if is_state else "leave it out.",
            )
    if isinstance(target, Mapping):
        return measure_state(target, name=name or "state dict", **given)
    given |= {"name": name, "first_layer": first_layer}
    if isinstance(target, torch.nn.Module):
        return measure_module(target, image_size=image_size, **given)
    return measure_checkpoint(str(target), constructor=constructor, **given)


def measure_checkpoint(
    address: str,
    *,
    constructor: str | None = None,
    dataset: str | None = None,
    name: str | None = None,
    layers: Sequence[str] | None = None,
    first_layer: bool = False,
    report: Report | None = None,
) -> Measurement:
    """Measure the network in a checkpoint; arguments and errors as in `measure`."""
    kind, _, rest = address.partition(":")
    if kind == "robustbench" and constructor is None:
        constructor = address
    if kind == "timm" and constructor is None:
        constructor = f"timm:{rest.partition('.')[0]}"
    name = name or PurePosixPath(address.partition("#")[0].rstrip("/")).name
    spec = _Own(name, dataset or "cifar10", False, constructor or "", constructor or "", address)
    fetched = sources.fetch(
        spec,
        cache=cache_folder(),
        checkpoints=None,
        pins=cache_folder() / PINS,  # not those of a checkout, which are under version control
        report=report or (lambda subject, what, done, total: None),
        by_hand=False,
    )
    state: Mapping[str, Tensor]
    if constructor is not None:
        state = sources.load_state(spec, fetched, construct_on_meta(spec))
        graph = Graph(plan_network(constructor, spec.dataset).convs, constructor)
    else:
        if len(fetched.files) > 1:
            raise UsageError(
                f"{address} is an ensemble of {len(fetched.files)} files.",
                hint="name its architecture with --constructor.",
            )
        _, inside = split_inside(spec.checkpoint)
        state, graph = _recognised(read_checkpoint(fetched.files[0], inside=inside))
    measured = measure_graph(name, state, graph, dataset, layers, report)
    if not first_layer:
        return measured
    if graph.constructor is None:
        raise UsageError(
            f"the first-layer response of {name} needs its architecture, which is unknown.",
            hint="name it with --constructor.",
        )
    spec = replace(spec, constructor=graph.constructor)
    whole = sources.load_state(spec, fetched, construct_on_meta(spec))
    network = plan_network(graph.constructor, spec.dataset)
    model = sources.instantiate(spec, dict(whole))
    return with_response(measured, model, network.convs, network.image_size)


class _Own(ModelSpec):
    """A network that is in no cohort, and called as it is."""

    @property
    def model_id(self) -> str:
        return self.network


@dataclass(frozen=True)
class _Network:
    """One network in a checkpoint: what a user calls it, its tensors by plain key, and the
    architecture that these meet."""

    name: str
    weights: dict[str, StoredTensor | Computed]
    found: Recognised | None


def _recognised(checkpoint: Checkpoint) -> tuple[Mapping[str, Tensor], Graph]:
    """The weights of a checkpoint, and the graph of the architecture that their keys meet.

    Raises:
        BuilderError: no weights of a convolution, or several sets of them.
    """
    networks: list[_Network] = []
    for source in top_ranked(named(checkpoint)):
        for network in _networks(source):
            if all(network.weights != other.weights for other in networks):
                networks.append(network)
    met = [network for network in networks if network.found] or networks
    if not met:
        raise BuilderError(
            f"{checkpoint.name} holds no weights of a 2-d convolution: "
            "no named tensor of numbers has four dimensions.",
            hint="expected the checkpoint of a convolutional network.",
        )
    if len(met) > 1:
        raise BuilderError(
            f"{checkpoint.name} holds {len(met)} networks: {', '.join(n.name for n in met[:4])}.",
            hint=f"name the one that is meant behind the address, e.g. #{met[0].name}",
        )
    (network,) = met
    prefix = network.found.prefix if network.found else ""
    state = FittedState(
        {key.removeprefix(prefix): (checkpoint, w) for key, w in network.weights.items()}
    )
    return state, graph_of(network.found)


def _networks(source: StateDict) -> Iterator[_Network]:
    """The network that a state dict holds, or those below its first names where each is one."""
    tensors = {**source.tensors, **computed_weights(source.tensors)}
    whole = {plain_key(k): t for k, t in tensors.items() if not isinstance(t, Unreadable)}
    if not any(len(t.shape) == 4 for t in whole.values()):
        return
    found = recognise({key: t.shape for key, t in whole.items()})
    below: dict[str, dict[str, StoredTensor | Computed]] = {}
    for key, tensor in whole.items() if found is None else ():
        first, dot, rest = key.partition(".")
        below.setdefault(first, {})[rest if dot else key] = tensor
    parts = [
        _Network(".".join((*source.path, first)), part, met)
        for first, part in below.items()
        if (met := recognise({key: t.shape for key, t in part.items()}))
    ]
    yield from parts or [_Network(".".join(source.path) or "the top", whole, found)]
