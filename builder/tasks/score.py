"""What a file of predictions scores on a task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from builder.csvfile import read_csv
from builder.errors import UsageError
from builder.release.reader import Release
from builder.tasks.examples import Key, Task, examples

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """What predictions score.

    Attributes:
        examples: how many there are. models, groups: of how many models, in how many groups that
            have nothing in common: as many as there are independent cases.
        measures: the first is the one to compare by; null where it is not defined.
    """

    task: str
    split: str
    examples: int
    models: int
    groups: int
    measures: dict[str, float | None]


def score(release: Release, task: Task, predictions: Path, split: str = "test") -> Score:
    """Score a CSV with the keys of the task and one column of its name.

    Raises:
        UsageError: no example in the split; no such file, other columns, a value that is no number
            of the task's range, an example twice, one too many or one that is missing.
    """
    wanted = examples(release, task, split)
    given = read_predictions(predictions, task, wanted)
    answers = np.array(list(wanted.values()))
    found = np.array([given[key] for key in wanted])
    models = {key[0] for key in wanted}
    groups = release.table("models", columns=["model_id", "group"]).to_pylist()
    return Score(
        task=task.name,
        split=split,
        examples=len(wanted),
        models=len(models),
        groups=len({row["group"] for row in groups if row["model_id"] in models}),
        measures=_measures(task, answers, found),
    )


def read_predictions(path: Path, task: Task, wanted: dict[Key, float]) -> dict[Key, float]:
    """{key: prediction} of every example, see `score`."""
    given: dict[Key, float] = {}
    for place, row in read_csv(path, [*task.keys, task.name], ()):
        key = tuple(row[name] for name in task.keys)
        said = " ".join(key)
        if key not in wanted:
            raise UsageError(
                f"{place}: {said} is no example of the task {task.name} here.",
                hint=f"expected {len(wanted)} examples, e.g. {' '.join(next(iter(wanted)))}.",
            )
        if key in given:
            raise UsageError(f"{place}: {said} has a prediction already.")
        given[key] = _number(row[task.name], task, place)
    if missing := [key for key in wanted if key not in given]:
        raise UsageError(
            f"{path}: {len(missing)} of {len(wanted)} examples have no prediction, e.g. "
            f"{' '.join(missing[0])}."
        )
    return given


def _number(text: str, task: Task, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    whole = not task.whole or value.is_integer()
    if not (math.isfinite(value) and 0 <= value <= task.largest and whole):
        kind = "a whole number" if task.whole else "a number"
        raise UsageError(
            f"{place}: {task.name} is {text!r}; expected {kind} from 0 to {task.largest:g}."
        )
    return value


def _measures(task: Task, answers: Array, found: Array) -> dict[str, float | None]:
    apart = float(np.abs(answers - found).mean())
    match task.name:
        case "robust":
            right = (found > 0.5) == (answers > 0.5)
            sides = [right[answers == side] for side in (0, 1)]
            both = all(len(side) for side in sides)
            balanced = float(np.mean([side.mean() for side in sides])) if both else None
            return {"roc_auc": _roc_auc(answers, found), "balanced_accuracy": balanced}
        case "depth_bin":
            return {"accuracy": float((answers == found).mean()), "mean_absolute_error": apart}
        case _:
            return {"spearman": _spearman(answers, found), "mean_absolute_error": apart}


def _ranks(values: Array) -> Array:
    """Ranks from 1; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Array = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def _roc_auc(answers: Array, found: Array) -> float | None:
    """Probability that a case ranks above one that is none, ties counting half (Mann-Whitney)."""
    n = int(answers.sum())
    if n in (0, len(answers)):
        return None
    total = float(_ranks(found)[answers == 1].sum())
    return (total - n * (n + 1) / 2) / (n * (len(answers) - n))


def _spearman(answers: Array, found: Array) -> float | None:
    """Spearman's rank correlation; null where either side is constant."""
    a, b = _ranks(answers), _ranks(found)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])
