"""Builds on a Ray cluster of two nodes: what a local build makes, whatever is lost on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_cohort
from s3_server import MOTO, running_store

from builder.cohort.registry import REQUIRED
from builder.errors import NetworkError
from builder.files import file_sha256
from builder.release.manifest import read_manifest, write_manifest
from builder.workers import ray_cluster

pytestmark = pytest.mark.ray
pytest.importorskip("ray", reason="pip install 'robust-filter-lens[ray]'")

TESTS = Path(__file__).parent
N = 14
"""Models of the build that things happen to."""


@pytest.fixture(scope="module", autouse=True)
def modules() -> Iterator[None]:
    """Where the toy networks are; no telemetry, and no dashboards of the tests' nodes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture
def cluster(modules: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes of two cores each, so that each builds one model at a time."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RFL_LASTING", str(tmp_path / "log"))
    node = {"num_cpus": 2, "memory": 4 << 30, "object_store_memory": 100 << 20}
    found = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    found.second = found.add_node(**node)
    found.wait_for_nodes()
    yield found
    found.shutdown()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of `N` networks that are made slowly."""
    path = tmp_path_factory.mktemp("many") / "many.csv"
    lines = [
        f"net{i:02},cifar10,{str(i % 2 == 0).lower()},Toy-16,toy_networks:lasting,nowhere.pt"
        for i in range(N)
    ]
    path.write_text("\n".join([",".join(REQUIRED), *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def local(many: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of the local build of `many`."""
    out = tmp_path_factory.mktemp("local") / "many"
    log = out.parent / "log"
    done = command(out, "--cohort", str(many), RFL_LASTING=str(log))()
    assert done.returncode == 0, done.stderr
    return files(out)


def command(
    out: Path | str, *options: str, weights: str = "seeded:0", **env: str
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`builder build`, to be run."""
    words = [sys.executable, "-m", "builder", "build", "--out", str(out), "--weights", weights]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*words, *options], capture_output=True, text=True, env={**os.environ, **env}
        )

    run.words = [*words, *options]  # type: ignore[attr-defined]
    return run


def verified(out: Path, *options: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and findings of `builder verify --full`."""
    words = [sys.executable, "-m", "builder", "verify", str(out), "--full", "--json", *options]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)["findings"]


def files(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def finished(out: Path) -> int:
    return len(list((out / ".build" / "models").glob("*.json")))


def wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


def half_done(log: Path) -> set[str]:
    """Processes that began to make a network and have not ended it."""
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return {
        pid
        for pid, _ in lines
        if sum(p == pid and what == "begins" for p, what in lines)
        > sum(p == pid and what == "ends" for p, what in lines)
    }


def workers_of(node: Any) -> set[str]:
    """Processes that a node has started."""
    raylet = node.all_processes["raylet"][0].process.pid
    return set(Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split())


def test_a_build_that_loses_a_node_in_the_middle_has_the_bytes_of_a_local_build(
    cluster: Any, many: Path, local: dict[str, bytes], tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    options = ("--cohort", str(many), "--executor", "ray", "--ray-address", cluster.address)
    driver = subprocess.Popen(command(out, *options).words, stderr=subprocess.PIPE, text=True)  # type: ignore[attr-defined]
    there: set[str] = set()

    def at_work_on_the_second() -> bool:
        assert driver.poll() is None, driver.communicate()[1]
        there.clear()
        if finished(out) < 3:
            return False
        for pid in workers_of(cluster.second) & half_done(log):
            os.kill(int(pid), signal.SIGSTOP)  # so that it does not end before it is lost
            there.add(pid)
            if pid not in half_done(log):  # it just did
                os.kill(int(pid), signal.SIGCONT)
                there.remove(pid)
        return bool(there)

    wait_until(at_work_on_the_second)
    assert finished(out) <= N - 3
    cluster.remove_node(cluster.second, allow_graceful=False)
    for pid in there:
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _, said = driver.communicate(timeout=240)
    assert driver.returncode == 0, said
    assert there & half_done(log), "nobody was killed at work"
    assert files(out) == local
    assert f"[{N}/{N}]" in said and "Traceback" not in said
    faults = verified(out, "--executor", "ray", "--ray-address", cluster.address)
    assert faults == verified(out) == (0, [])


def test_verification_on_the_nodes_finds_what_a_local_one_does(
    cluster: Any, release: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(release, tmp_path / "out")
    path = next((out / "data" / "filters").glob("*/*.parquet"))
    table = pq.read_table(path)
    at = table.schema.get_field_index("linf")
    linf = pa.array(table["linf"].to_numpy() * np.float32(1.5))
    pq.write_table(table.set_column(at, table.schema.field(at), linf), path)
    manifest = read_manifest(out)
    facts = manifest["files"][path.relative_to(out).as_posix()]
    facts.update({"bytes": path.stat().st_size, "sha256": file_sha256(path)})
    write_manifest(out, manifest)
    found = verified(out, "--executor", "ray", "--ray-address", cluster.address)
    assert found == verified(out)
    code, faults = found
    assert code == 1 and {f["check"] for f in faults} >= {"content", "metrics"}


def test_a_driver_that_was_killed_goes_on_when_started_again(
    cluster: Any, many: Path, local: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ("--cohort", str(many), "--executor", "ray", "--ray-address", cluster.address)
    run = command(out, *options)
    driver = subprocess.Popen(run.words, stderr=subprocess.DEVNULL)  # type: ignore[attr-defined]
    wait_until(lambda: finished(out) >= 4)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = finished(out)
    assert 4 <= before < N
    done = run()
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("already there") >= before
    assert files(out) == local


def test_ctrl_c_ends_a_build_without_beginning_what_waits(
    cluster: Any, many: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    options = ("--cohort", str(many), "--no-first-layer")
    on_ray = ("--executor", "ray", "--ray-address", cluster.address)
    words = command(out, *options, *on_ray).words  # type: ignore[attr-defined]
    driver = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: finished(out) >= 2)
    begun = log.read_text().count("begins")
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=120)
    assert driver.returncode == 130, said
    # Two are at work at a time; by the time it is noticed it may be the next two.
    assert log.read_text().count("begins") <= begun + 4
    assert finished(out) <= 6


def test_a_bad_checkpoint_is_told_as_by_a_local_build(cluster: Any, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pt"
    bad.write_bytes(b"no checkpoint")
    ids = [f"cifar10-{kind}-{name}" for kind in ("robust", "standard") for name in ("alpha",)]
    cohort = write_cohort(tmp_path / "bad.csv", dict.fromkeys(ids, bad))
    outcomes = []
    for name, options in (
        ("local", ()),
        ("ray", ("--executor", "ray", "--ray-address", cluster.address)),
    ):
        out = tmp_path / name
        done = command(out, "--cohort", str(cohort), "--quiet", *options, weights="checkpoints")()
        words = done.stderr.replace(str(out), "OUT").splitlines()
        outcomes.append((done.returncode, words))
        assert not (out / "manifest.json").exists()
    assert outcomes[0] == outcomes[1] and outcomes[0][0] == 1
    assert any("bad.pt" in line for line in outcomes[0][1])


def test_what_a_cluster_cannot_do_is_one_message(
    cluster: Any, toy_cohort: Path, tmp_path: Path
) -> None:
    there = ("--executor", "ray", "--ray-address", cluster.address)
    for options, code, said in (
        (("--device", "cuda", *there), 2, "no machine of the Ray cluster has a GPU"),
        (("--executor", "slurm"), 2, "expected local or ray"),
        (("--ray-address", cluster.address), 2, "--ray-address is for --executor ray"),
        (("--executor", "ray", "--ray-address", "nowhere.invalid:1"), 4, "no Ray cluster answers"),
    ):
        done = command(tmp_path / "out", "--cohort", str(toy_cohort), *options)()
        assert done.returncode == code, done.stderr
        assert said in " ".join(done.stderr.split()) and "Traceback" not in done.stderr
        assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_address_of_the_environment_that_nothing_answers_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nowhere.invalid:1")
    with pytest.raises(NetworkError, match=r"answers at nowhere\.invalid:1"), ray_cluster(None):
        pytest.fail("connected")


def test_a_build_without_an_address_starts_ray_itself(
    toy_cohort: Path, release: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = command(out, "--cohort", str(toy_cohort), "--executor", "ray")()
    assert done.returncode == 0, done.stderr
    assert files(out) == files(release)
    assert json.loads(files(out)["manifest.json"])["weights"] == "seeded:0"


@pytest.mark.s3
@pytest.mark.skipif(not MOTO.exists(), reason="no S3 server here: make .venv/.moto")
def test_a_cluster_builds_into_a_bucket_what_a_local_build_makes(
    many: Path, local: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from builder.store import Bucket

    monkeypatch.setenv("RFL_LASTING", str(tmp_path / "log"))
    monkeypatch.setenv("RFL_CACHE", str(tmp_path / "cache"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    with running_store() as store:
        store.reset()
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        options = ("--cohort", str(many), "--executor", "ray")
        done = command("s3://bucket/many", *options)()
        assert done.returncode == 0, done.stderr
        bucket = Bucket("s3://bucket/many")
        assert {name: bucket.read(name) for name in bucket.names()} == local
