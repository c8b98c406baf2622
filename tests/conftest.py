"""Shared fixtures: a toy cohort, and one release of it built by the real code."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_client import HubClient
from loopback_hub import Hub, running_hub

from builder.cohort.registry import REQUIRED

# A job in a shell's background starts with Ctrl-C ignored, and so would every process of a test.
signal.signal(signal.SIGINT, signal.default_int_handler)

DATA = Path(os.environ.get("RFL_DATA") or Path(__file__).parents[2] / "shared" / "data")
"""Folder of optional real data (RFL_DATA): tests that want it skip where it is absent."""

LINES = [
    ("alpha", "true", "Toy-8", "toy_networks:Toy", "alpha"),
    ("beta", "true", "Toy-16", "toy_networks:wide", "beta"),
    ("alpha", "false", "Toy-8", "toy_networks:Toy", ""),
    ("beta", "false", "Toy-16", "toy_networks:wide", ""),
]


def write_cohort(path: Path, checkpoints: dict[str, Path] | None = None) -> Path:
    """A cohort CSV of toy networks; `checkpoints` by model_id, else addresses never asked for."""
    found = checkpoints or {}
    with path.open("w", newline="") as f:
        out = csv.writer(f)
        out.writerow([*REQUIRED, "standard_network"])
        for network, robust, architecture, constructor, partner in LINES:
            kind = "robust" if robust == "true" else "standard"
            model_id = f"cifar10-{kind}-{network}"
            if checkpoints is None or model_id in found:
                address = found.get(model_id, Path("nowhere.pt"))
                out.writerow(
                    [network, "cifar10", robust, architecture, constructor, address,
                     partner if checkpoints is None else ""]
                )  # fmt: skip
    return path


@pytest.fixture(scope="session")
def toy_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort") / "toy.csv")


def build_toy(cohort: Path, out: Path, **options: Any) -> Any:
    """`builder build` of a toy cohort with seeded weights, in this process."""
    from builder.building.options import Options
    from builder.building.run import build
    from builder.cohort.registry import load_cohort

    settings = {"weights": "seeded:0", **options}
    return build(load_cohort(str(cohort)), out, Options(**settings), lambda *progress: None)


@pytest.fixture(scope="session")
def release(toy_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished release of the toy cohort, seeded weights. Copy it before changing it."""
    out = tmp_path_factory.mktemp("release") / "toy"
    assert not build_toy(toy_cohort, out).failures
    return out


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a small file system: tmpfs("size=2m"). Needs the right to mount; else skips."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"mount{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True
        )
        if done.returncode:
            pytest.skip(f"cannot mount a tmpfs here: {done.stderr.decode().strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def hub_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, HubClient]]:
    with running_hub() as hub:
        client = HubClient(hub.url, tmp_path_factory.mktemp("hf_home"))
        client.run("import time; time.sleep = lambda seconds: None")  # retries need not wait
        yield hub, client
        client.close()


@pytest.fixture
def hub(hub_world: tuple[Hub, HubClient]) -> Hub:
    """A loopback hub with nothing in it."""
    hub_world[0].reset()
    return hub_world[0]


@pytest.fixture
def client(hub_world: tuple[Hub, HubClient]) -> HubClient:
    """A process with the Hub's clients, pointed at `hub`."""
    return hub_world[1]
