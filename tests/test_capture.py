"""Which tensors count as before and behind the first activation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from builder.cohort.registry import IMAGE_SIZE, load_cohort
from builder.errors import BuilderError
from builder.first_layer.capture import Features, first_features
from builder.network.trace import trace
from builder.sources.constructors import construct


def stem(channels: int = 4, *, bn: bool = True) -> nn.Module:
    """Convolution and BatchNorm with statistics that make about half the outputs negative."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, channels, 3, padding=1, bias=False)
    norm = nn.BatchNorm2d(channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias, std=0.1)
    return nn.Sequential(conv, norm if bn else nn.Identity())


class Net(nn.Module):
    """A stem, and what `tail` makes of its output."""

    def __init__(self, tail: Callable[[Tensor], Tensor], *, bn: bool = True) -> None:
        super().__init__()
        self.stem, self.tail = stem(bn=bn), tail

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.stem(x)).mean((2, 3))


def capture(model: nn.Module) -> Features:
    torch.manual_seed(1)
    model.eval()
    x = torch.rand(2, 3, 8, 8)
    found, _, until = first_features(model, model, x)
    short, *_ = first_features(model, model, x, until)  # ends behind the first layers, if it may
    assert short.keys() == found.keys()
    for layer, pair in found.items():
        assert all(map(torch.equal, pair, short[layer])), layer
    return found


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def parametric_swish(x: Tensor) -> Tensor:
    """As Dai et al. 2021: constants computed on the way are no part of the image."""
    alpha, beta = torch.tensor(1.5).abs(), torch.tensor(-0.2).abs()
    return x * (torch.sigmoid(x * alpha) - beta) / (1 - beta)


@pytest.mark.parametrize(
    "act",
    [
        *(F.relu, F.silu, F.softplus, F.gelu, F.leaky_relu, F.elu, F.hardswish, F.mish, F.relu6),
        *(swish, parametric_swish, nn.PReLU(), nn.Threshold(0.1, 0.0)),
        lambda x: torch.maximum(x, torch.zeros(())),
    ],
)
def test_the_activation_is_what_follows_the_batchnorm(act: Callable[[Tensor], Tensor]) -> None:
    model = Net(lambda x: F.max_pool2d(act(x), 2))
    with torch.no_grad():
        ((pre, post),) = capture(model).values()
        torch.manual_seed(1)
        expected = model.stem(torch.rand(2, 3, 8, 8))
        assert torch.equal(pre, expected)
        assert torch.equal(post, act(expected))
    assert not torch.equal(pre, post)


def test_constants_made_on_the_way_never_pass_for_the_image() -> None:
    # A constant may be given the identity of a tensor just freed; once this went wrong every other
    # time, so it is tried often.
    for _ in range(100):
        ((pre, post),) = capture(Net(lambda x: F.max_pool2d(parametric_swish(x), 2))).values()
        assert torch.equal(post, parametric_swish(pre))


@pytest.mark.parametrize("act", [F.relu_, lambda x: F.silu(x, inplace=True), F.hardswish])
def test_an_inplace_activation_leaves_the_capture_alone(act: Callable[[Tensor], Tensor]) -> None:
    ((pre, post),) = capture(Net(act)).values()
    ((expected, _),) = capture(Net(lambda x: x)).values()
    assert torch.equal(pre, expected)
    assert (pre < 0).any()
    assert torch.equal(post, act(expected.clone()))


@pytest.mark.parametrize(
    "between",
    [
        lambda x: F.max_pool2d(x, 3, 1, 1),
        lambda x: F.pad(x, (0, 0, 0, 0)) + F.pad(x, (1, -1, 0, 0)),
        lambda x: F.conv2d(x, torch.ones(4, 4, 1, 1)),
        lambda x: x + x.mean((2, 3), keepdim=True),
    ],
)
def test_nothing_behind_an_operator_that_mixes_positions_counts(
    between: Callable[[Tensor], Tensor],
) -> None:
    ((pre, post),) = capture(Net(lambda x: F.relu(between(F.silu(x))))).values()
    assert torch.equal(post, F.silu(pre))


def test_a_scaled_copy_for_a_later_shortcut_is_not_the_activation() -> None:
    def tail(x: Tensor) -> Tensor:
        activated = F.relu(x)
        pooled = F.avg_pool2d(activated, 3, 1, 1)
        return pooled + 0.5 * activated

    ((pre, post),) = capture(Net(tail)).values()
    assert torch.equal(post, pre.clamp(min=0))


def test_without_an_activation_both_are_one_tensor() -> None:
    ((pre, post),) = capture(Net(lambda x: F.max_pool2d(x, 2))).values()
    assert pre is post


def test_without_a_batchnorm_the_convolution_itself_is_before_the_activation() -> None:
    model = Net(F.relu_, bn=False)
    ((pre, post),) = capture(model).values()
    assert (pre < 0).any()
    assert torch.equal(post, pre.clamp(min=0))


def test_a_batchnorm_behind_the_activation_is_not_the_convolutions() -> None:
    norm = nn.BatchNorm2d(4).eval()
    nn.init.constant_(norm.bias, 3.0)
    for bn in (False, True):
        ((pre, post),) = capture(Net(lambda x: norm(F.relu(x)), bn=bn)).values()
        assert (pre < 0).any()
        assert torch.equal(post, pre.clamp(min=0))


@pytest.mark.parametrize("order", ["before", "between", "behind"])
def test_a_shortcut_past_the_batchnorm_changes_nothing(order: str) -> None:
    class PreActivation(nn.Module):
        """The shortcut reads the convolution before its BatchNorm, behind the activation, or
        between the two."""

        def __init__(self) -> None:
            super().__init__()
            self.stem = stem()

        def forward(self, x: Tensor) -> Tensor:
            convolved = self.stem[0](x)
            shortcut = F.avg_pool2d(convolved, 1) if order == "before" else convolved
            out = self.stem[1](convolved)
            shortcut = F.avg_pool2d(convolved, 1) if order == "between" else shortcut
            shortcut += F.conv2d(F.relu_(out), torch.ones(4, 4, 1, 1))
            return F.relu_(shortcut).mean((2, 3))

    model = PreActivation()
    ((pre, post),) = capture(model).values()
    ((expected, _),) = capture(Net(lambda x: x)).values()
    assert torch.equal(pre, expected)
    assert torch.equal(post, expected.clamp(min=0))


def test_every_member_of_an_ensemble_has_a_first_layer() -> None:
    class Ensemble(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Net(F.relu), Net(swish)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x - 0.5) + self.b((x - 0.4) / 0.2)

    found = capture(Ensemble())
    assert list(found) == ["a.stem.0", "b.stem.0"]
    assert torch.equal(found["a.stem.0"][1], found["a.stem.0"][0].clamp(min=0))
    assert torch.equal(found["b.stem.0"][1], swish(found["b.stem.0"][0]))


def test_a_layer_run_twice_counts_once_with_its_first_input() -> None:
    class Mirrored(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + super().forward(x.flip(3) * 2)

    once, twice = capture(Net(F.relu)), capture(Mirrored(F.relu))
    assert torch.equal(twice["stem.0"][1], once["stem.0"][1])


def test_a_computed_weight_is_refused() -> None:
    model = Net(F.relu)
    torch.nn.utils.parametrizations.spectral_norm(model.stem[0])
    with pytest.raises(BuilderError, match="is computed"):
        capture(model)


def test_a_network_without_convolution_is_refused() -> None:
    with pytest.raises(BuilderError, match="runs no convolution"):
        capture(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)))


CONSTRUCTORS = {m.constructor: IMAGE_SIZE[m.dataset] for m in load_cohort("paper").models}
FAMILIES = [
    "robustbench:cifar10/Addepalli2021Towards_RN18",  # post-activation ResNet-18
    "robustbench:cifar10/Andriushchenko2020Understanding",  # pre-activation ResNet-18
    "robustbench:cifar10/Carmon2019Unlabeled",  # WideResNet
    "robustbench:cifar10/Dai2021Parameterizing",  # WideResNet with parametric SiLU
    "robustbench:cifar10/Gowal2020Uncovering_28_10_extra",  # DeepMind's WideResNet, Swish
    "robustbench:cifar10/Huang2021Exploring",  # RobustWideResNet
    "robustbench:cifar10/Rebuffi2021Fixing_R18_ddpm",  # DeepMind's PreActResNet
    "robustbench:imagenet/Salman2020Do_R18",  # 7x7 stem behind a normalisation layer
]


@pytest.mark.parametrize(
    "constructor",
    [
        pytest.param(c, marks=() if c in FAMILIES else pytest.mark.slow)
        for c in sorted(CONSTRUCTORS)
    ],
)
def test_every_network_of_the_paper_has_a_first_layer_with_an_activation(constructor: str) -> None:
    with torch.device("meta"):
        model = construct(constructor).eval()
    size = CONSTRUCTORS[constructor]
    x, ran = torch.empty(1, 3, size, size, device="meta"), []
    found, _, until = first_features(model, model, x)
    for module in model.modules():
        module.register_forward_hook(lambda module, *_: ran.append(module))
    assert first_features(model, model, x, until)[0].keys() == found.keys()
    if len(found) == 1:  # what lies behind is not run; of an ensemble all but the last member is
        assert len(ran) < 0.1 * len(list(model.modules()))
    assert list(found) == [c.layer for c in trace(model, size) if c.conv_depth == 0]
    for pre, post in found.values():
        assert post is not pre
        assert post.shape == pre.shape
    assert set(FAMILIES) <= set(CONSTRUCTORS)
