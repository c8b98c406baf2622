"""A measured model of the reader's own, to lay over the depth figures: `measure -o mine.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from builder import schema
from builder.errors import UsageError
from builder.report import vega

OVERLAY = pa.schema(
    [
        ("name", pa.string()),
        ("layer", pa.string()),
        ("weights", pa.string()),
        ("depth_bin", pa.int16()),
        *((metric, pa.float64()) for metric in vega.METRICS),
    ]
)
"""Columns of the overlay; those of `layers` keep their meaning."""


def _name(found: dict[str, Any], path: Path) -> str:
    summary = found.get("summary")
    rows = summary if isinstance(summary, list) else [summary]
    for row in rows:
        if isinstance(row, dict):
            for key in ("model_id", "network", "target", "name"):
                if isinstance(row.get(key), str):
                    return str(row[key])
    return path.stem


def read_overlay(path: Path) -> pa.Table:
    """The layers that `builder measure -o` wrote, as `OVERLAY`; those without a depth stay out.

    Raises:
        UsageError: the file cannot be read, or is no measurement.
    """
    expected = "expected what `builder measure TARGET -o mine.json` writes."
    try:
        found = json.loads(path.read_bytes())
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}.") from None
    except ValueError:
        raise UsageError(f"{path} is no JSON.", hint=expected) from None
    layers = found.get("layers") if isinstance(found, dict) else None
    if not isinstance(layers, list) or not all(isinstance(row, dict) for row in layers):
        raise UsageError(f"{path} has no list `layers`.", hint=expected)
    name = _name(found, path)
    rows = [
        {"name": name, **{c: row.get(c) for c in OVERLAY.names[1:]}}
        for row in layers
        if row.get("depth_bin") is not None and row.get("weights") in schema.WEIGHT_VIEWS
    ]
    if not rows:
        raise UsageError(f"{path} has no measured layer.", hint=expected)
    try:
        return pa.Table.from_pylist(rows, schema=OVERLAY)
    except pa.ArrowException as e:
        raise UsageError(f"{path}: {e}", hint=expected) from None
