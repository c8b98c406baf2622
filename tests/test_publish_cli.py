"""The real thing: the embedded cohort built, published by the command line, and used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_client import HubClient
from loopback_hub import Hub, running_hub

import builder as package
from builder import schema
from builder.release.manifest import read_manifest

pytest.importorskip("torch")
pytest.importorskip("datasets")
pytestmark = pytest.mark.slow

ID = "lens/mini"
PACKAGE = Path(package.__file__).parent


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


def builder(
    *arguments: str, hub: Hub | None = None, home: Path | None = None, token: str = "hf_writer"
) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    if hub:
        env |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HOME": str(home)}
    command = [sys.executable, "-m", "builder", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("build") / "mini"
    done = builder("build", "--cohort", "mini", "--out", str(out), "--no-first-layer", "-q")
    assert done.returncode == 0, done.stderr
    return out


def test_the_embedded_release_is_published_and_loads(hub: Hub, mini: Path, tmp_path: Path) -> None:
    planned = builder(
        *("publish", str(mini), "--repo-id", ID, "--dry-run", "--json"), hub=hub, home=tmp_path
    )
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["tag"] == "v0.1.0" and not hub.repos

    done = builder("publish", str(mini), "--repo-id", ID, "--json", hub=hub, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tag"] == "v0.1.0"
    assert "hf_writer" not in done.stdout + done.stderr

    client = HubClient(hub.url, tmp_path)
    try:
        counted = client.run(
            """
from datasets import load_dataset
import builder
rows = load_dataset(repo_id, "filters_cifar10", split="train", revision="v0.1.0", streaming=True)
n = sum(len(b) for b in rows.with_format("arrow").iter(batch_size=131_072))
release = builder.open_release(repo_id, "v0.1.0")
result = [n, sum(len(b) for b in release.filters(view="folded")), len(release.table("models"))]
""",
            repo_id=ID,
        )
    finally:
        client.close()
    totals = read_manifest(mini)["totals"]
    assert counted == [totals["filters"], totals["filters"], totals["models"]]

    same = builder("diff", str(mini), f"hf://datasets/{ID}@v0.1.0", hub=hub, home=tmp_path)
    assert same.returncode == 0, same.stderr
    assert "nothing changed" in same.stdout
    published = hub.repos[ID].resolve("v0.1.0")
    assert (
        published and published.tree["manifest.json"].data == (mini / "manifest.json").read_bytes()
    )


def test_a_changed_model_makes_a_second_version(hub: Hub, mini: Path, tmp_path: Path) -> None:
    """Follows on the first publication: another weight in one model, and the version it needs."""
    from safetensors.torch import load_file, save_file

    address = "builder/zoo/cifar10-robust-PreActResNet18_w16.safetensors"
    weights = load_file(PACKAGE.parent / address)
    weights["conv1.weight"][0, 0, 0, 0] += 0.5
    save_file(weights, tmp_path / "changed.safetensors")
    cohort = tmp_path / "mini.csv"
    text = (PACKAGE / "cohorts" / "mini.csv").read_text()
    assert f"embedded:{address}" in text
    cohort.write_text(text.replace(f"embedded:{address}", str(tmp_path / "changed.safetensors")))

    def release(version: str) -> str:
        out = tmp_path / version
        done = builder(
            *("build", "--cohort", str(cohort), "--out", str(out), "--version", version),
            *("--no-first-layer", "-q"),
        )
        assert done.returncode == 0, done.stderr
        return str(out)

    patch, minor = release("0.1.1"), release("0.2.0")
    first = f"hf://datasets/{ID}@v0.1.0"
    found = builder("diff", first, minor, "--json", hub=hub, home=tmp_path)
    change = json.loads(found.stdout)
    assert change["models_changed"] == ["cifar10-robust-PreActResNet18_w16"]
    assert (change["bump"], change["next_version"]) == ("major", "0.2.0")
    refused = builder("publish", patch, "--repo-id", ID, hub=hub, home=tmp_path)
    assert refused.returncode == 1 and "0.2.0" in refused.stderr, refused.stderr
    done = builder("publish", minor, "--repo-id", ID, "--json", hub=hub, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tag"] == "v0.2.0"

    client = HubClient(hub.url, tmp_path)
    try:
        code = """
from datasets import load_dataset
result = []
for tag in ("v0.1.0", "v0.2.0"):
    rows = load_dataset(repo_id, "models", split="train", revision=tag)
    result.append(dict(zip(rows["model_id"], rows["filters_hash"])))
"""
        one, two = client.run(code, repo_id=ID)
    finally:
        client.close()
    assert [m for m in one if one[m] != two[m]] == ["cifar10-robust-PreActResNet18_w16"]
    local = read_manifest(mini)["files"]
    for model_id, digest in one.items():  # the first version is what it was
        assert local[schema.filters_path("cifar10", model_id)]["content_hash"] == digest


def test_a_wrong_token_exits_with_4(hub: Hub, mini: Path, tmp_path: Path) -> None:
    done = builder(
        *("publish", str(mini), "--repo-id", ID), hub=hub, home=tmp_path, token="hf_wrong"
    )
    assert done.returncode == 4 and done.stdout == ""
    assert "token is missing or wrong" in done.stderr
    assert "hf_wrong" not in done.stderr and "Traceback" not in done.stderr
