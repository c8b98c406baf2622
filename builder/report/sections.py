"""The parts of the page that hold figures, in order."""

from __future__ import annotations

from builder.report import bases, depth, divergence, filters, models
from builder.report.parts import Section, Tables


def sections(tables: Tables) -> list[Section]:
    """Every part, also those that only say what is missing.

    Args:
        tables: by name; `overlay` only where there is one.
    """
    datasets = sorted({r["dataset"] for r in tables["models"].to_pylist()})
    return [
        bases.section(tables),
        depth.section(tables, datasets),
        divergence.section(tables, datasets),
        models.sparsity(tables, datasets),
        models.accuracy(tables, datasets),
        filters.first_layer(tables),
        filters.gallery(tables),
    ]
