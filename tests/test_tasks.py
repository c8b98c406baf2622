"""The fixed tasks: which examples they have, what predictions score, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from synthetic_release import make_world, write_release
from typer.testing import CliRunner

from builder.cli.main import app
from builder.errors import UsageError
from builder.paper.reference import write_reference
from builder.release.reader import Release, open_release
from builder.release.split import SPLITS
from builder.tasks import score as scoring
from builder.tasks.examples import TASKS, Key, Task, examples
from builder.tasks.score import score

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return open_release(write_release(tmp_path_factory.mktemp("synthetic"), make_world()))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Release:
    write_reference(tmp_path_factory.mktemp("published") / "reference")
    return open_release(tmp_path_factory.getbasetemp() / "published0" / "reference")


def write(path: Path, task: Task, rows: dict[Key, Any]) -> Path:
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow([*task.keys, task.name])
        out.writerows([*key, value] for key, value in rows.items())
    return path


def test_the_splits_share_out_every_layer(release: Release) -> None:
    layers = release.table("layers", where=[("weights", "=", "folded")]).to_pylist()
    split = {r["model_id"]: r["split"] for r in release.table("models").to_pylist()}
    for name in ("robust", "depth_bin"):
        found = {s: examples(release, TASKS[name], s) for s in set(split.values())}
        assert sum(map(len, found.values())) == len(layers)
        for row in layers:
            answer = found[split[row["model_id"]]][row["model_id"], str(row["layer_index"])]
            wanted = "-robust-" in row["model_id"] if name == "robust" else row["depth_bin"]
            assert answer == wanted


def test_accuracies_are_those_of_the_robust_models(published: Release) -> None:
    models = published.table("models").to_pylist()
    found = [examples(published, TASKS["autoattack_acc"], split) for split in SPLITS]
    assert {key[0] for part in found for key in part} == {
        m["model_id"] for m in models if m["robust"]
    }


def test_true_answers_score_best_and_false_ones_worst(release: Release, tmp_path: Path) -> None:
    truth = examples(release, TASKS["robust"], "train")
    right = write(tmp_path / "right.csv", TASKS["robust"], truth)
    wrong = write(tmp_path / "wrong.csv", TASKS["robust"], {k: 1 - v for k, v in truth.items()})
    best = score(release, TASKS["robust"], right, "train")
    assert best.measures == {"roc_auc": 1.0, "balanced_accuracy": 1.0}
    assert score(release, TASKS["robust"], wrong, "train").measures["roc_auc"] == 0.0
    assert best.examples == len(truth) and best.models == len({m for m, _ in truth})
    assert 1 <= best.groups <= best.models


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=2, max_size=30))
def test_measures_are_those_of_scikit_learn_and_scipy(cases: list[tuple[bool, int]]) -> None:
    answers = np.array([a for a, _ in cases], float)
    found = np.array([b for _, b in cases], float)
    rank = scoring._measures(TASKS["autoattack_acc"], answers * 3 + found % 2, found)["spearman"]
    if rank is not None:
        assert rank == pytest.approx(spearmanr(answers * 3 + found % 2, found).statistic)
    measured = scoring._measures(TASKS["robust"], answers, found / 4)
    if len(set(answers)) == 1:
        assert measured == {"roc_auc": None, "balanced_accuracy": None}
        return
    assert measured["roc_auc"] == pytest.approx(roc_auc_score(answers, found))
    wanted = balanced_accuracy_score(answers, found / 4 > 0.5)
    assert measured["balanced_accuracy"] == pytest.approx(wanted)


def test_a_constant_has_no_rank_correlation(published: Release, tmp_path: Path) -> None:
    task = TASKS["autoattack_acc"]
    rows = dict.fromkeys(examples(published, task, "test"), 50)
    found = score(published, task, write(tmp_path / "p.csv", task, rows))
    assert found.measures["spearman"] is None and found.measures["mean_absolute_error"]


def spoiled(rows: dict[Key, Any], how: str) -> list[list[Any]]:
    lines = [[*key, value] for key, value in rows.items()]
    match how:
        case "missing":
            return lines[1:]
        case "twice":
            return [*lines, lines[0]]
        case "unknown":
            return [*lines, ["cifar10-robust-nobody", 0, 1]]
        case _:
            return [[*lines[0][:-1], how], *lines[1:]]


@pytest.mark.parametrize(
    ("task", "how", "said"),
    [
        ("robust", "missing", "1 of {n} examples have no prediction, e.g. {first}"),
        ("robust", "twice", "row {next}: {first} has a prediction already"),
        ("robust", "unknown", "row {next}: cifar10-robust-nobody 0 is no example of the task"),
        ("robust", "nan", "row 2: robust is 'nan'; expected a number from 0 to 1"),
        ("robust", "inf", "row 2: robust is 'inf'"),
        ("robust", "", "row 2: robust is ''"),
        ("robust", "1.5", "row 2: robust is '1.5'"),
        ("robust", "yes", "row 2: robust is 'yes'"),
        ("depth_bin", "2.5", "row 2: depth_bin is '2.5'; expected a whole number from 0 to 10"),
        ("depth_bin", "11", "row 2: depth_bin is '11'"),
        ("depth_bin", "-1", "row 2: depth_bin is '-1'"),
    ],
)
def test_predictions_that_are_not_one_number_per_example_are_refused(
    task: str, how: str, said: str, release: Release, tmp_path: Path
) -> None:
    chosen = TASKS[task]
    rows = examples(release, chosen, "train")
    with (tmp_path / "p.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow([*chosen.keys, task])
        out.writerows(spoiled(rows, how))
    with pytest.raises(UsageError) as raised:
        score(release, chosen, tmp_path / "p.csv", "train")
    facts = {"n": len(rows), "next": len(rows) + 2, "first": " ".join(next(iter(rows)))}
    assert said.format(**facts) in str(raised.value)


def test_what_cannot_be_scored_is_told(release: Release, published: Release, tmp_path: Path):
    runner = CliRunner()
    path = write(tmp_path / "p.csv", TASKS["robust"], examples(release, TASKS["robust"], "train"))
    for args, said in (
        (["kernel", path], "no task 'kernel'; expected robust, depth_bin, autoattack_acc"),
        (["robust", tmp_path / "none.csv", "--split", "train"], "none.csv"),
        (["robust", path, "--split", "all"], "no split 'all'; expected train, validation, test"),
        (["depth_bin", path, "--split", "train"], "missing column(s) 'depth_bin'"),
        (["robust", path, "--release", published.address], "has no example of the task robust"),
    ):
        command = ["score", *map(str, args)]
        if "--release" not in command:
            command += ["--release", release.address]
        done = runner.invoke(app, command)
        assert isinstance(done.exception, UsageError), done.output
        assert said in str(done.exception) + done.exception.hint
    done = runner.invoke(
        app,
        ["score", "robust", str(path), "--release", release.address, "--split", "train", "--json"],
    )
    assert json.loads(done.stdout)["measures"] == {"roc_auc": 1.0, "balanced_accuracy": 1.0}


def test_the_baselines_of_the_reference_release_are_those_in_the_docs(published: Release) -> None:
    from baselines import table

    lines = table([published.address]).splitlines()
    assert len(lines) == 4
    page = (DOCS / "learning.md").read_text().splitlines()
    assert set(lines) <= set(page)
