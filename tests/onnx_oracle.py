"""Oracle: 3x3 filters and depth ranks as the paper read them, from an evaluation-mode ONNX export.

The legacy exporter folds BatchNorm into convolutions; the graph it writes is parsed here with the
onnx package alone, by code that shares nothing with builder.trace.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.numpy_helper
import torch
from torch import nn


@dataclass(frozen=True)
class OnnxConv:
    weight: np.ndarray
    depth: int  # rank among the distinct depths of all convolutions
    n_depths: int


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Random weights and random BatchNorm statistics, some of them negative or zero scales."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.normal_(0, 0.1, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.data.normal_(1, 0.5, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.1, 2, generator=generator)
            module.weight.data[0] = 0
    return model.eval()


def read_onnx(model: nn.Module, image_size: int) -> list[OnnxConv]:
    """Every convolution of the exported graph in its order."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, torch.zeros(1, 3, image_size, image_size), buffer, dynamo=False, verbose=False
        )
    graph = onnx.load_from_string(buffer.getvalue()).graph
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    depth = {graph.input[0].name: 0}
    found = []
    for node in graph.node:
        known = [depth[name] for name in node.input if name in depth]
        if not known:
            continue
        for name in node.output:
            depth[name] = 1 + max(known)
        if node.op_type == "Conv":
            found.append((weights[node.input[1]], depth[node.output[0]]))
    ranks = {d: i for i, d in enumerate(sorted({d for _, d in found}))}
    return [OnnxConv(w, ranks[d], len(ranks)) for w, d in found]
