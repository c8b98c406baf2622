"""Builds of toy cohorts through the real code: content, resume, refusals, broken inputs."""

from __future__ import annotations

import builtins
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import build_toy, write_cohort
from fileserver import Fault, serve
from toy_networks import Toy, huge, wide

from builder import schema
from builder.building import finish, model
from builder.building.options import Options
from builder.building.run import build
from builder.check.verify import verify
from builder.cohort.registry import load_cohort
from builder.errors import BuilderError, UsageError
from builder.files import Folder
from builder.metrics.histograms import Projector
from builder.metrics.layer import METRICS_VERSION


def manifest(root: Path) -> dict:
    return json.loads((root / "manifest.json").read_bytes())


def checkpoint(path: Path, make: Callable[[], torch.nn.Module], seed: int) -> Path:
    torch.manual_seed(seed)
    torch.save(make().state_dict(), path)
    return path


def build_checkpoints(cohort: Path, out: Path, **options: object):
    return build_toy(cohort, out, weights="checkpoints", first_layer=False, **options)


def test_a_release_of_seeded_weights_is_good_and_says_it_is_synthetic(release: Path):
    assert verify(release, full=True) == []
    assert manifest(release)["weights"] == "seeded:0"
    n_filters = 2 * (24 + 32 + 128) + 2 * (48 + 128 + 512)  # two models of width 8, two of 16
    totals = {"models": 4, "pairs": 2, "layers": 12, "filters": n_filters}
    assert manifest(release)["totals"] == totals
    metadata = pq.read_schema(release / schema.table_path("layers")).metadata
    assert metadata[b"rfl.weights"] == b"seeded:0"
    assert "seeded" in (release / "README.md").read_text()
    assert not (release / ".build").exists()


def test_dead_layers_are_left_out_and_groups_count_inside(release: Path):
    rows = pq.read_table(release / schema.table_path("layers")).to_pylist()
    toy = [r for r in rows if r["model_id"] == "cifar10-robust-alpha" and r["weights"] == "folded"]
    assert [r["layer"] for r in toy] == ["conv1", "grouped", "last"]
    assert [(r["in_channels"], r["groups"]) for r in toy] == [(3, 1), (4, 2), (8, 1)]
    assert [r["bn_layer"] for r in toy] == ["bn1", None, None]
    assert [r["conv_depth"] for r in toy] == [0, 1, 3]
    assert [r["depth_bin"] for r in toy] == [0, 4, 10]


def test_the_same_build_twice_has_the_same_bytes(toy_cohort: Path, release: Path, tmp_path: Path):
    build_toy(toy_cohort, tmp_path / "again", jobs=2)
    assert manifest(tmp_path / "again")["files"] == manifest(release)["files"]


def test_no_sum_of_floats_in_a_table_depends_on_the_interpreter(
    toy_cohort: Path, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain, summed = builtins.sum, []

    def otherwise(values: Iterable[Any], start: Any = 0) -> Any:  # as another Python might round
        values = list(values)
        if "builder" in Path(sys._getframe(1).f_code.co_filename).parts and any(
            isinstance(v, float) for v in values
        ):
            summed.append(sys._getframe(1).f_code.co_qualname)
        return plain(values, start)

    monkeypatch.setattr(builtins, "sum", otherwise)
    build_toy(toy_cohort, tmp_path / "again")
    assert summed == []
    assert manifest(tmp_path / "again")["files"] == manifest(release)["files"]


def test_a_mean_is_the_same_number_under_every_interpreter():
    names = ("python3.11", "python3.12", "python3.13")
    found = [path for name in names if (path := shutil.which(name))]
    found += map(str, Path.home().glob(".pyenv/versions/3.1[1-9].*/bin/python"))
    draw = np.random.default_rng(0)
    pairs = [
        (float(v), int(w))
        for v, w in zip(draw.random(200), draw.integers(1, 9999, 200), strict=True)
    ]
    script = "\n".join(
        (
            "from __future__ import annotations\nimport math",
            inspect.getsource(finish._mean),
            f"pairs = {pairs}\nparts = [pairs[i:] for i in range(100)]",
            "print(*[_mean(part).hex() for part in parts], sep=',', end=' ')",
            "print(*[sum(v * w for v, w in part).hex() for part in parts], sep=',')",
        )
    )
    said = {}
    for path in found:
        done = subprocess.run([path, "-c", script], capture_output=True, text=True)
        if done.returncode == 0:  # a shim of pyenv may stand for no interpreter
            said[path] = done.stdout.split()
    if len({plain for _, plain in said.values()}) < 2:
        pytest.skip(f"no two interpreters that sum otherwise: {sorted(said)}")
    assert len({mean for mean, _ in said.values()}) == 1


def test_another_seed_gives_other_filters(toy_cohort: Path, release: Path, tmp_path: Path):
    build_toy(toy_cohort, tmp_path / "other", weights="seeded:1", first_layer=False)
    path = schema.filters_path("cifar10", "cifar10-robust-alpha")
    hashes = [manifest(root)["files"][path]["content_hash"] for root in
              (release, tmp_path / "other")]  # fmt: skip
    assert hashes[0] != hashes[1]


def test_stored_filters_are_the_checkpoints_weights_and_fold_with_their_batchnorm(tmp_path: Path):
    path = checkpoint(tmp_path / "a.pt", Toy, 3)
    cohort = write_cohort(tmp_path / "c.csv", {"cifar10-robust-alpha": path})
    assert not build_checkpoints(cohort, tmp_path / "out").failures
    state = torch.load(path, weights_only=True)
    table = pq.read_table(tmp_path / "out" / schema.filters_path("cifar10", "cifar10-robust-alpha"))
    stored = np.stack([table[c].to_numpy() for c in schema.FILTER_COLUMNS], axis=1)
    weights = [state[f"{n}.weight"].reshape(-1, 9) for n in ("conv1", "grouped", "last")]
    np.testing.assert_array_equal(stored, torch.cat(weights).numpy())
    np.testing.assert_array_equal(table["linf"].to_numpy(), np.abs(stored).max(axis=1))
    scale = state["bn1.weight"] / (state["bn1.running_var"] + 1e-5).sqrt()
    expected = np.concatenate([np.repeat(scale.numpy(), 3), np.ones(len(stored) - 24, np.float32)])
    np.testing.assert_array_equal(table["bn_scale"].to_numpy(), expected)
    model = pq.read_table(tmp_path / "out" / schema.table_path("models")).to_pylist()[0]
    assert model["checkpoint_bytes"] == path.stat().st_size
    assert len(model["checkpoint_sha256"]) == 64
    assert model["clean_acc"] is None and model["title"] is None


def test_no_folder_of_the_building_machine_is_in_a_release(tmp_path: Path):
    path = checkpoint(tmp_path / "a.pt", Toy, 3)
    cohort = write_cohort(tmp_path / "c.csv", {"cifar10-robust-alpha": path})
    build_checkpoints(cohort, tmp_path / "out")
    tables = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert len(tables) > 10
    for file in tables:
        assert str(tmp_path).encode() not in file.read_bytes(), file
    model = pq.read_table(tmp_path / "out" / schema.table_path("models")).to_pylist()[0]
    assert (model["source"], model["source_url"]) == ("file", "a.pt")


def test_models_with_identical_filters_are_reported(tmp_path: Path):
    files = {
        "cifar10-robust-alpha": checkpoint(tmp_path / "a.pt", Toy, 1),
        "cifar10-standard-alpha": checkpoint(tmp_path / "b.pt", Toy, 1),
        "cifar10-standard-beta": checkpoint(tmp_path / "c.pt", wide, 1),
    }
    build_checkpoints(write_cohort(tmp_path / "c.csv", files), tmp_path / "out")
    group = ["cifar10-robust-alpha", "cifar10-standard-alpha"]
    assert manifest(tmp_path / "out")["duplicates"] == [group]
    rows = pq.read_table(tmp_path / "out" / schema.table_path("models")).to_pylist()
    assert [r["same_filters_as"] for r in rows] == [None, "cifar10-robust-alpha", None]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_and_their_metrics_null(tmp_path: Path, bad: float):
    state = Toy().state_dict()
    state["grouped.weight"][0, 0, 0, 0] = bad
    torch.save(state, tmp_path / "a.pt")
    cohort = write_cohort(tmp_path / "c.csv", {"cifar10-robust-alpha": tmp_path / "a.pt"})
    outcome = build_checkpoints(cohort, tmp_path / "out")
    assert len(outcome.problems) == 2  # both views
    assert "cifar10-robust-alpha: layer grouped has NaN or infinite" in outcome.problems[0]
    assert manifest(tmp_path / "out")["problems"] == outcome.problems
    rows = pq.read_table(tmp_path / "out" / schema.table_path("layers")).to_pylist()
    assert [r["sparsity"] is None for r in rows] == [False, False, True, True, False, False]
    again = build_checkpoints(cohort, tmp_path / "out")
    assert again.already_there and again.problems == outcome.problems
    assert verify(tmp_path / "out", full=True) == []


def test_a_model_of_which_every_weight_is_nan_is_released_without_a_metric(tmp_path: Path):
    toy = Toy()
    for weights in toy.parameters():
        weights.data.fill_(torch.nan)
    torch.save(toy.state_dict(), tmp_path / "a.pt")
    files = {
        "cifar10-robust-alpha": tmp_path / "a.pt",
        "cifar10-standard-alpha": checkpoint(tmp_path / "b.pt", Toy, 1),
    }
    cohort = write_cohort(tmp_path / "c.csv", files)
    assert not build_checkpoints(cohort, tmp_path / "out").failures
    rows = pq.read_table(tmp_path / "out" / schema.table_path("layers")).to_pylist()
    assert {r["model_id"] for r in rows if r["layer_linf"] is None} == {"cifar10-robust-alpha"}
    assert verify(tmp_path / "out", full=True) == []


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_the_checkpoint_of_a_model_that_failed_is_let_go(tmp_path: Path):
    files = {"cifar10-robust-alpha": checkpoint(tmp_path / "a.pt", wide, 1)}
    outcome = build_checkpoints(write_cohort(tmp_path / "c.csv", files), tmp_path / "out")
    assert "another architecture" in str(outcome.failures["cifar10-robust-alpha"])
    assert str(tmp_path / "a.pt") not in Path("/proc/self/maps").read_text()


def test_one_bad_model_does_not_stop_the_others_and_a_later_build_goes_on(tmp_path: Path):
    missing = tmp_path / "late.pt"
    files = {
        "cifar10-robust-alpha": missing,
        "cifar10-robust-beta": checkpoint(tmp_path / "b.pt", wide, 1),
    }
    cohort, out = write_cohort(tmp_path / "c.csv", files), tmp_path / "out"
    outcome = build_checkpoints(cohort, out)
    assert list(outcome.failures) == ["cifar10-robust-alpha"]
    assert str(missing) in str(outcome.failures["cifar10-robust-alpha"])
    assert not (out / "manifest.json").exists()
    before = (out / schema.filters_path("cifar10", "cifar10-robust-beta")).stat().st_mtime_ns
    checkpoint(missing, Toy, 1)
    assert not build_checkpoints(cohort, out).failures
    after = (out / schema.filters_path("cifar10", "cifar10-robust-beta")).stat().st_mtime_ns
    assert before == after
    assert verify(out) == []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-500]), "a.pt"),
        (lambda p: torch.save(wide().state_dict(), p), "shape"),
        (lambda p: p.write_bytes(b"<html>quota exceeded</html>"), "web page"),
        (lambda p: p.write_bytes(b""), "empty"),
    ],
    ids=["truncated", "another architecture", "a web page", "empty"],
)
def test_a_wrong_checkpoint_is_one_message_and_nothing_half_written(
    tmp_path: Path, spoil: Callable[[Path], object], said: str
):
    path = checkpoint(tmp_path / "a.pt", Toy, 1)
    spoil(path)
    cohort = write_cohort(tmp_path / "c.csv", {"cifar10-robust-alpha": path})
    failures = build_checkpoints(cohort, tmp_path / "out").failures
    assert said in str(failures["cifar10-robust-alpha"])
    assert list((tmp_path / "out").rglob("*.parquet")) == []
    checkpoint(path, Toy, 1)
    assert not build_checkpoints(cohort, tmp_path / "out").failures


def test_a_finished_release_is_left_alone(toy_cohort: Path, release: Path):
    before = {p: p.stat().st_mtime_ns for p in release.rglob("*")}
    assert build_toy(toy_cohort, release).already_there
    assert {p: p.stat().st_mtime_ns for p in release.rglob("*") if p != release} == {
        p: t for p, t in before.items() if p != release
    }


def test_a_folder_with_another_build_is_refused_unless_fresh(toy_cohort: Path, tmp_path: Path):
    out = tmp_path / "out"
    build_toy(toy_cohort, out, first_layer=False)
    with pytest.raises(UsageError, match=r"different build .*weights: there \"seeded:0\""):
        build_toy(toy_cohort, out, first_layer=False, weights="seeded:5")
    assert verify(out) == []
    build_toy(toy_cohort, out, first_layer=False, weights="seeded:5", fresh=True)
    assert manifest(out)["weights"] == "seeded:5"
    assert verify(out) == []


def test_a_folder_with_something_else_is_refused(toy_cohort: Path, tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and holds no build"):
        build_toy(toy_cohort, tmp_path, fresh=True)
    assert (tmp_path / "thesis.tex").read_text() == "mine"
    with pytest.raises(UsageError, match="is not a folder"):
        build_toy(toy_cohort, tmp_path / "thesis.tex")


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    "foreign",
    [
        {"manifest.json": '{"manifest_version": 3}', "data/precious.txt": "mine"},
        {".build/debug/app": "Swift's", "README.md": "mine", ".notes.tmp": "mine"},
        {".build/identity.json": '{"of": "another tool"}', "data/precious.txt": "mine"},
    ],
    ids=["a browser extension", "a Swift package", "another identity.json"],
)
def test_files_that_are_named_like_a_builds_do_not_make_a_folder_ours(
    toy_cohort: Path, tmp_path: Path, foreign: dict[str, str], fresh: bool
):
    for name, text in foreign.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    before = tree(tmp_path)
    with pytest.raises(UsageError, match="is not empty and holds no build"):
        build_toy(toy_cohort, tmp_path, fresh=fresh)
    assert tree(tmp_path) == before


def test_a_fresh_build_that_cannot_be_planned_leaves_the_release_alone(
    release: Path, tmp_path: Path
):
    out = tmp_path / "out"
    shutil.copytree(release, out)
    typo = write_cohort(tmp_path / "c.csv")
    typo.write_text(typo.read_text().replace("toy_networks:wide", "toy_networks:wiide"))
    outcome = build_toy(typo, out, fresh=True)
    assert [m for m, e in outcome.failures.items() if "wiide" in str(e)] == [
        *("cifar10-robust-beta", "cifar10-standard-beta"),
    ]
    assert tree(out) == tree(release)


class Killed(BaseException):
    """Stands for SIGKILL at one place."""


@pytest.mark.parametrize("at", ["models", "identity.json", "manifest.json", "data", "README.md"])
def test_a_fresh_build_killed_while_it_clears_is_never_taken_for_complete(
    release: Path, toy_cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
):
    out = tmp_path / "out"
    shutil.copytree(release, out)
    delete, write = Folder.delete, Folder.write

    def killed_before(folder: Folder, path: str) -> None:
        if Path(path).name == at:
            if (folder.root / path).is_dir():  # in the middle of it
                next(p for p in (folder.root / path).rglob("*") if p.is_file()).unlink()
            raise Killed
        delete(folder, path)

    def killed_writing(folder: Folder, path: str, data: bytes) -> None:
        if Path(path).name == at:
            raise Killed
        write(folder, path, data)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Folder, "delete", killed_before)
        patch.setattr(Folder, "write", killed_writing)
        build_toy(toy_cohort, out, fresh=True)
    again = build_toy(toy_cohort, out)
    assert again.already_there == (at in ("models", "identity.json", "manifest.json"))
    assert verify(out, full=True) == []


def test_a_checkpoint_overwritten_since_its_release_is_refused(tmp_path: Path):
    files = {
        "cifar10-robust-alpha": checkpoint(tmp_path / "a.pt", Toy, 1),
        "cifar10-robust-beta": checkpoint(tmp_path / "b.pt", wide, 1),
    }
    cohort, out = write_cohort(tmp_path / "c.csv", files), tmp_path / "out"
    build_checkpoints(cohort, out)
    checkpoint(tmp_path / "b.pt", wide, 2)
    before = tree(out)
    with pytest.raises(UsageError, match=r"the checkpoint of cifar10-robust-beta has chan") as e:
        build_checkpoints(cohort, out)
    assert "--fresh" in e.value.hint
    assert tree(out) == before
    assert not build_checkpoints(cohort, out, fresh=True).failures
    path = schema.filters_path("cifar10", "cifar10-robust-beta")
    assert tree(out)[path] != before[path]
    (tmp_path / "a.pt").unlink()  # says nothing against what was made of it
    assert build_checkpoints(cohort, out).already_there


def test_a_checkpoint_overwritten_during_a_build_is_read_again(tmp_path: Path):
    files = {
        "cifar10-robust-alpha": checkpoint(tmp_path / "a.pt", Toy, 1),
        "cifar10-robust-beta": tmp_path / "late.pt",
    }
    cohort, out = write_cohort(tmp_path / "c.csv", files), tmp_path / "out"
    assert build_checkpoints(cohort, out).failures
    checkpoint(tmp_path / "a.pt", Toy, 2)
    checkpoint(tmp_path / "late.pt", wide, 1)
    assert not build_checkpoints(cohort, out).failures
    assert not build_checkpoints(cohort, tmp_path / "straight").failures
    assert manifest(out) == manifest(tmp_path / "straight")
    assert verify(out, full=True) == []


@pytest.mark.parametrize("at", ["filters", "first layer", "w.pt"])
def test_ctrl_c_ends_a_build_inside_a_model_and_a_later_build_goes_on(tmp_path: Path, at: str):
    out, said = tmp_path / "out", []

    def interrupt(subject: str, what: str, done: int, total: int | None) -> None:
        said.append(what.split("-")[-1])  # of TAG-w.pt, a download
        if said[-1] == at and said.count(at) == 1:
            # The system may hand a signal to any thread: here to this one, not the waiting one.
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
            time.sleep(2)  # until the main thread has noticed

    with serve() as server:
        file = checkpoint(tmp_path / "w.pt", huge, 1)
        server.files["/w.pt"] = file.read_bytes()
        server.faults["/w.pt"] = [Fault(slow=0.05)]
        cohort = write_cohort(tmp_path / "c.csv", {"cifar10-robust-beta": file})
        text = cohort.read_text().replace(str(file), f"{server.url}/w.pt")
        cohort.write_text(text.replace("toy_networks:wide", "toy_networks:huge"))
        options = Options(cache=tmp_path / "cache", pins=tmp_path / "pins")
        with pytest.raises(KeyboardInterrupt):
            build(load_cohort(str(cohort)), out, options, interrupt)
        assert said.count(at) == 1 and "done" not in said
        assert not list(out.rglob("*.tmp"))
        outcome = build(load_cohort(str(cohort)), out, options, lambda *progress: None)
        asked = server.ranges_asked()
    assert not outcome.failures and not outcome.already_there
    assert verify(out) == []
    if at == "w.pt":  # what had arrived was kept
        assert len(asked) == 2 and asked[1] is not None


def test_two_builds_do_not_share_a_folder(toy_cohort: Path, tmp_path: Path):
    (tmp_path / ".build").mkdir()
    script = (
        "import sys; from filelock import FileLock\n"
        "with FileLock(sys.argv[1]):\n    print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / ".build" / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(BuilderError, match="another build is running"):
            build_toy(toy_cohort, tmp_path)
        other.stdin.close()
    assert not build_toy(toy_cohort, tmp_path, first_layer=False).failures


def interrupted(tmp_path: Path) -> Callable[[], Path]:
    """A build that still wants its second model; calling goes on with it."""
    out = tmp_path / "out"
    files = {
        "cifar10-robust-alpha": checkpoint(tmp_path / "a.pt", Toy, 1),
        "cifar10-robust-beta": tmp_path / "late.pt",
    }
    cohort = write_cohort(tmp_path / "c.csv", files)
    assert build_checkpoints(cohort, out).failures

    def go_on() -> Path:
        checkpoint(tmp_path / "late.pt", wide, 1)
        assert not build_checkpoints(cohort, out).failures
        return out

    return go_on


def test_a_build_resumed_with_another_torch_says_which_model_was_made_with_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as earlier:
        earlier.setattr("builder.release.manifest.metadata.version", lambda name: "1.0")
        go_on = interrupted(tmp_path)
    made = manifest(go_on())
    versions = {m: facts["made_with"]["torch"] for m, facts in made["models"].items()}
    here = metadata.version("torch")
    assert versions == {"cifar10-robust-alpha": "1.0", "cifar10-robust-beta": here}
    assert made["mixed"]["torch"] == ["1.0", here]
    assert "metrics" not in made["mixed"] and "device" not in made["mixed"]
    assert verify(tmp_path / "out", full=True) == []


@pytest.mark.parametrize("forget", [False, True], ids=["another version", "none recorded"])
def test_a_build_resumed_with_other_metrics_measures_what_was_finished_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: bool
):
    with monkeypatch.context() as earlier:
        earlier.setattr(model, "METRICS_VERSION", "0")
        go_on = interrupted(tmp_path)
    entry = tmp_path / "out" / ".build" / "models" / "cifar10-robust-alpha.json"
    wrong = json.loads(entry.read_bytes())
    wrong["layers"][0]["norm_l1"] = -1.0
    if forget:
        del wrong["made_with"]
    entry.write_text(json.dumps(wrong))
    made = manifest(go_on())
    assert {m["made_with"]["metrics"] for m in made["models"].values()} == {METRICS_VERSION}
    assert made["mixed"] == {}
    assert verify(tmp_path / "out", full=True) == []


def test_a_lost_filter_file_is_built_again(toy_cohort: Path, tmp_path: Path):
    out = tmp_path / "out"
    files = {
        "cifar10-robust-alpha": tmp_path / "a.pt",
        "cifar10-robust-beta": tmp_path / "none.pt",
    }
    bad = write_cohort(tmp_path / "bad.csv", files)
    checkpoint(tmp_path / "a.pt", Toy, 1)
    assert len(build_checkpoints(bad, out).failures) == 1
    (out / schema.filters_path("cifar10", "cifar10-robust-alpha")).unlink()
    checkpoint(tmp_path / "none.pt", wide, 1)
    assert not build_checkpoints(bad, out).failures
    assert verify(out) == []


def test_leftovers_of_a_killed_build_are_swept(tmp_path: Path):
    out = tmp_path / "out"
    files = {"cifar10-robust-alpha": checkpoint(tmp_path / "a.pt", Toy, 1),
             "cifar10-robust-beta": tmp_path / "late.pt"}  # fmt: skip
    cohort = write_cohort(tmp_path / "c.csv", files)
    assert build_checkpoints(cohort, out).failures
    folder = (out / schema.filters_path("cifar10", "cifar10-robust-beta")).parent
    (folder / ".cifar10-robust-beta.parquet.tmp").write_bytes(b"half a file")
    (out / ".manifest.json.tmp").write_bytes(b"half a file")
    (out / ".notes.tmp").write_bytes(b"mine")
    checkpoint(tmp_path / "late.pt", wide, 1)
    assert not build_checkpoints(cohort, out).failures
    (out / ".notes.tmp").unlink()  # only what a build may have left is swept
    assert verify(out) == []


def test_a_full_disk_is_one_message_and_a_later_build_goes_on(
    tmpfs: Callable[[str], Path], tmp_path: Path
):
    cohort = write_cohort(tmp_path / "c.csv")
    cohort.write_text(cohort.read_text().replace("toy_networks:wide", "toy_networks:huge"))
    folder = tmpfs("size=2m")
    with pytest.raises(BuilderError, match="is full; what was finished is kept") as e:
        build_toy(cohort, folder / "out", first_layer=False)
    assert "goes on from there" in e.value.hint
    assert not list((folder / "out").rglob(".*.tmp"))
    assert (folder / "out" / ".build" / "models" / "cifar10-robust-alpha.json").exists()
    subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
    assert not build_toy(cohort, folder / "out", first_layer=False).failures
    assert verify(folder / "out") == []


def test_a_read_only_folder_is_one_message(tmpfs: Callable[[str], Path], toy_cohort: Path):
    folder = tmpfs("ro")
    with pytest.raises(BuilderError, match=r"cannot write to .*: Read-only file system"):
        build_toy(toy_cohort, folder / "out")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": "seeded"}, "expected 'checkpoints' or 'seeded:N'"),
        ({"weights": "seeded:x"}, "expected 'checkpoints' or 'seeded:N'"),
        ({"weights": "seeded:0", "device": "tpu"}, "expected auto, cpu or cuda"),
        ({"weights": "seeded:0", "models": "cifar10-*Nobody*"}, "no model of cohort"),
        ({"weights": "seeded:0", "version": "v1"}, "is no version"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    toy_cohort: Path, tmp_path: Path, options: dict, said: str
):
    with pytest.raises(UsageError, match=said):
        build(load_cohort(str(toy_cohort)), tmp_path / "out", Options(**options), print)
    assert not (tmp_path / "out").exists()


def test_a_constructor_that_fails_is_one_message(tmp_path: Path):
    cohort = write_cohort(tmp_path / "c.csv")
    cohort.write_text(cohort.read_text().replace("toy_networks:wide", "toy_networks:fails"))
    failures = build_toy(cohort, tmp_path / "out").failures
    assert failures.keys() == {"cifar10-robust-beta", "cifar10-standard-beta"}
    assert all("this constructor always fails" in str(e) for e in failures.values())


@pytest.mark.slow
def test_a_build_killed_before_any_of_its_renames_ends_with_the_same_content(toy_cohort: Path):
    script = Path(__file__).with_name("kill_and_resume.py")
    options = ["--cohort", str(toy_cohort), "--weights", "seeded:0", "--no-first-layer"]
    done = subprocess.run(
        [sys.executable, str(script), "--", *options, "--models", "*-alpha"],
        env={**os.environ, "PYTHONPATH": str(script.parent)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    reached = done.stdout
    assert "(0 models finished, 0 tables" in reached and "(2 models finished, 8 tables" in reached


def test_a_build_interrupted_among_its_histograms_counts_only_the_others(
    toy_cohort: Path, release: Path, tmp_path: Path, monkeypatch
):
    out, counted = tmp_path / "out", []
    counts = Projector.counts
    monkeypatch.setattr(
        Projector, "counts", lambda self, *a, **k: counted.append(self) or counts(self, *a, **k)
    )

    def interrupt(subject: str, what: str, done: int, total: int | None) -> None:
        if what == "histograms, counts":
            raise KeyboardInterrupt

    options = Options(weights="seeded:0")
    with pytest.raises(KeyboardInterrupt):
        build(load_cohort(str(toy_cohort)), out, options, interrupt)
    before = len(list(out.glob(".build/histograms/*.json")))
    assert before >= 1
    counted.clear()
    assert not build_toy(toy_cohort, out).failures
    assert len(counted) == 4 - before
    assert manifest(out) == manifest(release)
