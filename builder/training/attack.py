"""The attacks that networks are trained against and evaluated under, and accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from builder.first_layer.pgd import ascend


@dataclass(frozen=True)
class Attack:
    """Linf PGD from a uniform random start; `eps` and `step_size` in units of the [0, 1] image."""

    eps: float
    step_size: float
    steps: int


PGD20 = Attack(eps=8 / 255, step_size=2 / 255, steps=20)
"""What the cards' `pgd20_acc` is measured with."""


def autocast(device: torch.device, enabled: bool) -> torch.autocast:
    """bfloat16 autocast on the device, or none."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def perturb(
    model: nn.Module, x: Tensor, y: Tensor, attack: Attack, *, bf16: bool = False
) -> Tensor:
    """Adversarial images for x, float (n, 3, h, w) in [0, 1]; labels y, int64 (n,).

    The model stays in the mode it is in; gradients reach the images only, not the parameters.
    The random start comes from torch's global generator.
    """
    start = (x + torch.empty_like(x).uniform_(-attack.eps, attack.eps)).clamp(0, 1)

    def forward(images: Tensor) -> Tensor:
        with autocast(images.device, bf16):
            logits: Tensor = model(images)
        return logits.float()

    return ascend(
        forward, x, y, start, eps=attack.eps, step_size=attack.step_size, steps=attack.steps
    )


def accuracy(
    model: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    *,
    attack: Attack | None = None,
    batch_size: int = 250,
    seed: int = 0,
) -> float:
    """Percent classified correctly, in float32 and eval mode (the mode is restored).

    Args:
        pixels: uint8 (n, 3, h, w), on the model's device.
        labels: int64 (n,).
        attack: evaluated on its last iterate; None: the images as they are.
    """
    was_training = model.training
    model.eval()
    torch.manual_seed(seed)
    correct = 0
    for start in range(0, len(labels), batch_size):
        x = as_input(pixels[start : start + batch_size])
        y = labels[start : start + batch_size]
        if attack is not None:
            x = perturb(model, x, y, attack)
        with torch.no_grad():
            correct += int((model(x).argmax(1) == y).sum())
    model.train(was_training)
    return 100 * correct / len(labels) if len(labels) else math.nan


def as_input(pixels: Tensor) -> Tensor:
    """uint8 (n, 3, h, w) to float32 in [0, 1], channels last (what bf16 convolutions want)."""
    return (pixels.float() / 255).contiguous(memory_format=torch.channels_last)
