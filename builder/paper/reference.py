"""The reference release: the study as published, without any checkpoint.

It holds the cohort, its pairs, the published numbers per model, and the PCA bases. The unions
`full`, `robust` and `standard` are merged here from the 114 published per-model bases, so that
comparing them with the published unions is a check and no tautology. Layers, filters, histograms
and first-layer responses are empty. It calls its weights `published`: values copied, not rebuilt.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from builder import schema
from builder.cohort.registry import Cohort, load_cohort, unions
from builder.errors import BuilderError, UsageError
from builder.files import making
from builder.paper.published import paper_table, read_published
from builder.release import moments
from builder.release.manifest import FileFacts, Provenance, tools, write_manifest
from builder.release.moments import Array, Moments
from builder.release.split import with_splits
from builder.release.texts import write_texts
from builder.release.write import table_from_rows, write_table

WEIGHTS = "published"
SOURCE_URL = "https://github.com/paulgavrikov/cvpr22w_RobustnessThroughTheLens"
LABEL = "Published values of the paper, copied and not rebuilt: no checkpoint was read."

_README = f"""# Reference release

{LABEL}

The 71 robust and 43 standard models of Gavrikov & Keuper, "Adversarial Robustness Through the Lens
of Convolutional Filters" (CVPR Workshops 2022, arXiv 2204.02481), with the numbers their repository
({SOURCE_URL}) gives for each: accuracies, 3x3 filters, sparse filters, PCA basis. The three union
bases are merged from the per-model ones. `layers`, `filters`, `histograms` and `first_layer` are
empty; findings that need them are not applicable here.
"""


def _floats(row: dict[str, str], prefix: str, n: int) -> Array:
    names = [f"{prefix}{i}" for i in range(n)]
    return np.array([float(row[name]) for name in names])


def _directions(row: dict[str, str]) -> Array:
    """Unit rows (9, 9) of a published basis."""
    names = [f"direction{i}{j}" for i in range(9) for j in range(9)]
    return np.array([float(row[name]) for name in names]).reshape(9, 9)


def published_moments(row: dict[str, str]) -> Moments:
    """Count, mean and scatter that a line of builder/paper/pca.csv stands for."""
    n, directions = int(row["n_samples"]), _directions(row)
    variances = float(row["variance"]) * _floats(row, "ratio", 9)
    scatter = (n - 1) * (directions.T * variances) @ directions
    return Moments(n, _floats(row, "mean", 9), scatter)


def pca_rows(cohort: Cohort) -> list[dict[str, Any]]:
    """Rows of `pca`: the published basis of each model, and the unions merged from them."""
    published = {row["basis"]: row for row in read_published("pca")}
    rows: list[dict[str, Any]] = []
    for model in cohort.models:
        row = published[model.model_id]
        ratios = _floats(row, "ratio", 9)
        rows += moments.component_rows(
            model.model_id,
            "folded",
            int(row["n_samples"]),
            _floats(row, "mean", 9),
            float(row["variance"]) * ratios,
            ratios,
            _directions(row),
        )
    for union, members in unions(cohort.models).items():
        total = moments.merge(published_moments(published[m]) for m in members)
        rows += moments.basis_rows(union, "folded", total)
    return rows


def model_rows(cohort: Cohort) -> list[dict[str, Any]]:
    """Rows of `models`: the cohort, and the published counts of each model."""
    published = {row["model_id"]: row for row in read_published("models")}
    rows = []
    for model in cohort.models:
        counts = {k: int(v) for k, v in published[model.model_id].items() if k != "model_id"}
        rows.append(
            {
                **asdict(model),
                **counts,
                "model_id": model.model_id,
                "source": WEIGHTS,
                "source_url": SOURCE_URL,
                "sparsity": counts["n_sparse"] / counts["n_filters"],
            }
        )
    return with_splits(rows, cohort.pair_rows())


def _tables(cohort: Cohort) -> dict[str, pa.Table]:
    filled = {
        "models": table_from_rows(schema.MODELS, model_rows(cohort)),
        "pairs": table_from_rows(schema.PAIRS, cohort.pair_rows()),
        "pca": table_from_rows(schema.PCA, pca_rows(cohort)),
        "paper": paper_table(),
    }
    return {n: filled.get(n, schema.TABLES[n].arrow.empty_table()) for n in schema.SMALL_TABLES}


def _fill(root: Path, version: str) -> None:
    cohort = load_cohort("paper")
    files: dict[str, FileFacts] = {}
    for name, rows in _tables(cohort).items():
        path = schema.table_path(name)
        files[path] = write_table(root / path, schema.TABLES[name], rows, WEIGHTS)
    files |= write_texts(root, _README)
    unread: Provenance = {
        "source_url": SOURCE_URL,
        "checkpoint_urls": None,
        "checkpoint_bytes": None,
        "checkpoint_sha256": None,
        "made_with": None,
    }
    write_manifest(
        root,
        {
            "name": "robust-filter-lens",
            "version": version,
            "schema_version": schema.SCHEMA_VERSION,
            "cohort": {"name": cohort.name, "digest": cohort.digest, "models": None},
            "weights": WEIGHTS,
            "options": {"first_layer": False},
            "tools": tools("numpy", "pyarrow"),
            "totals": {
                "models": len(cohort.models),
                "pairs": len(cohort.pairs),
                "layers": 0,
                "filters": 0,
            },
            "files": files,
            "models": {m.model_id: unread for m in cohort.models},
            "mixed": {},
            "duplicates": [],
            "problems": [LABEL],
        },
    )


def write_reference(out: Path, version: str = "0.1.0") -> None:
    """Write the reference release to a folder that does not exist yet, or is empty.

    Raises:
        UsageError: the folder holds something.
        BuilderError: it cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not empty.", hint="choose another folder.")
    try:
        with making(out) as made:
            _fill(made, version)
    except OSError as e:
        raise BuilderError(f"cannot write {out}: {e.strerror}.") from None
