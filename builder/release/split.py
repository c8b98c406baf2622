"""Groups of models that must not be separated, and a fixed split of them for learning from weights.

Two models belong together where they have the same filters, the same paper, or stand in one pair
(so that robust models with a standard one in common do, too); a group is a connected component of
that. Whole groups go to train, validation and test. Nothing here is random: the split follows from
the models of a release and from nothing else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

SPLITS = {"train": Fraction(70, 100), "validation": Fraction(15, 100), "test": Fraction(15, 100)}
"""Name of a split -> the share of the filters that it should have."""

COLUMNS = ("group", "split")
"""Columns of `models` that follow from all models of a release."""

_BELONGS = ("title", "paper_url", "filters_hash")
"""Columns of `models` that two models of one group have in common, where they are not null."""


def assign(
    models: Iterable[Mapping[str, Any]], pairs: Iterable[Mapping[str, Any]]
) -> dict[str, dict[str, str]]:
    """Group and split of every model.

    Args:
        models: rows of `models`, of which `group` and `split` may be missing.
        pairs: rows of `pairs`.

    Returns:
        {model_id: {"group": the first model_id of its group, "split": one of `SPLITS`}}, in the
            order of the model_ids.
    """
    rows = sorted(models, key=lambda m: str(m["model_id"]))
    groups = _groups(rows, pairs)
    split = _split(rows, groups)
    return {m: {"group": group, "split": split[group]} for m, group in groups.items()}


def with_splits(
    models: Iterable[Mapping[str, Any]], pairs: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Rows of `models`, each with its `group` and `split`."""
    rows = list(models)
    found = assign(rows, pairs)
    return [{**row, **found[row["model_id"]]} for row in rows]


def _groups(
    rows: Sequence[Mapping[str, Any]], pairs: Iterable[Mapping[str, Any]]
) -> dict[str, str]:
    """{model_id: the first model_id of its connected component}."""
    above = {row["model_id"]: row["model_id"] for row in rows}

    def first(model: str) -> str:
        while above[model] != model:
            model = above[model]
        return model

    links = [(p["robust_model_id"], p["standard_model_id"]) for p in pairs]
    known: dict[tuple[str, Any], str] = {}
    for row in rows:
        for column in _BELONGS:
            if row.get(column):
                other = known.setdefault((column, row[column]), row["model_id"])
                links.append((other, row["model_id"]))
    for pair in links:
        if not above.keys() >= set(pair):
            continue  # a model that is not here
        low, high = sorted(map(first, pair))
        above[high] = low
    return {model: first(model) for model in above}


def _split(rows: Sequence[Mapping[str, Any]], groups: Mapping[str, str]) -> dict[str, str]:
    """{group: split}: the largest first, each where it serves the shares best, then moved about.

    Shares are those of the filters, of all models and of each stratum, an image data set and kind;
    the error is the sum of their squared deviations from `SPLITS`, in exact arithmetic.
    """
    filters: defaultdict[str, defaultdict[Any, int]] = defaultdict(lambda: defaultdict(int))
    totals: defaultdict[Any, int] = defaultdict(int)
    for row in rows:
        for stratum in (None, (str(row["dataset"]), bool(row["robust"]))):
            filters[groups[row["model_id"]]][stratum] += row["n_filters"]
            totals[stratum] += row["n_filters"]
    shares = {
        group: {s: Fraction(n, totals[s]) for s, n in found.items() if totals[s]}
        for group, found in filters.items()
    }
    # All models together weigh as much as the strata do.
    weight = {s: Fraction(1) if s is None else Fraction(1, len(totals) - 1) for s in totals}
    have = {name: dict.fromkeys(totals, Fraction(0)) for name in SPLITS}

    def put(group: str, name: str, sign: int) -> None:
        for stratum, share in shares[group].items():
            have[name][stratum] += sign * share

    def gain(group: str, name: str) -> Fraction:
        """By how much the error grows when a group is added."""
        return sum(
            (
                weight[s] * share * (2 * (have[name][s] - SPLITS[name]) + share)
                for s, share in shares[group].items()
            ),
            Fraction(0),
        )

    chosen: dict[str, str] = {}
    order = sorted(shares, key=lambda g: (-filters[g][None], g))
    for group in order:
        chosen[group] = min(SPLITS, key=lambda name: gain(group, name))
        put(group, chosen[group], 1)
    moved = True
    while moved:  # every move lowers the error, so this ends
        moved = False
        for group in order:
            old = chosen[group]
            put(group, old, -1)
            chosen[group] = min(SPLITS, key=lambda name: (gain(group, name), name != old))
            put(group, chosen[group], 1)
            moved |= chosen[group] != old
    return chosen
