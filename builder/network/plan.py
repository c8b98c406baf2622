"""What a build would do: every architecture built and traced without weights, no download."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from builder import schema
from builder.cohort.registry import Cohort, ModelSpec
from builder.errors import BuilderError
from builder.network.trace import ForwardError, TracedConv, trace_all
from builder.progress import Report
from builder.sources import constructors
from builder.sources import fetch as sources

if TYPE_CHECKING:
    from torch import nn

COEFFICIENT_BYTES = 36
"""Bytes of one filter's nine float32 coefficients, before compression."""


_MOST = 2 ** (schema.FILTERS.arrow.field("out_channel").type.bit_width - 1) - 1
"""Largest number of channels and of layers: what the columns of `filters` can count."""


Graph = tuple[Any, ...]


@dataclass(frozen=True)
class Network:
    """What a constructor makes for the images of a data set."""

    convs: tuple[TracedConv, ...]
    n_params: int
    image_size: int  # height and width of the images, in pixels
    activations: frozenset[str]

    @property
    def graph(self) -> Graph:
        """What two networks share whose filters are compared, whatever their modules are called:
        depth and shapes of every convolution in order, where BatchNorm folds, the activations."""
        return (
            *((c.conv_depth, c.out_channels, c.in_channels, c.kernel_size, c.groups, c.stride,
               c.bn_layer is not None) for c in self.convs),
            *sorted(self.activations),
        )  # fmt: skip


@dataclass(frozen=True)
class PlannedModel(Network):
    """One model of a cohort and its source, as a network."""

    spec: ModelSpec
    source: sources.Source

    @property
    def layers(self) -> list[TracedConv]:
        """The 3x3 layers; the position in the list is the layer_index."""
        return [c for c in self.convs if c.is_3x3]

    @property
    def n_filters(self) -> int:
        return sum(c.n_filters for c in self.layers)


@dataclass(frozen=True)
class Plan:
    """The models of a cohort that can be built, in its order, and why others cannot."""

    cohort: Cohort
    models: tuple[PlannedModel, ...]
    failures: dict[str, BuilderError]  # by model_id


def construct_on_meta(spec: ModelSpec) -> nn.Module:
    """The network of `spec` in evaluation mode, without memory where its constructor allows."""
    return constructors.construct_on_meta(spec.constructor)


def plan_network(constructor: str, dataset: str) -> Network:
    """Construct and trace a network.

    One that does not run without memory is run on the CPU, with the constructor's weights.

    Raises:
        BuilderError: the constructor or the forward pass fails, there is no 3x3 convolution, or
            the network is larger than a release can say.
    """
    model = constructors.construct_on_meta(constructor)
    size = constructors.image_size(constructor, model, dataset)
    n_params = sum(p.numel() for p in model.parameters())
    try:
        convs, activations = trace_all(model, size)
    except ForwardError:
        if not any(p.is_meta for p in model.parameters()):
            raise
        convs, activations = trace_all(constructors.construct(constructor), size)
    n_layers = sum(c.is_3x3 for c in convs)
    if not n_layers:
        raise BuilderError(f"{constructor} runs no 3x3 convolution.")
    if n_layers > _MOST:
        raise BuilderError(
            f"{constructor} has {n_layers:,} 3x3 layers; expected at most {_MOST:,}."
        )
    for conv in convs:
        widest = max(conv.out_channels, conv.in_channels)
        if (conv.is_3x3 or conv.conv_depth == 0) and widest > _MOST:
            raise BuilderError(
                f"layer {conv.layer} of {constructor} has {widest:,} channels; expected at most "
                f"{_MOST:,}, which the columns of a release can count."
            )
    return Network(tuple(convs), n_params, size, activations)


def make_plan(cohort: Cohort, report: Report) -> Plan:
    """Plan every model of a cohort; a network is traced once, however that ends."""
    models: list[PlannedModel] = []
    failures: dict[str, BuilderError] = {}
    networks: dict[tuple[str, str], Network | BuilderError] = {}
    for done, spec in enumerate(cohort.models, start=1):
        key = spec.constructor, spec.dataset
        try:
            if key not in networks:
                networks[key] = plan_network(*key)
        except BuilderError as e:
            networks[key] = e
        network = networks[key]
        try:
            if isinstance(network, BuilderError):
                raise network
            models.append(PlannedModel(**vars(network), spec=spec, source=sources.describe(spec)))
        except BuilderError as e:
            failures[spec.model_id] = e
        report("plan", "tracing", done, len(cohort.models))
    return Plan(cohort, tuple(models), failures)


def layer_graph(conv: TracedConv) -> dict[str, Any]:
    """The columns of `layers` that need no weights (`schema.LAYER_GRAPH`)."""
    return {column.name: getattr(conv, column.name) for column in schema.LAYER_GRAPH}


def plan_json(plan: Plan, layers: bool) -> dict[str, Any]:
    """The plan as one object: `models`, `failures`, `left_out`, `totals`; `layers` if asked for."""
    models = [
        {
            "model_id": p.spec.model_id,
            **{f: getattr(p.spec, f) for f in ("network", "dataset", "robust", "threat_model")},
            "architecture": p.spec.architecture,
            "source": p.source.kind,
            "source_url": p.source.url,
            "n_params": p.n_params,
            "n_layers": len(p.layers),
            "n_filters": p.n_filters,
            "bytes": p.n_filters * COEFFICIENT_BYTES,
        }
        for p in plan.models
    ]
    groups: dict[tuple[str, bool], list[dict[str, Any]]] = defaultdict(list)
    threats: dict[tuple[str, str | None], list[dict[str, Any]]] = defaultdict(list)
    for m in models:
        groups[m["dataset"], m["robust"]].append(m)
        if m["robust"]:
            threats[m["dataset"], m["threat_model"]].append(m)
    counts = ("n_layers", "n_filters", "bytes")
    found: dict[str, Any] = {
        "cohort": plan.cohort.name,
        "models": models,
        "failures": [{"model_id": m, "reason": str(e)} for m, e in plan.failures.items()],
        "left_out": [asdict(m) for m in plan.cohort.left_out],
        "totals": {
            "n_models": len(models),
            "n_pairs": len(plan.cohort.pairs),
            "n_architectures": len({m["architecture"] for m in models}),
            **{c: sum(m[c] for m in models) for c in counts},
            "by_dataset": [
                {
                    "dataset": dataset,
                    "robust": robust,
                    "n_models": len(group),
                    **{c: sum(m[c] for m in group) for c in counts},
                }
                for (dataset, robust), group in groups.items()
            ],
            "by_threat_model": [
                {
                    "dataset": dataset,
                    "threat_model": threat_model,
                    "n_models": len(group),
                    "n_pairs": sum(
                        r.dataset == dataset and r.threat_model == threat_model
                        for r, _ in plan.cohort.pairs
                    ),
                    **{c: sum(m[c] for m in group) for c in counts},
                }
                for (dataset, threat_model), group in threats.items()
            ],
        },
    }
    if layers:
        found["layers"] = [
            {
                "dataset": p.spec.dataset,
                "model_id": p.spec.model_id,
                "layer_index": index,
                "layer": conv.layer,
                **layer_graph(conv),
            }
            for p in plan.models
            for index, conv in enumerate(p.layers)
        ]
    return found
