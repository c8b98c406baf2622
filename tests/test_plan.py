"""The plan of the paper's cohort: its totals, exactly, without a download."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import build_toy

from builder import schema
from builder.cohort.registry import REQUIRED, Cohort, load_cohort
from builder.errors import BuilderError
from builder.network.plan import Plan, make_plan, plan_json, plan_network


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


NETS = """
import signal
import sys
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, width, 3), nn.Linear(width, 10)
    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))
class Lazy(Net):
    def __init__(self):
        super().__init__()
        self.conv = nn.LazyConv2d(4, 3)
class Own(BaseException): pass
class Raises(Net):
    def forward(self, x): raise Own("no")
class Unprintable(Exception):
    def __str__(self): raise ValueError
class Mute(Net):
    def forward(self, x): raise Unprintable
class NoInit(Net):
    def __init__(self): pass
class NoState(Net):
    def state_dict(self, *args, **kwargs): raise KeyError("layer7")
class Handles(Net):
    def __init__(self):
        super().__init__()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
class Looks(Net):
    def forward(self, x):
        assert torch.isfinite(x).all().item()
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x)
class Moves(Net):
    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(3, 1, 1).cuda()
        self.cuda()
    def forward(self, x): return super().forward(x - self.mean)
class Thresholds(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("threshold", torch.tensor(0.5))
    def forward(self, x): return super().forward(x if self.threshold == 0 else x * 2)
class Fills(Net):
    def forward(self, x):
        both = torch.empty(2, *x.shape, device=x.device)
        both[1] = x
        return super().forward(both[1])
class Computes(Net):
    def __init__(self): super().__init__(int(torch.arange(5).max()))
def exits(): sys.exit("no licence")
def own(): raise Own("of my own")
def wide(): return Net(40_000)
def scripted():
    print("| scripted")
    return torch.jit.script(Net())
"""
BAD = {
    "Lazy": "leaves the shape of conv.weight, conv.bias to the first image",
    "Raises": "tracing Raises failed on a 32x32 image: Own: no.",
    "Mute": "tracing Mute failed on a 32x32 image: Unprintable.",
    "NoInit": "failed: AttributeError: 'NoInit' object has no attribute",
    "NoState": "failed: KeyError: 'layer7'.",
    "exits": "failed: SystemExit: it ended the program (no licence).",
    "own": "failed: Own: of my own.",
    "wide": "layer conv of nets_of_plan:wide has 40,000 channels; expected at most 32,767",
    "missing": "unknown name in nets_of_plan 'missing'",
}
GOOD = ("Net", "Handles", "Looks", "Moves", "Thresholds", "Fills", "Computes", "scripted")


@pytest.fixture
def mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cohort of networks of which some cannot be planned."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "nets_of_plan", raising=False)
    Path("nets_of_plan.py").write_text(NETS)
    lines = [f"{n},cifar10,true,Toy,nets_of_plan:{n},none.pt" for n in (*BAD, *GOOD)]
    Path("mixed.csv").write_text("\n".join([",".join(REQUIRED), *lines]) + "\n")
    return tmp_path / "mixed.csv"


def test_one_bad_network_does_not_end_the_plan_of_the_others(mixed: Path):
    plan = make_plan(load_cohort(str(mixed)), lambda *progress: None)
    assert [p.spec.network for p in plan.models] == list(GOOD)
    for name, reason in BAD.items():
        assert reason in str(plan.failures.pop(f"cifar10-robust-{name}"))
    assert not plan.failures


def test_one_bad_network_does_not_end_the_build_of_the_others(mixed: Path):
    outcome = build_toy(mixed, mixed.parent / "out")
    assert outcome.failures.keys() == {f"cifar10-robust-{n}" for n in BAD}
    built = {p.stem for p in (mixed.parent / "out").rglob("cifar10-*.parquet")}
    assert built == {f"cifar10-robust-{n}" for n in GOOD}


def test_the_plan_on_stdout_is_json_whatever_the_networks_print_and_fails_with_their_reasons(
    mixed: Path,
):
    command = [sys.executable, "-m", "builder", "plan", "--cohort", "mixed.csv", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=mixed.parent)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    found = json.loads(done.stdout)
    assert {m["network"] for m in found["models"]} == set(GOOD)
    assert {f["model_id"] for f in found["failures"]} == {f"cifar10-robust-{n}" for n in BAD}
    assert "| scripted" in done.stderr
    assert "failed: cifar10-robust-own: constructor 'nets_of_plan:own' failed: Own" in done.stderr


def test_a_wrong_address_does_not_fail_the_models_that_share_its_network():
    good = load_cohort("mini").models[0]
    wrong = replace(good, network="wrong", checkpoint="nowhere://x")
    plan = make_plan(Cohort("own", (wrong, good)), lambda *progress: None)
    assert [p.spec for p in plan.models] == [good]
    assert plan.failures.keys() == {wrong.model_id}


@pytest.mark.parametrize(
    ("constructor", "dataset", "size"),
    [
        ("builder.networks:preact_resnet18_w16", "cifar10", 32),
        ("torchvision:resnet18", "cifar10", 32),
        ("torchvision:resnet18", "imagenet", 224),
        ("torchvision:inception_v3", "imagenet", 299),
        ("torchvision:regnet_y_400mf", "imagenet", 224),
        ("timm:resnet18", "cifar10", 32),
        ("timm:botnet26t_256", "imagenet", 256),
        ("timm:botnet26t_256", "cifar10", 256),
        ("timm:efficientvit_b0", "imagenet", 224),
    ],
)
def test_networks_that_compute_and_networks_of_another_image_size_are_planned(
    constructor: str, dataset: str, size: int
):
    network = plan_network(constructor, dataset)
    assert network.image_size == size
    assert network.n_params > 100_000 and any(c.is_3x3 for c in network.convs)


def test_a_network_without_3x3_filters_is_told_so():
    with pytest.raises(BuilderError, match="timm:mixer_b16_224 runs no 3x3 convolution"):
        plan_network("timm:mixer_b16_224", "imagenet")


def test_the_command_that_trains_a_partner_named_a_cohort_that_is_not_there(tmp_path: Path):
    path = tmp_path / "my nets.csv"
    line = "net,cifar10,true,Toy,builder.networks:resnet18_w32,none.pt"
    path.write_text(f"{','.join(REQUIRED)}\n{line}\n")
    done = subprocess.run(
        [sys.executable, "-m", "builder", "plan", "--cohort", path, "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (missing,) = json.loads(done.stdout)["counterparts"]
    *_, option, cohort = shlex.split(missing["command"])
    assert option == "--cohort" and load_cohort(cohort).models[0].network == "net"
