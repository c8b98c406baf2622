"""Projected gradient ascent in the Linf ball (Madry et al., 2018): the one attack used here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def ascend(
    forward: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    start: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
) -> Tensor:
    """Ascend the cross-entropy against `labels` from `start`; gradients reach the images only.

    Args:
        forward: images in [0, 1] -> logits (n, k), k > 1.
        x: clean images, floating point (n, 3, h, w) in [0, 1].
        labels: int64 (n,).
        start: first iterate, of the shape of x; inside [0, 1] and the ball.
        eps: Linf radius, in units of the [0, 1] image.
        step_size: of one signed step, in the same units.
        steps: number of gradient steps.

    Returns:
        The last iterate, inside [0, 1] and the ball.

    Raises:
        ValueError: the logits have no gradient with respect to the images.
    """
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    adversarial = start
    for _ in range(steps):
        adversarial = adversarial.detach().requires_grad_()
        with torch.enable_grad():
            logits = forward(adversarial)
            own = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
            # Cross-entropy is softplus of this margin: the sign of the gradient is the same, but
            # it does not vanish in float32 where the model is very sure. A sum, so that an
            # image's gradient does not depend on its batch.
            margin = logits.masked_fill(own, -torch.inf).logsumexp(1).sum() - logits[own].sum()
        if not margin.requires_grad:
            raise ValueError("the output has no gradient with respect to the image")
        (gradient,) = torch.autograd.grad(margin, adversarial)
        adversarial = adversarial.detach() + step_size * gradient.sign()
        adversarial = torch.minimum(torch.maximum(adversarial, low), high)
    return adversarial
