"""The members of the mini zoo that ship: digests, cards, constructors, accuracies."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DATA
from safetensors.torch import load_file

from builder import open_release
from builder.check.recompute import recompute
from builder.cohort.registry import ModelSpec, load_cohort
from builder.files import file_sha256
from builder.networks import WideResNet
from builder.sources.constructors import construct
from builder.training.attack import PGD20, accuracy
from builder.training.images import load_images
from builder.training.members import read_recipes, zoo_folder

CARDS = sorted(zoo_folder().glob("*.json"))

each_card = pytest.mark.parametrize("card_file", CARDS, ids=lambda p: p.stem)


def read(card_file: Path) -> dict[str, Any]:
    return json.loads(card_file.read_text())


def load(card: dict[str, Any]) -> torch.nn.Module:
    model = construct(card["recipe"]["constructor"])
    model.load_state_dict(load_file(zoo_folder() / card["file"]), strict=True)
    return model.to(memory_format=torch.channels_last).eval()


@each_card
def test_card_describes_its_weights(card_file: Path) -> None:
    card = read(card_file)
    weights = zoo_folder() / card["file"]
    assert card_file.stem == weights.stem == card["name"]
    assert file_sha256(weights) == card["sha256"]
    assert weights.stat().st_size == card["bytes"]
    assert card["images"]["encoding"] == "jpeg"
    for fact in ("hardware", "training_seconds", "torch", "license", "precision"):
        assert card[fact]


@each_card
def test_card_holds_the_recipe_that_retrains_it(card_file: Path) -> None:
    card = read(card_file)
    recipes = {r.name: asdict(r) for r in read_recipes()}
    assert recipes[card["name"]] == card["recipe"]


@each_card
def test_weights_are_stored_in_the_precision_of_the_recipe(card_file: Path) -> None:
    card = read(card_file)
    kernels = {
        str(w.dtype).removeprefix("torch.")
        for w in load_file(zoo_folder() / card["file"]).values()
        if w.shape[2:] == (3, 3)
    }
    assert kernels == {card["recipe"]["stored_as"]}


@each_card
def test_constructor_takes_exactly_the_stored_weights(card_file: Path) -> None:
    card = read(card_file)
    model = load(card)
    assert sum(p.numel() for p in model.parameters()) == card["parameters"]
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())


@each_card
def test_robust_members_are_robust_and_standard_members_are_not(card_file: Path) -> None:
    card = read(card_file)
    if card["recipe"]["pgd_steps"]:
        assert card["pgd20_acc"] > 30
    else:
        assert card["pgd20_acc"] < 2
    assert card["pgd20"] == {**asdict(PGD20), "images": card["pgd20"]["images"]}


def first_images(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    if not (DATA / "cifar10").is_dir():
        pytest.skip(f"no CIFAR-10 at {DATA / 'cifar10'}; set RFL_DATA")
    test = load_images(str(DATA / "cifar10"), "cifar10", "test").first(n)
    return torch.from_numpy(test.pixels), torch.from_numpy(test.labels)


@each_card
def test_clean_accuracy_is_measured_again(card_file: Path) -> None:
    card, n = read(card_file), 300
    # Four standard errors of a share measured on so few images.
    share = card["clean_acc"] / 100
    tolerance = 400 * (share * (1 - share) / n) ** 0.5
    measured = accuracy(load(card), *first_images(n))
    assert measured == pytest.approx(card["clean_acc"], abs=tolerance)


@pytest.mark.slow
@each_card
def test_robust_accuracy_is_measured_again(card_file: Path) -> None:
    card = read(card_file)
    attacked = accuracy(load(card), *first_images(100), attack=PGD20)
    if card["recipe"]["pgd_steps"]:
        assert attacked > 20
    else:
        assert attacked < 4


@pytest.mark.slow
def test_the_readme_shows_what_a_build_measures(tmp_path: Path) -> None:
    release = tmp_path / "mini"
    build = ("build", "--cohort", "mini", "--no-first-layer", "--quiet", "--out", str(release))
    subprocess.run([sys.executable, "-m", "builder", *build], check=True)
    models = {m["model_id"]: m for m in open_release(release).table("models").to_pylist()}
    readme = (zoo_folder() / "README.md").read_text()
    for pair in open_release(release).table("pairs").to_pylist():
        sides = [models[pair[f"{side}_model_id"]] for side in ("robust", "standard")]
        cells = [
            " / ".join(f"{side[metric]:.{digits}f}" for side in sides)
            for metric, digits in (("sparsity", 5), ("variance_entropy", 4), ("orthogonality", 4))
        ]
        assert f"| {' | '.join([sides[0]['network'], *cells])} |\n" in readme


def test_weights_fit_the_repository() -> None:
    assert sum(f.stat().st_size for f in zoo_folder().iterdir()) < 40_000_000
    assert {f.suffix for f in zoo_folder().iterdir()} <= {".csv", ".json", ".md", ".safetensors"}


@each_card
def test_half_precision_would_leave_the_metrics_where_they_are(card_file: Path) -> None:
    """What `stored_as` rests on: rounding kernels to float16 is far below 1e-3 in every metric."""
    for weight in load_file(zoo_folder() / read(card_file)["file"]).values():
        if weight.shape[2:] == (3, 3):
            exact, rounded = (
                recompute(w.reshape(-1, 9).numpy(), len(w))
                for w in (weight.float(), weight.half().float())
            )
            for metric in ("sparsity", "variance_entropy", "orthogonality"):
                assert rounded[metric] == pytest.approx(exact[metric], abs=1e-4)


def embedded(spec: ModelSpec) -> bool:
    return spec.checkpoint.startswith("embedded:builder/zoo/")


def test_cohort_mini_lists_every_member_as_its_card_says() -> None:
    members = {m.model_id: m for m in load_cohort("mini").models if embedded(m)}
    assert set(members) == {c.stem for c in CARDS}
    for card in map(read, CARDS):
        spec, recipe = members[card["name"]], card["recipe"]
        assert spec.checkpoint == f"embedded:builder/zoo/{card['file']}"
        assert (spec.constructor, spec.architecture) == (
            recipe["constructor"],
            recipe["architecture"],
        )
        assert spec.clean_acc == card["clean_acc"]
        assert spec.autoattack_acc is None  # never measured
        assert spec.eps == (recipe["eps"] or None)


def test_every_robust_member_has_its_twin() -> None:
    cohort = load_cohort("mini")
    robust = [m for m in cohort.models if m.robust]
    assert [r for r, _ in cohort.pairs] == robust
    assert all(r.constructor == s.constructor for r, s in cohort.pairs)


@pytest.mark.parametrize("recipe", read_recipes(), ids=lambda r: r.name)
def test_recipes_build_networks_on_cifar_images(recipe: Any) -> None:
    with torch.device("meta"):
        model = construct(recipe.constructor).eval()
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_recipes_come_in_pairs_that_differ_in_the_attack_alone() -> None:
    recipes = {r.name: r for r in read_recipes()}
    for name, recipe in recipes.items():
        assert name.startswith(f"cifar10-{'robust' if recipe.robust else 'standard'}-")
        if name == "cifar10-robust-ResNet18":
            continue  # its twin is AutoAttack's example, which is not trained here
        twin = recipes[name.replace("-robust-", "-standard-")]
        for field in ("constructor", "architecture", "batch_size", "lr", "weight_decay"):
            assert getattr(recipe, field) == getattr(twin, field)


def test_depth_of_a_wide_resnet_is_checked() -> None:
    with pytest.raises(ValueError, match=r"6 n \+ 4"):
        WideResNet(15, 1)
