"""Which tensors of a checkpoint are the model's: several networks, wrappers, kinds of numbers."""

from __future__ import annotations

import gzip
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fileserver import serve
from test_checkpoint import tar_of, zip_of
from test_sources import State, Tiny, agree, load, prefixed, random_state, spec, torch_bytes
from torch import Tensor, nn

from builder.errors import BuilderError, UsageError
from builder.sources import fetch as sources
from builder.sources.addresses import resolve, split_inside
from builder.sources.checkpoint import read_checkpoint
from builder.sources.state import fit_state

A, B = random_state(Tiny(), 1), random_state(Tiny(), 2)


def fit(folder: Path, content: Any, inside: str | None = None) -> Any:
    path = folder / "w.pt"
    path.write_bytes(torch_bytes(content))
    names = (inside,) if inside else ()
    return fit_state([read_checkpoint(path, inside=names)], Tiny(), "net")


SEVERAL: dict[str, tuple[Any, str, str]] = {
    "one wrapper under two names": (
        {"teacher": {"model": A}, "student": {"model": B}},
        "teacher.model",
        "student.model",
    ),
    "a wrapper that wins only at the top": (
        {"ema": {"state_dict": A}, "raw": {"state_dict": B}},
        "ema.state_dict",
        "raw.state_dict",
    ),
    "last deeper down": ({"nets": {"last": A, "best": B}}, "nets.last", "nets.best"),
    "a cascade": ({"state_dict": [A, B]}, "state_dict.0", "state_dict.1"),
    "by number": ({"models": {0: A, 1: B}}, "models.0", "models.1"),
    "prefixes": (
        {"state_dict": prefixed(A, "model.") | prefixed(B, "ema_model.")},
        "state_dict.model",
        "state_dict.ema_model",
    ),
    "encoders": (
        prefixed(A, "module.encoder_q.") | prefixed(B, "module.encoder_k."),
        "module.encoder_q",
        "module.encoder_k",
    ),
    "one without counters": (
        {"ema": A, "raw": {k: v for k, v in B.items() if "num_batches" not in k and k != "mu"}},
        "ema",
        "raw",
    ),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_of_several_networks_the_first_is_not_taken_silently(tmp_path: Path, kind: str) -> None:
    content, first, second = SEVERAL[kind]
    with pytest.raises(BuilderError) as error:
        fit(tmp_path, content)
    assert f"fit equally well: #{first}, #{second}." in str(error.value)
    assert f"FILE#{first}" in error.value.hint
    for name, wanted in ((first, A), (second, B)):
        found = fit(tmp_path, content, name)
        assert agree(found, {k: v for k, v in wanted.items() if k in found})
        # What tells them apart is enough.
        apart = [p for p in name.split(".") if p not in ("model", "state_dict", "module")][-1:]
        found = fit(tmp_path, content, (apart or [name])[0])
        assert torch.equal(found["conv1.weight"], wanted["conv1.weight"])


def test_five_networks_in_one_state_dict_are_all_listed(tmp_path: Path) -> None:
    members = {f"net{i}.": random_state(Tiny(), i) for i in range(5)}
    flat: State = {}
    for prefix, state in members.items():
        flat |= prefixed(state, prefix)
    with pytest.raises(BuilderError, match="#net0, #net1, #net2, #net3, #net4"):
        fit(tmp_path, flat)
    assert agree(fit(tmp_path, flat, "net3"), members["net3."])


def test_a_name_of_nothing_lists_what_there_is(tmp_path: Path) -> None:
    content = {"state_dict": prefixed(A, "model."), "best": {"net": B}}
    with pytest.raises(BuilderError, match="nothing below 'studnet'") as error:
        fit(tmp_path, content, "studnet")
    hint = (
        "what there is: #state_dict, #state_dict.model, #best.net, #best.net.conv1, #best.net.bn1"
    )
    assert error.value.hint.startswith(hint)


def test_foreign_weights_beside_the_network_say_how_to_read_it_alone(tmp_path: Path) -> None:
    mangled = {"model_ema." + k.replace(".", ""): v for k, v in B.items()}
    content = {"state_dict": prefixed(A, "model.") | mangled}
    with pytest.raises(BuilderError, match="2 unexpected: model_ema") as error:
        fit(tmp_path, content)
    assert "'state_dict.model'" in error.value.hint
    assert agree(fit(tmp_path, content, "state_dict.model"), A)


def test_two_copies_of_the_same_numbers_are_no_choice(tmp_path: Path) -> None:
    copy = {k: v.clone() for k, v in A.items()}
    assert agree(fit(tmp_path, {"a": A, "b": copy}), A)
    assert agree(fit(tmp_path, {"best": prefixed(A, "module."), "latest": copy}), A)


def test_the_name_inside_is_read_and_shown_but_not_fetched(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(torch_bytes({"a": {"model": A}, "b": {"model": B}}))
    model = spec(f"{tmp_path}/w.pt#b.model")
    assert agree(load(model, tmp_path), B)
    assert sources.describe(model).url == "w.pt#b.model"
    for address in ("https://x.org/w.pt", "hf://a/b/w.pt@v1", "zenodo:12/w.pt", "timm:resnet18"):
        for inside in ("b.model", "run/last.pt", "run/last.pt#b.model"):
            plain, named = resolve(spec(address)), resolve(spec(f"{address}#{inside}"))
            assert named.remote == plain.remote
            assert named.url == f"{plain.url}#{inside}"


MEMBERS = {
    "./run/best.pt": {"a": A, "b": B},
    "run/last.pt": {"state_dict": B},
    "other/last.pt": A,
    "plain": A,
    "notes.txt": None,
}
CHOSEN: dict[str, Any] = {
    "run/last.pt": B,
    "./run/last.pt": B,
    "other/last.pt": A,
    "plain": A,
    "run/best.pt#b": B,
    "best.pt#a": A,
}


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip", "stored.zip", "zip.tar"])
def test_one_of_several_checkpoints_in_an_archive_could_not_be_chosen(
    tmp_path: Path, kind: str
) -> None:
    members = {n: b"x" if c is None else torch_bytes(c) for n, c in MEMBERS.items()}
    path = tmp_path / f"w.{kind}"
    if kind == "tar.gz":
        path.write_bytes(gzip.compress(tar_of(tmp_path / "w.tar", members).read_bytes()))
    elif kind == "tar":
        tar_of(path, members)
    else:
        stored = zipfile.ZIP_STORED if kind == "stored.zip" else zipfile.ZIP_DEFLATED
        inner = zip_of(tmp_path / "all.zip", members, stored)
        if kind == "zip.tar":  # the only checkpoint of the tar by its name: it is not asked for
            tar_of(path, {"all.tar": inner.read_bytes()})
        else:
            inner.rename(path)
    for inside, weights in CHOSEN.items():
        model = spec(f"{path}#{inside}")
        assert agree(load(model, tmp_path), weights), inside
        assert sources.describe(model).url == f"w.{kind}#{inside}"
    for inside, said in (
        ("", r"3 checkpoints \('./run/best.pt', 'run/last.pt', 'other/last.pt'\)\."),
        ("#last.pt", "'last.pt' names 2 of them"),
        ("#b", "'b' names none of them"),
        ("#best.pt", "holds 2 networks that fit equally well: #a, #b"),
        ("#best.pt#c", "has nothing below 'c'"),
        ("#notes.txt", "plain text"),
    ):
        with pytest.raises(BuilderError, match=said) as error:
            load(spec(f"{path}{inside}"), tmp_path)
        if "checkpoints" in str(error.value):
            assert "e.g. FILE#./run/best.pt" in error.value.hint


def test_a_mistyped_member_cost_the_download(tmp_path: Path) -> None:
    members = {"a.pt": torch_bytes(A), "b.pt": torch_bytes(B)}
    with serve() as server:
        server.files["/w.tar"] = tar_of(tmp_path / "w.tar", members).read_bytes()
        for inside in ("", "#c.pt"):
            with pytest.raises(UsageError, match="2 checkpoints"):
                load(spec(f"{server.url}/w.tar{inside}"), tmp_path)
        assert not (tmp_path / "checkpoints.lock").exists()
        assert agree(load(spec(f"{server.url}/w.tar#b.pt"), tmp_path), B)
        assert agree(load(spec(f"{server.url}/w.tar#a.pt"), tmp_path), A)
        assert server.ranges_asked().count(None) == 1  # the whole file was sent once


def test_a_secret_behind_the_number_sign_is_not_shown() -> None:
    assert resolve(spec("https://x.org/w.pt#access_token=abc")).url == "https://x.org/w.pt"
    assert resolve(spec("https://x.org/w.pt#token.key")).url == "https://x.org/w.pt#token.key"


def test_a_path_with_a_number_sign_is_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "run#3"
    folder.mkdir()
    (folder / "w#1.pt").write_bytes(torch_bytes(A))
    for path in (folder, folder / "w#1.pt"):
        assert split_inside(str(path)) == (str(path), ())
        assert agree(load(spec(str(path)), tmp_path), A)
    (folder / "w#1.pt").write_bytes(torch_bytes({"a": A, "b": B}))
    assert agree(load(spec(f"{folder}/w#1.pt#b"), tmp_path), B)


LISTS: dict[str, Any] = {
    "a list of one": {"state_dict": [A], "epoch": 3},
    "a tuple": (A, {"accuracy": 93.0}),
    "items": list(A.items()),
    "items in lists": [[k, v] for k, v in A.items()],
    "items in a wrapper": {"model": tuple(A.items())},
    "a list in a list": [[3, [A]]],
}


@pytest.mark.parametrize("kind", LISTS)
def test_weights_in_lists_and_tuples_are_found(tmp_path: Path, kind: str) -> None:
    assert agree(fit(tmp_path, LISTS[kind]), A)


MIDDLE: dict[str, Callable[[str], str]] = {
    "_orig_mod": lambda k: k.replace("layer.", "layer._orig_mod."),
    "FSDP": lambda k: "_fsdp_wrapped_module." + k.replace("layer.", "layer._fsdp_wrapped_module."),
    "DataParallel of a part": lambda k: k.replace("layer.", "layer.module."),
    "both": lambda k: "module._orig_mod." + k.replace("conv.", "conv._orig_mod."),
}


@pytest.mark.parametrize("kind", MIDDLE)
def test_what_wrappers_add_in_the_middle_of_a_key_is_no_other_key(
    tmp_path: Path, kind: str
) -> None:
    found = fit(tmp_path, {MIDDLE[kind](k): v for k, v in A.items()})
    assert agree(found, A)


# Numbers that are no weights


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.to(torch.int8), "of the element type int8"),
        (lambda w: w > 0, "of the element type bool"),
        (lambda w: w.to(torch.complex64), "of the element type complex64"),
        (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "a quantised tensor"),
        (
            lambda w: torch.quantize_per_channel(
                w, torch.ones(len(w)), torch.zeros(len(w)), 0, torch.qint8
            ),
            "a quantised tensor",
        ),
        (lambda w: w.to_sparse(), "a sparse tensor"),
        (lambda w: w.flatten(1).to_sparse_csr(), "a sparse tensor"),
        (lambda w: w.to("meta"), "a tensor without numbers"),
    ],
)
def test_what_is_no_floating_point_weight_is_refused_by_its_name(
    tmp_path: Path, change: Callable[[Tensor], Tensor], said: str
) -> None:
    for key in ("conv1.weight", "linear.weight"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = A | {key: change(A[key])}
            with pytest.raises(BuilderError) as error:
                fit(tmp_path, content)
        assert f"{key} is {said}" in str(error.value)


def test_tensors_nobody_needs_may_be_of_any_kind(tmp_path: Path) -> None:
    odd = {
        "codes": torch.zeros(4, dtype=torch.uint16),
        "wave": torch.zeros(4, dtype=torch.complex64),
        "small": torch.zeros(4).to(torch.float8_e5m2),
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.empty(3, device="meta"),
        "expanded": torch.ones(1, 1, 1).expand(1, 30, 40),
        "mu": torch.zeros(1, 3, 1, 1, dtype=torch.complex64),  # keeps the constructor's value
    }
    found = fit(tmp_path, A | odd)
    assert agree(found, {k: v for k, v in A.items() if k != "mu"})
    assert "mu" not in found


def test_a_tensor_subclass_is_the_tensor_it_is_made_of(tmp_path: Path) -> None:
    state = A | {"conv1.weight": A["conv1.weight"].as_subclass(Tagged)}
    assert agree(fit(tmp_path, state), A)


class Tagged(Tensor):
    pass


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "bfloat16", "float64"])
def test_every_floating_point_type_is_read_exactly(tmp_path: Path, dtype: str) -> None:
    from safetensors.torch import save_file

    weight = A["conv1.weight"].to(getattr(torch, dtype))
    save_file(A | {"conv1.weight": weight}, tmp_path / "w.safetensors")
    found = fit_state([read_checkpoint(tmp_path / "w.safetensors")], Tiny(), "net")
    assert torch.equal(found["conv1.weight"].double(), weight.double())
    assert torch.equal(
        fit(tmp_path, A | {"conv1.weight": weight})["conv1.weight"].double(), weight.double()
    )


@pytest.mark.parametrize("key", ["bn1.weight", "bn1.running_var", "conv1.weight"])
def test_an_expanded_tensor_is_read_whole(tmp_path: Path, key: str) -> None:
    expanded = torch.rand(1).expand(A[key].shape)
    assert torch.equal(fit(tmp_path, A | {key: expanded})[key], expanded)


# Whole pickled networks


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrapped", ["bare", "DataParallel", "in a dictionary", "beside its average"]
)
def test_a_whole_pickled_network_is_read_without_its_class(
    tmp_path: Path, legacy: bool, wrapped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = Tiny(), Tiny()
    model.load_state_dict(A)
    content: Any = {
        "bare": model,
        "DataParallel": nn.DataParallel(model),
        "in a dictionary": {"net": model, "acc": 93.0},
        "beside its average": {"ema": other, "model": model},
    }[wrapped]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = torch_bytes(content, legacy=legacy)
    path = tmp_path / "w.pt"
    path.write_bytes(data)
    monkeypatch.delattr("test_sources.Tiny")  # the reader has not their code
    found = fit_state([read_checkpoint(path)], model, "net")
    assert list(found) == list(A)
    assert agree(found, A)


def test_a_pickled_networks_loops_and_repetitions_end(tmp_path: Path) -> None:
    loop = nn.Sequential(Tiny())
    loop._modules["again"] = loop
    doubling: nn.Module = nn.Identity()
    for _ in range(40):
        doubling = nn.Sequential(doubling, doubling)
    for module in (loop, doubling):
        with pytest.raises(BuilderError, match="more modules than any network"):
            fit(tmp_path, module)
