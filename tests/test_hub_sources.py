"""Checkpoints on the Hub, fetched by its real client from a loopback hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from loopback_hub import Fault, Hub, running_hub
from safetensors.torch import save as save_safetensors
from test_sources import Tiny, agree, fetch, listed, load, random_state, spec, weights

from builder.errors import BuilderError, NetworkError, UsageError
from builder.sources import digests
from builder.sources import fetch as sources

NET = "lens/nets"
FILE = "a/b.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The loopback hub as the Hub of this process, whose client read its settings long ago."""
    from huggingface_hub import constants

    with running_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield running


def blobs(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "hf").rglob("blobs/*"))


def test_timm_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    model = listed("imagenet-standard-resnet18.tv_in1k")
    wanted = random_state(sources.construct(model.constructor))
    hub.push("timm/resnet18.tv_in1k", "model.safetensors", save_safetensors(wanted))
    fetched = fetch(model, tmp_path)
    assert agree(weights(model, fetched), wanted)
    pinned = digests.read_pins(tmp_path / "checkpoints.lock")
    address = "https://huggingface.co/timm/resnet18.tv_in1k/resolve/main/model.safetensors"
    assert pinned == {address: (fetched.sha256, fetched.bytes)}
    assert fetched.urls == (address,)


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/1", "feature/x"])
def test_a_revision_with_slashes_is_a_revision(hub: Hub, tmp_path: Path, revision: str) -> None:
    wanted = random_state(Tiny())
    hub.push(NET, FILE, save_safetensors(random_state(Tiny(), 1)))
    hub.push(NET, FILE, save_safetensors(wanted), branch=revision)
    assert agree(load(spec(f"hf://{NET}/{FILE}@{revision}"), tmp_path), wanted)


def test_a_stored_token_opens_a_private_repository(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    wanted = random_state(Tiny())
    hub.push(NET, FILE, save_safetensors(wanted))
    hub.repos[NET].private = True
    model = spec(f"hf://{NET}/{FILE}")
    with pytest.raises(NetworkError, match="no such repository"):
        fetch(model, tmp_path)
    (tmp_path / "token").write_text("hf_reader")  # as `hf auth login` leaves it
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert agree(load(model, tmp_path), wanted)


def test_a_gated_repository_says_so_in_the_hubs_own_words(hub: Hub, tmp_path: Path) -> None:
    hub.push(NET, FILE, b"")
    hub.repos[NET].gated = True
    with pytest.raises(NetworkError, match=f"gated .*Access to model {NET} is restricted") as error:
        fetch(spec(f"hf://{NET}/{FILE}"), tmp_path)
    assert "hf auth login" in error.value.hint
    assert "--checkpoints" in error.value.hint


@pytest.mark.parametrize("what", ["repository", "revision", "file"])
def test_what_the_hub_does_not_have_is_one_sentence(hub: Hub, tmp_path: Path, what: str) -> None:
    hub.push(NET, FILE, b"x")
    address = {
        "repository": f"hf://lens/other/{FILE}",
        "revision": f"hf://{NET}/{FILE}@v9",
        "file": f"hf://{NET}/c.safetensors",
    }[what]
    with pytest.raises(NetworkError, match="the Hub has no such repository, revision or file"):
        fetch(spec(address), tmp_path)


@pytest.mark.parametrize("path", ["../x.pt", "a//x.pt", "a/./x.pt", "a/.."])
def test_a_path_that_leads_elsewhere_is_no_address(tmp_path: Path, path: str) -> None:
    with pytest.raises(UsageError, match="should be hf://"):
        fetch(spec(f"hf://{NET}/{path}"), tmp_path)


def test_a_fetched_file_is_there_offline_and_without_a_server(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    wanted = random_state(Tiny())
    hub.push(NET, FILE, save_safetensors(wanted))
    model = spec(f"hf://{NET}/{FILE}")
    fetch(model, tmp_path)
    hub.fail(Fault(status=503, times=99))
    assert agree(load(model, tmp_path), wanted)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.clear_log()
    assert agree(load(model, tmp_path), wanted)
    with pytest.raises(NetworkError, match="not in the Hub's cache") as error:
        fetch(spec(f"hf://{NET}/other.safetensors"), tmp_path)
    assert "HF_HUB_OFFLINE" in error.value.hint
    assert hub.log == []


def test_progress_of_the_hubs_client_is_reported(hub: Hub, tmp_path: Path) -> None:
    data = save_safetensors({"w": torch.zeros(1 << 20)})
    hub.push(NET, FILE, data)
    told: list[tuple[str, str, int, int | None]] = []
    sources.fetch(
        spec(f"hf://{NET}/{FILE}"),
        cache=tmp_path,
        checkpoints=None,
        pins=tmp_path / "pins",
        report=lambda *words: told.append(words),
    )
    whole = ("cifar10-robust-Net", "b.safetensors", len(data), len(data))
    assert told.count(whole) == 1


def test_discarding_deletes_the_bytes_in_the_hubs_cache(hub: Hub, tmp_path: Path) -> None:
    hub.push(NET, FILE, save_safetensors(random_state(Tiny())))
    hub.push(NET, "kept.safetensors", save_safetensors(random_state(Tiny(), 1)))
    model, kept = spec(f"hf://{NET}/{FILE}"), spec(f"hf://{NET}/kept.safetensors")
    fetched, other = fetch(model, tmp_path), fetch(kept, tmp_path)
    sources.discard(fetched)
    assert blobs(tmp_path) == [other.sha256]
    assert fetch(model, tmp_path) == fetched


def test_a_file_damaged_in_the_hubs_cache_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    wanted = random_state(Tiny())
    hub.push(NET, FILE, save_safetensors(wanted))
    model = spec(f"hf://{NET}/{FILE}")
    fetch(model, tmp_path).files[0].resolve().write_bytes(b"rot")
    assert agree(load(model, tmp_path), wanted)


def test_a_file_that_changed_on_the_hub_is_not_fetched_twice_to_say_so(
    hub: Hub, tmp_path: Path
) -> None:
    model = spec(f"hf://{NET}/{FILE}")
    hub.push(NET, FILE, save_safetensors(random_state(Tiny(), 1)))
    first = fetch(model, tmp_path)
    hub.push(NET, FILE, save_safetensors(random_state(Tiny(), 2)))
    hub.clear_log()
    with pytest.raises(BuilderError, match="is not the file it was") as error:
        fetch(model, tmp_path)
    assert first.sha256 in str(error.value)
    assert len(hub.sent("GET", "/cdn/")) == 1


def test_files_by_hand_win_over_the_hub(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "hand"
    folder.mkdir()
    wanted = random_state(Tiny())
    (folder / "cifar10-robust-Net.safetensors").write_bytes(save_safetensors(wanted))
    model = spec(f"hf://{NET}/{FILE}")
    fetched = fetch(model, tmp_path, folder)
    assert agree(weights(model, fetched), wanted)
    sources.discard(fetched)
    assert fetched.files[0].exists()
    assert hub.log == []


def test_a_cache_of_the_hub_that_cannot_be_written_fails_one_model(
    hub: Hub, tmp_path: Path
) -> None:
    (tmp_path / "hf").write_text("in the way of a folder")
    hub.push(NET, FILE, save_safetensors(random_state(Tiny())))
    with pytest.raises(BuilderError, match="cannot write"):
        fetch(spec(f"hf://{NET}/{FILE}"), tmp_path)
