"""The plan of the paper's cohort: its totals, exactly, without a download."""

import json

import pytest

from builder import schema
from builder.cohort.registry import load_cohort
from builder.network.plan import Plan, make_plan, plan_json


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(load_cohort("paper"), lambda *progress: None)


def test_totals_are_the_papers(plan: Plan):
    totals = plan_json(plan, layers=False)["totals"]
    counts = {(g["dataset"], g["robust"]): g["n_filters"] for g in totals["by_dataset"]}
    assert counts == {
        ("cifar10", True): 447_825_488,
        ("cifar100", True): 158_015_344,
        ("imagenet", True): 10_022_912,
        ("cifar10", False): 289_799_904,
        ("cifar100", False): 82_209_728,
        ("imagenet", False): 7_507_968,
    }
    assert totals["n_filters"] == 995_381_344
    assert (totals["n_models"], totals["n_pairs"], totals["n_architectures"]) == (114, 71, 13)


def test_counts_of_every_model_are_the_published_ones(plan: Plan):
    from builder.paper.published import read_published

    published = {r["model_id"]: r for r in read_published("models")}
    for p in plan.models:
        row = published[p.spec.model_id]
        assert p.n_filters == int(row["n_filters"]), p.spec.model_id
        assert len(p.layers) == int(row["n_layers"]), p.spec.model_id


def test_layers_have_the_columns_that_need_no_weights(plan: Plan):
    found = plan_json(plan, layers=True)
    names = {c.name for c in schema.LAYER_GRAPH}
    for row in found["layers"]:
        assert names <= row.keys()
        assert row["n_filters"] == row["out_channels"] * row["in_channels"]
        assert 0 <= row["conv_depth_norm"] <= 1 and 0 <= row["depth_bin"] <= 10
        assert (row["depth_bin"] == 0) == (row["conv_depth"] == 0)
    assert sum(r["n_filters"] for r in found["layers"]) == 995_381_344
    assert not [r for r in found["layers"] if r["dataset"] == "imagenet" and r["depth_bin"] == 0]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("model_id", "deepest", "folding"),
    [
        ("cifar10-robust-Carmon2019Unlabeled", 24, None),
        ("cifar10-robust-Rebuffi2021Fixing_106_16_cutmix_ddpm", 105, None),
        ("cifar10-robust-Andriushchenko2020Understanding", 19, None),
        ("cifar100-robust-Rice2020Overfitting", 16, None),
        ("cifar10-robust-Engstrom2019Robustness", 48, None),
        ("cifar10-robust-Gowal2020Uncovering_70_16", 69, None),
        ("cifar10-robust-Ding2020MMA", 24, (13, 28)),
        ("cifar10-robust-Chen2020Adversarial", 48, (111, 159)),
    ],
)
def test_known_depths_and_foldings(
    plan: Plan, model_id: str, deepest: int, folding: tuple[int, int] | None
):
    (p,) = (p for p in plan.models if p.spec.model_id == model_id)
    assert max(c.conv_depth for c in p.convs) == deepest
    if folding:
        assert (sum(c.bn_layer is not None for c in p.convs), len(p.convs)) == folding
