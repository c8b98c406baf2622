"""Baselines of the fixed tasks, as numbers in learning.md: `python docs/baselines.py RELEASE...`.

`--check` compares instead. A constant, and a linear model on the reference metrics: logistic
regression of layers, ridge regression of models, fitted on train and validation, scored on test.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from builder.errors import UsageError
from builder.release.reader import Release, open_release
from builder.tasks.examples import TASKS, Key, Task, examples
from builder.tasks.score import Score, score

PAGE = Path(__file__).parent / "learning.md"
START, END = "<!-- baselines:start -->\n", "<!-- baselines:end -->\n"

METRICS = ("sparsity", "variance_entropy", "orthogonality")
"""Of a layer, and of a model; to both come the nine explained variance ratios."""


def features(release: Release, task: Task) -> dict[Key, NDArray[np.float64]]:
    """{key: reference metrics} of every layer, or of every model, in the folded view."""
    if task.keys == ("model_id",):
        basis = release.table("pca", where=[("weights", "=", "folded")]).to_pylist()
        ratios: dict[str, list[float]] = {}
        for row in sorted(basis, key=lambda row: row["component"]):
            ratios.setdefault(row["basis"], []).append(row["explained_variance_ratio"])
        rows = release.table("models").to_pylist()
        return {(r["model_id"],): _vector(r, ratios[r["model_id"]]) for r in rows}
    rows = release.table("layers", where=[("weights", "=", "folded")]).to_pylist()
    return {
        (r["model_id"], str(r["layer_index"])): _vector(r, r["explained_variance_ratio"])
        for r in rows
    }


def _vector(row: dict[str, Any], ratios: Sequence[float]) -> NDArray[np.float64]:
    return np.array([*(row[name] for name in METRICS), *ratios], np.float64)


def predictors(task: Task) -> dict[str, Any]:
    """{baseline: a model of scikit-learn}."""
    prepared = (SimpleImputer(keep_empty_features=True), StandardScaler())
    if task.keys == ("model_id",):
        return {"constant": DummyRegressor(), "ridge": make_pipeline(*prepared, Ridge())}
    linear = LogisticRegression(max_iter=10_000, class_weight="balanced")
    return {"constant": DummyClassifier(), "logistic": make_pipeline(*prepared, linear)}


def baseline(release: Release, task: Task, predictor: Any) -> Score:
    """Fit on train and validation, predict test, score the file of predictions."""
    known = features(release, task)
    fitted: dict[Key, float] = {}
    for split in ("train", "validation"):
        try:
            fitted |= examples(release, task, split)
        except UsageError:  # a small release may have none there
            continue
    test = list(examples(release, task, "test"))
    predictor.fit(np.array([known[key] for key in fitted]), np.array(list(fitted.values())))
    given = np.array([known[key] for key in test])
    if task.name == "robust":
        values = predictor.predict_proba(given)[:, list(predictor.classes_).index(1.0)]
    else:
        values = np.clip(predictor.predict(given), 0, task.largest)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.csv"
        with path.open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow([*task.keys, task.name])
            out.writerows([*key, value] for key, value in zip(test, values, strict=True))
        return score(release, task, path)


def table(addresses: Sequence[str]) -> str:
    """Every task that a release has examples of, and what each baseline scores, as Markdown."""
    lines = ["| release | task | examples | models | groups | baseline | scores |"]
    lines.append("|---|---|---:|---:|---:|---|---|")
    for address in addresses:
        release = open_release(address)
        published = release.manifest["weights"] == "published"
        name = "reference" if published else release.manifest["cohort"]["name"]
        for task in TASKS.values():
            try:
                examples(release, task, "test")
            except UsageError:
                continue
            for kind, predictor in predictors(task).items():
                found = baseline(release, task, predictor)
                said = ", ".join(
                    f"{measure} {'undefined' if value is None else f'{value:.2f}'}"
                    for measure, value in found.measures.items()
                )
                lines.append(
                    f"| {name} | `{task.name}` | {found.examples} | {found.models} "
                    f"| {found.groups} | {kind} | {said} |"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Renew the table in learning.md, or say that it is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("releases", nargs="+", help="e.g. out/mini out/reference")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(START)
    renewed = f"{head}{START}{table(given.releases)}{END}{rest.split(END)[1]}"
    if given.check and renewed != text:
        sys.exit(f"{PAGE} is out of date: run python docs/baselines.py {' '.join(given.releases)}")
    if not given.check:
        PAGE.write_text(renewed, encoding="utf-8")


if __name__ == "__main__":
    main()
