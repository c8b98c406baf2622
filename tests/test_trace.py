"""The trace against ONNX exports (the oracle), and its rules on networks made for them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx_oracle import randomise, read_onnx
from torch import nn

from builder.errors import BuilderError
from builder.network.extract import iter_layers
from builder.network.trace import Norm, depth_bin, trace
from builder.sources.fetch import construct

CONSTRUCTORS = [
    pytest.param(name, size, id=name)
    for name, size in [
        ("builder.networks:autoattack_example", 32),
        ("robustbench:cifar10/Andriushchenko2020Understanding", 32),  # PreActResNet-18
        ("robustbench:cifar10/Sehwag2021Proxy_R18", 32),  # ResNet-18, post-activation
        ("robustbench:cifar10/Rebuffi2021Fixing_R18_ddpm", 32),  # DeepMind's PreActResNet-18
        ("robustbench:cifar10/Engstrom2019Robustness", 32),  # ResNet-50
        ("robustbench:cifar10/Ding2020MMA", 32),  # WideResNet-28-4
        ("robustbench:cifar10/Gowal2020Uncovering_28_10_extra", 32),  # DeepMind's WideResNet
        ("robustbench:cifar10/Dai2021Parameterizing", 32),  # parametric activations
        ("robustbench:cifar10/Huang2021Exploring", 32),  # WideResNet-34-R
        ("robustbench:cifar100/Rice2020Overfitting", 32),
        ("robustbench:imagenet/Salman2020Do_R18", 224),
        ("timm:resnet50", 224),
    ]
]
CONSTRUCTORS.append(
    pytest.param(
        "robustbench:cifar10/Chen2020Adversarial", 32, id="ensemble", marks=pytest.mark.slow
    )
)


@pytest.mark.parametrize(("constructor", "size"), CONSTRUCTORS)
def test_folded_weights_and_depths_are_those_of_the_onnx_export(constructor: str, size: int):
    with torch.device("meta"):
        convs = trace(construct(constructor), size)
    model = randomise(construct(constructor), seed=1)
    exported = read_onnx(model, size)
    assert [c.conv_depth for c in convs] == [e.depth for e in exported]
    assert [c.conv_depth_norm for c in convs] == [e.depth / (e.n_depths - 1) for e in exported]
    expected = [e.weight for e in exported if e.weight.shape[2:] == (3, 3)]
    for layer, weight in zip(iter_layers(convs, model.state_dict()), expected, strict=True):
        folded = layer.weight
        if layer.bn_scale is not None:
            folded = folded * layer.bn_scale[:, None, None, None]
        assert folded.numpy().tobytes() == weight.tobytes(), layer.conv.layer


class Folding(nn.Module):
    """A convolution, and what `rest` makes of its output with a BatchNorm and other tensors."""

    def __init__(self, rest) -> None:
        super().__init__()
        self.rest = rest
        self.conv, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.bn, self.gain = nn.BatchNorm2d(4), nn.Parameter(torch.ones(4))
        self.gamma, self.beta = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x: torch.Tensor):
        return self.rest(self, self.conv(x))

    def norm(self, y: torch.Tensor, weight=None, var=None, mean=None, bias=None) -> torch.Tensor:
        var, mean = (self.var if var is None else var), (self.mean if mean is None else mean)
        weight, bias = (
            (self.gamma if weight is None else weight),
            self.beta if bias is None else bias,
        )
        return F.batch_norm(y, mean, var, weight, bias, False, 0.1, 1e-3)


FOLDED = {
    "a BatchNorm": lambda m, y: m.bn(y),
    "buffers under other names": lambda m, y: m.norm(y),
    "a gain of another module": lambda m, y: m.norm(y, weight=m.gain),
    "a detached scale": lambda m, y: m.norm(y, weight=m.gamma.detach()),
    "no scale": lambda m, y: F.batch_norm(y, m.mean, m.var, None, m.beta),
    "no scale and no bias": lambda m, y: F.batch_norm(y, m.mean, m.var),
    "a copy of the output": lambda m, y: m.bn(y.clone()),
    "a detached output": lambda m, y: m.bn(y.detach()),
    "all of the output": lambda m, y: m.bn(y[:]),
    "dropout between": lambda m, y: m.bn(F.dropout(y, 0.5, m.training)),
}
NOT_FOLDED = {
    "the scale's magnitude": lambda m, y: m.norm(y, weight=m.gamma.abs() + 0.1),
    "one more than the scale": lambda m, y: m.norm(y, weight=1 + m.gamma),
    "a standardised scale": lambda m, y: m.norm(y, weight=m.gamma / m.gamma.norm()),
    "a computed variance": lambda m, y: m.norm(y, var=2 * m.var),
    "a computed mean": lambda m, y: m.norm(y, mean=2 * m.mean),
    "a computed bias": lambda m, y: m.norm(y, bias=2 * m.beta),
    "an output in a tuple": lambda m, y: (m.bn(y), y),
    "an output in a dictionary": lambda m, y: {"logits": m.bn(y), "features": [y]},
    "an output returned detached": lambda m, y: (m.bn(y), y.detach()),
    "two BatchNorms": lambda m, y: m.bn(y) + m.norm(y),
    "a group normalisation": lambda m, y: F.group_norm(y, 2, m.gamma, m.beta),
    "an instance normalisation": lambda m, y: F.instance_norm(
        y, m.mean, m.var, m.gamma, m.beta, use_input_stats=False
    ),
}


CASTS = {
    "to": lambda y: y.to(torch.float32),
    "float": lambda y: y.float(),
    "type": lambda y: y.type(torch.float32),
    "to a device": lambda y: y.to(y.device),
    "cpu": lambda y: y.cpu(),
    "not read": lambda y: (y.float(), y)[1],
}


def folding(rest) -> Folding:
    model = randomise(Folding(rest), seed=2)
    for tensor in (model.gain, model.gamma, model.var):
        tensor.data.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize("case", [*FOLDED, *NOT_FOLDED])
def test_a_scale_is_folded_where_the_export_folds_it_and_only_there(case: str):
    model = folding((FOLDED | NOT_FOLDED)[case])
    (exported,) = read_onnx(model, 8)
    (layer,) = iter_layers(trace(model, 8), model.state_dict())
    assert (layer.bn_scale is not None) == (case in FOLDED)
    scale = torch.ones(4) if layer.bn_scale is None else layer.bn_scale
    assert (
        layer.weight * scale[:, None, None, None]
    ).numpy().tobytes() == exported.weight.tobytes()


@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_that_changes_nothing_was_looked_through_where_the_export_keeps_it(cast: str):
    model = folding(lambda m, y: m.bn(CASTS[cast](y)))
    (exported,) = read_onnx(model, 8)
    (layer,) = iter_layers(trace(model, 8), model.state_dict())
    assert layer.bn_scale is None
    assert layer.weight.numpy().tobytes() == exported.weight.tobytes()


@pytest.mark.parametrize(
    ("rest", "folded"),
    [
        pytest.param(lambda m, y: m.norm(m.bn(y)), "bn, var", id="in a row"),
        pytest.param(lambda m, y: m.bn(m.norm(m.bn(y))), "bn, var, bn", id="three"),
        pytest.param(lambda m, y: m.norm(m.bn(y).float()), "bn", id="a cast between"),
        pytest.param(lambda m, y: (m.norm(z := m.bn(y)), z), "bn", id="the first is returned"),
        pytest.param(lambda m, y: m.norm(z := m.bn(y)) + z, "bn", id="the first is read again"),
        pytest.param(lambda m, y: (y.relu(), m.norm(m.bn(y)))[1], "bn, var", id="dead"),
    ],
)
def test_of_batchnorms_in_a_row_only_the_first_was_folded(rest, folded: str):
    model = folding(rest)
    (exported,) = read_onnx(model, 8)
    (layer,) = iter_layers(trace(model, 8), model.state_dict())
    assert layer.conv.bn_layer == folded
    np.testing.assert_allclose(
        layer.weight * layer.bn_scale[:, None, None, None], exported.weight, rtol=3e-7
    )


def test_a_write_into_a_part_of_the_output_prevents_folding():
    def rest(m: Folding, y: torch.Tensor) -> torch.Tensor:
        y[:, :2] = 0
        return m.bn(y)

    assert on_meta(lambda: Folding(rest))[0].bn_layer is None
    assert on_meta(lambda: Folding(lambda m, y: (y.detach().relu_(), m.bn(y))[1]))[0].norms == ()


def test_a_batchnorm_is_named_by_the_module_of_its_variance():
    (conv,) = on_meta(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    assert (conv.bn_layer, conv.norms) == ("1", (Norm("1.weight", "1.running_var", 1e-5),))
    (conv,) = on_meta(lambda: Folding(FOLDED["a gain of another module"]))
    assert (conv.bn_layer, conv.norms) == ("var", (Norm("gain", "var", 1e-3),))


def on_meta(make):
    with torch.device("meta"):
        model = make()
    return trace(model, 8)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4, eps=0.25)
        self.other = nn.Conv2d(4, 4, 3, padding=1)


def test_a_convolution_that_never_runs_is_no_part_of_the_network():
    class Dead(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bn(self.conv(x))

    assert [c.layer for c in on_meta(Dead)] == ["conv"]


def test_a_convolution_whose_output_is_dropped_is_no_part_of_the_network():
    class Dropped(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            self.other(y)
            return self.bn(y)

    (conv,) = on_meta(Dropped)
    assert (conv.layer, conv.bn_layer) == ("conv", "bn")
    assert [norm.eps for norm in conv.norms] == [0.25]


def test_a_second_consumer_of_the_output_prevents_folding():
    class Shared(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.bn(y) + y

    assert on_meta(Shared)[0].bn_layer is None


def test_an_activation_between_prevents_folding():
    class Between(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bn(F.relu_(self.conv(x)))

    assert on_meta(Between)[0].bn_layer is None


@pytest.mark.parametrize("affine", [True, False])
def test_a_batchnorm_without_running_statistics_is_not_folded(affine: bool):
    def make() -> nn.Module:
        norm = nn.BatchNorm2d(4, affine=affine, track_running_stats=False)
        return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU())

    (conv,) = on_meta(make)
    assert (conv.bn_layer, conv.norms) == (None, ())
    (layer,) = iter_layers([conv], make().state_dict())
    assert layer.bn_scale is None


def test_a_batchnorm_that_passes_its_running_statistics_over_is_not_folded():
    class Ignoring(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bn = self.bn
            y = self.conv(x)
            return F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, training=True)

    assert on_meta(Ignoring)[0].bn_layer is None


def test_a_batchnorm_without_weights_folds_all_the_same():
    make = lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False))  # noqa: E731
    assert on_meta(make)[0].bn_layer == "1"


def test_an_in_place_addition_is_a_consumer():
    class InPlace(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            z = self.other(y)
            z += y
            return self.bn(z)

    first, second = on_meta(InPlace)
    assert first.bn_layer is None and second.bn_layer is None
    assert (first.conv_depth, second.conv_depth) == (0, 1)


def test_a_weight_used_twice_is_one_layer():
    class Twice(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.other(self.other(self.conv(x)))

    assert [c.layer for c in on_meta(Twice)] == ["conv", "other"]


def test_groups_and_strides_are_reported():
    make = lambda: nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, groups=3))  # noqa: E731
    (conv,) = on_meta(make)
    assert (conv.out_channels, conv.in_channels, conv.groups, conv.stride) == (6, 1, 3, 2)
    assert conv.n_filters == 6 and conv.conv_depth_norm == 0.0 and conv.depth_bin == 0


def test_transposed_convolutions_do_not_count():
    make = lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 3))  # noqa: E731
    assert len(on_meta(make)) == 1


def test_a_computed_weight_is_refused():
    class Computed(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.conv2d(x, self.conv.weight * 2)

    with pytest.raises(BuilderError, match="computed weight"):
        on_meta(Computed)


def test_a_network_that_does_not_run_is_one_message():
    with pytest.raises(BuilderError, match="tracing Sequential failed on a 8x8 image"):
        on_meta(lambda: nn.Sequential(nn.Conv2d(4, 4, 3)))
    with pytest.raises(BuilderError, match="runs no 2-d convolution"):
        on_meta(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 2)))


class Unexpected(BaseException):
    """An exception of the user's own."""


@pytest.mark.parametrize(
    "error", [AssertionError, KeyError, NameError, Unexpected, BaseException, SystemExit]
)
def test_whatever_a_forward_pass_raises_is_one_message(error: type[BaseException]):
    class Failing(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise error("wrong size")

    with pytest.raises(BuilderError, match=f"tracing Failing failed.* {error.__name__}: .*wrong"):
        on_meta(Failing)


def test_a_forward_pass_may_return_tensors_inside_containers():
    class Named(Block):
        def forward(self, x: torch.Tensor) -> object:
            y = self.conv(x)
            found = {"loss": None, "features": [{"logits": self.bn(y)}], "other": self.other(y)}
            return SimpleNamespace(found=found)

    assert [(c.layer, c.bn_layer) for c in on_meta(Named)] == [("conv", None), ("other", None)]


def test_a_forward_pass_that_returns_no_tensor_is_told_so():
    class Silent(Block):
        def forward(self, x: torch.Tensor) -> dict[str, object]:
            self.conv(x)
            return {"logits": None}

    with pytest.raises(BuilderError, match="Silent returns dict without a tensor"):
        on_meta(Silent)


def test_two_weights_of_one_module_are_two_layers_of_two_names():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4, 3, 3, 3))
            self.w1 = nn.Parameter(torch.rand(4, 4, 3, 3))
            self.kernels = nn.ParameterList([torch.rand(4, 4, 3, 3) for _ in range(2)])
            self.inner = Block()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.inner.conv(x) + F.conv2d(x, self.weight, padding=1)
            for weight in (self.w1, *self.kernels, self.inner.other.weight):
                x = F.conv2d(x, weight, padding=1)
            return x

    convs = on_meta(Two)
    assert [c.layer for c in convs] == [
        *("inner.conv", "weight", "w1", "kernels.0", "kernels.1", "inner.other"),
    ]
    assert {c.weight for c in convs} <= Two().state_dict().keys()


def test_a_fixed_kernel_is_no_layer():
    class Blurred(Block):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("blur", torch.ones(1, 1, 3, 3) / 9)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            blurred = F.conv2d(x, self.blur.repeat(3, 1, 1, 1), groups=3, padding=1)
            return self.other(self.conv(F.conv2d(blurred, torch.ones(3, 3, 1, 1))))

    convs = on_meta(Blurred)
    assert [(c.layer, c.conv_depth) for c in convs] == [("conv", 2), ("other", 3)]


MU = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)


@pytest.mark.parametrize(
    "normalise",
    [
        lambda x: (x - MU) / MU,
        lambda x: x - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1),
        lambda x: x - torch.from_numpy(np.ones((3, 1, 1), np.float32)),
        lambda x: torch.cat([x, MU.expand(1, 3, 8, 8)])[:1],
        lambda x: x * x.new_tensor(0.5),
    ],
)
def test_constants_on_the_cpu_do_not_stop_a_trace_without_memory(normalise):
    class Normalised(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bn(self.conv(normalise(x)))

    assert [(c.layer, c.bn_layer) for c in on_meta(Normalised)] == [("conv", "bn")]


@pytest.mark.parametrize(
    "convert", [torch.jit.script, lambda m: torch.jit.trace(m, MU.expand(3, 8, 8)[None])]
)
def test_a_scripted_network_is_traced_like_any_other(convert):
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bn(self.conv(x))

    (conv,) = trace(convert(Plain().eval()), 8)
    assert (conv.layer, conv.bn_layer) == ("conv", "bn")


@pytest.mark.parametrize(
    ("rank", "last", "expected"),
    [(0, 30, 0), (1, 30, 1), (3, 30, 1), (4, 30, 2), (6, 30, 2), (27, 30, 9), (30, 30, 10)],
)
def test_depth_bins_are_right_closed_deciles(rank: int, last: int, expected: int):
    assert depth_bin(rank, rank / last) == expected


def test_every_decile_edge_belongs_to_the_bin_below():
    for last in (10, 20, 30, 70, 100):
        assert [depth_bin(k * last // 10, k * last // 10 / last) for k in range(11)] == [
            0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10,
        ]  # fmt: skip
