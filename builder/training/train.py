"""Training, standard and adversarial: one recipe in, weights and a card out, resumable.

Every random draw is a function of (seed, step): an epoch's order, a step's crops, flips, dropout
and attack starts. A checkpoint therefore holds the weights, the optimiser's momentum and the step,
and a resumed run goes on exactly as an uninterrupted one would have.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from builder.errors import BuilderError, UsageError
from builder.files import write_atomic
from builder.progress import Report
from builder.training.attack import Attack, as_input, autocast, perturb
from builder.training.images import Images

MOMENTUM = 0.9
WARMUP = 0.2
"""Share of the steps over which the learning rate rises linearly; then it falls linearly to 0."""
CROP_PADDING = 4
CHECKPOINT_SECONDS = 180.0


@dataclass(frozen=True)
class Recipe:
    """How one model is trained. `pgd_steps` 0: standard training, and no `eps`.

    `stored_as`, float32 or float16: the precision its weights are kept in.
    """

    name: str
    constructor: str
    architecture: str
    dataset: str
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    seed: int
    pgd_steps: int = 0
    eps: str = ""
    pgd_step_size: str = ""
    stored_as: str = "float32"

    @property
    def robust(self) -> bool:
        return self.pgd_steps > 0

    @property
    def attack(self) -> Attack | None:
        """The attack trained against."""
        if not self.robust:
            return None
        return Attack(
            float(Fraction(self.eps)), float(Fraction(self.pgd_step_size)), self.pgd_steps
        )


def uses_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware, so that autocast is worth it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def learning_rate(step: int, steps: int, peak: float) -> float:
    """One-cycle, piecewise linear: up over the first `WARMUP` of the steps, down to 0."""
    position = (step + 1) / steps
    return peak * min(position / WARMUP, (1 - position) / (1 - WARMUP) + 1e-3)


def _draw_seed(seed: int, *position: int) -> int:
    """An independent 63-bit seed for a place in the run."""
    return int(np.random.SeedSequence((seed, *position)).generate_state(1, np.uint64)[0] >> 1)


def augment(pixels: Tensor) -> Tensor:
    """Random crop after zero padding by 4, random horizontal flip; uint8 (n, c, h, w) as given.

    Drawn on the CPU, so that every device trains on the same images.
    """
    n, channels, height, width = pixels.shape
    padded = F.pad(pixels, (CROP_PADDING,) * 4)
    top = torch.randint(0, 2 * CROP_PADDING + 1, (n, 1))
    left = torch.randint(0, 2 * CROP_PADDING + 1, (n, 1))
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns)
    index = [
        torch.arange(n).view(n, 1, 1, 1),
        torch.arange(channels).view(1, channels, 1, 1),
        rows.view(n, 1, height, 1),
        columns.view(n, 1, 1, width),
    ]
    return padded[tuple(i.to(pixels.device) for i in index)]


def train(
    recipe: Recipe,
    model: nn.Module,
    images: Images,
    *,
    checkpoint: Path,
    device: torch.device,
    report: Report = lambda subject, what, done, total: None,
    bf16: bool | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> float:
    """Train `model` in place; resume from `checkpoint` where it exists.

    SGD with Nesterov momentum; every parameter decays, as in the paper's recipe. The checkpoint is
    written atomically after every epoch and every `checkpoint_seconds`; it stays until the caller
    has stored the result.

    Args:
        model: freshly built; its weights are drawn here, by `initialise`, from the seed.
        report: called after every step: (name, state, steps of this epoch done, steps of one).
            The state has loss and accuracy as running means over the batches of training,
            adversarial where the recipe is.
        bf16: bfloat16 autocast; None: where the device has it in hardware.

    Returns:
        Seconds spent in training, over all interruptions.

    Raises:
        UsageError: the checkpoint belongs to another recipe or cannot be read; the images are
            fewer than a batch.
        BuilderError: the loss is not finite.
    """
    if len(images) < recipe.batch_size:
        raise UsageError(f"{len(images)} images are fewer than a batch ({recipe.batch_size}).")
    bf16 = uses_bf16(device) if bf16 is None else bf16
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=MOMENTUM,
        nesterov=True,
        weight_decay=recipe.weight_decay,
    )
    first, spent = _resume(checkpoint, recipe, model, optimizer)
    pixels = torch.from_numpy(images.pixels).to(device)
    labels = torch.from_numpy(images.labels).to(device)
    per_epoch = len(labels) // recipe.batch_size
    steps = per_epoch * recipe.epochs
    started = saved = time.monotonic()
    loss_mean = accuracy_mean = 0.0
    model.train()
    for step in range(first, steps):
        epoch, batch = divmod(step, per_epoch)
        if batch == 0 or step == first:
            order = torch.from_numpy(
                np.random.default_rng((recipe.seed, epoch)).permutation(len(labels))
            )
        torch.manual_seed(_draw_seed(recipe.seed, 1, step))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, recipe.lr)
        chosen = order[batch * recipe.batch_size : (batch + 1) * recipe.batch_size].to(device)
        loss, hits = _step(model, optimizer, recipe, pixels[chosen], labels[chosen], bf16)
        if not math.isfinite(loss):
            raise BuilderError(
                f"training of {recipe.name} diverged: loss {loss} at step {step + 1}.",
                hint=f"lower the learning rate (it is {recipe.lr}) and delete {checkpoint}.",
            )
        decay = min(0.98, 1 - 1 / (step - first + 1))  # plain mean at first, then a moving one
        loss_mean = decay * loss_mean + (1 - decay) * loss
        accuracy_mean = decay * accuracy_mean + (1 - decay) * 100 * hits / recipe.batch_size
        now = time.monotonic()
        minutes = (now - started) / (step - first + 1) * (steps - step - 1) / 60
        state = (
            f"epoch {epoch + 1}/{recipe.epochs}, loss {loss_mean:.3f}, "
            f"accuracy {accuracy_mean:.1f} %, {minutes:.0f} min left"
        )
        report(recipe.name, state, batch + 1, per_epoch)
        if batch == per_epoch - 1 or now - saved > checkpoint_seconds:
            _save(checkpoint, recipe, model, optimizer, step + 1, spent + now - started)
            saved = now
    return spent + time.monotonic() - started


def initialise(recipe: Recipe, build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model with weights drawn from the recipe's seed."""
    torch.manual_seed(_draw_seed(recipe.seed, 0))
    return build()


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    pixels: Tensor,
    labels: Tensor,
    bf16: bool,
) -> tuple[float, int]:
    """One update; returns the loss and the number classified correctly."""
    x = as_input(augment(pixels))
    if recipe.attack is not None:
        x = perturb(model, x, labels, recipe.attack, bf16=bf16)
    with autocast(x.device, bf16):
        logits = model(x).float()
        loss = F.cross_entropy(logits, labels)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item(), int((logits.argmax(1) == labels).sum())


def _save(
    path: Path,
    recipe: Recipe,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    seconds: float,
) -> None:
    buffer = io.BytesIO()
    state = {
        "recipe": asdict(recipe),
        "step": step,
        "seconds": seconds,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def _resume(
    path: Path, recipe: Recipe, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """Load a checkpoint, if there is one; returns (steps done, seconds spent)."""
    if not path.exists():
        return 0, 0.0
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = state["recipe"]
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, UnpicklingError) as e:
        raise UsageError(
            f"cannot read the checkpoint {path}: {type(e).__name__}.",
            hint="delete it to train from the start.",
        ) from None
    expected = asdict(recipe)
    if found != expected:
        changed = [k for k in expected if found.get(k) != expected[k]]
        raise UsageError(
            f"the checkpoint {path} belongs to another recipe: {', '.join(changed)} differ.",
            hint="delete it, or train to another folder.",
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["seconds"]
