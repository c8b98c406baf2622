"""What a build would do: every architecture built and traced on the meta device, no download."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from builder import schema
from builder.cohort.registry import IMAGE_SIZE, Cohort, ModelSpec
from builder.errors import BuilderError
from builder.network.trace import TracedConv, trace
from builder.sources import fetch as sources

if TYPE_CHECKING:
    from torch import nn

COEFFICIENT_BYTES = 36
"""Bytes of one filter's nine float32 coefficients, before compression."""


@dataclass(frozen=True)
class PlannedModel:
    """One model of a cohort, its executed convolutions and its source."""

    spec: ModelSpec
    convs: tuple[TracedConv, ...]
    n_params: int
    source: sources.Source

    @property
    def layers(self) -> list[TracedConv]:
        """The 3x3 layers; the position in the list is the layer_index."""
        return [c for c in self.convs if c.is_3x3]

    @property
    def n_filters(self) -> int:
        return sum(c.n_filters for c in self.layers)


def construct_on_meta(spec: ModelSpec) -> nn.Module:
    """The network of `spec` without memory: parameters on the meta device, evaluation mode."""
    import torch

    with torch.device("meta"):
        model: nn.Module = sources.construct(spec.constructor)
    return model.eval()


def iter_plan(cohort: Cohort) -> Iterator[PlannedModel]:
    """Plan the models of a cohort in its order; an architecture is traced once.

    Raises:
        BuilderError: a constructor fails, or its network has no 3x3 convolution.
    """
    traced: dict[tuple[str, int], tuple[tuple[TracedConv, ...], int]] = {}
    for spec in cohort.models:
        key = (spec.constructor, IMAGE_SIZE[spec.dataset])
        if key not in traced:
            model = construct_on_meta(spec)
            convs = tuple(trace(model, key[1]))
            traced[key] = convs, sum(p.numel() for p in model.parameters())
        planned = PlannedModel(spec, *traced[key], sources.describe(spec))
        if not planned.layers:
            raise BuilderError(f"{spec.model_id}: {spec.architecture} runs no 3x3 convolution.")
        yield planned


def layer_graph(conv: TracedConv) -> dict[str, Any]:
    """The columns of `layers` that need no weights (`schema.LAYER_GRAPH`)."""
    return {column.name: getattr(conv, column.name) for column in schema.LAYER_GRAPH}


def plan_json(cohort: Cohort, planned: list[PlannedModel], layers: bool) -> dict[str, Any]:
    """The plan as one object: `models`, `totals`, and `layers` if asked for."""
    models = [
        {
            "model_id": p.spec.model_id,
            **{f: getattr(p.spec, f) for f in ("network", "dataset", "robust", "architecture")},
            "source": p.source.kind,
            "source_url": p.source.url,
            "n_params": p.n_params,
            "n_layers": len(p.layers),
            "n_filters": p.n_filters,
            "bytes": p.n_filters * COEFFICIENT_BYTES,
        }
        for p in planned
    ]
    groups: dict[tuple[str, bool], list[dict[str, Any]]] = defaultdict(list)
    for m in models:
        groups[m["dataset"], m["robust"]].append(m)
    counts = ("n_layers", "n_filters", "bytes")
    plan: dict[str, Any] = {
        "cohort": cohort.name,
        "models": models,
        "totals": {
            "n_models": len(models),
            "n_pairs": len(cohort.pairs),
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
        },
    }
    if layers:
        plan["layers"] = [
            {
                "dataset": p.spec.dataset,
                "model_id": p.spec.model_id,
                "layer_index": index,
                "layer": conv.layer,
                **layer_graph(conv),
            }
            for p in planned
            for index, conv in enumerate(p.layers)
        ]
    return plan
