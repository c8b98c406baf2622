"""Metrics by hand, by property, against torchconvquality and against NumPy."""

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from builder.check.recompute import recompute
from builder.metrics.layer import _metrics as metrics_of
from builder.metrics.layer import measure_layer, measure_layers
from builder.metrics.orthogonality import orthogonality
from builder.metrics.sums import one_view
from builder.network.extract import Layer, bn_scale
from builder.network.trace import Norm, TracedConv


def conv_of(weight: torch.Tensor) -> TracedConv:
    out, inside, *_ = weight.shape
    return TracedConv("c", "c.weight", 0, 0.0, out, inside, (3, 3), 1, 1)


def measure(weight: torch.Tensor, scale: torch.Tensor | None = None) -> dict[str, dict]:
    return measure_layer(Layer(0, conv_of(weight), weight, scale)).views


def assert_close(have: object, value: object, tolerance: float, name: str) -> None:
    """Vectors as a whole: relative to their largest entry."""
    if value is None or isinstance(value, int):
        assert have == value, name
    else:
        largest = float(np.abs(value).max())
        # Of a single direction the entropy is 0: what the eigenvalues' rounding makes of it.
        np.testing.assert_allclose(have, value, 0, tolerance * largest + 1e-12, err_msg=name)


def gaussian(out: int, inside: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(out, inside, 3, 3, generator=torch.Generator().manual_seed(seed))


def test_columns_are_the_filters_row_major_and_linf_their_largest_magnitude():
    weight = gaussian(2, 3)
    measured = measure_layer(Layer(0, conv_of(weight), weight, None))
    assert measured.columns.shape == (9, 6)
    assert measured.columns[:, 4].tolist() == weight[1, 1].flatten().tolist()
    assert measured.linf[4] == weight[1, 1].abs().max()


def test_a_filter_at_exactly_one_percent_is_sparse():
    weight = torch.zeros(3, 1, 3, 3)
    weight[0, 0, 0, 0] = 100.0
    weight[1, 0, 1, 1] = -1.0  # exactly a hundredth
    weight[2, 0, 1, 1] = float(np.nextafter(np.float32(1), np.float32(2)))
    metrics = measure(weight)["trained"]
    assert (metrics["n_sparse"], metrics["sparsity"]) == (1, 1 / 3)


def test_the_threshold_is_compared_in_float64():
    # 0.1f / 100 lies between two float32: in float32 the comparison would round it up.
    largest = np.float32(0.1)
    below = np.float32(np.float64(largest) / 100)
    below = below if np.float64(below) <= np.float64(largest) / 100 else np.nextafter(below, 0)
    weight = torch.zeros(3, 1, 3, 3)
    weight[0, 0, 0, 0] = float(largest)
    weight[1, 0, 0, 0] = float(below)
    weight[2, 0, 0, 0] = float(np.nextafter(below, np.float32(1)))
    assert measure(weight)["trained"]["n_sparse"] == 1


def test_one_filter_per_direction_has_the_entropy_of_eight_equal_directions():
    # Nine unit filters e_i: the covariance is I - 11^T / 9, eight equal eigenvalues and a zero.
    weight = torch.eye(9).reshape(9, 1, 3, 3)
    metrics = measure(weight)["trained"]
    assert metrics["variance_entropy"] == pytest.approx(math.log10(8))
    assert metrics["orthogonality"] == pytest.approx(1.0)
    assert (metrics["norm_l1"], metrics["norm_l2"]) == (1.0, 1.0)


def test_scaling_by_the_own_maximum_makes_multiples_of_one_filter_equal():
    weight = torch.arange(1.0, 10).reshape(1, 1, 3, 3) * torch.tensor([1.0, 2, 3, 4]).view(
        4, 1, 1, 1
    )
    metrics = measure(weight)["trained"]
    assert metrics["variance_entropy"] == 0.0  # scaled, they do not vary
    assert metrics["variance_entropy_raw"] == pytest.approx(0.0, abs=1e-9)  # along one direction
    assert metrics["orthogonality"] == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(metrics["mean"], np.arange(1, 10) / 9, rtol=1e-7)


@pytest.mark.parametrize("value", [0.1, 1e-30, 1e30, -3.0])
def test_a_constant_layer_has_exactly_no_variance(value: float):
    metrics = measure(torch.full((7, 5, 3, 3), value))["trained"]
    assert metrics["variance_entropy"] == metrics["variance_entropy_raw"] == 0.0
    assert not metrics["scatter"].any()
    assert metrics["explained_variance_ratio"].tolist() == [0.0] * 9
    assert metrics["n_sparse"] == 0
    assert metrics["orthogonality"] == pytest.approx(0.0, abs=1e-6)


def test_an_all_zero_layer_is_all_sparse():
    metrics = measure(torch.zeros(4, 2, 3, 3))["trained"]
    assert (metrics["layer_linf"], metrics["n_sparse"], metrics["sparsity"]) == (0.0, 8, 1.0)
    assert metrics["variance_entropy"] == 0.0 and metrics["variance_entropy_norm"] is None
    # Zero rows stay zero: only the diagonal differs from I, by 1 each: 1 - 4 / (4 * 3).
    assert metrics["orthogonality"] == pytest.approx(2 / 3)


def test_one_output_channel_has_no_orthogonality():
    assert measure(gaussian(1, 6))["trained"]["orthogonality"] is None


def test_two_output_channels_have_one_minus_their_cosine():
    weight = torch.zeros(2, 1, 3, 3)
    weight[0, 0, 0, 0] = 5.0
    weight[1, 0, 0, :2] = torch.tensor([-3.0, 4.0])  # cosine -3/5
    assert measure(weight)["trained"]["orthogonality"] == pytest.approx(1 - 0.6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_have_no_metrics(bad: float):
    weight = gaussian(4, 4)
    weight[2, 1, 0, 0] = bad
    for view in measure(weight, torch.ones(4)).values():
        assert set(view.values()) == {None}


def test_a_scale_that_is_not_finite_takes_the_metrics_of_the_folded_view_only():
    views = measure(gaussian(2, 2), torch.tensor([1.0, math.nan]))
    assert views["trained"]["sparsity"] is not None
    assert set(views["folded"].values()) == {None}


@pytest.mark.parametrize("factor", [1e-36, 1e36])
def test_huge_and_tiny_weights_neither_overflow_nor_vanish(factor: float):
    weight = gaussian(6, 6)
    plain, scaled = measure(weight)["trained"], measure(weight * factor)["trained"]
    for name in ("sparsity", "variance_entropy", "variance_entropy_raw", "orthogonality"):
        assert scaled[name] == pytest.approx(plain[name], rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 12), st.integers(1, 12))
def test_power_of_two_scales_and_permutations_change_nothing(seed: int, out: int, inside: int):
    weight = gaussian(out, inside, seed)
    generator = torch.Generator().manual_seed(seed)
    shuffled = weight[torch.randperm(out, generator=generator)]
    shuffled = shuffled[:, torch.randperm(inside, generator=generator)] * 8
    before, after = measure(weight)["trained"], measure(shuffled)["trained"]
    assert before["n_sparse"] == after["n_sparse"]
    for name in ("variance_entropy", "variance_entropy_raw_clean", "orthogonality"):
        assert after[name] == pytest.approx(before[name], rel=1e-6, abs=1e-9)
    assert 0 <= before["variance_entropy"] <= math.log10(9)
    assert 0 <= before["orthogonality"] <= 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 12), st.booleans())
@example(8507, 3, 1, False)  # two filters that are not sparse: a single direction
def test_both_views_agree_with_numpy(seed: int, out: int, inside: int, dead: bool):
    weight = gaussian(out, inside, seed)
    weight[: out // 2] *= 1e-3
    scale = torch.randn(out, generator=torch.Generator().manual_seed(seed))
    scale[0] = 0.0 if dead else scale[0]
    views = measure(weight, scale)
    for view, w in (("trained", weight), ("folded", weight * scale.view(-1, 1, 1, 1))):
        expected = recompute(w.reshape(-1, 9).numpy(), out)
        for name, value in expected.items():
            assert_close(views[view][name], value, 1e-6, name)


@pytest.mark.parametrize("dead", [0.0, 0.3, 0.9], ids="{:.0%} dead".format)
@pytest.mark.parametrize(("out", "inside"), [(96, 200), (300, 1), (1, 9000), (5, 3)])
def test_one_pass_for_both_views_gives_what_a_pass_over_the_folded_filters_gives(
    out: int, inside: int, dead: float
):
    draw = torch.Generator().manual_seed(out)
    weight = gaussian(out, inside) + 0.3
    weight[torch.rand(out, inside, generator=draw) < dead] *= 1e-2
    scale = torch.randn(out, generator=draw) * torch.rand(out, generator=draw) ** 3
    product = weight * scale.view(-1, 1, 1, 1)
    views = measure(weight, scale)
    for view, w in (("trained", weight), ("folded", product)):
        columns = w.reshape(-1, 9).t().contiguous()
        direct = one_view(columns, columns.abs().amax(0))
        norms = w.flatten(1).double().norm(dim=1)
        expected = metrics_of(direct, orthogonality(w, None, norms)[0])
        for name, value in expected.items():
            assert_close(views[view][name], value, 1e-7, name)


def test_filters_that_do_not_vary_once_folded_have_exactly_no_variance():
    powers = 2.0 ** torch.arange(-4, 5)
    weight = (gaussian(1, 1) * powers.view(-1, 1, 1, 1)).repeat(1, 50, 1, 1)
    views = measure(weight, 1 / powers)
    assert views["trained"]["variance_entropy_raw"] > 0 or views["trained"]["norm_l1"] > 0
    assert views["folded"]["variance_entropy_raw"] == 0.0
    for view in views.values():
        assert not view["scatter"].any() and view["variance_entropy"] == 0.0


def test_large_common_offsets_cancel_nothing():
    offset = torch.linspace(1, 2, 9).view(3, 3)
    weight = offset + 1e-3 * gaussian(20, 30)
    scale = torch.linspace(-1.001, -0.999, 20)
    views = measure(weight, scale)
    for view, w in (("trained", weight), ("folded", weight * scale.view(-1, 1, 1, 1))):
        for name, value in recompute(w.reshape(-1, 9).numpy(), 20).items():
            if name == "orthogonality":  # nearly 0, from cosines in float32
                assert views[view][name] == pytest.approx(value, abs=1e-6)
            else:
                assert_close(views[view][name], value, 1e-7, name)


def test_folded_orthogonality_is_that_of_the_weights_where_their_product_underflows():
    weight = gaussian(6, 2) * 1e-20
    scale = torch.tensor([1.0, 1, 1, 3e-25, 1e-25, 3e-26])  # products of a few units of 1.4e-45
    views = measure(weight, scale)
    product = (weight * scale.view(-1, 1, 1, 1)).reshape(-1, 9).numpy()
    expected = recompute(product, 6)["orthogonality"]
    assert views["folded"]["orthogonality"] == pytest.approx(expected, rel=1e-6)
    assert abs(expected - views["trained"]["orthogonality"]) > 1e-3


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(-44, 30), min_size=2, max_size=6), st.data())
def test_weights_and_factors_of_any_size_give_what_numpy_gives(
    seed: int, sizes: list[int], data: st.DataObject
):
    draw = st.integers(-44, 8)
    factors = [10.0 ** data.draw(draw) * (-1) ** i for i in range(len(sizes))]
    weight = gaussian(len(sizes), 7, seed) * (10.0 ** torch.tensor(sizes)).view(-1, 1, 1, 1)
    scale = torch.tensor(factors)
    views = measure(weight, scale)
    for view, w in (("trained", weight), ("folded", weight * scale.view(-1, 1, 1, 1))):
        for name, value in recompute(w.reshape(-1, 9).numpy(), len(sizes)).items():
            assert_close(views[view][name], value, 1e-6, name)


def test_layers_measured_on_two_threads_have_the_numbers_of_one():
    layers = [Layer(i, conv_of(w), w, None) for i, w in enumerate([gaussian(200, 90, 1)] * 6)]
    before = torch.get_num_threads()
    found = [measure_layers(layers, workers) for workers in (1, 2)]
    assert torch.get_num_threads() == before
    for one, two in zip(*found, strict=True):
        for name, value in one.views["trained"].items():
            np.testing.assert_array_equal(two.views["trained"][name], value)


def test_folding_flips_signs_and_changes_sparsity_but_not_orthogonality():
    weight = gaussian(8, 8)
    views = measure(weight, torch.tensor([-1.0, 1, 1, 1, 1, 1, 1, 1e-4]))
    assert views["folded"]["n_sparse"] == views["trained"]["n_sparse"] + 8
    assert views["folded"]["orthogonality"] == views["trained"]["orthogonality"]
    assert views["folded"]["variance_entropy"] != views["trained"]["variance_entropy"]


def test_bn_scale_is_gamma_over_the_deviation():
    norm = Norm("bn.weight", "bn.running_var", 1e-5)
    conv = TracedConv("c", "c.weight", 0, 0.0, 2, 1, (3, 3), 1, 1, (norm,))
    state = {"bn.running_var": torch.tensor([4.0, 0.25]), "bn.weight": torch.tensor([2.0, -1.0])}
    scale = bn_scale(conv, state)
    assert scale is not None
    np.testing.assert_allclose(scale, [1, -2], rtol=1e-4)
    scale = bn_scale(replace(conv, norms=(replace(norm, weight=None),)), state)  # affine=False
    assert scale is not None
    np.testing.assert_allclose(scale, [0.5, 2], rtol=1e-4)


def example_weights() -> dict[str, torch.Tensor]:
    spec = importlib.util.find_spec("pyautoattack")
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parent / "examples" / "model_test.pt"
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {k: v for k, v in state.items() if v.shape[-2:] == (3, 3)}


def test_metrics_are_those_of_torchconvquality_on_a_trained_network():
    torchconvquality = pytest.importorskip("torchconvquality")
    worst = 0.0
    names = {
        "sparsity": "sparsity",
        "variance_entropy_raw": "variance_entropy",
        "variance_entropy_raw_norm": "variance_entropy_norm",
        "variance_entropy_raw_clean": "variance_entropy_clean",
        "variance_entropy_raw_clean_norm": "variance_entropy_clean_norm",
        "orthogonality": "orthogonality",
    }
    for key, weight in example_weights().items():
        ours = measure(weight)["trained"]
        theirs = torchconvquality.measure_conv_weight_quality(weight)
        for mine, name in names.items():
            worst = max(worst, abs(ours[mine] - theirs[name]))
            assert ours[mine] == pytest.approx(theirs[name], abs=1e-5), (key, mine)
    assert worst < 1e-5


def test_known_values_on_a_trained_network():
    weights = example_weights()
    first = measure(weights["conv1.weight"])["trained"]
    last = measure(weights["layer4.1.conv2.weight"])["trained"]
    assert first["variance_entropy_raw"] == pytest.approx(0.7575, abs=5e-5)
    assert last["variance_entropy_raw"] == pytest.approx(0.4046, abs=5e-5)
    assert first["variance_entropy"] == pytest.approx(0.7577, abs=5e-5)
    assert last["variance_entropy"] == pytest.approx(0.5562, abs=5e-5)


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    weight, scale = gaussian(512, 512), torch.randn(512)
    cpu = measure(weight, scale)
    cuda = measure_layer(Layer(0, conv_of(weight), weight.cuda(), scale.cuda())).views
    for view in cpu:
        for name, value in cpu[view].items():
            np.testing.assert_allclose(cuda[view][name], value, rtol=1e-6, atol=1e-9, err_msg=name)
