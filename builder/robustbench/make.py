"""Make the cohort robustbench: every model of the installed registry whose 3x3 filters can be read.

Robust is whatever RobustBench does not list as standardly trained; outside Linf, where the paper's
names are, a network is called NAME.THREAT_MODEL, since names repeat. A robust model is paired by
what it runs, not by name: with the standard model of its data set that has the same convolutions in
the same places and the same activations (`Network.graph`). Where several have, the paper's come
first (most used there first), then timm's, then RobustBench's own; the paper's pairs stay.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from builder.cohort.registry import (
    COLUMNS,
    LEFT_OUT,
    Cohort,
    LeftOut,
    ModelSpec,
    load_cohort,
    parse,
)
from builder.csvfile import read_csv
from builder.errors import BuilderError, UsageError
from builder.files import write_atomic
from builder.network.plan import Network, plan_network
from builder.progress import Report
from builder.robustbench.model_info import COLUMNS as FACT_COLUMNS
from builder.robustbench.model_info import TABLE, Entry, Facts
from builder.sources.compat import import_robustbench

NAME = "robustbench"
STANDARD = (
    "Standardly trained model",
    "ImageNet Classification with Deep Convolutional Neural Networks",
)
"""Titles of models that nobody made robust: baselines, AlexNet of the mean corruption error."""
RENAMED = {
    "clean_acc": "clean_acc",
    "autoattack_acc": "autoattack_acc",
    "additional_data": "extra_data",
    **{f: f for f in ("title", "authors", "license", "unreliable", "footnote")},
    "link": "paper_url",
    "reported": "reported_acc",
    "external": "external_acc",
    **{f: f for f in ("corruptions_acc", "corruptions_mce")},
    **{f: f for f in ("corruptions_acc_3d", "corruptions_mce_3d")},
    "number_forward_passes": "n_forward_passes",
}
"""Fact -> column of a cohort."""
_VENUE = re.compile(r"(.+?)(?:, \w+\.?)? (\d{4})")


@dataclass(frozen=True)
class Candidate:
    """A standard model that robust ones may be paired with."""

    spec: ModelSpec
    network: Network


def registry() -> dict[Entry, object]:
    """The installed registry: what tells the weights of its entries apart, in its order."""
    import_robustbench()
    from robustbench.model_zoo.models import model_dicts

    return {
        (dataset.value, threat_model.value, name): str(entry["gdrive_id"])
        for dataset, by_threat in model_dicts.items()
        for threat_model, models in by_threat.items()
        for name, entry in models.items()
    }


def make_cohort(facts: Mapping[Entry, Facts], report: Report) -> Cohort:
    """The cohort of the installed registry.

    Raises:
        UsageError: an entry of the registry without facts.
    """
    entries = registry()
    if unknown := ["/".join(e) for e in entries if e not in facts]:
        raise UsageError(
            f"no facts about {len(unknown)} models of the installed robustbench: "
            f"{', '.join(unknown[:5])}{', ...' if unknown[5:] else ''}.",
            hint="--model-info FOLDER reads them from the folder model_info of a checkout.",
        )
    elsewhere = {
        (row["dataset"], row["threat_model"], row["network"]): row
        for _, row in read_csv(TABLE.with_name("elsewhere.csv"))
    }
    planned: dict[tuple[str, str], Network | BuilderError] = {}

    def network(spec: ModelSpec) -> Network | BuilderError:
        key = spec.constructor, spec.dataset
        if key not in planned:
            try:
                planned[key] = plan_network(*key)
            except BuilderError as e:
                planned[key] = e
        return planned[key]

    robust: list[tuple[ModelSpec, Network]] = []
    own: dict[str, Candidate] = {}  # RobustBench's standard models, by model_id
    left_out: list[LeftOut] = []
    for done, entry in enumerate(entries, 1):
        spec = _spec(entry, facts[entry], elsewhere.get(entry, {}))
        found = network(spec)
        if isinstance(found, BuilderError):
            reason = " ".join(str(found).replace(f"{spec.constructor} ", "").split())
            left_out.append(
                LeftOut(spec.network, spec.dataset, entry[1], spec.architecture, reason)
            )
        elif spec.robust:
            robust.append((spec, found))
        else:  # listed under several threat models, with more facts each time
            first = own.get(spec.model_id)
            own[spec.model_id] = Candidate(_joined(first.spec, spec) if first else spec, found)
        report("robustbench", "tracing", done, len(entries))
    paper = load_cohort("paper")
    partners = {r.model_id: s for r, s in paper.pairs}
    used = Counter(s.model_id for s in partners.values())
    papers = sorted((m for m in paper.models if not m.robust), key=lambda m: -used[m.model_id])
    candidates = [*_candidates(papers, network), *_candidates(_timm(), network), *own.values()]
    models = [
        _paired(spec, found, partners.get(spec.model_id), candidates) for spec, found in robust
    ]
    taken = {(m.dataset, m.standard_network) for m in models}
    kept = [
        c.spec
        for c in candidates
        if c.spec.model_id in own or (c.spec.dataset, c.spec.network) in taken
    ]
    place = {m.model_id: i for i, m in enumerate(paper.models)}
    kept.sort(key=lambda m: place.get(m.model_id, len(place)))
    return Cohort(NAME, (*models, *kept), tuple(left_out))


def _spec(entry: Entry, facts: Facts, elsewhere: Mapping[str, str]) -> ModelSpec:
    dataset, threat_model, name = entry
    linf, robust = threat_model == "Linf", facts["title"] not in STANDARD
    venue = _VENUE.fullmatch(facts["venue"])
    place = f"{dataset}/{name}" if linf else f"{dataset}/{threat_model}/{name}"
    row = {
        "network": name if linf or not robust else f"{name}.{threat_model}",
        "dataset": dataset,
        "robust": str(robust),
        "architecture": facts["architecture"],
        "constructor": elsewhere.get("constructor", f"robustbench:{place}"),
        "checkpoint": elsewhere.get("checkpoint", f"robustbench:{dataset}/{threat_model}/{name}"),
        "threat_model": threat_model if robust else "",
        "eps": facts["eps"] if robust else "",
        "venue": venue[1] if venue else facts["venue"],
        "year": venue[2] if venue else "",
        **{column: facts[fact] for fact, column in RENAMED.items()},
    }
    return parse(row, "/".join(entry))


def _joined(first: ModelSpec, other: ModelSpec) -> ModelSpec:
    """One model of two entries: what the first does not know comes from the other."""
    more = {
        f.name: getattr(other, f.name) for f in fields(ModelSpec) if getattr(first, f.name) is None
    }
    return replace(first, **more)


def _timm() -> list[ModelSpec]:
    table = TABLE.with_name("standard.csv")
    return [parse(row, where) for where, row in read_csv(table)]


def _candidates(
    specs: Iterable[ModelSpec], network: Callable[[ModelSpec], Network | BuilderError]
) -> list[Candidate]:
    made = [(spec, network(spec)) for spec in specs]
    return [Candidate(spec, found) for spec, found in made if isinstance(found, Network)]


def _paired(
    spec: ModelSpec, network: Network, partner: ModelSpec | None, candidates: list[Candidate]
) -> ModelSpec:
    """`spec` with its standard member, where there is one; the two share one architecture."""
    same = (c.spec for c in candidates
            if c.spec.dataset == spec.dataset and c.network.graph == network.graph)  # fmt: skip
    partner = partner or next(same, None)
    if partner is None:
        return spec
    return replace(spec, standard_network=partner.network, architecture=partner.architecture)


def write(cohort: Cohort, facts: Mapping[Entry, Facts], folder: Path) -> None:
    """Write `folder`/robustbench.csv, and in `folder`/robustbench/ what was left out and why, and
    the facts.
    """
    path = folder / f"{cohort.name}.csv"
    entries = registry()
    tables: dict[Path, tuple[Sequence[str], list[dict[str, Any]]]] = {
        path: (COLUMNS, [asdict(m) for m in cohort.models]),
        path.with_suffix("") / LEFT_OUT: (
            [f.name for f in fields(LeftOut)],
            [asdict(m) for m in cohort.left_out],
        ),
        path.with_suffix("") / TABLE.name: (FACT_COLUMNS, [facts[e] for e in entries]),
    }
    for target, (columns, rows) in tables.items():
        text = io.StringIO()
        out = csv.writer(text, lineterminator="\n")
        out.writerow(columns)
        out.writerows([_written(row[c]) for c in columns] for row in rows)
        write_atomic(target, text.getvalue().encode())


def _written(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
