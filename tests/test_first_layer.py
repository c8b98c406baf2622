"""The response of the first layer: its definition, its perturbations and its images."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import duckdb
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import DATA
from torch import Tensor, nn

from builder import networks, schema
from builder.errors import BuilderError, UsageError
from builder.files import project_file
from builder.first_layer.pgd import ascend
from builder.first_layer.photographs import natural_images
from builder.first_layer.response import measure_response, responses
from builder.sources.constructors import construct

EPS = 8 / 255
RESPONSES = ("response_pre", "response_post", "activation_pass")
PILOT = DATA / "pilot"


class Small(nn.Module):
    """Convolution, BatchNorm, activation, and a linear head on the pooled result."""

    def __init__(
        self, act: Callable[[Tensor], Tensor] = F.relu, channels: int = 3, *, seed: int = 0
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=0.0)
        self.head = nn.Linear(16 * channels, 10)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(self.act(self.bn(self.conv(x))), 4)
        logits: Tensor = self.head(pooled.flatten(1))
        return logits


def identity(act: Callable[[Tensor], Tensor] = F.relu) -> Small:
    """Every colour passes unchanged."""
    model = Small(act)
    nn.init.dirac_(model.conv.weight)
    return model


def measure(model: nn.Module, **options: Any) -> list[dict[str, Any]]:
    options = {"layers": ["conv"], "eps": EPS, "image_size": 32, "n_images": 4} | options
    return measure_response(model, **options)


def pick(rows: list[dict[str, Any]], perturbation: str, channel: int | None) -> dict[str, Any]:
    (row,) = [r for r in rows if r["perturbation"] == perturbation and r["out_channel"] == channel]
    return row


# --- the definition -----------------------------------------------------------------------------


def test_a_case_worked_by_hand() -> None:
    # One image of one colour with two pixels, 0 and 1; the perturbation adds 0.1 to both.
    # input = sqrt(0.01 / 0.25) = 0.2. Channel 0: f = 3 x, Var 9/4, change 0.3: as x, so 1.
    # Channel 1: constant. g = relu(f - 1.5): 0 and 1.5, then 0 and 1.8: Var 0.5625,
    # E dg^2 = 0.045; sqrt(0.08) / 0.2 = sqrt(2), and sqrt(0.045 / 0.09) passes.
    x = torch.tensor([0.0, 1.0], dtype=torch.float64).view(1, 1, 1, 2)
    f = torch.cat([3 * x, torch.full_like(x, 0.7)], 1)
    f_moved = torch.cat([3 * (x + 0.1), torch.full_like(x, 0.7)], 1)
    g, g_moved = (t - 1.5 for t in (f, f_moved))
    first, constant, layer = responses((x, x + 0.1), (f, f_moved), (g.relu(), g_moved.relu()))
    assert [first[k] for k in RESPONSES] == pytest.approx([1, math.sqrt(2), math.sqrt(0.5)])
    assert [constant[k] for k in RESPONSES] == [None, None, None]
    assert layer == {**first, "out_channel": None}


def test_an_identity_layer_passes_everything() -> None:
    rows = measure(identity())
    for perturbation in ("random", "pgd"):
        whole = pick(rows, perturbation, None)
        assert whole["response_pre"] == pytest.approx(1, abs=1e-5)
        # Images are not negative, so the ReLU is an identity too.
        assert whole["response_post"] == whole["response_pre"]
        assert whole["activation_pass"] == 1


def test_a_blur_suppresses_random_signs_and_an_edge_filter_amplifies_them() -> None:
    blur, edge = identity(), identity()
    blur.conv.weight.data[:] = 0
    blur.conv.weight.data[range(3), range(3)] = 1 / 9
    edge.conv.weight.data[range(3), range(3)] = torch.tensor(
        [[0.0, 0.0, 0.0], [1.0, 0.0, -1.0], [0.0, 0.0, 0.0]]
    )
    passed = [pick(measure(m), "random", None)["response_pre"] for m in (blur, edge)]
    # Independent signs: 9 of weight 1/9 have a third of one's deviation; borders have fewer.
    assert 0.3 < passed[0] < 0.5
    assert passed[1] > 1


def test_channels_agree_with_a_direct_computation() -> None:
    model = Small(F.silu, 5).eval()
    x = torch.from_numpy(natural_images(32, 4)).double()
    generator = torch.Generator().manual_seed(3)
    moved = (x + EPS * (torch.randint(0, 2, x.shape, generator=generator) * 2 - 1)).clamp(0, 1)
    rows = measure(model, seed=3)
    model.double()
    with torch.no_grad():
        f, df = (model.bn(model.conv(t)) for t in (x, moved))
        g, dg = (model.act(t).numpy() for t in (f, df))
    # Sum over colours of mean square and of variance, as the module's text says.
    into = np.sqrt(3 * np.mean((moved - x).numpy() ** 2) / np.var(x.numpy(), (0, 2, 3)).sum())
    for c in range(5):
        a, b = f[:, c].numpy(), df[:, c].numpy()
        pre = np.sqrt(np.mean((b - a) ** 2) / np.var(a)) / into
        post = np.sqrt(np.mean((dg[:, c] - g[:, c]) ** 2) / np.var(g[:, c])) / into
        passed = np.sqrt(np.mean((dg[:, c] - g[:, c]) ** 2) / np.mean((b - a) ** 2))
        row = pick(rows, "random", c)
        assert [row[k] for k in RESPONSES] == pytest.approx([pre, post, passed], rel=1e-5)


def test_the_scale_batchnorm_gives_a_channel_does_not_count() -> None:
    # Powers of two, which the head takes back: the same numbers to the last bit.
    model, scaled = Small(), Small()
    scaled.bn.weight.data *= torch.tensor([4.0, 1.0, 0.5])
    by_channel = scaled.head.weight.data.view(10, 3, 16)
    by_channel *= torch.tensor([0.25, 1.0, 2.0]).view(1, 3, 1)
    rows, again = measure(model), measure(scaled)
    for row, other in zip(rows, again, strict=True):
        if row["out_channel"] is not None:
            assert row == other
    assert pick(rows, "random", None) != pick(again, "random", None)


def test_a_negative_scale_changes_what_the_activation_passes_and_nothing_before_it() -> None:
    model, flipped = Small(), Small()
    flipped.bn.weight.data.neg_()
    rows, other = measure(model), measure(flipped)
    for c in range(3):
        a, b = pick(rows, "random", c), pick(other, "random", c)
        assert a["response_pre"] == b["response_pre"]
        # A position is on for f or for -f, so what the two pass adds up to all of it; less is
        # passed (a^2 + b^2 < (a + b)^2) where the change crosses 0.
        assert 0.9 < a["activation_pass"] ** 2 + b["activation_pass"] ** 2 < 1 + 1e-6


def test_a_channel_the_relu_switches_off_passes_nothing() -> None:
    model = identity()
    model.bn.bias.data[1] = -2.0
    row = pick(measure(model), "pgd", 1)
    assert row["response_pre"] is not None
    assert row["response_post"] is None
    assert row["activation_pass"] == 0


def test_a_dead_convolution_channel_has_no_response() -> None:
    model = Small()
    model.conv.weight.data[2] = 0
    model.bn.bias.data[2] = 0.3
    rows = measure(model)
    assert [pick(rows, "random", 2)[k] for k in RESPONSES] == [None, None, None]
    assert None not in [pick(rows, "random", None)[k] for k in RESPONSES]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bad_weights_give_nulls_not_an_error(value: float) -> None:
    model = Small()
    model.conv.weight.data[1, 0, 0, 0] = value
    rows = measure(model)
    assert [pick(rows, "random", 1)[k] for k in RESPONSES] == [None, None, None]
    assert [pick(rows, "random", None)[k] for k in RESPONSES] == [None, None, None]
    assert None not in [pick(rows, "random", 0)[k] for k in RESPONSES]
    assert pick(rows, "pgd", None)["response_pre"] is None


def test_rows_have_the_columns_of_the_table() -> None:
    rows = measure(Small(), n_images=2)
    assert {*rows[0], "dataset", "model_id"} == set(schema.FIRST_LAYER.names)
    assert len({(r["layer"], r["perturbation"], r["out_channel"]) for r in rows}) == len(rows) == 8
    assert {(r["layer"], r["eps"], r["n_images"]) for r in rows} == {("conv", EPS, 2)}


@pytest.mark.parametrize("act", [F.relu_, F.relu])
def test_an_inplace_activation_gives_the_same_numbers(act: Callable[[Tensor], Tensor]) -> None:
    assert measure(Small(act)) == measure(Small(lambda x: x.clamp(min=0)))


def test_one_seed_repeats_itself_and_another_does_not() -> None:
    rows = measure(Small(), seed=1)
    assert rows == measure(Small(), seed=1)
    other = measure(Small(), seed=2)
    assert pick(rows, "random", 0) != pick(other, "random", 0)
    assert pick(rows, "pgd", 0) != pick(other, "pgd", 0)


def test_a_timm_model_sees_images_normalised_as_it_expects() -> None:
    class Timm(Small):
        pretrained_cfg: ClassVar = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Small()

        def forward(self, x: Tensor) -> Tensor:
            mean, std = (torch.tensor(v).view(3, 1, 1) for v in Timm.pretrained_cfg.values())
            logits: Tensor = self.model((x - mean) / std)
            return logits

    rows = measure(Timm())
    assert [{**r, "layer": "conv"} for r in measure(Wrapped())] == rows
    assert measure(Small()) != rows


# --- wrong input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"eps": 0.0}, {"eps": math.nan}, {"steps": 0}, {"n_images": 0}]
)
def test_wrong_arguments_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        measure(Small(), **options)


def variant(forward: Callable[[Small, Tensor], Any]) -> Small:
    """A `Small` with another forward pass."""
    model = Small()
    model.forward = forward.__get__(model)  # type: ignore[method-assign]
    return model


def plain(model: Small, x: Tensor) -> Tensor:
    return Small.forward(model, x)


def without_gradient(model: Small, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = x * 1
    return plain(model, x)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 10)), "RuntimeError: mat1"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten()), "RuntimeError: Given groups=1"),
        (variant(lambda m, x: xx), "NameError: name 'xx'"),  # type: ignore[name-defined]  # noqa: F821
        (variant(lambda m, x: exit(3)), r"SystemExit: it ended the program \(3\)"),
        (variant(lambda m, x: plain(m, x + 0.1 * torch.randn_like(x))), "is random"),
        (variant(lambda m, x: F.conv2d(x, 2 * m.conv.weight)), "is computed"),
        (variant(lambda m, x: x.mean((2, 3))), "runs no convolution"),
    ],
)
def test_a_forward_pass_that_fails_leaves_null_rows_with_a_reason(
    model: nn.Module, reason: str
) -> None:
    rows = measure(model, layers=["a", "b"])
    assert [(r["perturbation"], r["layer"]) for r in rows] == [
        *(("random", "a"), ("random", "b"), ("pgd", "a"), ("pgd", "b"))
    ]
    for row in rows:
        assert re.search(reason, row["reason"])
        assert "\n" not in row["reason"]
        assert [row[k] for k in (*RESPONSES, "out_channel")] == [None] * 4
        assert (row["eps"], row["n_images"]) == (EPS, 0)


def test_an_image_size_without_photographs_leaves_null_rows_with_a_reason() -> None:
    assert {r["reason"] for r in measure(Small(), image_size=600)} == {
        "no photograph has 600 x 600 pixels."
    }


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda m, x: plain(m, x)[:, :1], r"k > 1, found \(4, 1\)"),
        (lambda m, x: m.bn(m.conv(x)), r"k > 1, found \(4, 3, 32, 32\)"),
        (lambda m, x: {"a": plain(m, x)[:, :7], "b": plain(m, x)[:, :8]}, r"\(4, 7\), \(4, 8\)"),
        (without_gradient, "has no gradient"),
        (lambda m, x: torch.zeros_like(plain(m, x)), "has no gradient"),
        (lambda m, x: 0 * plain(m, x), "is zero"),
        (lambda m, x: plain(m, (x * 255).round() / 255), "is zero"),
    ],
)
def test_where_no_attack_is_possible_random_signs_are_measured_all_the_same(
    forward: Callable[[Small, Tensor], Any], reason: str
) -> None:
    rows = measure(variant(forward))
    assert pick(rows, "random", None)["response_pre"] > 0
    attacked = pick(rows, "pgd", None)
    assert re.search(reason, attacked["reason"])
    assert [attacked[k] for k in RESPONSES] == [None, None, None]
    assert len([r for r in rows if r["perturbation"] == "pgd"]) == 1


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: (plain(m, x), 2 * plain(m, x)),
        lambda m, x: [plain(m, x)[:, :7], plain(m, x)],
        lambda m, x: {"features": 2 * x, "scores": plain(m, x)},
        lambda m, x: {"embedding": plain(m, x).repeat(1, 1) * 2, "logits": plain(m, x)},
        lambda m, x: SimpleNamespace(logits=plain(m, x), loss=None),
        lambda m, x: plain(m, x.mul_(1)),
        lambda m, x: plain(m, x.to(m.conv.weight.dtype)),
    ],
)
def test_logits_in_a_container_and_a_pass_that_writes_into_its_input_change_nothing(
    forward: Callable[[Small, Tensor], Any],
) -> None:
    assert measure(variant(forward)) == measure(Small())


def test_a_network_in_double_precision_is_measured_in_it() -> None:
    rows, expected = measure(variant(lambda m, x: plain(m, x.double())).double()), measure(Small())
    for kind in ("random", "pgd"):
        row = pick(rows, kind, None)
        assert [row[k] for k in RESPONSES] == pytest.approx(
            [pick(expected, kind, None)[k] for k in RESPONSES], rel=1e-3
        )


def test_a_network_that_casts_its_weights_is_measured() -> None:
    def cast(model: Small, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return plain(model, x)

    row = pick(measure(variant(cast)), "random", None)
    expected = pick(measure(Small()), "random", None)
    assert row["reason"] is None
    assert row["response_pre"] == pytest.approx(expected["response_pre"], rel=0.05)


def test_what_does_not_fit_into_memory_is_no_trait_of_the_network() -> None:
    def large(model: Small, x: Tensor) -> Tensor:
        raise MemoryError

    with pytest.raises(BuilderError, match="MemoryError"):
        measure(variant(large))


# --- PGD ----------------------------------------------------------------------------------------


def example() -> nn.Module:
    """AutoAttack's example: a trained CIFAR-10 ResNet-18."""
    spec = importlib.util.find_spec("pyautoattack")
    assert spec is not None
    assert spec.origin is not None
    model = networks.autoattack_example()
    path = Path(spec.origin).parent / "examples" / "model_test.pt"
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval().requires_grad_(False)


def attacked(model: nn.Module, steps: int = 5, eps: float = EPS) -> tuple[Tensor, Tensor, Tensor]:
    """Clean images, their predicted labels, adversarial images."""
    x = torch.from_numpy(natural_images(32, 8))
    start = x + eps * (torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    with torch.no_grad():
        labels = model(x).argmax(1)
    size = 2.5 * eps / steps
    start = start.clamp(0, 1)
    return x, labels, ascend(model, x, labels, start, eps=eps, step_size=size, steps=steps)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return example()


def test_pgd_raises_the_cross_entropy_and_lowers_the_agreement(trained: nn.Module) -> None:
    x, labels, adversarial = attacked(trained)
    with torch.no_grad():
        before, after = (F.cross_entropy(trained(t), labels) for t in (x, adversarial))
        agreement = (trained(adversarial).argmax(1) == labels).float().mean()
    assert after > before + 1
    assert agreement <= 0.25


def test_pgd_stays_in_the_ball_and_in_the_image(trained: nn.Module) -> None:
    x, _, adversarial = attacked(trained, steps=2)
    assert (adversarial - x).abs().max() <= EPS + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert ((adversarial - x).abs() > EPS - 1e-6).float().mean() > 0.3


def test_pgd_finds_its_way_where_the_cross_entropy_is_flat() -> None:
    sure = Small(channels=8).eval().requires_grad_(False)
    sure.head.weight.data *= 1e5
    sure.head.bias.data *= 1e5
    x = torch.from_numpy(natural_images(32, 8)).requires_grad_()
    logits = sure(x)
    loss = F.cross_entropy(logits, logits.argmax(1), reduction="sum")
    assert torch.autograd.grad(loss, x)[0].abs().max() == 0  # nothing to ascend
    x, labels, adversarial = attacked(sure)

    def margin(t: Tensor) -> Tensor:
        own = F.one_hot(labels, 10).bool()
        z = sure(t)
        return z[own] - z.masked_fill(own, -torch.inf).amax(1)

    assert (margin(adversarial) < margin(x)).all()


# --- images -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "n", "digest"),
    [(32, 16, "56826463683f23ac"), (224, 16, "19e5f250a7ec12d6")],
)
def test_the_images_are_the_same_bits_everywhere(size: int, n: int, digest: str) -> None:
    images = natural_images(size, n)
    assert images.shape == (min(n, 16 if size == 32 else 9), 3, size, size)
    assert images.dtype == np.float32
    assert 0 <= images.min() <= images.max() <= 1
    little_endian = np.ascontiguousarray(images, "<f4").tobytes()
    assert hashlib.sha256(little_endian).hexdigest()[:16] == digest


def test_fewer_images_are_the_first_of_more() -> None:
    assert np.array_equal(natural_images(32, 5), natural_images(32, 30)[:5])


# --- the finding --------------------------------------------------------------------------------


def test_the_query_compares_a_pair_only_where_both_were_measured_at_one_eps() -> None:
    db = duckdb.connect()
    db.execute(
        "create table pairs as select * from (values ('a', 'one'), ('b', 'one')) "
        "as p (robust_model_id, standard_model_id), (select 'cifar10' as dataset, "
        "'Toy' as architecture)"
    )
    db.execute("create view study_pairs as from pairs")  # which are all of one threat model
    db.execute(
        "create table first_layer as select *, null::int as out_channel, 4 as n_images, "
        "1.0 as response_pre, 1.0 as activation_pass from (values ('a', 8 / 255, 0.5), "
        "('b', 16 / 255, 0.9), ('one', 8 / 255, 1.0)) as t (model_id, eps, response_post), "
        "(values ('pgd'), ('random')) as p (perturbation)"
    )
    found = db.sql(project_file("queries/18_first_layer_response.sql").read_text())
    rows = found.project("robust_model_id, perturbation, eps, ratio").fetchall()
    assert rows == [("a", "pgd", 8 / 255, 0.5), ("a", "random", 8 / 255, 0.5)]


# --- real networks ------------------------------------------------------------------------------


def test_a_trained_network_has_finite_responses(trained: nn.Module) -> None:
    rows = measure(trained)
    whole = pick(rows, "pgd", None)
    assert all(whole[k] > 0 for k in RESPONSES)
    assert all(r["response_pre"] is not None for r in rows)
    # PGD looks for what the network reacts to; random signs do not.
    assert whole["response_pre"] > pick(rows, "random", None)["response_pre"]


def pilot(kind: str) -> nn.Module:
    path = PILOT / f"pilot_{kind}_w16.pt"
    if not path.is_file():
        pytest.skip(f"no {path}; set RFL_DATA")
    model = networks.preact_resnet18_w16()
    state = dict(model.state_dict())
    for name, value in torch.load(path, map_location="cpu", weights_only=True).items():
        name = name.removeprefix("net.").replace("fc.", "linear.").replace(".sc.", ".shortcut.")
        for i in range(8):
            name = name.replace(f"layers.{i}.", f"layer{i // 2 + 1}.{i % 2}.")
        assert name in state
        state[name] = value
    model.load_state_dict(state)
    return model


@pytest.mark.slow
def test_the_robust_first_layer_suppresses_what_an_attack_adds() -> None:
    robust, standard = (
        pick(measure(pilot(k), n_images=16), "pgd", None) for k in ("robust", "standard")
    )
    assert robust["response_pre"] < 0.85 * standard["response_pre"]
    assert robust["response_post"] < 0.75 * standard["response_post"]
    assert robust["activation_pass"] < 0.9 * standard["activation_pass"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("constructor", "size", "n_layers"),
    [
        ("robustbench:cifar10/Addepalli2021Towards_RN18", 32, 1),
        ("robustbench:cifar10/Andriushchenko2020Understanding", 32, 1),
        ("robustbench:cifar100/Rice2020Overfitting", 32, 1),
        ("robustbench:cifar10/Rebuffi2021Fixing_R18_ddpm", 32, 1),
        ("robustbench:cifar10/Ding2020MMA", 32, 1),
        ("robustbench:cifar10/Gowal2020Uncovering_28_10_extra", 32, 1),
        ("robustbench:cifar10/Dai2021Parameterizing", 32, 1),
        ("robustbench:cifar10/Huang2021Exploring", 32, 1),
        ("robustbench:cifar10/Chen2020Adversarial", 32, 3),
        ("robustbench:imagenet/Salman2020Do_R18", 224, 1),
        ("timm:resnet50", 224, 1),
    ],
)
def test_networks_of_every_family_are_measured(constructor: str, size: int, n_layers: int) -> None:
    torch.manual_seed(0)
    rows = measure(construct(constructor), image_size=size, n_images=1, steps=1)
    whole = [r for r in rows if r["out_channel"] is None]
    assert len(whole) == 2 * n_layers
    for row in whole:
        assert all(row[k] > 0 for k in RESPONSES)
        assert row["activation_pass"] < 0.95


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_agrees_with_the_cpu() -> None:
    cpu, gpu = (measure(example(), device=d) for d in ("cpu", "cuda"))
    for a, b in zip(cpu, gpu, strict=True):
        tolerance = 1e-4 if a["perturbation"] == "random" else 3e-2
        assert [b[k] for k in RESPONSES] == pytest.approx([a[k] for k in RESPONSES], rel=tolerance)
