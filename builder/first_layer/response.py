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
weights). What cannot be measured at all is null with a reason: a forward pass that fails or is
random, an attack without logits or without a gradient. PGD amplifies rounding, which differs
between processors: one part in 10^6 added to all weights of three trained networks moved `random`
by up to 4e-6, and `pgd` by up to 9e-3 in a channel and 4e-4 in the layer's row; expect as much
between a CPU and a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import fsum, isfinite, sqrt
from typing import TYPE_CHECKING, Any, TypeAlias

from builder.errors import BuilderError, UsageError
from builder.first_layer.capture import Features, first_features
from builder.first_layer.photographs import natural_images
from builder.sources.guest import blamed, tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

    Forward: TypeAlias = Callable[[Tensor], Any]

N_IMAGES = 16
STEPS = 5
BATCH = 4
"""Images in one forward pass: bounds the memory that gradients need."""


def measure_response(
    model: nn.Module,
    *,
    layers: Sequence[str],
    eps: float,
    image_size: int,
    n_classes: int = 10,
    seed: int = 0,
    n_images: int = N_IMAGES,
    steps: int = STEPS,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Rows of `schema.FIRST_LAYER`, less dataset and model_id: the module's text says of what.

    Args:
        model: takes images in [0, 1] and returns logits (n, n_classes), alone or among other
            tensors. It is moved to `device` and left there in evaluation mode, in float32 (in
            float64 if it has that), its parameters without gradients.
        layers: names of its first convolutions (see `schema.layer_name`).
        eps: Linf radius in units of the [0, 1] image.
        image_size: height and width of the input, in pixels.
        n_classes: tells the logits among several outputs.
        seed: of the random signs and of PGD's random start; both are drawn on the CPU.
        n_images: photographs at most (there are 9 of 224 x 224); rows say how many there were.
        steps: gradient steps of PGD, each a forward and a backward pass.

    Returns:
        Per first convolution and perturbation (random, pgd): its channels, then the whole layer.
        What cannot be measured has one row per layer, of nulls and a `reason`.

    Raises:
        UsageError: a wrong argument.
        BuilderError: the memory does not suffice.
    """
    import torch

    if not eps > 0 or steps < 1 or n_images < 1:
        raise UsageError(f"eps {eps}, steps {steps}, n_images {n_images}: expected positive ones.")
    measuring = partial(
        blamed, f"{type(model).__name__} on {image_size} x {image_size} images", error=BuilderError
    )
    rows: list[dict[str, Any]] = []
    # TF32 would make a GPU disagree with a CPU in the third digit.
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    ):
        try:
            with measuring():
                images = torch.from_numpy(natural_images(image_size, n_images))
                if any(p.dtype == torch.float64 for p in model.parameters()):
                    images = images.double()
                model.to(device, images.dtype).eval()
                for parameter in model.parameters():
                    parameter.requires_grad_(False)
                forward = _forward(model)
                clean, outputs, until = _features(model, forward, images, device)
                again, *_ = _features(model, forward, images[:BATCH], device, until)
                _refuse_noise(clean, again)
        except BuilderError as e:
            return [r for p in ("random", "pgd") for r in unmeasured(layers, p, eps, e)]
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, images.shape, generator=generator) * 2.0 - 1
        starts = images + eps * (torch.rand(images.shape, generator=generator) * 2 - 1)

        def pgd() -> Tensor:
            labels = torch.cat([logits(output, n_classes).argmax(1) for output in outputs])
            return _ascend(
                lambda x: logits(forward(x), n_classes),
                *(images, labels.cpu(), starts.clamp(0, 1)),
                *(eps, steps, device),
            )

        for perturbation in ("random", "pgd"):
            try:
                with measuring():
                    moved = pgd() if perturbation == "pgd" else (images + eps * signs).clamp(0, 1)
                    features, *_ = _features(model, forward, moved, device, until)
            except BuilderError as e:
                rows += unmeasured(list(clean), perturbation, eps, e)
                continue
            facts = {"eps": eps, "n_images": len(images), "reason": None}
            rows += [
                {"layer": layer, "perturbation": perturbation, **row, **facts}
                for layer in clean
                for row in responses(
                    (images, moved), *zip(clean[layer], features[layer], strict=True)
                )
            ]
    return rows


def unmeasured(
    layers: Sequence[str], perturbation: str, eps: float | None, why: BuilderError
) -> list[dict[str, Any]]:
    """The rows of a perturbation that cannot be measured: nulls, and the reason.

    Raises:
        BuilderError: `why`, if the memory did not suffice: that is no trait of the network.
    """
    import torch

    if isinstance(why.__cause__, MemoryError | torch.OutOfMemoryError):
        raise why
    nothing = dict.fromkeys(("out_channel", "response_pre", "response_post", "activation_pass"))
    facts = {"eps": eps, "n_images": 0, "reason": str(why)}
    return [{"layer": n, "perturbation": perturbation, **nothing, **facts} for n in layers]


def logits(output: Any, n_classes: int) -> Tensor:
    """The logits (n, k), k > 1, in what a forward pass returned: what is called so, else the only
    matrix, else the first with a column a class.

    Raises:
        ValueError: there are none.
    """
    named = output.get("logits") if isinstance(output, Mapping) else None
    found = [t for t in tensors(output if named is None else named) if t.dim() == 2]
    if len(found) > 1:
        found = [t for t in found if t.shape[1] == n_classes]
    if not found or found[0].shape[1] < 2:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors(output)) or type(output).__name__
        raise ValueError(f"expected logits (n, k), k > 1, found {shapes}")
    return found[0]


def _features(
    model: nn.Module,
    forward: Forward,
    images: Tensor,
    device: str,
    until: Mapping[str, bool] | None = None,
) -> tuple[Features, list[Any], dict[str, bool]]:
    """First-layer features of the images, on the CPU, the outputs of each batch, and `until`."""
    import torch

    batches = [
        first_features(model, forward, x.to(device), until) for x in torch.split(images, BATCH)
    ]
    features: Features = {
        layer: tuple(torch.cat([f[layer][i].cpu() for f, _, _ in batches]) for i in (0, 1))  # type: ignore[misc]
        for layer in batches[0][0]
    }
    return features, [output for _, output, _ in batches], batches[0][2]


def _refuse_noise(features: Features, again: Features) -> None:
    """Raises: ValueError: features of the first images are not the same the second time."""
    import torch

    for layer, pair in again.items():
        for first, second in zip(features[layer], pair, strict=True):
            if not torch.allclose(first[: len(second)], second, 1e-3, 1e-4, equal_nan=True):
                raise ValueError("its forward pass is random: the same images, other features")


def _ascend(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    starts: Tensor,
    eps: float,
    steps: int,
    device: str,
) -> Tensor:
    """PGD from `starts`, on the CPU.

    Raises:
        ValueError: the gradient is zero everywhere, so that nothing was ascended.
    """
    import torch

    from builder.first_layer.pgd import ascend

    batches = zip(*(torch.split(t, BATCH) for t in (images, labels, starts)), strict=True)
    step = 2.5 * eps / steps
    found = torch.cat(
        [
            ascend(forward, *(t.to(device) for t in batch), eps=eps, step_size=step, steps=steps)
            for batch in batches
        ]
    ).cpu()
    if torch.equal(found, starts):
        raise ValueError("the gradient of its output with respect to the image is zero")
    return found


def _forward(model: nn.Module) -> Forward:
    """The model on images in [0, 1]: timm's models say which normalisation they expect."""
    import torch

    expected = getattr(model, "pretrained_cfg", None)
    if not isinstance(expected, dict) or not {"mean", "std"} <= expected.keys():
        return lambda x: model(x.clone())  # which it may write into
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
