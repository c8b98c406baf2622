"""Whatever a person points at: a module, a state dict, or the address of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.compare.measurement import Measurement
from builder.measure.own import measure_module, measure_state

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
        report: called with (name, "layers", done, total).

    Raises:
        UsageError: a wrong argument, or a file that is no checkpoint.
        NetworkError: a checkpoint that cannot be downloaded.
        BuilderError: a checkpoint of another architecture, or a forward pass that fails.
    """
    import torch

    if isinstance(target, torch.nn.Module):
        return measure_module(
            target,
            image_size=image_size,
            dataset=dataset,
            name=name,
            layers=layers,
            report=report,
        )
    given: dict[str, Any] = {"dataset": dataset, "layers": layers, "report": report}
    if isinstance(target, Mapping):
        return measure_state(target, name=name or "state dict", **given)
    raise NotImplementedError
