"""Weights held in parts are the weights torch computes from them in evaluation mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import build_toy
from test_sources import spec, torch_bytes
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import builder
from builder.network.extract import iter_layers
from builder.network.plan import construct_on_meta
from builder.network.trace import trace
from builder.sources import fetch as sources
from builder.sources.checkpoint import read_checkpoint
from builder.sources.state import fit_state

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class Net(nn.Module):
    def __init__(self, conv: Callable[[nn.Module], nn.Module] = lambda m: m) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = conv(nn.Conv2d(8, 6, 3, groups=2))
        self.fc = conv(nn.Linear(6, 10))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.conv2(self.bn1(self.conv1(x)).relu()).mean((2, 3)))
        return y


def wn_old() -> nn.Module:
    return Net(lambda m: weight_norm(m))


def wn_new() -> nn.Module:
    return Net(lambda m: parametrizations.weight_norm(m))


def wn_whole() -> nn.Module:
    return Net(lambda m: weight_norm(m, dim=None))


def wn_second_axis() -> nn.Module:
    return Net(lambda m: parametrizations.weight_norm(m, dim=1))


def sn_old() -> nn.Module:
    return Net(lambda m: spectral_norm(m))


def sn_new() -> nn.Module:
    return Net(lambda m: parametrizations.spectral_norm(m))


def pruned() -> nn.Module:
    return Net(lambda m: prune.l1_unstructured(m, "weight", 0.5))


KINDS = {
    "wn_old": "weight_norm",
    "wn_new": "weight_norm",
    "wn_whole": "weight_norm",
    "wn_second_axis": "weight_norm",
    "sn_old": "spectral_norm",
    "sn_new": "spectral_norm",
    "pruned": "pruning",
}


@pytest.fixture(autouse=True)
def quiet() -> None:
    warnings.simplefilter("ignore")


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_in_parts_is_neither_refused_nor_another(
    tmp_path: Path, kind: str, plain: bool, whole: bool
) -> None:
    if whole and kind.endswith(("new", "axis")):
        pytest.skip("torch does not pickle parametrized modules whole")
    torch.manual_seed(1)
    made: nn.Module = globals()[kind]()
    for _ in range(3):
        made.train()(torch.rand(4, 3, 8, 8))
    made.eval()
    with torch.no_grad():
        for name, p in made.named_parameters():
            if name.endswith(("_g", "original0")):
                p.mul_(1 + torch.rand_like(p))
    x = torch.rand(2, 3, 9, 9)
    wanted = made(x)
    path = tmp_path / "w.pt"
    path.write_bytes(torch_bytes(made if whole else {"state_dict": made.state_dict()}))
    model = spec(str(path), f"test_reparametrized:{'Net' if plain else kind}")
    meta = construct_on_meta(model)
    assert list(meta.state_dict()) == list(Net().state_dict()) or not plain
    state = fit_state([read_checkpoint(path)], meta, "net")
    assert state.reparametrized == dict.fromkeys(("conv2.weight", "fc.weight"), KINDS[kind])
    assert torch.allclose(state["conv2.weight"], made.conv2.weight, rtol=1e-6, atol=1e-7)
    layers = list(iter_layers(trace(meta, 32), state))
    assert [layer.reparametrized for layer in layers] == [None, KINDS[kind]]
    assert torch.allclose(sources.instantiate(model, state)(x), wanted, atol=1e-5)


def test_a_plain_checkpoint_fits_a_constructor_with_norms(tmp_path: Path) -> None:
    state = Net().state_dict()
    (tmp_path / "w.pt").write_bytes(torch_bytes(state))
    found = fit_state(
        [read_checkpoint(tmp_path / "w.pt")],
        construct_on_meta(spec("w.pt", "test_reparametrized:wn_new")),
        "net",
    )
    assert found.reparametrized == {}
    assert torch.equal(found["conv2.weight"], state["conv2.weight"])


def test_a_network_whose_own_parameters_have_such_names_keeps_them(tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight_g = nn.Parameter(torch.rand(4, 1))
            self.weight_v = nn.Parameter(torch.rand(4, 3))

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Own())
    (tmp_path / "w.pt").write_bytes(torch_bytes(model.state_dict()))
    found = fit_state([read_checkpoint(tmp_path / "w.pt")], model, "net")
    assert list(found) == list(model.state_dict())
    assert found.reparametrized == {}


@pytest.mark.parametrize("make", [spectral_norm, parametrizations.spectral_norm])
def test_a_transposed_convolution_has_its_second_axis_as_rows(
    tmp_path: Path, make: Callable[[nn.Module], nn.Module]
) -> None:
    layer = make(nn.ConvTranspose2d(3, 5, 3)).eval()
    model = nn.Sequential(nn.Conv2d(3, 3, 3), layer)
    model(torch.rand(1, 3, 9, 9))
    (tmp_path / "w.pt").write_bytes(torch_bytes(model.state_dict()))
    plain = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ConvTranspose2d(3, 5, 3))
    found = fit_state([read_checkpoint(tmp_path / "w.pt")], plain, "net")
    assert torch.allclose(found["1.weight"], layer.weight, rtol=1e-6)


def test_a_release_says_which_weights_were_computed(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(torch_bytes(wn_old().eval().state_dict()))
    cohort = tmp_path / "nets.csv"
    cohort.write_text(
        "network,dataset,robust,architecture,constructor,checkpoint\n"
        f"net,cifar10,true,Net,test_reparametrized:wn_old,{tmp_path}/w.pt\n"
    )
    built = build_toy(cohort, tmp_path / "out", weights="checkpoints", first_layer=False)
    assert not built.failures
    layers = builder.open_release(tmp_path / "out").table("layers").to_pylist()
    assert {(r["layer"], r["reparametrized"]) for r in layers} == {
        ("conv1", None),
        ("conv2", "weight_norm"),
    }
