"""Training on a tiny synthetic data set: colours that a tiny network can tell apart."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from builder import progress
from builder.cohort.registry import load_cohort
from builder.errors import BuilderError, UsageError
from builder.training import train as training
from builder.training.attack import PGD20, Attack, accuracy, perturb
from builder.training.images import Images, load_images
from builder.training.members import counterparts, read_recipes, select, train_member
from builder.training.train import Recipe, augment, initialise, learning_rate, train

CPU = torch.device("cpu")
N_CLASSES = 10
STANDARD = Recipe("tiny", "tests:tiny", "tiny", "cifar10", 3, 20, 0.1, 5e-4, seed=7)
ROBUST = replace(STANDARD, pgd_steps=2, eps="8/255", pgd_step_size="5/255")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, and bits may depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def synthetic(n: int, seed: int) -> Images:
    """Uniform colours, one per class, under noise: synthetic, not CIFAR."""
    rng = np.random.default_rng(seed)
    colours = np.random.default_rng(0).integers(30, 220, (N_CLASSES, 3, 1, 1))
    labels = rng.integers(0, N_CLASSES, n)
    pixels = colours[labels] + rng.normal(0, 15, (n, 3, 32, 32))
    return Images(pixels.clip(0, 255).astype(np.uint8), labels, "synthetic")


def tiny(_: str = "") -> nn.Module:
    """Convolution, BatchNorm and dropout: a state to restore, and a use of the global generator."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(8, N_CLASSES),
    )


def step_of(what: str, batch: int, batches: int) -> int:
    """Steps done, from what training reports of the epoch."""
    epoch = re.match(r"epoch (\d+)/", what)
    assert epoch, what
    return (int(epoch[1]) - 1) * batches + batch


def run(
    recipe: Recipe, checkpoint: Path, *, stop_at: int | None = None, **options: float
) -> tuple[nn.Module, dict[int, str]]:
    """Train the tiny network; `stop_at`: raise KeyboardInterrupt after that step.

    Returns the network, and what was reported after each step.
    """
    seen: dict[int, str] = {}

    def report(subject: str, what: str, done: int, total: int | None) -> None:
        step = step_of(what, done, total or 0)
        seen[step] = what
        if step == stop_at:
            raise KeyboardInterrupt

    model = initialise(recipe, tiny)
    try:
        train(
            recipe,
            model,
            synthetic(200, seed=1),
            checkpoint=checkpoint,
            device=CPU,
            report=report,
            **options,
        )
    except KeyboardInterrupt:
        assert stop_at is not None
    return model, seen


def same_state(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def write_parquet(folder: Path, n: int, split: str, encoding: str = "PNG") -> None:
    images = synthetic(n, seed=1 if split == "train" else 2)
    rows = []
    for pixels in images.pixels:
        buffer = io.BytesIO()
        Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, encoding)
        rows.append({"bytes": buffer.getvalue(), "path": None})
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"img": rows, "label": images.labels})
    pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")


@pytest.mark.parametrize("recipe", [STANDARD, ROBUST], ids=["standard", "robust"])
def test_loss_falls_and_unseen_images_are_classified(recipe: Recipe, tmp_path: Path) -> None:
    model, seen = run(replace(recipe, epochs=12), tmp_path / "c")
    assert list(seen) == list(range(1, 121))
    first, last = (float(re.findall(r"loss ([\d.]+)", seen[step])[0]) for step in (1, 120))
    assert last < 0.7 * first
    test = synthetic(100, seed=2)
    measured = accuracy(model, torch.from_numpy(test.pixels), torch.from_numpy(test.labels))
    assert measured > 60
    assert seen[120].startswith("epoch 12/12, loss ") and seen[120].endswith(", 0 min left")


@pytest.mark.parametrize("stop_at", [3, 10, 17])
@pytest.mark.parametrize("recipe", [STANDARD, ROBUST], ids=["standard", "robust"])
def test_resumed_run_equals_the_uninterrupted_bit_for_bit(
    recipe: Recipe, stop_at: int, tmp_path: Path
) -> None:
    whole, seen = run(recipe, tmp_path / "whole")
    # A checkpoint after every step; the last is of the step before the interruption.
    run(recipe, tmp_path / "parts", stop_at=stop_at, checkpoint_seconds=-1)
    resumed, rest = run(recipe, tmp_path / "parts")
    assert list(rest) == [step for step in seen if step >= stop_at]
    assert same_state(whole, resumed)


def test_bf16_autocast_resumes_bit_for_bit_too(tmp_path: Path) -> None:
    whole, _ = run(ROBUST, tmp_path / "whole", bf16=True)
    run(ROBUST, tmp_path / "parts", stop_at=12, bf16=True)
    resumed, _ = run(ROBUST, tmp_path / "parts", bf16=True)
    assert same_state(whole, resumed)


def test_seed_decides_the_weights(tmp_path: Path) -> None:
    first, _ = run(STANDARD, tmp_path / "a")
    again, _ = run(STANDARD, tmp_path / "b")
    other, _ = run(replace(STANDARD, seed=8), tmp_path / "c")
    assert same_state(first, again)
    assert not same_state(first, other)


def test_killed_process_resumes_to_the_same_weights(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data", 100, "train")
    write_parquet(tmp_path / "data", 40, "test")
    program = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from test_train import CPU, ROBUST, tiny
        from builder.training.members import train_member
        def report(subject, what, done, total):
            if what.startswith("epoch 2/") and done == 3:
                os.kill(os.getpid(), signal.SIGKILL)
        train_member(ROBUST, data=sys.argv[1], out=Path(sys.argv[2]), device=CPU, build=tiny,
                     report=report)
        """
    )
    out = tmp_path / "killed"
    process = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "data"), str(out)],
        cwd=Path(__file__).parent,
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode < 0, process.stderr
    assert [f.name for f in out.iterdir()] == ["tiny.checkpoint"]  # nothing that looks finished

    steps: list[int] = []
    options = {"data": str(tmp_path / "data"), "device": CPU, "build": tiny}

    def report(subject: str, what: str, done: int, total: int | None) -> None:
        if what != "evaluating":
            steps.append(step_of(what, done, total or 0))

    card = train_member(ROBUST, out=out, report=report, **options)
    assert steps == list(range(6, 16))  # 5 steps an epoch; the first epoch was kept
    whole = train_member(ROBUST, out=tmp_path / "whole", **options)
    assert card["sha256"] == whole["sha256"]
    assert sorted(f.name for f in out.iterdir()) == ["tiny.json", "tiny.safetensors"]


def test_half_precision_rounds_the_kernels_and_nothing_else(tmp_path: Path) -> None:
    write_parquet(tmp_path, 60, "train")
    write_parquet(tmp_path, 40, "test")
    options = {"data": str(tmp_path), "device": CPU, "build": tiny}
    exact = train_member(STANDARD, out=tmp_path / "a", **options)
    half = train_member(replace(STANDARD, stored_as="float16"), out=tmp_path / "b", **options)
    weights = load_file(tmp_path / "a" / exact["file"])
    for key, value in load_file(tmp_path / "b" / half["file"]).items():
        large = value.ndim > 1
        assert value.dtype == (torch.float16 if large else weights[key].dtype)
        assert torch.equal(value, weights[key].half() if large else weights[key])


def test_finished_member_is_left_alone_until_forced(tmp_path: Path) -> None:
    write_parquet(tmp_path, 60, "train", "JPEG")
    write_parquet(tmp_path, 40, "test", "JPEG")
    options = {"data": str(tmp_path), "device": CPU, "build": tiny, "out": tmp_path / "out"}
    recipe = replace(STANDARD, epochs=1)
    card = train_member(recipe, **options)
    assert card == json.loads((tmp_path / "out" / "tiny.json").read_text())
    assert card["images"]["encoding"] == "jpeg"
    assert card["pgd20"]["images"] == 40
    assert train_member(recipe, **{**options, "data": None}) == card
    with pytest.raises(BuilderError, match="another recipe"):
        train_member(replace(recipe, epochs=2), **options)
    assert train_member(replace(recipe, epochs=2), **options, force=True) != card
    with pytest.raises(UsageError, match="needs the cifar10 images"):
        train_member(recipe, **{**options, "data": None}, force=True)
    with pytest.raises(BuilderError, match="another recipe"):  # it is still there
        train_member(recipe, **options)
    (tmp_path / "out" / "tiny.safetensors").write_bytes(b"damaged")
    with pytest.raises(BuilderError, match="damaged"):
        train_member(replace(recipe, epochs=2), **options)


def test_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    run(STANDARD, tmp_path / "c")
    with pytest.raises(UsageError, match=r"another recipe: lr differ"):
        run(replace(STANDARD, lr=0.2), tmp_path / "c")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02cos\nsystem\n."])
def test_damaged_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(UsageError, match="cannot read the checkpoint"):
        run(STANDARD, tmp_path / "c")


def test_divergence_is_an_error_and_leaves_no_weights(tmp_path: Path) -> None:
    with pytest.raises(BuilderError, match="diverged"):
        run(replace(STANDARD, lr=1e30), tmp_path / "c")


def test_too_few_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fewer than a batch"):
        run(replace(STANDARD, batch_size=500), tmp_path / "c")


@pytest.mark.parametrize("eps", [2 / 255, 8 / 255])
def test_attack_stays_in_the_ball_and_in_the_image(eps: float) -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.rand(4, 3, 32, 32), torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)])
    y = torch.arange(6)
    adversarial = perturb(tiny().eval(), x, y, Attack(eps, eps, 5))
    assert (adversarial - x).abs().max() <= eps + 1e-6
    assert (adversarial - x).abs().max() > 0.9 * eps
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert not adversarial.requires_grad


def test_attack_raises_the_loss_and_spares_the_parameters(tmp_path: Path) -> None:
    model, _ = run(replace(STANDARD, epochs=8), tmp_path / "c")
    model.eval()
    model.zero_grad()
    images = synthetic(50, seed=3)
    x = torch.from_numpy(images.pixels).float() / 255
    y = torch.from_numpy(images.labels)
    loss = nn.functional.cross_entropy
    assert loss(model(perturb(model, x, y, PGD20)), y) > 1.2 * loss(model(x), y)
    assert all(p.grad is None for p in model.parameters())


def test_augmented_image_is_a_shifted_copy_mirrored_half_of_the_time() -> None:
    torch.manual_seed(0)
    image = torch.arange(1, 3 * 32 * 32 + 1, dtype=torch.int32).view(1, 3, 32, 32)
    out = augment(image.expand(400, -1, -1, -1))
    mirrored = 0
    for crop in out:
        row = crop[0, 16]
        inside = row[row > 0]
        mirrored += int(inside[0] > inside[-1])
        assert len(inside) >= 28
        assert (inside.diff().abs() == 1).all()
        assert torch.equal(crop[1][crop[1] > 0], crop[0][crop[0] > 0] + 32 * 32)
    assert 150 < mirrored < 250
    assert len({c.numpy().tobytes() for c in out}) > 100


def test_learning_rate_rises_to_its_peak_then_falls_to_nearly_zero() -> None:
    rates = [learning_rate(i, 100, 0.2) for i in range(100)]
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) == pytest.approx(0.2)
    assert 0 < rates[-1] < 0.001


def test_missing_data_says_how_to_get_them(tmp_path: Path) -> None:
    for data in (None, str(tmp_path), str(tmp_path / "nowhere"), str(tmp_path / "x.parquet")):
        with pytest.raises(UsageError) as caught:
            load_images(data, "cifar10", "train")
        assert "--data hub" in caught.value.hint


def test_parquet_file_and_its_folder_give_the_same_images(tmp_path: Path) -> None:
    write_parquet(tmp_path, 5, "train")
    write_parquet(tmp_path, 3, "test")
    file = tmp_path / "train-00000-of-00001.parquet"
    for split, n in (("train", 5), ("test", 3)):
        folder = load_images(str(tmp_path), "cifar10", split)
        assert np.array_equal(folder.pixels, load_images(str(file), "cifar10", split).pixels)
        assert (len(folder), folder.encoding) == (n, "png")
    expected = synthetic(5, seed=1)
    assert np.array_equal(load_images(str(tmp_path), "cifar10", "train").pixels, expected.pixels)


def test_binary_batches_are_read(tmp_path: Path) -> None:
    images = synthetic(4, seed=1)
    records = np.concatenate([images.labels[:, None], images.pixels.reshape(4, -1)], axis=1)
    records.astype(np.uint8).tofile(tmp_path / "data_batch_1.bin")
    loaded = load_images(str(tmp_path), "cifar10", "train")
    assert np.array_equal(loaded.pixels, images.pixels)
    assert np.array_equal(loaded.labels, images.labels)
    with (tmp_path / "data_batch_1.bin").open("ab") as f:
        f.write(b"x")
    with pytest.raises(UsageError, match="truncated"):
        load_images(str(tmp_path), "cifar10", "train")


def test_wrong_images_are_refused(tmp_path: Path) -> None:
    cells = {"garbage": b"garbage", "small": io.BytesIO()}
    Image.new("RGB", (8, 8)).save(cells["small"], "PNG")
    for expected, raw in (("decoded", b"garbage"), ("expected 32x32", cells["small"].getvalue())):
        table = pa.table({"img": [{"bytes": raw, "path": None}], "label": [0]})
        pq.write_table(table, tmp_path / "train.parquet")
        with pytest.raises(UsageError, match=expected):
            load_images(str(tmp_path), "cifar10", "train")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "train.parquet")
    with pytest.raises(UsageError, match="expected an image column"):
        load_images(str(tmp_path), "cifar10", "train")
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(UsageError, match="cannot read"):
        load_images(str(tmp_path), "cifar10", "train")
    write_parquet(tmp_path / "hundred", 5, "train")
    with pytest.raises(UsageError, match="imagenet"):
        load_images(str(tmp_path / "hundred"), "imagenet", "train")


HEADER = (
    "name,constructor,architecture,dataset,epochs,batch_size,lr,weight_decay,seed,pgd_steps,eps,"
    "pgd_step_size,stored_as"
)


def test_recipes_are_read(tmp_path: Path) -> None:
    file = tmp_path / "r.csv"
    file.write_text(
        f"{HEADER}\ntiny,tests:tiny,tiny,cifar10,3,20,0.1,5e-4,7,2,8/255,5/255,float32\n"
    )
    (recipe,) = read_recipes(file)
    assert recipe == ROBUST
    assert recipe.attack == Attack(8 / 255, 5 / 255, 2)
    assert STANDARD.attack is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("t,c,a,cifar10,x,20,0.1,0,7,0,,,float32", "'epochs' is 'x'"),
        ("t,c,a,cifar10,0,20,0.1,0,7,0,,,float32", "epochs >= 1"),
        ("t,c,a,cifar10,1,20,0.1,0,7,2,,,float32", "pgd_steps above 0"),
        ("t,c,a,cifar10,1,20,0.1,0,7,2,8/0,1/255,float32", "pgd_steps above 0"),
        ("t,c,a,cifar10,1,20,0.1,0,7,0,8/255,,float32", "with 0 they are empty"),
        ("t,c,a,cifar10,1,20,0.1,0,7,0,,,float8", "stored_as is float32, float16"),
        ("t,c,a,cifar10,1", "row 2: expected 13 fields, found 5"),
        ("t,c,a,cifar10,1,20,0.1,0,7,0,,,float32,extra", "13 fields, found 14"),
    ],
)
def test_wrong_recipe_is_refused(line: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "r.csv"
    file.write_text(f"{HEADER}\n{line}\n")
    with pytest.raises(UsageError, match=message):
        read_recipes(file)
    file.write_text("name\nx\n")
    with pytest.raises(UsageError, match=r"missing column.* 'constructor'"):
        read_recipes(file)


def test_members_are_selected_by_pattern() -> None:
    recipes = read_recipes()
    assert select(recipes, None) == recipes
    assert all(r.robust for r in select(recipes, "*-robust-*"))
    with pytest.raises(UsageError, match="no member"):
        select(recipes, "nothing")


def test_counterparts_of_the_study_are_its_standard_models() -> None:
    cohort = load_cohort("paper")
    standard = {
        m.model_id: m for m in cohort.models if not m.robust and m.dataset.startswith("cifar")
    }
    recipes = counterparts(cohort, "cifar*")
    assert [r.name for r in recipes if r.name not in standard] == []
    assert len(recipes) == len(standard)  # each once, though 71 robust models share them
    for recipe in recipes:
        assert recipe.constructor == standard[recipe.name].constructor
        assert not recipe.robust
    with pytest.raises(UsageError, match="not imagenet"):
        counterparts(cohort, "*")  # before any training, not after days of it


def test_counterpart_of_a_model_without_a_partner_has_its_constructor() -> None:
    cohort = load_cohort("mini")
    robust = next(m for m in cohort.models if m.robust)
    alone = replace(cohort, models=(robust,))
    (recipe,) = counterparts(alone, "*")
    assert recipe.name == f"cifar10-standard-{robust.standard_network}"
    assert recipe.constructor == robust.constructor


def test_log_has_one_line_an_epoch_with_loss_accuracy_and_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.show(every=math.inf) as report:
        train(
            STANDARD,
            initialise(STANDARD, tiny),
            synthetic(200, seed=1),
            checkpoint=tmp_path / "c",
            device=CPU,
            report=report,
        )
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == STANDARD.epochs
    assert re.fullmatch(
        r"tiny: epoch 1/3, loss \d\.\d+, accuracy [\d.]+ %, 0 min left 10/10", lines[0]
    )


def test_draws_of_different_places_differ() -> None:
    seeds = {training._draw_seed(s, p, i) for s in range(3) for p in range(2) for i in range(50)}
    assert len(seeds) == 300


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_runs_on_cuda(tmp_path: Path) -> None:
    model = initialise(ROBUST, tiny)
    device = torch.device("cuda")
    train(ROBUST, model, synthetic(200, seed=1), checkpoint=tmp_path / "c", device=device)
    assert next(model.parameters()).is_cuda
