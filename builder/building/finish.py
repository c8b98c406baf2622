"""What spans the models of a build: the small tables, the union bases, the manifest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from builder import schema
from builder.building.histograms import histograms
from builder.building.workspace import Workspace
from builder.cohort.registry import Cohort, unions
from builder.network.plan import PlannedModel
from builder.paper.published import paper_table
from builder.release import moments, sample
from builder.release.card import render_card
from builder.release.manifest import FileFacts, Manifest, Provenance, tools
from builder.release.moments import Moments
from builder.release.split import with_splits
from builder.release.texts import write_texts
from builder.release.write import table_from_rows, write_table

if TYPE_CHECKING:
    from builder.progress import Report
    from builder.workers import Workers

TOOLS = ("torch", "numpy", "pyarrow", "robustbench", "timm")


def finish(
    workspace: Workspace,
    identity: dict[str, Any],
    cohort: Cohort,
    planned: Sequence[PlannedModel],
    entries: Sequence[dict[str, Any]],
    jobs: int,
    workers: Workers,
    report: Report,
) -> list[str]:
    """Write everything but the filters, the manifest last; return the problems found.

    Args:
        workspace: of the build, every filter file in place.
        identity: what the build is made of, see `build.identity`.
        cohort: the selected models, in the order of `planned` and `entries`.
        jobs: models at a time in this process.
        workers: who reads the filters again.
    """
    root, weights = workspace.root, identity["weights"]
    files: dict[str, FileFacts] = {r["path"]: r["file"] for r in entries}

    def write(name: str, rows: pa.Table) -> None:
        report("finish", f"table {name}", 0, None)
        path = schema.table_path(name)
        files[path] = write_table(root / path, schema.TABLES[name], rows, weights)

    layers = [row for entry in entries for row in entry["layers"]]
    bases = pca_rows(planned, layers)
    write("layers", table_from_rows(schema.LAYERS, layers))
    write("pca", table_from_rows(schema.PCA, bases))
    models = model_rows(cohort, planned, entries)
    write("models", table_from_rows(schema.MODELS, models))
    write("pairs", table_from_rows(schema.PAIRS, cohort.pair_rows()))
    first_layer = [row for entry in entries for row in entry["first_layer"]]
    write("first_layer", table_from_rows(schema.FIRST_LAYER, first_layer))
    write("paper", paper_table())
    write("histograms", histograms(workspace, planned, entries, bases, jobs, workers, report))
    sampled = sample.table(e["sample"] for e in sorted(entries, key=lambda e: str(e["path"])))
    files[schema.SAMPLE] = write_table(root / schema.SAMPLE, schema.FILTERS, sampled, weights)

    problems = [text for entry in entries for text in entry["problems"]]
    manifest: Manifest = {
        "name": "robust-filter-lens",
        "version": identity["version"],
        "schema_version": identity["schema_version"],
        "cohort": identity["cohort"],
        "weights": weights,
        "options": identity["options"],
        "tools": tools(*TOOLS),
        "totals": {
            "models": len(planned),
            "pairs": len(cohort.pairs),
            "layers": sum(len(p.layers) for p in planned),
            "filters": sum(p.n_filters for p in planned),
        },
        "models": {
            p.spec.model_id: _provenance(p, entry)
            for p, entry in zip(planned, entries, strict=True)
        },
        "mixed": _mixed([entry["made_with"] for entry in entries]),
        "duplicates": _duplicates(models),
        "problems": problems,
        "files": files,
    }
    files |= write_texts(root, render_card(manifest, root))
    workspace.release(manifest)
    return problems


def _provenance(p: PlannedModel, entry: dict[str, Any]) -> Provenance:
    checkpoint = entry["checkpoint"] or {}
    return {
        "source_url": p.source.url,
        "checkpoint_urls": checkpoint.get("urls"),
        "checkpoint_bytes": checkpoint.get("bytes"),
        "checkpoint_sha256": checkpoint.get("sha256"),
        "made_with": entry["made_with"],
    }


def _mixed(made_with: list[dict[str, str]]) -> dict[str, list[str]]:
    """What differs among the models of a build that was resumed with other versions."""
    values = {key: sorted({made[key] for made in made_with}) for key in made_with[0]}
    return {key: found for key, found in values.items() if len(found) > 1}


def _duplicates(models: list[dict[str, Any]]) -> list[list[str]]:
    """Groups of models with identical filters."""
    groups: dict[str, list[str]] = {}
    for m in models:
        groups.setdefault(m["same_filters_as"] or m["model_id"], []).append(m["model_id"])
    return [group for group in groups.values() if len(group) > 1]


def model_rows(
    cohort: Cohort, planned: Sequence[PlannedModel], entries: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Rows of `models`: the cohort's facts, provenance, aggregates over the layers, splits."""
    rows = []
    first: dict[str, str] = {}
    for p, entry in zip(planned, entries, strict=True):
        spec, filters_hash = p.spec, entry["file"]["content_hash"]
        same = first.setdefault(filters_hash, spec.model_id)
        checkpoint = entry["checkpoint"] or {}
        rows.append(
            {
                **asdict(spec),
                "model_id": spec.model_id,
                "source": p.source.kind,
                "source_url": p.source.url,
                "checkpoint_sha256": checkpoint.get("sha256"),
                "checkpoint_bytes": checkpoint.get("bytes"),
                "n_params": p.n_params,
                "n_layers": len(p.layers),
                "n_filters": p.n_filters,
                "filters_hash": filters_hash,
                "same_filters_as": same if same != spec.model_id else None,
                **aggregate(entry["layers"], "folded"),
                **aggregate(entry["layers"], "trained"),
            }
        )
    return with_splits(rows, cohort.pair_rows())


def aggregate(layers: list[dict[str, Any]], view: str) -> dict[str, Any]:
    """Metrics of a model from its layers; all null where one layer has no metrics.

    Sparsity is a ratio of sums, entropy is weighted by non-sparse filters, orthogonality by
    output channels (paper section 3). Layers of one channel have no orthogonality.
    """
    suffix = schema.VIEW_SUFFIX[view]
    rows = [row for row in layers if row["weights"] == view]
    if any(row["layer_linf"] is None for row in rows):
        names = ("n_sparse", "sparsity", "variance_entropy", "orthogonality")
        return {name + suffix: None for name in names}
    n_sparse = sum(row["n_sparse"] for row in rows)
    n_filters = sum(row["n_filters"] for row in rows)
    return {
        "n_sparse" + suffix: n_sparse,
        "sparsity" + suffix: n_sparse / n_filters,
        "variance_entropy" + suffix: _mean(
            (row["variance_entropy"], row["n_filters"] - row["n_sparse"]) for row in rows
        ),
        "orthogonality" + suffix: _mean(
            (row["orthogonality"], row["out_channels"])
            for row in rows
            if row["orthogonality"] is not None
        ),
    }


def _mean(weighted: Iterable[tuple[float, int]]) -> float | None:
    """Weighted mean; None without weight.

    Its sum is exact: the built-in one rounds otherwise since Python 3.12.
    """
    pairs = list(weighted)
    total = sum(weight for _, weight in pairs)
    return math.fsum(value * weight for value, weight in pairs) / total if total else None


def layer_moments(row: dict[str, Any]) -> Moments:
    """Moments of the scaled non-sparse filters of a row of `layers`; empty without metrics."""
    if row["layer_linf"] is None:
        return Moments(0, np.zeros(9), np.zeros((9, 9)))
    return Moments(
        row["n_filters"] - row["n_sparse"],
        np.array(row["mean"]),
        moments.unpack(np.array(row["scatter"])),
    )


def pca_rows(
    planned: Sequence[PlannedModel], layers: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Rows of `pca`: every model and every union that has models, in both views."""
    merged: dict[tuple[str, str], Moments] = {}
    for view in schema.WEIGHT_VIEWS:
        of_model: dict[str, list[Moments]] = {p.spec.model_id: [] for p in planned}
        for row in layers:
            if row["weights"] == view:
                of_model[row["model_id"]].append(layer_moments(row))
        for model_id, parts in of_model.items():
            merged[model_id, view] = moments.merge(parts)
        for union, members in unions(p.spec for p in planned).items():
            merged[union, view] = moments.merge(merged[m, view] for m in members)
    return [
        row
        for (basis, view), total in sorted(merged.items())
        for row in moments.basis_rows(basis, view, total)
    ]
