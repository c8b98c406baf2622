"""Whatever a person points at: a module, a state dict, or the address of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from builder.cohort.registry import IMAGE_SIZE, ModelSpec
from builder.compare.measurement import Measurement
from builder.errors import BuilderError, UsageError
from builder.files import cache_folder, pins_file
from builder.measure.own import (
    Graph,
    graph_of,
    measure_graph,
    measure_module,
    measure_state,
    with_response,
)
from builder.measure.recognise import Recognised, recognise
from builder.network.plan import construct_on_meta
from builder.network.trace import trace
from builder.sources import fetch as sources
from builder.sources.checkpoint import Checkpoint, read_checkpoint
from builder.sources.state import state_dicts

if TYPE_CHECKING:
    from torch import Tensor, nn

    from builder.progress import Report
    from builder.sources.unpickle import StoredTensor


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
            architecture is recognised by keys and shapes, or stays unknown.
        dataset: cifar10, cifar100 or imagenet, to compare on.
        image_size: height and width of the input of a module, in pixels; default: found by trying.
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
    spec = ModelSpec(
        name, dataset or "cifar10", False, constructor or "", constructor or "", address
    )
    fetched = sources.fetch(
        spec,
        cache=cache_folder(),
        checkpoints=None,
        pins=pins_file(),
        report=report or (lambda subject, what, done, total: None),
    )
    state: Mapping[str, Tensor]
    if constructor is not None:
        model = construct_on_meta(spec)
        state = sources.load_state(spec, fetched, model)
        graph = Graph(tuple(trace(model, IMAGE_SIZE[spec.dataset])), constructor)
    else:
        if len(fetched.files) > 1:
            raise UsageError(
                f"{address} is an ensemble of {len(fetched.files)} files.",
                hint="name its architecture with --constructor.",
            )
        state, graph = _recognised(read_checkpoint(fetched.files[0]))
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
    model = sources.instantiate(spec, dict(whole))
    return with_response(measured, model, IMAGE_SIZE[spec.dataset])


@dataclass(frozen=True)
class _Reading:
    """A state dict in a checkpoint: where it lies, its tensors by key, and what it was met by."""

    path: tuple[str, ...]
    tensors: dict[str, StoredTensor]
    found: Recognised | None


def _recognised(checkpoint: Checkpoint) -> tuple[Mapping[str, Tensor], Graph]:
    """The weights of a checkpoint, and the graph of the architecture that their keys meet.

    Raises:
        BuilderError: no weights of a convolution, or several sets of them.
    """
    readings = list(_readings(checkpoint))
    met = [reading for reading in readings if reading.found] or readings
    if not met:
        raise BuilderError(
            f"{checkpoint.name} holds no weights of a 2-d convolution: "
            "no named tensor has four dimensions.",
            hint="expected the checkpoint of a convolutional network.",
        )
    if len(met) > 1:
        where = ", ".join(".".join(reading.path) or "the top" for reading in met[:4])
        raise BuilderError(
            f"{checkpoint.name} holds {len(met)} sets of weights, under {where}.",
            hint=f"name the one that is meant, e.g. FILE#{'.'.join(met[0].path)}",
        )
    (reading,) = met
    prefix = reading.found.prefix if reading.found else ""
    state = _Stored(checkpoint, {k.removeprefix(prefix): t for k, t in reading.tensors.items()})
    return state, graph_of(reading.found)


def _readings(checkpoint: Checkpoint) -> Iterator[_Reading]:
    """Every dictionary of a checkpoint that holds weights of convolutions, each set once."""
    seen: set[frozenset[int]] = set()
    for path, tensors in state_dicts(checkpoint.tree):
        kernels = frozenset(id(t) for t in tensors.values() if len(t.shape) == 4)
        if kernels and kernels not in seen:
            seen.add(kernels)
            yield _Reading(path, tensors, recognise({k: t.shape for k, t in tensors.items()}))


class _Stored(Mapping[str, "Tensor"]):
    """Tensors that stay in their file until asked for."""

    def __init__(self, checkpoint: Checkpoint, tensors: dict[str, StoredTensor]) -> None:
        self._checkpoint = checkpoint
        self._tensors = tensors

    def __getitem__(self, key: str) -> Tensor:
        return self._checkpoint.load(self._tensors[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
