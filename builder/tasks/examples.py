"""The tasks, and their examples in a release: keys, and the answers that are to be predicted."""

from __future__ import annotations

from dataclasses import dataclass

from builder.errors import UsageError
from builder.release.reader import Release
from builder.release.split import SPLITS
from builder.schema import N_DEPTH_BINS

Key = tuple[str, ...]
"""What names an example, as texts: model_id, or model_id and layer_index."""


@dataclass(frozen=True)
class Task:
    """A task: from what, what is to be predicted.

    Attributes:
        name: of the task and of the column that predictions have, beside the keys.
        question: in words.
        keys: columns that name an example.
        largest: predictions are numbers from 0 to this one.
        whole: they are whole numbers.
    """

    name: str
    question: str
    keys: tuple[str, ...]
    largest: float
    whole: bool = False


_LAYER = ("model_id", "layer_index")

TASKS = {
    task.name: task
    for task in (
        Task("robust", "Is this layer of a robust network? Its probability.", _LAYER, 1),
        Task(
            "depth_bin", "In which depth bin is this layer?", _LAYER, N_DEPTH_BINS - 1, whole=True
        ),
        Task(
            "autoattack_acc",
            "Which accuracy has this robust model (Linf) under AutoAttack, in percent?",
            _LAYER[:1],
            100,
        ),
    )
}


def task_of(name: str) -> Task:
    """The task of a name.

    Raises:
        UsageError: there is none.
    """
    if name not in TASKS:
        raise UsageError(f"no task {name!r}; expected {', '.join(TASKS)}.")
    return TASKS[name]


def examples(release: Release, task: Task, split: str) -> dict[Key, float]:
    """{key: answer} of the examples of a split, in the order of the keys.

    Raises:
        UsageError: no such split, or no example in it.
    """
    if split not in SPLITS:
        raise UsageError(f"no split {split!r}; expected {', '.join(SPLITS)}.")
    models = release.table(
        "models",
        columns=["model_id", "robust", "threat_model", "autoattack_acc"],
        where=[("split", "=", split)],
    ).to_pylist()
    found: dict[Key, float] = {}
    if task.keys == _LAYER:
        robust = {m["model_id"]: m["robust"] for m in models}
        layers = release.table(
            "layers",
            columns=["model_id", "layer_index", "depth_bin"],
            where=[("weights", "=", "folded")],
        ).to_pylist()
        for layer in sorted(layers, key=lambda row: (row["model_id"], row["layer_index"])):
            model_id = layer["model_id"]
            if model_id in robust:
                answer = robust[model_id] if task.name == "robust" else layer["depth_bin"]
                found[model_id, str(layer["layer_index"])] = float(answer)
    else:
        # Of robust models: all standard ones have about none, and to tell the two is another task.
        # Of Linf alone: accuracies under other threats are no numbers of the same kind.
        accuracies = {
            m["model_id"]: m["autoattack_acc"]
            for m in models
            if m["robust"] and m["threat_model"] == "Linf"
        }
        found = {(m,): float(a) for m, a in sorted(accuracies.items()) if a is not None}
    if not found:
        raise UsageError(f"{release.address} has no example of the task {task.name} in {split}.")
    return found
