"""Measure a network of one's own: in memory, as a state dict, recognised or not."""

from __future__ import annotations

import gc
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from fileserver import Fault, serve
from torch import nn

from builder import networks, schema
from builder.building.options import Options
from builder.building.run import build
from builder.cohort.registry import load_cohort
from builder.errors import BuilderError, UsageError
from builder.files import PINS, pins_file
from builder.measure.own import measure_module, measure_state
from builder.measure.recognise import digest, indexed, recognise, split, without_prefix
from builder.measure.target import measure, measure_checkpoint
from builder.metrics.layer import measure_layers
from builder.network.extract import iter_layers
from builder.network.trace import trace
from builder.sources.digests import read_pins
from robust_filter_lens import open_release


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """Pseudo-random weights and BatchNorm statistics."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5, generator=generator) if "running_var" in name else (
                tensor.normal_(generator=generator)
            )
    return model


def rows(measured, view: str = "folded") -> list[dict]:
    return [
        r for r in measured.layers.to_pylist() if r["status"] == "measured" and r["weights"] == view
    ]


def test_a_module_has_the_numbers_that_a_build_would_store() -> None:
    model = seeded(networks.wide_resnet_10_2())
    measured = measure_module(model, dataset="cifar10")
    with torch.device("meta"):
        convs = trace(networks.wide_resnet_10_2(), 32)
    layers = list(iter_layers(convs, model.state_dict()))
    assert len(rows(measured)) == len(rows(measured, "trained")) == len(layers)
    for layer, built in zip(layers, measure_layers(layers, 1), strict=True):
        for view, metrics in built.views.items():
            row = rows(measured, view)[layer.index]
            assert (row["layer"], row["layer_index"]) == (layer.conv.layer, layer.index)
            assert (row["conv_depth"], row["bn_layer"]) == (
                layer.conv.conv_depth,
                layer.conv.bn_layer,
            )
            for name, value in metrics.items():
                assert np.array_equal(row[name], value), name


@pytest.mark.parametrize("model_id", ["cifar10-robust-WideResNet10_2"])
def test_a_released_models_checkpoint_gives_the_rows_of_the_release_on_any_number_of_threads(
    model_id: str, tmp_path: Path
) -> None:
    cohort = load_cohort("mini").select(model_id)
    options = Options(models=model_id, first_layer=False)
    assert not build(cohort, tmp_path / "release", options, lambda *progress: None).failures
    stored = open_release(tmp_path / "release").table("layers").to_pylist()
    threads = torch.get_num_threads()
    torch.set_num_threads(4)  # a build leaves one, and this machine may have one
    try:
        checkpoint = f"embedded:builder/zoo/{model_id}.safetensors"
        measured = measure(checkpoint, dataset="cifar10")
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(threads)
    found = {(r["layer"], r["weights"]): r for r in measured.layers.to_pylist()}
    assert stored
    for row in stored:
        for name in row.keys() - {"model_id"}:
            assert found[row["layer"], row["weights"]][name] == row[name], (row["layer"], name)


def test_a_module_stays_as_it_was() -> None:
    model = seeded(networks.wide_resnet_10_2()).train()
    model.conv1.weight.grad = torch.ones_like(model.conv1.weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pointers = [p.data_ptr() for p in model.parameters()]
    measure_module(model)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert pointers == [p.data_ptr() for p in model.parameters()]
    assert model.conv1.weight.grad.eq(1).all()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, lambda m: torch.compile(m, backend="eager")],
    ids=["parallel", "compile"],
)
def test_a_wrapped_network_is_that_network(wrap) -> None:
    model = seeded(networks.preact_resnet18_w16())
    plain, wrapped = measure_module(model, name="x"), measure_module(wrap(model), name="x")
    assert plain.layers.equals(wrapped.layers) and plain.constructor == wrapped.constructor


def test_a_checkpoint_that_is_in_no_cohort_was_called_by_the_id_of_a_cohorts_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shards").mkdir()
    for name in ("model.safetensors.index.json", "model-00001-of-00002.safetensors"):
        (Path("shards") / name).write_text("{}")
    Path("empty").mkdir()
    torch.save({"conv.weight": torch.rand(4, 3, 3, 3)}, "w.pt")
    monkeypatch.setenv("RFL_CACHE", str(tmp_path / "cache"))
    subjects: set[str] = set()
    with serve() as server:
        server.faults = {"/a.pt": [Fault(status=403)], "/b.pt": [Fault(page="<html>quota</html>")]}
        for name in ("a.pt", "b.pt", "gone.pt"):
            with pytest.raises(BuilderError) as error:
                measure_checkpoint(f"{server.url}/{name}")
            assert "--checkpoints" not in error.value.hint  # which measure does not have
    for address, constructor, said in (
        ("shards", None, r"^shards holds a checkpoint in several files \(shards"),
        ("empty", None, "^empty holds 0 checkpoints"),
        ("none.pt", None, "^there is no checkpoint none.pt"),
        ("odd:none.pt", None, "^checkpoint 'odd:none.pt' is of no known form"),
        ("http://weights.invalid/w.pt", None, "^the host name weights.invalid does not resolve"),
        ("w.pt", "timm:resnet18", r"another architecture than w.pt \(timm:resnet18\)"),
    ):
        with pytest.raises(BuilderError, match=said) as error:
            measure_checkpoint(
                address, constructor=constructor, report=lambda *words: subjects.add(words[0])
            )
        for text in (str(error.value), error.value.hint):
            assert "cifar10" not in text and "cohort" not in text and "--checkpoints" not in text
    assert subjects <= {"shards", "empty", "none.pt", "odd:none.pt", "w.pt"}


def test_a_view_of_layers_is_chosen_by_patterns() -> None:
    measured = measure_module(networks.preact_resnet18_w16(), layers=["layer4.*", "conv1"])
    assert {r["layer"].split(".")[0] for r in measured.layers.to_pylist()} == {"conv1", "layer4"}
    with pytest.raises(UsageError, match=r"no 3x3 convolution that matches layer9"):
        measure_module(networks.preact_resnet18_w16(), layers=["layer9.*"])


class Odd(nn.Module):
    """One of each kind of convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 7, padding=3)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.broken = nn.Conv2d(4, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 4, 3)
        self.one = nn.Conv2d(4, 1, 3)
        self.dead = nn.Conv2d(4, 4, 3)
        with torch.no_grad():
            self.broken.weight[0, 0, 0, 0] = torch.nan

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(self.up(self.broken(self.body(self.stem(x))))).mean((2, 3))


def test_every_convolution_is_listed_with_what_became_of_it() -> None:
    found = {
        (r["layer"], r["weights"]): (r["status"], r["reason"])
        for r in measure_module(Odd()).layers.to_pylist()
    }
    assert found["body", "folded"] == ("measured", None)
    assert found["stem", "trained"] == ("not measured", "its kernel is 7x7, not 3x3")
    assert found["broken", "folded"] == ("measured", "NaN or infinite weights: no metrics")
    assert found["one", "folded"] == ("measured", "one output channel: no orthogonality")
    for name in ("dead", "up"):
        assert found[name, "trained"][0] == "not measured"
        assert "never convolves" in found[name, "trained"][1]


def test_a_network_that_no_image_fits_is_one_clear_error() -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no")

    with pytest.raises(BuilderError, match="tracing Broken failed"):
        measure_module(Broken())


WILD = "module."
"""The prefix that DataParallel leaves, the most common one."""


def test_a_resnet20_as_people_save_it_is_recognised_without_its_architecture() -> None:
    model = seeded(networks.cifar_resnet20())
    state = {WILD + k: v for k, v in model.state_dict().items()}
    by_state, by_module = measure_state(state, name="x"), measure_module(model, name="x")
    assert by_state.constructor == "builder.networks:cifar_resnet20"
    assert "by all 97 keys" in by_state.recognised
    assert by_state.layers.equals(by_module.layers)


@pytest.mark.parametrize(
    ("constructor", "like"),
    [
        ("builder.networks:autoattack_example", "builder.networks:autoattack_example"),
        ("builder.networks:resnet18_w32", "builder.networks:resnet18_w32"),
        ("builder.networks:preact_resnet18_w16", "builder.networks:preact_resnet18_w16"),
        ("builder.networks:wide_resnet_10_2", "builder.networks:wide_resnet_10_2"),
        ("torchvision:resnet18", "torchvision:resnet18"),
        ("torchvision:resnet50", "torchvision:resnet50"),
        ("timm:resnet18", "torchvision:resnet18"),
        ("timm:resnet50", "torchvision:resnet50"),
    ],
)
def test_known_architectures_are_recognised_with_their_graph(constructor: str, like: str) -> None:
    from builder.sources.constructors import construct

    with torch.device("meta"):
        model = construct(constructor)
    found = recognise({f"module.{k}": tuple(v.shape) for k, v in model.state_dict().items()})
    assert found is not None
    (architecture,) = found.architectures
    assert architecture.constructors[0] == like and constructor in architecture.constructors
    size = 32 if constructor.startswith("builder") else 224
    assert list(architecture.convs) == trace(model, size)


@pytest.mark.slow
def test_every_network_of_the_paper_is_recognised() -> None:
    from builder.cohort.registry import load_cohort
    from builder.network.plan import construct_on_meta

    for constructor in {m.constructor: m for m in load_cohort("paper").models}.values():
        model = construct_on_meta(constructor)
        found = recognise({k: tuple(v.shape) for k, v in model.state_dict().items()})
        assert found is not None, constructor.constructor
        (architecture,) = found.architectures
        assert constructor.constructor in architecture.constructors


def test_another_number_of_classes_is_the_same_architecture() -> None:
    from builder.sources.compat import import_torchvision

    with torch.device("meta"):
        model = import_torchvision().models.resnet18(num_classes=7)
    found = recognise({k: tuple(v.shape) for k, v in model.state_dict().items()})
    assert found is not None and found.architectures[0].constructors[0] == "torchvision:resnet18"


def changed(what: str) -> dict[str, torch.Tensor]:
    state = dict(networks.cifar_resnet20().state_dict())
    if what == "one more layer":
        state["layer3.3.conv1.weight"] = torch.randn(64, 64, 3, 3)
    elif what == "one layer less":
        del state["layer3.2.conv2.weight"]
    elif what == "a wider layer":
        state["conv1.weight"] = torch.randn(17, 3, 3, 3)
    elif what == "another classifier":
        state["linear2.weight"] = torch.randn(10, 64)
    return state


@pytest.mark.parametrize(
    "what", ["one more layer", "one layer less", "a wider layer", "another classifier"]
)
def test_a_network_that_differs_anywhere_is_not_recognised(what: str) -> None:
    measured = measure_state(changed(what), dataset="cifar10")
    assert measured.constructor is None and measured.view == "trained"
    assert "of no architecture that is known here" in measured.unknown[0]
    layers = measured.layers.to_pylist()
    assert {r["weights"] for r in layers} == {"trained"}
    unknown = ("conv_depth", "depth_bin", "bn_layer", "groups", "stride")
    assert all(r[column] is None for r in layers for column in unknown)
    assert not [name for name in measured.summary if "bin_" in name]
    comparison = measured.compare()
    assert not comparison.depth and not comparison.models
    assert "unknown here" in comparison.not_compared[0]


def test_names_and_shapes_of_two_graphs_give_no_folded_number() -> None:
    """Two networks share names and shapes; only one folds its BatchNorm."""
    from builder.measure.own import graph_of
    from builder.measure.recognise import Architecture, Recognised

    class Post(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.bn = nn.BatchNorm2d(4)
            self.fc = nn.Linear(4, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))

    class Late(Post):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.bn(self.conv(x).relu()).mean((2, 3)))

    def entry(model: nn.Module) -> Architecture:
        _, shapes = without_prefix({k: tuple(v.shape) for k, v in model.state_dict().items()})
        core, rest = split(shapes)
        name = f"two:{type(model).__name__}"
        return Architecture((name,), digest(core), rest, 0, tuple(trace(model, 32)))

    with torch.device("meta"):
        both = entry(Post()), entry(Late())
    assert both[0].core == both[1].core and both[0].convs != both[1].convs
    graph = graph_of(Recognised(both, ""))
    assert not graph.convs and graph.constructor is None
    assert "two:Post and of two:Late, which run different graphs" in graph.unknown[0]


def test_the_index_is_of_the_installed_packages() -> None:
    by_name = {name: a for a in indexed() for name in a.constructors}
    from builder.measure.index import OWN, entry

    for name in OWN:
        made = entry(name, "cifar10")
        assert by_name[name].core == made["core"], f"{name}: run `python -m builder.measure.index`"
        assert [asdict(c) for c in by_name[name].convs] == made["convs"]


def test_a_loop_over_one_model_does_not_grow() -> None:
    model = networks.wide_resnet_10_2()
    for _ in range(3):
        measure_module(model)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(5):
        measure_module(model)
    gc.collect()
    assert len(gc.get_objects()) - before < 50


def test_measuring_an_address_pins_it_in_the_cache_and_not_in_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"conv.weight": torch.rand(4, 3, 3, 3)}, tmp_path / "w.pt")
    monkeypatch.setenv("RFL_CACHE", str(tmp_path / "cache"))
    with serve() as server:
        server.files["/w.pt"] = (tmp_path / "w.pt").read_bytes()
        measure_checkpoint(f"{server.url}/w.pt")
        assert list(read_pins(tmp_path / "cache" / PINS)) == [f"{server.url}/w.pt"]
        assert not pins_file().exists() or server.url not in pins_file().read_text()


def test_measuring_in_python_prints_and_writes_nothing(tmp_path: Path) -> None:
    source = (
        "import robust_filter_lens as rfl\n"
        "from builder.networks import wide_resnet_10_2\n"
        "m = rfl.measure(wide_resnet_10_2(), dataset='cifar10')\n"
        "assert m.compare().depth and m.summary and m._repr_html_()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "") and not list(tmp_path.iterdir())


def test_every_summary_number_is_a_float_with_a_stable_name() -> None:
    summary = measure_module(networks.wide_resnet_10_2()).summary
    assert all(type(v) is float and k.startswith("filters/") for k, v in summary.items())
    assert {"filters/sparsity", "filters/variance_entropy", "filters/orthogonality"} <= set(summary)
    assert {f"filters/bin_{b:02}/sparsity" for b in (0, 10)} <= set(summary)
    assert schema.N_DEPTH_BINS == 11


@pytest.mark.parametrize("kernel", [1, 5])
def test_a_network_without_3x3_convolutions_is_refused(kernel: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, kernel), nn.Conv2d(8, 8, kernel))
    for target in (model, model.state_dict()):
        with pytest.raises(UsageError, match="no 3x3 convolution") as error:
            measure(target)
        assert f"{kernel}x{kernel}" in error.value.hint


def test_layers_that_hold_no_3x3_convolution_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1))
    with pytest.raises(UsageError, match="no 3x3 convolution that matches 1"):
        measure(model, layers=["1"])


@pytest.mark.parametrize(
    ("kind", "argument"),
    [
        ("state", {"constructor": "builder.networks:wide_resnet_10_2"}),
        ("state", {"first_layer": True}),
        ("state", {"image_size": 32}),
        ("module", {"constructor": "builder.networks:wide_resnet_10_2"}),
        ("address", {"image_size": 32}),
    ],
)
def test_an_argument_that_would_change_nothing_is_refused(
    kind: str, argument: dict, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    torch.save(model.state_dict(), tmp_path / "w.pt")
    target = {"state": model.state_dict(), "module": model, "address": tmp_path / "w.pt"}[kind]
    measure(target)
    with pytest.raises(UsageError, match=f"{next(iter(argument))} says nothing about a "):
        measure(target, **argument)
