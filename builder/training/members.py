"""The mini zoo's members: their recipes, and training each into weights and a card.

A member is `builder/zoo/NAME.safetensors` and `NAME.json`, its card: recipe, accuracies, images,
hardware, time and digest. The card is written last; a member with a card is finished.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import nn

from builder import schema
from builder.cohort.registry import Cohort, ModelSpec
from builder.csvfile import read_csv
from builder.errors import BuilderError, UsageError
from builder.files import file_sha256, write_atomic
from builder.network.device import resolve_device
from builder.network.plan import Plan
from builder.progress import WHOLE, Report
from builder.sources.constructors import construct
from builder.training.attack import PGD20, accuracy
from builder.training.images import Images, check_trainable, load_images
from builder.training.train import Recipe, initialise, train, uses_bf16

ATTACKED_IMAGES = 2000
"""Test images, from the first, that `pgd20_acc` is measured on."""

COUNTERPART: dict[str, Any] = {
    "epochs": 30,
    "batch_size": 128,
    "lr": 0.1,
    "weight_decay": 5e-4,
    "seed": 0,
}
"""Recipe of a standard counterpart: the paper's in spirit, with one cycle instead of steps."""

STORED_AS = {"float32": torch.float32, "float16": torch.float16}
"""What a recipe's `stored_as` may be."""

_PARSE: dict[str, Callable[[str], Any]] = {
    "epochs": int,
    "batch_size": int,
    "lr": float,
    "weight_decay": float,
    "seed": int,
    "pgd_steps": int,
}


def zoo_folder() -> Path:
    """Where the recipes and the members lie."""
    return Path(str(files("builder") / "zoo"))


def read_recipes(path: Path | None = None) -> tuple[Recipe, ...]:
    """The recipes of a CSV, one member a line; by default the mini zoo's.

    Raises:
        UsageError: unreadable file, wrong columns or a wrong value.
    """
    path = path or zoo_folder() / "recipes.csv"
    rows = read_csv(path, [f.name for f in fields(Recipe)], ())
    return tuple(_parse(row, where) for where, row in rows)


def _parse(row: dict[str, str], where: str) -> Recipe:
    values: dict[str, Any] = {}
    for column, text in row.items():
        try:
            values[column] = _PARSE.get(column, str)(text)
        except ValueError:
            raise UsageError(f"{where}: column '{column}' is {text!r}: not a number.") from None
    recipe = Recipe(**values)
    sizes = [recipe.eps, recipe.pgd_step_size]
    try:
        sound = all(Fraction(s) > 0 for s in sizes) if recipe.robust else sizes == ["", ""]
    except (ValueError, ZeroDivisionError):
        sound = False
    if not sound:
        raise UsageError(
            f"{where}: with pgd_steps above 0, eps and pgd_step_size are fractions such as 8/255; "
            f"with 0 they are empty. Found {recipe.pgd_steps}, {sizes[0]!r}, {sizes[1]!r}."
        )
    if recipe.stored_as not in STORED_AS:
        raise UsageError(
            f"{where}: stored_as is {', '.join(STORED_AS)}; found {recipe.stored_as!r}."
        )
    if recipe.epochs < 1 or recipe.batch_size < 2 or recipe.lr <= 0 or recipe.weight_decay < 0:
        raise UsageError(
            f"{where}: expected epochs >= 1, batch_size >= 2, lr > 0 and weight_decay >= 0."
        )
    return recipe


def select(recipes: tuple[Recipe, ...], only: str | None) -> tuple[Recipe, ...]:
    """The recipes whose name matches a shell pattern; all for None.

    Raises:
        UsageError: none matches.
    """
    chosen = tuple(r for r in recipes if only is None or fnmatch.fnmatchcase(r.name, only))
    if not chosen:
        raise UsageError(
            f"no member of the mini zoo matches {only!r}.",
            hint="expected " + ", ".join(r.name for r in recipes),
        )
    return chosen


def counterparts(cohort: Cohort, pattern: str) -> tuple[Recipe, ...]:
    """Recipes of the standard members that the selected models stand beside, each once.

    A robust model is trained again without the attack: as the partner that the cohort lists, or,
    where it lists none, with its own constructor.

    Raises:
        UsageError: the pattern matches no model, or one whose images cannot be read.
    """
    partner = {robust.model_id: standard for robust, standard in cohort.pairs}
    recipes: dict[str, Recipe] = {}
    for chosen in cohort.select(pattern).models:
        spec = partner.get(chosen.model_id, chosen)
        check_trainable(spec.dataset)
        name = schema.model_id(spec.dataset, False, spec.standard_network or spec.network)
        recipe = Recipe(
            name=name,
            constructor=spec.constructor,
            architecture=spec.architecture,
            dataset=spec.dataset,
            **COUNTERPART,
        )
        recipes.setdefault(name, recipe)
    return tuple(recipes.values())


def missing_counterparts(plan: Plan, cohort: str) -> list[dict[str, Any]]:
    """What would give a standard member to the robust models that have none: per network, the
    models that run it, and the command that trains it, or why there is none.

    Args:
        cohort: what the cohort of the plan is asked for by: its name, or the path of its CSV.
    """
    paired = {robust.model_id for robust, _ in plan.cohort.pairs}
    alone: dict[tuple[Any, ...], list[ModelSpec]] = {}
    for p in plan.models:
        if p.spec.robust and p.spec.model_id not in paired:
            alone.setdefault((p.spec.dataset, p.graph), []).append(p.spec)
    found = []
    for (dataset, _), specs in alone.items():
        command: str | None = f"builder train {specs[0].model_id} --cohort {quote(cohort)}"
        reason = None
        try:
            check_trainable(dataset)
        except UsageError as e:
            command, reason = None, str(e)
        found.append(
            {
                "dataset": dataset,
                "architecture": specs[0].architecture,
                "model_ids": [m.model_id for m in specs],
                "command": command,
                "reason": reason,
            }
        )
    return found


def train_member(
    recipe: Recipe,
    *,
    data: str | None,
    out: Path,
    device: torch.device,
    build: Callable[[str], nn.Module] = construct,
    report: Report = lambda subject, what, done, total: None,
    force: bool = False,
) -> dict[str, Any]:
    """Train one recipe to `out/NAME.safetensors` and its card; returns the card.

    Resumes from `out/NAME.checkpoint`. A finished member with the same recipe is left alone;
    with `force` it is trained again and replaced once that is done.

    Args:
        data: see `builder.training.images.load_images`.
        build: makes the network from the recipe's constructor.
        report: as `builder.training.train.train` calls it.

    Raises:
        UsageError: no images, or a checkpoint or card of another recipe.
    """
    weights, card_file = out / f"{recipe.name}.safetensors", out / f"{recipe.name}.json"
    checkpoint = out / f"{recipe.name}.checkpoint"
    if card_file.exists() and not force:
        return _finished(card_file, recipe)
    images = load_images(data, recipe.dataset, "train")
    test = load_images(data, recipe.dataset, "test")
    torch.backends.cudnn.deterministic = True  # one seed, one result, at some cost on a GPU
    model = initialise(recipe, lambda: build(recipe.constructor))
    seconds = train(recipe, model, images, checkpoint=checkpoint, device=device, report=report)
    report(recipe.name, "evaluating", 0, None)
    state = stored_state(model, STORED_AS[recipe.stored_as])
    model.load_state_dict(state)  # what is measured is what is shipped
    card = {
        "name": recipe.name,
        "recipe": asdict(recipe),
        **evaluate(model, test, device),
        "images": {
            "dataset": recipe.dataset,
            "encoding": images.encoding,
            "train": len(images),
            "test": len(test),
            "pixels_sha256": hashlib.sha256(images.pixels.tobytes()).hexdigest(),
        },
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_seconds": round(seconds),
        "hardware": _hardware(device),
        "precision": "bfloat16 autocast" if uses_bf16(device) else "float32",
        "torch": torch.__version__,
        "license": "MIT",
        **_store(state, weights),
    }
    write_atomic(card_file, (json.dumps(card, indent=1) + "\n").encode())
    checkpoint.unlink(missing_ok=True)
    return card


def train_members(
    recipes: Sequence[Recipe],
    *,
    data: str | None,
    out: Path,
    device: str,
    report: Report,
    force: bool = False,
) -> Iterator[dict[str, Any]]:
    """Train recipes one after the other; yields their cards.

    Args:
        device: auto, cpu or cuda. The others: see `train_member`.
    """
    where = torch.device(resolve_device(device))
    report(WHOLE, "members", 0, len(recipes))
    for i, recipe in enumerate(recipes, 1):
        yield train_member(recipe, data=data, out=out, device=where, report=report, force=force)
        report(recipe.name, "done", i, len(recipes))


def evaluate(model: nn.Module, test: Images, device: torch.device) -> dict[str, Any]:
    """Clean accuracy on all test images and PGD-20 accuracy on the first `ATTACKED_IMAGES`."""
    pixels = torch.from_numpy(test.pixels).to(device)
    labels = torch.from_numpy(test.labels).to(device)
    n = min(ATTACKED_IMAGES, len(test))
    return {
        "clean_acc": round(accuracy(model, pixels, labels), 2),
        "pgd20_acc": round(accuracy(model, pixels[:n], labels[:n], attack=PGD20), 2),
        "pgd20": {**asdict(PGD20), "images": n},
    }


def stored_state(model: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The state dict as a member keeps it: kernels and matrices in `dtype`, on the CPU.

    Buffers and vectors (BatchNorm, biases) stay as they are: they are small, and a variance may
    leave float16's range.
    """
    large = {key for key, p in model.named_parameters() if p.ndim > 1}
    return {
        key: value.detach().to("cpu", dtype if key in large else value.dtype).contiguous()
        for key, value in model.state_dict().items()
    }


def _store(state: dict[str, torch.Tensor], path: Path) -> dict[str, Any]:
    """Write the weights; returns the card's facts about the file."""
    from safetensors.torch import save

    write_atomic(path, save(state))
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _finished(card_file: Path, recipe: Recipe) -> dict[str, Any]:
    try:
        card: dict[str, Any] = json.loads(card_file.read_bytes())
        weights = card_file.with_name(card["file"])
        if card["recipe"] == asdict(recipe) and card["sha256"] == file_sha256(weights):
            return card
    except (OSError, ValueError, KeyError):
        pass
    raise BuilderError(
        f"{card_file} is of another recipe, or its weights are damaged.",
        hint="train with --force to replace it, or to another folder.",
    )


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {os.cpu_count()} cores"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
