"""Response of the first layer to small perturbations: the paper's third finding as numbers.

The paper shows pictures: in a robust model the first convolution, with the activation behind it,
removes small perturbations. Here f is the output of a first convolution after its BatchNorm,
g = act(f) that of the activation behind it (capture.py says which they are), x a natural
image in [0, 1], and d a perturbation with |d| <= eps everywhere; x + d is clipped to [0, 1], and d
is what is left of it. df = f(x + d) - f(x), and dg likewise. For channel c, with E and Var over
all images and positions (for x and d summed over the three colours):

    input           = sqrt(E d^2 / Var x)
    response_pre    = sqrt(E df_c^2 / Var f_c) / input
    response_post   = sqrt(E dg_c^2 / Var g_c) / input
    activation_pass = sqrt(E dg_c^2 / E df_c^2)

The row of the whole layer (out_channel null) has the sums over its channels of E df_c^2, Var f_c,
E dg_c^2 and Var g_c in their place.

Why relative to the variance: BatchNorm gives a channel any scale, which the next layer may undo,
so df alone means nothing. A response of 1 says that, measured against natural image content, the
perturbation is as large behind the layer as in the image: it passes as the content does. An
identity has 1. Below 1 the layer suppresses it (a blur suppresses random signs), above 1 it
amplifies it (natural images have little energy where an edge filter looks, perturbations have
more). activation_pass is the share of the change that the activation lets through: 1 for none,
for a ReLU about the root of the share of active positions, 0 where every change is switched off.

Perturbations: `random`, a sign +eps or -eps per pixel and colour; `pgd`, projected gradient ascent
of the model's cross-entropy against its own clean prediction (so no labels are needed), from a
uniform random start, with steps of 2.5 eps / steps.

Limits. The photographs are few (photographs.py): enough for means over the positions of a
channel, no sample of CIFAR or ImageNet. Images enter as they are, in [0, 1], as RobustBench
evaluates; only timm's models, which carry the mean and deviation they expect, get those. A channel
that a ReLU leaves almost constant has a tiny Var g and a huge response_post, so read channels
beside the layer's row; that row weighs each channel by the energy BatchNorm gives it. Values are
null where a denominator is 0 (a dead or constant channel) or the result is not finite (NaN
weights). PGD amplifies rounding, which differs between processors: one part in 10^6 added to all
weights of three trained networks moved `random` by up to 4e-6, and `pgd` by up to 9e-3 in a channel
and 4e-4 in the layer's row; expect as much between a CPU and a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from math import fsum, isfinite, sqrt
from typing import TYPE_CHECKING, Any, TypeAlias

from builder.errors import BuilderError, UsageError
from builder.first_layer.capture import Features, first_features
from builder.first_layer.photographs import natural_images
from builder.sources.constructors import FAILURES

if TYPE_CHECKING:
    from torch import Tensor, nn

    Forward: TypeAlias = Callable[[Tensor], Tensor]

N_IMAGES = 16
STEPS = 5
BATCH = 4
"""Images in one forward pass: bounds the memory that gradients need."""


def measure_response(
    model: nn.Module,
    *,
    eps: float,
    image_size: int,
    seed: int = 0,
    n_images: int = N_IMAGES,
    steps: int = STEPS,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Rows of `schema.FIRST_LAYER`, less dataset and model_id: the module's text says of what.

    Args:
        model: takes images in [0, 1] and returns logits (n, n_classes). It is moved to `device`
            and left there in evaluation mode, in float32, its parameters without gradients.
        eps: Linf radius in units of the [0, 1] image.
        image_size: height and width of the input, in pixels.
        seed: of the random signs and of PGD's random start; both are drawn on the CPU.
        n_images: photographs at most (there are 9 of 224 x 224); rows say how many there were.
        steps: gradient steps of PGD, each a forward and a backward pass.

    Returns:
        Per first convolution and perturbation (random, pgd): its channels, then the whole layer.

    Raises:
        UsageError: a wrong argument.
        BuilderError: the forward pass fails, returns no logits, or runs no convolution.
    """
    import torch

    if not eps > 0 or steps < 1:
        raise UsageError(f"eps is {eps} and steps {steps}; expected both positive.")
    images = torch.from_numpy(natural_images(image_size, n_images))
    model.to(device, torch.float32).eval().requires_grad_(False)
    try:
        # TF32 would make a GPU disagree with a CPU in the third digit.
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            inputs, features = _perturb_and_run(model, images, eps, seed, steps, device)
    except FAILURES as e:
        raise BuilderError(
            f"the forward pass of {type(model).__name__} fails on images of "
            f"{image_size} x {image_size}: {type(e).__name__}: {e}",
            hint="expected a network that maps (n, 3, h, w) images in [0, 1] to (n, k) logits.",
        ) from e
    facts = {"eps": eps, "n_images": len(images)}
    return [
        {"layer": layer, "perturbation": perturbation, **row, **facts}
        for layer in features["clean"]
        for perturbation in ("random", "pgd")
        for row in responses(
            (inputs["clean"], inputs[perturbation]),
            (features["clean"][layer][0], features[perturbation][layer][0]),
            (features["clean"][layer][1], features[perturbation][layer][1]),
        )
    ]


def _perturb_and_run(
    model: nn.Module, images: Tensor, eps: float, seed: int, steps: int, device: str
) -> tuple[dict[str, Tensor], dict[str, Features]]:
    """Inputs and first-layer features of the images, `clean`, `random` and `pgd`, on the CPU."""
    import torch

    from builder.first_layer.pgd import ascend

    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, images.shape, generator=generator) * 2.0 - 1
    starts = torch.rand(images.shape, generator=generator) * 2 - 1
    forward = _forward(model)
    inputs: dict[str, list[Tensor]] = {"clean": [], "random": [], "pgd": []}
    features: dict[str, list[Features]] = {kind: [] for kind in inputs}
    for i in range(0, len(images), BATCH):
        x, sign, start = (t[i : i + BATCH].to(device) for t in (images, signs, starts))
        clean, logits = first_features(model, forward, x)
        if not isinstance(logits, torch.Tensor):
            raise ValueError(f"expected logits (n, k), k > 1, found {type(logits).__name__}")
        if logits.dim() != 2 or logits.shape[1] < 2:
            raise ValueError(f"expected logits (n, k), k > 1, found {tuple(logits.shape)}")
        random = (x + eps * sign).clamp(0, 1)
        start = (x + eps * start).clamp(0, 1)
        pgd = ascend(
            forward, x, logits.argmax(1), start, eps=eps, step_size=2.5 * eps / steps, steps=steps
        )
        for kind, batch, found in (
            ("clean", x, clean),
            ("random", random, first_features(model, forward, random)[0]),
            ("pgd", pgd, first_features(model, forward, pgd)[0]),
        ):
            inputs[kind].append(batch.cpu())
            features[kind].append({k: (pre.cpu(), post.cpu()) for k, (pre, post) in found.items()})
    return (
        {kind: torch.cat(batches) for kind, batches in inputs.items()},
        {
            kind: {
                layer: (
                    torch.cat([f[layer][0] for f in batches]),
                    torch.cat([f[layer][1] for f in batches]),
                )
                for layer in batches[0]
            }
            for kind, batches in features.items()
        },
    )


def _forward(model: nn.Module) -> Forward:
    """The model on images in [0, 1]: timm's models say which normalisation they expect."""
    import torch

    expected = getattr(model, "pretrained_cfg", None)
    if not isinstance(expected, dict) or not {"mean", "std"} <= expected.keys():
        return model
    device = next(model.parameters()).device
    mean, std = (
        torch.tensor(expected[k], device=device).view(1, -1, 1, 1) for k in ("mean", "std")
    )
    return lambda x: model((x - mean) / std)


def responses(
    x: tuple[Tensor, Tensor], f: tuple[Tensor, Tensor], g: tuple[Tensor, Tensor]
) -> list[dict[str, Any]]:
    """Responses per channel, then of the layer. Each pair is (clean, perturbed), (n, c, h, w)."""
    change_x, spread_x = (float(t.sum()) for t in _energies(*x))
    change_f, spread_f = (t.tolist() for t in _energies(*f))
    change_g, spread_g = (t.tolist() for t in _energies(*g))
    per_input = spread_x / change_x if change_x > 0 else float("nan")

    def row(channel: int | None, df: float, vf: float, dg: float, vg: float) -> dict[str, Any]:
        return {
            "out_channel": channel,
            "response_pre": _root(df * per_input, vf),
            "response_post": _root(dg * per_input, vg),
            "activation_pass": _root(dg, df),
        }

    channels = zip(change_f, spread_f, change_g, spread_g, strict=True)
    rows = [row(c, *energies) for c, energies in enumerate(channels)]
    return [*rows, row(None, *map(fsum, (change_f, spread_f, change_g, spread_g)))]


def _energies(clean: Tensor, perturbed: Tensor) -> tuple[Tensor, Tensor]:
    """Per channel, in float64: mean square of the change, and variance of the clean values."""
    clean = clean.double()
    change = (perturbed.double() - clean).square().mean((0, 2, 3))
    return change, clean.var((0, 2, 3), correction=0)


def _root(numerator: float, denominator: float) -> float | None:
    """sqrt(numerator / denominator), or None where it is undefined or not finite."""
    ratio = numerator / denominator if denominator > 0 else float("nan")
    return sqrt(ratio) if isfinite(ratio) else None
