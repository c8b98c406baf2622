"""Every source end to end: files in its exact format, served on 127.0.0.1, down to the weights."""

from __future__ import annotations

import contextlib
import copy
import errno
import gzip
import io
import os
import pickle
import socket
import subprocess
import sys
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch
from fileserver import Fault, FileServer, serve
from torch import Tensor, nn

from builder.cohort.registry import ModelSpec, load_cohort
from builder.errors import BuilderError, NetworkError, UsageError
from builder.sources import digests, hosts
from builder.sources import fetch as sources

State = dict[str, Tensor]
Loaded = Mapping[str, Tensor]
DRIVE = "/uc?export=download&confirm=t&id="


class Tiny(nn.Module):
    """A convolution, a BatchNorm, a head, and input normalisation like RobustBench's."""

    def __init__(self, width: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer = nn.ModuleDict(
            {"conv": nn.Conv2d(width, width, 3), "bn": nn.BatchNorm2d(width)}
        )
        self.linear = nn.Linear(width, classes)
        self.register_buffer("mu", torch.full((1, 3, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x - self.mu)).relu()
        return self.linear(self.layer["bn"](self.layer["conv"](x)).mean((2, 3)))


class Ensemble(nn.Module):
    """Three members under two names each, like RobustBench's Chen2020Adversarial."""

    def __init__(self) -> None:
        super().__init__()
        self.branch1, self.branch2, self.branch3 = Tiny(), Tiny(), Tiny()
        self.models = nn.ModuleList([self.branch1, self.branch2, self.branch3])


def normalised() -> nn.Module:
    """A model behind a normalisation layer, like RobustBench's ImageNet models."""
    layers = OrderedDict(normalize=nn.Module(), model=Tiny())
    layers["normalize"].register_buffer("mean", torch.full((1, 3, 1, 1), 0.25))
    return nn.Sequential(layers)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with serve() as s:
        for name in ("RFL_DRIVE_URL", "RFL_ZENODO_URL"):
            monkeypatch.setenv(name, s.url)
        yield s


def spec(
    checkpoint: str, constructor: str = "test_sources:Tiny", network: str = "Net"
) -> ModelSpec:
    return ModelSpec(network, "cifar10", True, "Tiny", constructor, checkpoint)


def listed(model_id: str) -> ModelSpec:
    """A line of the paper's cohort."""
    (model,) = (m for m in load_cohort("paper").models if m.model_id == model_id)
    return model


def random_state(model: nn.Module, seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        k: torch.rand(v.shape, generator=generator).to(v.dtype)
        for k, v in model.state_dict().items()
    }


def torch_bytes(obj: Any, *, legacy: bool = False) -> bytes:
    out = io.BytesIO()
    torch.save(obj, out, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


def prefixed(state: State, prefix: str) -> State:
    return {prefix + k: v for k, v in state.items()}


def fetch(model: ModelSpec, folder: Path, by_hand: Path | None = None) -> sources.Fetched:
    return sources.fetch(
        model,
        cache=folder / "cache",
        checkpoints=by_hand,
        pins=folder / "checkpoints.lock",
        report=lambda *_: None,
    )


def weights(model: ModelSpec, fetched: sources.Fetched) -> Loaded:
    with torch.device("meta"):
        network = sources.construct(model.constructor)
    return sources.load_state(model, fetched, network)


def load(model: ModelSpec, folder: Path) -> Loaded:
    return weights(model, fetch(model, folder))


def saved(folder: Path, obj: Any, name: str = "w.pt") -> ModelSpec:
    path = folder / name
    path.write_bytes(torch_bytes(obj))
    return spec(str(path))


def agree(found: Loaded, wanted: State) -> bool:
    return all(torch.equal(found[k], wanted[k]) for k in wanted)


# Wrappers and prefixes

WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer": {"state": {0: s["mu"]}}},
    "model": lambda s: {"model": s, "best_acc": 0.5},
    "net": lambda s: {"net": s},
    "unknown name": lambda s: {"whatever": s},
    "last beside best": lambda s: {"best": {k: v * 0 for k, v in s.items()}, "last": s},
    "beside its average": lambda s: {"ema": {k: v * 0 for k, v in s.items()}, "state_dict": s},
    "last with state_dict": lambda s: {"last": {"state_dict": s}, "best": {"state_dict": {}}},
    "module.": lambda s: prefixed(s, "module."),
    "model.": lambda s: {"state_dict": prefixed(s, "model.")},
    "module.model.": lambda s: prefixed(s, "module.model."),
    "net. of one part": lambda s: {"state_dict": {**prefixed(s, "net."), "loss.w": torch.ones(2)}},
    "parameters": lambda s: OrderedDict(
        (k, nn.Parameter(v) if v.dim() else v) for k, v in s.items()
    ),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappers_and_prefixes_are_found_by_what_fits(tmp_path: Path, wrapping: str) -> None:
    wanted = random_state(Tiny())
    model = saved(tmp_path, WRAPPINGS[wrapping](wanted))
    found = load(model, tmp_path)
    assert list(found) == list(wanted)
    assert agree(found, wanted)


def test_a_prefix_that_the_model_has_and_the_file_has_not_is_added(tmp_path: Path) -> None:
    wanted = random_state(Tiny())
    model = saved(tmp_path, {"state_dict": prefixed(wanted, "module.")})
    found = load(ModelSpec(**{**vars(model), "constructor": "test_sources:normalised"}), tmp_path)
    assert agree(found, prefixed(wanted, "model."))
    assert "normalize.mean" not in found  # keeps the constructor's value


def test_two_equal_candidates_are_not_guessed_between(tmp_path: Path) -> None:
    model = saved(tmp_path, {"first": random_state(Tiny(), 1), "second": random_state(Tiny(), 2)})
    with pytest.raises(BuilderError, match="fit equally well: #first, #second"):
        load(model, tmp_path)


def test_counters_and_normalisation_may_be_absent_and_keep_the_constructors_value(
    tmp_path: Path,
) -> None:
    wanted = random_state(Tiny())
    kept = {k: v for k, v in wanted.items() if "num_batches" not in k and k != "mu"}
    model = saved(tmp_path, kept)
    found = load(model, tmp_path)
    assert list(found) == list(kept)
    network = sources.instantiate(model, found)
    assert torch.equal(network.get_buffer("mu"), torch.full((1, 3, 1, 1), 0.5))
    reference = Tiny()
    reference.load_state_dict(kept, strict=False)
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(network(x), reference.eval()(x))
    assert not network.training


# Strictness


def altered(change: Callable[[State], None]) -> State:
    state = random_state(Tiny())
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("conv1.weight"), "1 missing: conv1.weight [4, 3, 3, 3]"),
        (lambda s: s.pop("bn1.running_var"), "1 missing: bn1.running_var [4]"),
        (lambda s: s.pop("bn1.bias"), "1 missing: bn1.bias [4]"),
        (lambda s: s.pop("linear.weight"), "1 missing: linear.weight [10, 4]"),
        (lambda s: s.update({"conv1.bias": torch.ones(4)}), "1 unexpected: conv1.bias [4]"),
        (lambda s: s.update({"conv1.scores": torch.ones(4)}), "1 unexpected: conv1.scores [4]"),
        (
            lambda s: s.update({"conv9.weight": torch.ones(4, 4, 1, 1)}),
            "1 unexpected: conv9.weight [4, 4, 1, 1]",
        ),
        (
            lambda s: s.update({"bn9.weight": torch.rand(5), "bn9.running_mean": torch.rand(5)}),
            "2 unexpected: bn9.weight [5], bn9.running_mean [5]",
        ),
        (
            lambda s: s.update({"conv1.weight": torch.ones(4, 3, 5, 5)}),
            "conv1.weight (expected [4, 3, 3, 3], found [4, 3, 5, 5])",
        ),
        (
            lambda s: s.update({"linear.weight": torch.ones(100, 4)}),
            "linear.weight (expected [10, 4], found [100, 4])",
        ),
    ],
)
def test_keys_that_touch_filters_are_never_ignored(
    tmp_path: Path, change: Callable[[State], None], said: str
) -> None:
    model = saved(tmp_path, {"state_dict": altered(change)})
    with pytest.raises(BuilderError) as error:
        load(model, tmp_path)
    assert said in str(error.value)
    assert "another architecture than cifar10-robust-Net (Tiny, test_sources:Tiny)" in str(
        error.value
    )
    assert model.checkpoint in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update({"mean": torch.ones(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1)}),
        lambda s: s.update({"rotation_head.weight": torch.ones(4, 4)}),
        lambda s: s.update({"first.1.weight": s["conv1.weight"].clone()}),  # a second name
    ],
)
def test_keys_that_say_nothing_about_filters_are_ignored(
    tmp_path: Path, change: Callable[[State], None]
) -> None:
    found = load(saved(tmp_path, altered(change)), tmp_path)
    assert agree(found, random_state(Tiny()))


def test_a_real_checkpoint_of_another_architecture_is_named(tmp_path: Path) -> None:
    (mini,) = (m for m in load_cohort("mini").models if m.checkpoint.startswith("embedded:pyauto"))
    wrong = ModelSpec(**{**vars(mini), "constructor": "robustbench:cifar10/Ding2020MMA"})
    with pytest.raises(BuilderError, match="missing: block1") as error:
        load(wrong, tmp_path)
    assert "model_test.pt" in str(error.value)


@pytest.mark.parametrize(
    "content",
    [{"epoch": 3, "log": ["a"]}, {}, [], None, 3, "weights", torch.ones(8, 3, 3, 3), (1, None)],
    ids=repr,
)
def test_a_file_without_named_tensors_is_named(tmp_path: Path, content: Any) -> None:
    with pytest.raises(BuilderError, match="holds no weights"):
        load(saved(tmp_path, content), tmp_path)


# Sources


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """RobustBench's registry for cifar10/Linf, open for one test to add to."""
    from builder.sources.compat import import_robustbench

    import_robustbench()
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
    from robustbench.model_zoo.models import model_dicts

    models = model_dicts[BenchmarkDataset.cifar_10]
    changed = copy.copy(models[ThreatModel.Linf])
    monkeypatch.setitem(models, ThreatModel.Linf, changed)
    return changed  # type: ignore[no-any-return]


def test_robustbench_with_last(server: FileServer, tmp_path: Path) -> None:
    model = listed("cifar10-robust-Andriushchenko2020Understanding")
    wanted = random_state(sources.construct(model.constructor))
    drive_id = sources.describe(model).url.rpartition("=")[2]
    checkpoint = {"last": wanted, "best": {k: v + 1 for k, v in wanted.items()}}
    server.files[DRIVE + drive_id] = torch_bytes(checkpoint, legacy=True)
    assert agree(load(model, tmp_path), wanted)


def test_robustbench_on_imagenet_adds_its_prefix(server: FileServer, tmp_path: Path) -> None:
    model = listed("imagenet-robust-Salman2020Do_R18")
    network = sources.construct(model.constructor)
    inner = random_state(network.get_submodule("model"))
    drive_id = sources.describe(model).url.rpartition("=")[2]
    server.files[DRIVE + drive_id] = torch_bytes({"state_dict": prefixed(inner, "module.")})
    found = load(model, tmp_path)
    assert agree(found, prefixed(inner, "model."))
    real = sources.instantiate(model, found)
    assert torch.equal(real.get_buffer("normalize.mean"), network.get_buffer("normalize.mean"))


def test_an_ensembles_files_go_to_its_members_in_order(
    server: FileServer, tmp_path: Path, registry: dict[str, Any]
) -> None:
    registry["Three"] = {"model": Ensemble, "gdrive_id": ["a", "b", "c"]}
    members = [random_state(Tiny(), seed) for seed in range(3)]
    for drive_id, member in zip("abc", members, strict=True):
        server.files[DRIVE + drive_id] = torch_bytes(prefixed(member, "module."))
    model = spec("robustbench:cifar10/Linf/Three", "robustbench:cifar10/Three", "Three")
    fetched = fetch(model, tmp_path)
    assert len(fetched.files) == len(fetched.urls) == 3
    assert fetched.bytes == sum(p.stat().st_size for p in fetched.files)
    found = weights(model, fetched)
    for i, member in enumerate(members):
        assert agree(found, prefixed(member, f"models.{i}."))
        assert agree(found, prefixed(member, f"branch{i + 1}."))
    assert list(found) == list(Ensemble().state_dict())


@pytest.mark.slow
def test_the_papers_ensemble_of_three_files(server: FileServer, tmp_path: Path) -> None:
    model = listed("cifar10-robust-Chen2020Adversarial")
    network = sources.construct(model.constructor)
    members = [random_state(network.get_submodule(f"models.{i}"), i) for i in range(3)]
    for address, member in zip(sources.describe(model).url.split(), members, strict=True):
        server.files[DRIVE + address.rpartition("=")[2]] = torch_bytes({"state_dict": member})
    found = load(model, tmp_path)
    for i, member in enumerate(members):
        assert agree(found, prefixed(member, f"models.{i}."))


def test_an_ensemble_trained_as_one_is_one_file(tmp_path: Path) -> None:
    wanted = random_state(Ensemble())
    for i in range(3):
        for key in Tiny().state_dict():
            wanted[f"models.{i}.{key}"] = wanted[f"branch{i + 1}.{key}"]
    model = saved(tmp_path, {"state_dict": prefixed(wanted, "model.")})
    model = ModelSpec(**{**vars(model), "constructor": "test_sources:Ensemble"})
    assert agree(load(model, tmp_path), wanted)


class TheirCallback:
    """Of somebody's training code."""


def lightning(state: State) -> bytes:
    """What Lightning 1.5 saved."""
    checkpoint = {
        "epoch": 124,
        "global_step": 1,
        "pytorch-lightning_version": "1.5.10",
        "state_dict": prefixed(state, "model."),
        "callbacks": {TheirCallback: TheirCallback()},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1}]}],
        "hparams_name": "hparams",
        "hyper_parameters": {"model": TheirCallback()},
    }
    return torch_bytes(checkpoint)


def tar_of(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for member, content in (("robustbench_X/version_0/hparams.yaml", b"{}"), (name, data)):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def test_zenodo_tar_with_a_lightning_checkpoint(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = listed("cifar10-standard-Sehwag2021Proxy_R18")
    wanted = random_state(sources.construct(model.constructor))
    member = "robustbench_Sehwag2021Proxy_R18/version_0/checkpoints/epoch=124-step=97750.ckpt"
    name = model.checkpoint.rpartition("/")[2]
    server.files[f"/records/7097538/files/{name}?download=1"] = tar_of(member, lightning(wanted))
    monkeypatch.delattr("test_sources.TheirCallback")  # the reader has not their code
    found = load(model, tmp_path)
    assert agree(found, wanted)
    assert (
        sources.describe(model).url == f"https://zenodo.org/records/7097538/files/{name}?download=1"
    )


def test_any_url(server: FileServer, tmp_path: Path) -> None:
    wanted = random_state(Tiny())
    server.files["/nets/w.pth?x=1"] = torch_bytes(wanted)
    server.faults["/nets/w.pth?x=1"] = [Fault(drop_after=1 << 12)]
    model = spec(f"{server.url}/nets/w.pth?x=1")
    fetched = fetch(model, tmp_path)
    assert fetched.urls == (model.checkpoint,)
    assert agree(weights(model, fetched), wanted)
    assert sources.describe(model) == sources.Source("http", model.checkpoint)


@pytest.mark.parametrize("space", [" ", "\t", "\u2028"])
def test_a_url_with_white_space_is_pinned_as_it_goes_over_the_wire(
    server: FileServer, tmp_path: Path, space: str
) -> None:
    wanted = random_state(Tiny())
    server.files[f"/my{quote(space)}net.pt"] = torch_bytes(wanted)
    server.files["/other.pt"] = torch_bytes(wanted)
    assert agree(load(spec(f"{server.url}/my{space}net.pt"), tmp_path), wanted)
    assert agree(load(spec(f"{server.url}/other.pt"), tmp_path), wanted)  # reads the pins
    pinned = digests.read_pins(tmp_path / "checkpoints.lock")
    assert list(pinned) == [f"{server.url}/my{quote(space)}net.pt", f"{server.url}/other.pt"]


@pytest.mark.parametrize("part", ["userinfo", "query"])
def test_a_secret_of_an_address_went_into_pins_urls_and_messages(
    server: FileServer, tmp_path: Path, part: str
) -> None:
    wanted = random_state(Tiny())
    host = server.url.removeprefix("http://")
    user, query = ("alice:hunter2@", "") if part == "userinfo" else ("", "&X-Amz-Signature=hunter2")
    path = f"/w.pt?v=1{query}"
    server.files[path] = torch_bytes(wanted)
    model = spec(f"http://{user}{host}{path}")
    fetched = fetch(model, tmp_path)
    assert agree(weights(model, fetched), wanted)
    assert server.log[0][0] == path
    if user:
        assert server.log[0][1]["authorization"].startswith("Basic ")
    assert fetched.urls == (f"{server.url}/w.pt?v=1",) == (sources.describe(model).url,)
    assert list(digests.read_pins(tmp_path / "checkpoints.lock")) == list(fetched.urls)
    sources.discard(fetched)
    page = "<html><title>sign in</title></html>"
    for fault in (Fault(status=403), Fault(status=404), Fault(page=page), Fault(announce=1 << 40)):
        server.faults[path] = [fault]
        with pytest.raises(BuilderError) as error:
            fetch(model, tmp_path)
        assert "/w.pt?v=1" in str(error.value)
        assert "hunter2" not in f"{error.value} {error.value.hint}"
    server.files[path] = torch_bytes(random_state(Tiny(), 2))
    with pytest.raises(BuilderError, match="is not the file it was") as error:
        fetch(model, tmp_path)
    assert "hunter2" not in f"{error.value} {error.value.hint}"


def test_two_files_told_apart_by_a_secret_alone_were_one_in_the_cache(
    server: FileServer, tmp_path: Path
) -> None:
    for key in ("one", "two"):
        server.files[f"/get?key={key}"] = torch_bytes(random_state(Tiny(), len(key) + ord(key[0])))
    fetch(spec(f"{server.url}/get?key=one"), tmp_path)
    with pytest.raises(BuilderError, match="is not the file it was"):
        fetch(spec(f"{server.url}/get?key=two"), tmp_path)


@pytest.mark.parametrize(
    "url", ["http://[::1/w.pt", "ftp://a:hunter2@h/w.pt", "https://a:hunter2@"]
)
def test_a_wrong_address_is_named_without_its_password(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError) as error:
        fetch(spec(url), tmp_path)
    assert "hunter2" not in str(error.value)


def test_the_embedded_default_needs_no_network_and_is_never_deleted(tmp_path: Path) -> None:
    (model,) = (m for m in load_cohort("mini").models if m.checkpoint.startswith("embedded:pyauto"))
    fetched = fetch(model, tmp_path)
    assert sum(
        v.numel() // 9 for v in weights(model, fetched).values() if v.shape[2:] == (3, 3)
    ) == (1_220_800)
    sources.discard(fetched)
    assert fetched.files[0].exists()
    assert not (tmp_path / "checkpoints.lock").exists()


def test_a_folder_with_one_checkpoint_is_that_checkpoint(tmp_path: Path) -> None:
    saved(tmp_path, random_state(Tiny()), "a.pt")
    (tmp_path / "notes.txt").write_text("x")
    assert fetch(spec(str(tmp_path)), tmp_path / "x").files == (tmp_path / "a.pt",)
    saved(tmp_path, random_state(Tiny()), "b.pt")
    with pytest.raises(UsageError, match=r"holds 2 checkpoints; .* \(found a.pt, b.pt\)"):
        fetch(spec(str(tmp_path)), tmp_path / "x")


@pytest.mark.parametrize(
    ("checkpoint", "said"),
    [
        ("robustbench:cifar10/Linf/Carmon2019Unlabelled", "Carmon2019Unlabeled"),
        ("robustbench:cifar10", "should be robustbench:"),
        ("robustbench:imagenet/Linf/Standard_R50", "no checkpoint of its own"),
        ("zenodo:7097538", "should be zenodo:"),
        ("timm:a/b", "should be timm:"),
        ("hf://x", "should be hf://"),
        ("ftp://x/y.pt", "of no known form"),
        ("https:///y.pt", "is no URL"),
        ("embedded:no_such_package/x.pt", "'no_such_package' is not installed"),
        ("embedded:pyautoattack/../x.pt", "should be embedded:"),
        ("nowhere.pt", "there is no checkpoint nowhere.pt"),
    ],
)
def test_wrong_addresses_are_usage_errors(tmp_path: Path, checkpoint: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        fetch(spec(checkpoint), tmp_path)
    assert said in f"{error.value} {error.value.hint}"


def test_every_model_of_every_cohort_is_described_without_a_network() -> None:
    for cohort in ("mini", "paper"):
        for model in load_cohort(cohort).models:
            source = sources.describe(model)
            assert source.url.startswith(("https://", "embedded:"))


# Cache, pins, files by hand


def test_a_cached_file_is_not_fetched_again_and_discard_deletes_it(
    server: FileServer, tmp_path: Path
) -> None:
    server.files["/w.pt"] = torch_bytes(random_state(Tiny()))
    model = spec(f"{server.url}/w.pt")
    first, second = fetch(model, tmp_path), fetch(model, tmp_path)
    assert first == second
    assert len(server.log) == 1
    sources.discard(first)
    assert not first.files[0].exists()


def test_a_file_that_changed_upstream_is_an_error_that_names_both_digests(
    server: FileServer, tmp_path: Path
) -> None:
    model = spec(f"{server.url}/w.pt")
    server.files["/w.pt"] = torch_bytes(random_state(Tiny(), 1))
    first = fetch(model, tmp_path)
    sources.discard(first)
    server.files["/w.pt"] = torch_bytes(random_state(Tiny(), 2))
    with pytest.raises(BuilderError, match="is not the file it was") as error:
        fetch(model, tmp_path)
    assert first.sha256 in str(error.value)
    assert str(tmp_path / "checkpoints.lock") in error.value.hint
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.stat().st_size] == []


def test_a_file_damaged_in_the_cache_is_fetched_again(server: FileServer, tmp_path: Path) -> None:
    wanted = random_state(Tiny())
    server.files["/w.pt"] = torch_bytes(wanted)
    model = spec(f"{server.url}/w.pt")
    fetch(model, tmp_path).files[0].write_bytes(b"rot")
    assert agree(load(model, tmp_path), wanted)


@pytest.mark.parametrize("damage", ["damaged", "unreadable", "unwritable"])
def test_a_good_cached_file_outlives_trouble_with_the_pins(
    server: FileServer, tmp_path: Path, damage: str
) -> None:
    server.files["/w.pt"] = torch_bytes(random_state(Tiny()))
    model = spec(f"{server.url}/w.pt")
    (path,) = fetch(model, tmp_path).files
    pins = tmp_path / "checkpoints.lock"
    if damage == "damaged":
        pins.write_text("nonsense\n")
    elif damage == "unreadable":
        pins.write_bytes(b"\xff\xfe")
    else:
        pins = tmp_path / "checkpoints.lock" / "in" / "the.lock"  # a file is in its folder's place
    with pytest.raises(BuilderError, match=r"line 1 is damaged|the digests"):
        sources.fetch(
            model, cache=tmp_path / "cache", checkpoints=None, pins=pins, report=lambda *_: None
        )
    assert path.exists()
    assert len(server.log) == 1


def test_a_full_temporary_folder_costs_no_cached_file(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/w.pt"] = gzip.compress(torch_bytes(random_state(Tiny())))
    model = spec(f"{server.url}/w.pt")
    (path,) = fetch(model, tmp_path).files

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(BuilderError, match="No space left"):
        fetch(model, tmp_path)
    assert path.exists()


@pytest.mark.parametrize("cut", [0, 100, 3000])
def test_a_truncated_file_is_neither_kept_nor_pinned(
    server: FileServer, tmp_path: Path, cut: int
) -> None:
    server.files["/w.pt"] = torch_bytes(random_state(Tiny()))[:cut]
    model = spec(f"{server.url}/w.pt")
    with pytest.raises(BuilderError, match="no usable checkpoint") as error:
        fetch(model, tmp_path)
    assert model.checkpoint in str(error.value)
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.stat().st_size] == []
    assert digests.read_pins(tmp_path / "checkpoints.lock") == {}
    server.files["/w.pt"] = torch_bytes(random_state(Tiny()))
    assert agree(load(model, tmp_path), random_state(Tiny()))


@pytest.mark.parametrize("packed", ["zip", "tar"])
def test_a_flipped_bit_was_read_as_a_weight_and_its_digest_pinned(
    server: FileServer, tmp_path: Path, packed: str
) -> None:
    wanted = random_state(Tiny())
    data = torch_bytes(wanted)
    at = data.index(wanted["conv1.weight"].numpy().tobytes()) + 8
    bad = data[:at] + bytes([data[at] ^ 64]) + data[at + 1 :]
    wrap = (lambda inner: tar_of("a/w.ckpt", inner)) if packed == "tar" else (lambda inner: inner)
    model = spec(f"{server.url}/w.pt")
    server.files["/w.pt"] = wrap(bad)
    with pytest.raises(BuilderError, match="does not meet its checksum"):
        fetch(model, tmp_path)
    assert digests.read_pins(tmp_path / "checkpoints.lock") == {}
    server.files["/w.pt"] = wrap(data)
    assert agree(load(model, tmp_path), wanted)


def test_a_checkpoint_that_torch_wrote_without_checksums_is_read(
    server: FileServer, tmp_path: Path
) -> None:
    wanted = random_state(Tiny())
    torch.serialization.set_crc32_options(False)
    try:
        server.files["/w.pt"] = torch_bytes(wanted)
    finally:
        torch.serialization.set_crc32_options(True)
    assert agree(load(spec(f"{server.url}/w.pt"), tmp_path), wanted)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "Git LFS pointer, which only says where the weights are",
        ),
        (b"\n<!DOCTYPE html><html><title>w.pt at main</title></html>", "web page"),
    ],
)
def test_what_stands_in_a_checkpoints_place_is_named(
    server: FileServer, tmp_path: Path, body: bytes, said: str
) -> None:
    (tmp_path / "w.pt").write_bytes(body)
    local = spec(str(tmp_path / "w.pt"))
    with pytest.raises(BuilderError, match=said):
        weights(local, fetch(local, tmp_path))
    server.files["/w.pt"] = body
    with pytest.raises(BuilderError, match=said):
        fetch(spec(f"{server.url}/w.pt"), tmp_path)


def test_the_page_that_shows_a_file_is_told_from_a_refusal(
    server: FileServer, tmp_path: Path
) -> None:
    page = "<html><title>w.pt at main</title></html>"
    server.faults["/o/r/blob/main/w.pt"] = [Fault(page=page)]
    with pytest.raises(NetworkError, match="is the page that shows the file") as error:
        fetch(spec(f"{server.url}/o/r/blob/main/w.pt"), tmp_path)
    assert "/resolve/" in error.value.hint and "/raw/" in error.value.hint


def test_a_hostile_file_from_a_server_runs_nothing_and_is_not_kept(
    server: FileServer, tmp_path: Path
) -> None:
    mark = tmp_path / "marker"

    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {mark}",)

    inner = torch_bytes({"state_dict": {**random_state(Tiny()), "x": Evil()}})
    bodies = {"w.pt": inner, "w.tar": tar_of("a/b.ckpt", inner), "w.pkl": pickle.dumps(Evil())}
    for name, body in bodies.items():
        server.files[f"/{name}"] = body
        with pytest.raises(BuilderError, match=r"refused.*system.*can run code") as error:
            fetch(spec(f"{server.url}/{name}"), tmp_path)
        assert f"{server.url}/{name}" in str(error.value)
    assert not mark.exists()
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.stat().st_size] == []


def test_files_fetched_by_hand_are_found_under_their_names(
    server: FileServer, tmp_path: Path
) -> None:
    by_hand = tmp_path / "by-hand"
    robust = listed("cifar10-robust-Carmon2019Unlabeled")
    standard = listed("cifar10-standard-Carmon2019Unlabeled")
    timm = listed("imagenet-standard-resnet50.a1_in1k")
    data = torch_bytes({"w": torch.ones(2)})
    for model, name in (
        (robust, "cifar10/Linf/Carmon2019Unlabeled.pt"),
        (robust, "cifar10-robust-Carmon2019Unlabeled.ckpt"),
        (standard, "cifar10_normal_robustbench_Carmon2019Unlabeled.tar"),
        (standard, "cifar10-standard-Carmon2019Unlabeled.pth"),
        (timm, "resnet50.a1_in1k.safetensors"),
        (timm, "timm/resnet50.a1_in1k/model.safetensors"),
    ):
        path = by_hand / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        fetched = fetch(model, tmp_path, by_hand)
        assert fetched.files == (path,)
        sources.discard(fetched)
        path.unlink()
    assert server.log == []


def test_a_file_by_hand_under_its_own_name_must_meet_the_pins(
    server: FileServer, tmp_path: Path
) -> None:
    model = listed("cifar10-robust-Carmon2019Unlabeled")
    path = tmp_path / "hand" / "cifar10" / "Linf" / "Carmon2019Unlabeled.pt"
    path.parent.mkdir(parents=True)
    digests.enforce(tmp_path / "checkpoints.lock", sources.describe(model).url, "a" * 64, 1)
    path.write_bytes(torch_bytes({"w": torch.ones(2)}))
    with pytest.raises(BuilderError, match="is not the file it was"):
        fetch(model, tmp_path, tmp_path / "hand")


def test_half_an_ensemble_by_hand_is_named(
    server: FileServer, tmp_path: Path, registry: dict[str, Any]
) -> None:
    registry["Three"] = {"model": Ensemble, "gdrive_id": ["a", "b", "c"]}
    model = spec("robustbench:cifar10/Linf/Three", "robustbench:cifar10/Three", "Three")
    folder = tmp_path / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    (folder / "Three.pt_m0.pt").write_bytes(torch_bytes({"w": torch.ones(2)}))
    with pytest.raises(UsageError, match=r"lacks cifar10/Linf/Three.pt_m1.pt, .*_m2.pt"):
        fetch(model, tmp_path, tmp_path)
    for i in (1, 2):
        (folder / f"Three_m{i}.pt").write_bytes(torch_bytes({"w": torch.ones(2)}))
    assert len(fetch(model, tmp_path, tmp_path).files) == 3


def test_without_network_the_error_says_what_a_file_by_hand_would_be_called(
    server: FileServer, tmp_path: Path
) -> None:
    model = listed("cifar10-robust-Carmon2019Unlabeled")
    with pytest.raises(NetworkError) as error:  # the server does not have it
        fetch(model, tmp_path, tmp_path)
    assert "cifar10/Linf/Carmon2019Unlabeled.pt" in error.value.hint
    assert "--checkpoints" in error.value.hint


def test_a_host_without_an_address_was_asked_again_and_again_for_every_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    look_up = socket.getaddrinfo

    def counted(host: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(str(host))
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", counted)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    resolves = hosts.Resolves()
    for checkpoint in ("http://a.invalid/x.pt", "http://a.invalid/y.pt", "timm:a", "hf://o/r/b"):
        with pytest.raises(NetworkError, match="does not resolve") as error:
            sources.fetch(
                spec(checkpoint),
                cache=tmp_path / "cache",
                checkpoints=None,
                pins=tmp_path / "checkpoints.lock",
                report=lambda *_: None,
                resolves=resolves,
            )
        assert "cifar10-robust-Net" not in str(error.value)  # whoever shows it names the model
    assert asked.count("a.invalid") == asked.count("hub.invalid") == 1


@pytest.mark.parametrize("where", ["local", "by hand", "inside"])
def test_a_file_without_the_right_to_read_it_is_one_models_failure(
    tmp_path: Path, where: str
) -> None:
    name = "cifar10-robust-Net.pt"
    saved(tmp_path, random_state(Tiny()), name)
    closed = tmp_path if where == "inside" else tmp_path / name
    checkpoint = "https://x.invalid/w.pt" if where == "by hand" else str(tmp_path / name)

    def attempt() -> None:
        with pytest.raises(BuilderError, match=f"cannot read the checkpoint .*{tmp_path.name}"):
            fetch(spec(checkpoint), tmp_path / "x", tmp_path if where == "by hand" else None)

    without_rights(closed, attempt)


def without_rights(closed: Path, attempt: Callable[[], None]) -> None:
    """Run something in a process that may not read a file or folder, as root is never refused."""
    for parent in closed.parents:
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)
    closed.chmod(0o000)
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            if os.geteuid() == 0:
                os.setuid(65534)
            attempt()
            code = 0
        os._exit(code)
    _, status = os.waitpid(child, 0)
    closed.chmod(0o700)
    assert os.waitstatus_to_exitcode(status) == 0


# Constructors


@pytest.mark.parametrize(
    ("constructor", "said"),
    [
        ("robustbench:cifar10/Carmon2019Unlabelled", "Carmon2019Unlabeled"),
        ("robustbench:cifar11/x", "did you mean cifar10"),
        ("robustbench:cifar10/L3/x", "did you mean"),
        ("timm:resnet51", "resnet50"),
        ("torchvision:resnet19", "resnet18"),
        ("no_such_package:net", "cannot be imported"),
        ("test_sources:Tinny", "Tiny"),
        ("test_sources:DRIVE", "is not callable"),
        ("test_sources:State", "not a torch.nn.Module"),
        ("builtins:int.from_bytes", "failed: TypeError"),
        ("math:pi.x", "unknown name in math 'x'"),
        ("resnet18", "has no name; expected robustbench:"),
        (":resnet18", "has no module; expected robustbench:"),
        (".nets:resnet18", "cannot be imported"),
    ],
)
def test_unknown_constructors_are_usage_errors_with_a_way_out(constructor: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        sources.construct(constructor)
    assert said in f"{error.value} {error.value.hint}"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def net(:\n", "cannot be imported: SyntaxError: invalid syntax"),
        ("net = Resnet\n", "cannot be imported: NameError: name 'Resnet' is not defined"),
        ("{}['width']\n", "cannot be imported: KeyError: 'width'"),
        (
            "import no_such_package\n",
            "cannot be imported: ModuleNotFoundError: No module named 'no_such_package'",
        ),
        ("def __getattr__(name):\n    raise RuntimeError(name)\n", "imported: RuntimeError: net"),
        ("def net():\n    return Resnet()\n", "failed: NameError"),
    ],
)
def test_a_module_of_the_users_that_is_broken_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)  # where modules are looked for
    module = f"broken_{abs(hash(code))}"
    (tmp_path / f"{module}.py").write_text(code)
    path = list(sys.path)
    with pytest.raises(UsageError) as error:
        sources.construct(f"{module}:net")
    assert f"constructor '{module}:net'" in str(error.value)
    assert said in str(error.value)
    assert sys.path == path


@pytest.mark.parametrize(
    "constructor",
    ["robustbench:cifar10/L2/Wu2020Adversarial", "timm:resnet18", "torchvision:resnet18"],
)
def test_constructors_of_every_kind_build_without_memory(constructor: str) -> None:
    with torch.device("meta"):
        model = sources.construct(constructor)
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_the_first_network_of_a_process_was_made_on_the_cpu_after_all() -> None:
    code = (
        "from builder.sources.constructors import construct_on_meta as make\n"
        "print({p.device.type for p in make('toy_networks:Toy').parameters()})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert done.stdout == "{'meta'}\n", done.stdout + done.stderr


def test_an_instance_has_the_constructors_element_type_and_shares_memory() -> None:
    state = random_state(Tiny())
    halved = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    model = spec("x.pt")
    assert sources.instantiate(model, halved).get_parameter("conv1.weight").dtype == torch.float32
    shared = sources.instantiate(model, state).get_parameter("conv1.weight")
    assert shared.data_ptr() == state["conv1.weight"].data_ptr()
