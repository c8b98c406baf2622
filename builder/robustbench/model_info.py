"""RobustBench's facts about its models: a table of the project's own, or a newer checkout's.

RobustBench keeps a JSON file a model in its repository, and its PyPI package leaves them out. The
table has their facts, each line with the commit it was read at; licences are those that the
repository's LICENSE gives to the weights.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from builder.csvfile import read_csv
from builder.errors import UsageError

Entry = tuple[str, str, str]
"""Data set, threat model and name: the key of RobustBench's registry."""
Facts = dict[str, str]

KEY = ("dataset", "threat_model", "network")
FACTS = {
    "title": "name",
    **{f: f for f in ("authors", "venue", "link", "architecture", "eps")},
    **{f: f for f in ("clean_acc", "autoattack_acc", "reported", "external", "unreliable")},
    **{f: f for f in ("corruptions_acc", "corruptions_mce")},
    **{f: f for f in ("corruptions_acc_3d", "corruptions_mce_3d")},
    **{f: f for f in ("additional_data", "number_forward_passes", "footnote")},
}
"""Column of the table -> field of the JSON files."""
COLUMNS = (*KEY, *FACTS, "license", "commit")
TABLE = Path(str(files("builder") / "cohort" / "robustbench" / "model_info.csv"))

_UNKNOWN = ("", "null", "none", "n/a")


def read_table(path: Path = TABLE) -> dict[Entry, Facts]:
    """The facts of the table, as texts; '' is unknown.

    Raises:
        UsageError: unreadable, or other columns.
    """
    rows = [row for _, row in read_csv(path, COLUMNS, ())]
    return {(r["dataset"], r["threat_model"], r["network"]): r for r in rows}


def read_checkout(
    folder: Path, entries: Iterable[Entry], known: Mapping[Entry, Facts]
) -> dict[Entry, Facts]:
    """The facts of a checkout of RobustBench, of the entries asked for.

    Licences are not among them: they stay as `known`, and are '' for what is new.

    Args:
        folder: model_info/ of the checkout.

    Raises:
        UsageError: no such folder or no checkout, an entry without a file, a file that is no JSON.
    """
    commit = _commit(folder)
    found: dict[Entry, Facts] = {}
    for entry in entries:
        path = folder.joinpath(*entry).with_name(f"{entry[2]}.json")
        try:
            info = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise UsageError(
                f"cannot read {path}: {getattr(e, 'strerror', None) or e}.",
                hint="--model-info is the folder model_info of a checkout that has every model of "
                "the installed robustbench.",
            ) from None
        facts = {column: _text(_field(info, name)) for column, name in FACTS.items()}
        licence = known[entry]["license"] if entry in known else ""
        found[entry] = {**dict(zip(KEY, entry, strict=True)), **facts, "license": licence,
                        "commit": commit}  # fmt: skip
    return found


def _field(info: Mapping[str, Any], name: str) -> Any:
    return info.get(name, info.get(name.replace("_acc", "_acc_2d").replace("_mce", "_mce_2d")))


def _text(value: Any) -> str:
    text = re.sub(r"(<br>|\s)+", " ", "" if value is None else str(value)).strip()
    if isinstance(value, bool):
        return text.lower()
    return "" if text.lower() in _UNKNOWN else text


def _commit(folder: Path) -> str:
    command = ["git", "-C", str(folder), "rev-parse", "--short=7", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        raise UsageError(
            f"{folder} is no folder of a git checkout; each fact is kept with its commit.",
            hint="git clone https://github.com/RobustBench/robustbench, then --model-info "
            "robustbench/model_info.",
        ) from None
