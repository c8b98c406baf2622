"""The paper's published values, as the table `paper` of a release.

The facts stand in builder/paper/*.csv, each once, in the shape they were published in:

- models.csv    per model: 3x3 layers, filters, sparse filters
- boxplots.csv  per metric, data set, kind and depth bin: the box plots of the depth figures
- pca.csv       per model and for the three unions: the PCA (see `builder.paper.reference`)
- values.csv    everything else, one value a line

Accuracies are part of the cohort (cohort/paper.csv). Nothing here is arithmetic, so the
table has the same bytes on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa

from builder import schema
from builder.csvfile import read_csv
from builder.schema import PAPER

BOX_STATISTICS = (
    "n_points",
    "whisker_low",
    "q1",
    "median",
    "q3",
    "whisker_high",
    "mean",
    "n_outliers",
)
_TABLES = "pca_dict.cpkl"
_ROUNDING = 1e-6
"""Agreement asked of measured values: order of summation and 32-bit inputs allow no more."""

Row = dict[str, Any]


def read_published(name: str) -> list[dict[str, str]]:
    """Rows of builder/paper/{name}.csv, as text."""
    path = Path(str(files("builder") / "paper" / f"{name}.csv"))
    return [row for _, row in read_csv(path)]


def _values() -> Iterator[Row]:
    for row in read_published("values"):
        yield {k: v or None for k, v in row.items()}


def _models() -> Iterator[Row]:
    for row in read_published("models"):
        for column in ("n_layers", "n_filters", "n_sparse"):
            yield {
                "finding": "sparsity_by_model",
                "metric": column,
                "model_id": row["model_id"],
                "value": row[column],
                "precision": 0,
                "method": "table",
                "source": _TABLES,
            }


def _boxplots() -> Iterator[Row]:
    for row in read_published("boxplots"):
        for statistic in BOX_STATISTICS:
            yield {
                "finding": f"{row['metric']}_by_depth",
                "metric": statistic,
                "reading": row["reading"] or None,
                "dataset": row["dataset"],
                "kind": row["kind"],
                "depth_bin": row["depth_bin"],
                "value": row[statistic],
                "precision": 0 if statistic.startswith("n_") else _ROUNDING,
                "method": "figure",
                "source": row["source"],
            }


def _pca() -> Iterator[Row]:
    table = {"precision": _ROUNDING, "method": "table", "source": _TABLES}
    for row in read_published("pca"):
        basis = row["basis"]
        union = basis in schema.UNIONS
        whose = {"kind": basis} if union else {"model_id": basis}
        finding = "explained_variance" if union else "explained_variance_by_model"
        for i in range(9):
            key = {"finding": finding, "metric": "ratio", "component": i}
            yield {**table, **whose, **key, "value": row[f"ratio{i}"]}
        if not union:
            continue
        key = {"finding": finding, "metric": "n_samples"}
        yield {**table, **whose, **key, "value": row["n_samples"], "precision": 0}
        for i in range(9):
            for j in range(9):
                key = {"finding": "basis_distance", "metric": "direction"}
                at = {"component": i, "entry": j}
                yield {**table, **whose, **key, **at, "value": row[f"direction{i}{j}"]}


_NUMBERS: dict[str, Callable[[Any], float]] = {
    f.name: int if pa.types.is_integer(f.type) else float
    for f in PAPER.arrow
    if pa.types.is_integer(f.type) or pa.types.is_floating(f.type)
}


def paper_rows() -> list[Row]:
    """Every published value, with the columns of `schema.PAPER` as Python values."""
    rows = []
    for found in (*_values(), *_models(), *_boxplots(), *_pca()):
        row = {name: found.get(name) for name in PAPER.names}
        for name, parse in _NUMBERS.items():
            if row[name] is not None:
                row[name] = parse(row[name])
        rows.append(row)
    return rows


def paper_table() -> pa.Table:
    """The table `paper`: every published value, with `schema.PAPER`."""
    return pa.Table.from_pylist(paper_rows(), schema=PAPER.arrow)
