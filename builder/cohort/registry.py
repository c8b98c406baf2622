"""Cohorts: which models a build is made of. A cohort is a CSV; one more model is one more line."""

from __future__ import annotations

import fnmatch
import hashlib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Any

from builder import schema
from builder.csvfile import read_csv
from builder.errors import UsageError

DATASETS = ("cifar10", "cifar100", "imagenet")
IMAGE_SIZE = {"cifar10": 32, "cifar100": 32, "imagenet": 224}
"""Input resolution the models of a data set expect, in pixels."""
N_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}


@dataclass(frozen=True)
class ModelSpec:
    """One line of a cohort. Unknown or never measured is None, never 0 or ''."""

    network: str
    dataset: str
    robust: bool
    architecture: str
    constructor: str
    checkpoint: str
    standard_network: str | None = None
    threat_model: str | None = None
    eps: str | None = None
    clean_acc: float | None = None
    autoattack_acc: float | None = None
    extra_data: bool | None = None
    title: str | None = None
    authors: str | None = None
    venue: str | None = None
    year: int | None = None
    paper_url: str | None = None
    license: str | None = None
    # Of RobustBench's model_info. Not in the representation: digests of older cohorts stay.
    reported_acc: float | None = field(default=None, repr=False)
    external_acc: float | None = field(default=None, repr=False)
    unreliable: bool | None = field(default=None, repr=False)
    corruptions_acc: float | None = field(default=None, repr=False)
    corruptions_mce: float | None = field(default=None, repr=False)
    corruptions_acc_3d: float | None = field(default=None, repr=False)
    corruptions_mce_3d: float | None = field(default=None, repr=False)
    n_forward_passes: int | None = field(default=None, repr=False)
    footnote: str | None = field(default=None, repr=False)

    @property
    def model_id(self) -> str:
        return schema.model_id(self.dataset, self.robust, self.network)

    @property
    def eps_value(self) -> float | None:
        """Linf radius for the first-layer response: the model's own, else that of its data set.

        None for another threat model, whose eps is no such radius: RobustBench's L2 models have
        0.5. Without a threat model it is read as one.
        """
        if self.threat_model not in (None, "Linf"):
            return None
        default = "4/255" if self.dataset == "imagenet" else "8/255"
        return float(_fraction(self.eps or default))


LATER = tuple(f.name for f in fields(ModelSpec) if not f.repr)


@dataclass(frozen=True)
class LeftOut:
    """A model that a cohort would have, were there 3x3 filters to read from it."""

    network: str
    dataset: str
    threat_model: str
    architecture: str
    reason: str


@dataclass(frozen=True)
class Cohort:
    """A named list of models, and those that were left out. `digest` identifies its models."""

    name: str
    models: tuple[ModelSpec, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def digest(self) -> str:
        later = [(m.model_id, f, v) for m in self.models for f in LATER
                 if (v := getattr(m, f)) is not None]  # fmt: skip
        text = repr(self.models) + (repr(later) if later else "")
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def pairs(self) -> list[tuple[ModelSpec, ModelSpec]]:
        """(robust, standard) for every robust model whose counterpart is in the cohort."""
        standard = {(m.dataset, m.network): m for m in self.models if not m.robust}
        return [
            (m, standard[m.dataset, m.standard_network])
            for m in self.models
            if m.robust and m.standard_network and (m.dataset, m.standard_network) in standard
        ]

    def pair_rows(self) -> list[dict[str, str]]:
        """Rows of the table `pairs`."""
        return [
            {
                "robust_model_id": robust.model_id,
                "standard_model_id": standard.model_id,
                "dataset": robust.dataset,
                "architecture": robust.architecture,
            }
            for robust, standard in self.pairs
        ]

    def select(self, pattern: str | None) -> Cohort:
        """The models whose model_id matches a shell pattern; several are separated by commas.

        Raises:
            UsageError: a pattern matches no model.
        """
        if pattern is None:
            return self
        kept: set[str] = set()
        for part in (p.strip() for p in pattern.split(",")):
            hit = {m.model_id for m in self.models if fnmatch.fnmatchcase(m.model_id, part)}
            if not hit:
                raise UsageError(
                    f"no model of cohort '{self.name}' matches {part!r}.",
                    hint=f"`builder plan` of this cohort lists all {len(self.models)}, e.g. "
                    f"{self.models[0].model_id}.",
                )
            kept |= hit
        return Cohort(self.name, tuple(m for m in self.models if m.model_id in kept))


def _bool(text: str) -> bool:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    raise ValueError("expected true or false")


def _dataset(text: str) -> str:
    if text not in DATASETS:
        raise ValueError(f"expected one of {', '.join(DATASETS)}")
    return text


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", text):
        raise ValueError("expected letters, digits, and . _ + - only (it becomes a file name)")
    return text


_NUMBER = r"((?:\d+\.?\d*|\.\d+)(?:e-?\d{1,2})?)"


def _fraction(text: str) -> Fraction:
    match = re.fullmatch(rf"{_NUMBER}(?:/{_NUMBER})?", text, re.ASCII | re.IGNORECASE)
    if match is None or (match[2] and not Fraction(match[2])):
        raise ValueError("expected a number, or a fraction such as 8/255")
    return Fraction(match[1]) / Fraction(match[2] or 1)


def _eps(text: str) -> str:
    text = "".join(text.split())
    if _fraction(text) <= 0:
        raise ValueError("expected a positive number or fraction such as 8/255")
    return text


def _linf_radius(eps: str) -> str:
    """An eps in units of the [0, 1] image; a whole number of at least 1 is one of pixels of 255."""
    value = _fraction(eps)
    if value >= 1 and value.denominator == 1 and "/" not in eps:
        value, eps = value / 255, f"{value}/255"
    if value > 1:
        raise ValueError("expected a Linf radius such as 8/255 or 0.031, or whole pixels such as 8")
    return eps


def _threat_model(text: str) -> str:
    folded = re.sub(r"[\s_-]", "", text.lower())
    return _THREAT_MODELS.get(folded, text)


def _year(text: str) -> int:
    if not re.fullmatch(r"(19|2\d)\d\d", text):
        raise ValueError("expected a year such as 2022")
    return int(text)


def _number(text: str) -> float:
    return float(_fraction(text))


def _percent(text: str) -> float:
    try:
        value = float(_fraction(text.removesuffix("%").rstrip()))
    except ValueError:
        value = math.inf
    if value > 100:
        raise ValueError("expected percent, 0 to 100")
    return value


_THREAT_MODELS = {
    **dict.fromkeys(("linf", "linfinity", "l∞", "inf"), "Linf"),
    **{f"l{p}": f"L{p}" for p in (0, 1, 2)},
    **dict.fromkeys(("corruptions", "corruption", "commoncorruptions"), "corruptions"),
}
_PARSE: dict[str, Callable[[str], Any]] = {
    "network": _name,
    "dataset": _dataset,
    "robust": _bool,
    "threat_model": _threat_model,
    "eps": _eps,
    "clean_acc": _percent,
    "autoattack_acc": _percent,
    "extra_data": _bool,
    "year": _year,
    **dict.fromkeys(("reported_acc", "external_acc"), _percent),
    **dict.fromkeys(("corruptions_acc", "corruptions_acc_3d"), _percent),
    **dict.fromkeys(("corruptions_mce", "corruptions_mce_3d"), _number),
    "unreliable": _bool,
    "n_forward_passes": int,
}
COLUMNS = tuple(f.name for f in fields(ModelSpec))
LEFT_OUT = "left_out.csv"
REQUIRED, OPTIONAL = COLUMNS[:6], COLUMNS[6:]


def parse(row: dict[str, str], where: str) -> ModelSpec:
    values: dict[str, Any] = {}
    for name in COLUMNS:
        text = row.get(name)
        if not text:
            if name in REQUIRED:
                raise UsageError(f"{where}: column '{name}' is empty; it is required.")
            continue
        try:
            values[name] = _PARSE.get(name, str)(text)
            if name == "eps" and values.get("threat_model") in (None, "Linf"):
                values[name] = _linf_radius(values[name])
        except ValueError as e:
            raise UsageError(f"{where}: column '{name}' is {text!r}: {e}.") from None
    return ModelSpec(**values)


def _check(models: Iterable[ModelSpec], where: str) -> None:
    seen: dict[str, ModelSpec] = {}
    for m in models:
        # File systems that ignore case would let one model overwrite the other.
        if m.model_id.lower() in seen:
            raise UsageError(f"{where}: model '{m.model_id}' occurs twice; ids must be unique.")
        seen[m.model_id.lower()] = m
    for m in seen.values():
        if m.standard_network is None:
            continue
        partner = seen.get(schema.model_id(m.dataset, False, m.standard_network).lower())
        said = f"{where}: '{m.model_id}' names standard_network '{m.standard_network}', "
        rule = "standard_network is the `network` of a line with robust=false and the same dataset."
        if not m.robust:
            raise UsageError(f"{said}but is itself standard.", hint=rule)
        if partner is None or partner.network != m.standard_network:
            raise UsageError(
                f"{said}no such {m.dataset} model.",
                hint=f"did you mean '{partner.network}'?" if partner else rule,
            )
        if partner.architecture != m.architecture:
            raise UsageError(
                f"{where}: pair of different architectures: '{m.model_id}' is {m.architecture}, "
                f"'{partner.model_id}' is {partner.architecture}."
            )


def questions(cohort: Cohort) -> list[str]:
    """What is odd in a cohort, though possible: sentences for its author, each naming a model."""
    asked: list[str] = []
    for m in cohort.models:
        odd: list[str] = []
        if m.eps and m.threat_model not in _THREAT_MODELS.values():
            odd.append(
                f"threat_model is {m.threat_model!r}; its eps is recorded, but not measured at"
                if m.threat_model
                else f"eps {m.eps} has no threat_model; it is read as Linf"
            )
        if (m.eps_value or 0) > 0.25:
            odd.append(f"a Linf radius of {m.eps} changes every pixel beyond recognition")
        for name in ("clean_acc", "autoattack_acc"):
            value = getattr(m, name)
            if value and value <= 1 and (m.robust or name == "clean_acc"):
                odd.append(f"{name} is {value:g} percent; did you mean {100 * value:g}?")
        if (m.autoattack_acc or 0) > (100 if m.clean_acc is None else m.clean_acc):
            odd.append(f"autoattack_acc {m.autoattack_acc} exceeds clean_acc {m.clean_acc}")
        asked += [f"{m.model_id}: {text}" for text in odd]
    return asked


def unions(models: Iterable[ModelSpec]) -> dict[str, list[str]]:
    """Bases of several of these models: see `schema.unions`."""
    return schema.unions((m.model_id, m.robust, m.threat_model) for m in models)


def read_cohort(path: Path, name: str) -> Cohort:
    """Read and check a cohort CSV (columns: `COLUMNS`; the first six are required).

    A file left_out.csv, in a folder of the same name beside it, says which models are missing.

    Raises:
        UsageError: unreadable file, wrong column, wrong value, duplicate id, unknown partner.
    """
    models = tuple(parse(row, where) for where, row in read_csv(path, REQUIRED, OPTIONAL))
    _check(models, str(path))
    missing = path.with_suffix("") / LEFT_OUT
    columns = [f.name for f in fields(LeftOut)]
    rows = read_csv(missing, columns, ()) if missing.exists() else []
    return Cohort(name, models, tuple(LeftOut(**row) for _, row in rows))


def cohort_names() -> list[str]:
    """The cohorts that ship with the package."""
    folder = files("builder") / "cohort"
    return sorted(p.name.removesuffix(".csv") for p in folder.iterdir() if p.name.endswith(".csv"))


def load_cohort(name: str) -> Cohort:
    """A shipped cohort by name, or the user's own by the path of its CSV.

    Raises:
        UsageError: no such cohort, or a CSV that is wrong.
    """
    if name in cohort_names():
        return read_cohort(Path(str(files("builder") / "cohort" / f"{name}.csv")), name)
    path = Path(name)
    if path.suffix == ".csv" or path.exists():
        return read_cohort(path, path.stem)
    raise UsageError(
        f"unknown cohort '{name}'.",
        hint=f"expected {', '.join(cohort_names())} or the path of a CSV.",
    )
