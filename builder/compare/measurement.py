"""What was measured of one network: its layers, a flat summary, comparisons. Needs no torch."""

from __future__ import annotations

import html
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from builder import schema
from builder.cohort.registry import DATASETS
from builder.compare.columns import LAYERS, MEASURED
from builder.compare.comparison import Comparison, compare_depth, compare_models
from builder.compare.reference import (
    DEPTH_METRICS,
    Basis,
    Reference,
    load_reference,
    weighted_means,
)
from builder.errors import BuilderError, UsageError
from builder.files import write_atomic
from builder.release import moments
from builder.release.moments import Moments
from builder.release.reader import Release

SUFFIXES = (".json", ".parquet", ".csv")


@dataclass(frozen=True)
class Measurement:
    """One network, measured.

    Attributes:
        name: what it is called.
        layers: Arrow, one row per convolution and weights view; `columns.LAYERS` describes it.
            Rows are in order of execution, or as stored where that is unknown.
        constructor: what builds the architecture; null where it is unknown.
        recognised: how the architecture was found, in words; empty where it was given.
        dataset: image data set it is compared on, unless another is asked for.
        unknown: what cannot be said of it, and why.
        first_layer: rows of `first_layer`, where they were asked for.
    """

    name: str
    layers: pa.Table = field(repr=False)
    constructor: str | None = None
    recognised: str = ""
    dataset: str | None = None
    unknown: tuple[str, ...] = ()
    first_layer: tuple[dict[str, Any], ...] = field(default=(), repr=False)

    @property
    def view(self) -> str:
        """The view that numbers without a suffix are in: folded, or trained if that is all."""
        return "folded" if "folded" in self._measured else "trained"

    @cached_property
    def _measured(self) -> dict[str, list[dict[str, Any]]]:
        """Measured rows by view."""
        found: dict[str, list[dict[str, Any]]] = {}
        for row in self.layers.to_pylist():
            if row["status"] == MEASURED:
                found.setdefault(row["weights"], []).append(row)
        return found

    @cached_property
    def summary(self) -> dict[str, float]:
        """Numbers of the whole network, flat, for any logger.

        `filters/NAME` is in the folded view, `filters/NAME_trained` in the trained one;
        `filters/bin_DD/NAME` is a depth bin's (00: the first convolution; 01 to 10: deciles), in
        the folded view. A number that is unknown or not defined is absent.
        """
        numbers: dict[str, float | None] = {}
        for view, suffix in schema.VIEW_SUFFIX.items():
            rows = self._measured.get(view, [])
            if not rows:
                continue
            numbers["filters/n_layers"] = float(len(rows))
            numbers["filters/n_filters"] = float(sum(row["n_filters"] for row in rows))
            known = [row["n_sparse"] for row in rows if row["n_sparse"] is not None]
            numbers[f"filters/n_sparse{suffix}"] = float(sum(known))
            for metric, value in weighted_means(rows).items():
                numbers[f"filters/{metric}{suffix}"] = value
            basis = _basis(rows)
            if basis is not None:
                numbers[f"filters/explained_variance_first{suffix}"] = float(basis.ratios[0])
                numbers[f"filters/pca_entropy{suffix}"] = basis.entropy
        for (depth_bin, metric), value in self._by_depth().items():
            numbers[f"filters/bin_{depth_bin:02}/{metric}"] = value
        return {name: value for name, value in numbers.items() if value is not None}

    def _by_depth(self) -> dict[tuple[int, str], float]:
        """{(depth bin, metric): value} in the folded view; empty where depth is unknown."""
        rows = [r for r in self._measured.get("folded", []) if r["depth_bin"] is not None]
        return {
            (depth_bin, metric): value
            for depth_bin in sorted({row["depth_bin"] for row in rows})
            for metric, value in weighted_means(
                r for r in rows if r["depth_bin"] == depth_bin
            ).items()
            if value is not None
        }

    def compare(
        self, dataset: str | None = None, against: str | Release | Reference = "paper"
    ) -> Comparison:
        """This network beside robust and standard models.

        Args:
            dataset: cifar10, cifar100 or imagenet; default the network's own.
            against: `paper` (published values), a release folder, hf://datasets/org/name@tag, an
                open release, or a loaded reference.

        Raises:
            UsageError: unknown data set or reference.
        """
        from builder.compare.reference import of_release

        if isinstance(against, str):
            reference = load_reference(against)
        else:
            reference = of_release(against) if isinstance(against, Release) else against
        dataset = dataset or self.dataset
        if dataset is not None and dataset not in DATASETS:
            raise UsageError(f"unknown data set {dataset!r}; expected {', '.join(DATASETS)}.")
        missing: list[str] = []
        folded = self._measured.get("folded", [])
        values = self._by_depth()
        if not folded:
            missing.append(
                "Nothing is compared: the reference is in the folded view, which is unknown here."
            )
        elif dataset is None:
            missing.append("Not compared by depth: no data set is named.")
        elif dataset not in reference.datasets:
            missing.append(f"Not compared by depth: the reference has no pairs on {dataset}.")
        if any(row["orthogonality"] is None and row["out_channels"] == 1 for row in folded):
            missing.append("Layers of one output channel have no orthogonality.")
        if any(row["layer_linf"] is None for row in folded):
            missing.append("Layers with NaN or infinite weights are left out.")
        depth = tuple(compare_depth(values, dataset, reference)) if dataset else ()
        whole = weighted_means(folded)["sparsity"] if folded else None
        return Comparison(
            reference.name,
            dataset if depth else None,
            depth,
            tuple(compare_models(whole, _basis(folded), reference)),
            tuple(missing),
        )

    def as_json(self, comparison: Comparison | None = None) -> dict[str, Any]:
        """One object: `name`, `recognised`, `layers`, `summary`, `comparison`, and the rest."""
        compared = None
        if comparison is not None:
            compared = {**asdict(comparison), "sentences": comparison.sentences}
        return {
            "name": self.name,
            "dataset": self.dataset,
            "view": self.view,
            "recognised": self.constructor,
            "how": self.recognised,
            "unknown": list(self.unknown),
            "summary": self.summary,
            "layers": self.layers.to_pylist(),
            "first_layer": list(self.first_layer),
            "comparison": compared,
        }

    def save(self, path: str | Path, comparison: Comparison | None = None) -> None:
        """Write the layers as .parquet or .csv, or everything as .json; whole or not at all.

        Raises:
            UsageError: another suffix.
            BuilderError: the file cannot be written.
        """
        path = Path(path)
        if path.suffix not in SUFFIXES:
            raise UsageError(f"cannot save to {path.name}; expected {' or '.join(SUFFIXES)}.")
        if path.suffix == ".json":
            data = (json.dumps(self.as_json(comparison), indent=1, allow_nan=False) + "\n").encode()
        else:
            sink = pa.BufferOutputStream()
            if path.suffix == ".parquet":
                pq.write_table(self.layers, sink, compression="zstd")
            else:
                pyarrow.csv.write_csv(_flat(self.layers), sink)
            data = sink.getvalue().to_pybytes()
        try:
            write_atomic(path, data)
        except OSError as e:
            raise BuilderError(f"cannot write {path}: {e.strerror}.") from None

    def _repr_html_(self) -> str:
        """A table for a notebook: one row per measured layer in the plain view."""
        names = ("layer", "depth_bin", "n_filters", *DEPTH_METRICS)
        head = "".join(f"<th>{html.escape(n.replace('_', ' '))}</th>" for n in names)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(_shown(row[n]))}</td>" for n in names) + "</tr>"
            for row in self._measured.get(self.view, [])
        )
        title = f"{self.name}: {len(self._measured.get(self.view, []))} layers, {self.view} view"
        return (
            f"<table><caption>{html.escape(title)}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )


def layers_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as `columns.LAYERS`; missing keys are null."""
    return pa.Table.from_pylist(rows, schema=LAYERS.arrow)


def of_released(release: Release, model_id: str) -> Measurement:
    """A model of a release, from its rows of `layers`.

    Raises:
        UsageError: no such model, or it has no layers there.
    """
    about = release.table("models", where=[("model_id", "=", model_id)]).to_pylist()
    if not about:
        ids = release.model_ids
        raise UsageError(
            f"{release.address} has no model {model_id!r}.",
            hint=f"it has {len(ids)}, e.g. {', '.join(ids[:3])}.",
        )
    rows = release.table("layers", where=[("model_id", "=", model_id)]).to_pylist()
    if not rows:
        raise UsageError(f"{release.address} has no layers of {model_id}.")
    for row in rows:
        row |= {"kernel_size": "3x3", "status": MEASURED}
    return Measurement(
        model_id,
        layers_table(rows),
        constructor=about[0]["constructor"],
        dataset=about[0]["dataset"],
    )


def _basis(rows: list[dict[str, Any]]) -> Basis | None:
    """PCA basis of the scaled non-sparse filters of measured rows; None where they do not vary."""
    total = moments.merge(
        Moments(
            row["n_filters"] - row["n_sparse"],
            np.array(row["mean"]),
            moments.unpack(np.array(row["scatter"])),
        )
        for row in rows
        if row["n_sparse"] is not None
    )
    ratios = moments.explained_variance_ratio(total.scatter)
    if not ratios.any():
        return None
    return Basis(ratios, moments.principal_directions(total)[1])


def _flat(table: pa.Table) -> pa.Table:
    """Lists as JSON text: CSV has none."""
    for i, column in enumerate(table.schema):
        if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
            text = [None if v is None else json.dumps(v) for v in table[column.name].to_pylist()]
            table = table.set_column(i, column.name, pa.array(text, pa.string()))
    return table


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)
