"""What the charts share, as Vega-Lite through Altair: colours, axes, tooltips.

A chart names its data; the page gives it rows, and figures.py too. One parameter belongs to every
chart of the page: `followed`, the model_id that the reader follows (or null).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

ROBUST, STANDARD = "#0072B2", "#D55E00"
FOLLOWED, OVERLAID, NEUTRAL = "#CC79A7", "#009E73", "#808080"
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
"""The colours of Okabe and Ito (2008), which colour-blind readers tell apart."""

KINDS = ("robust", "standard")
METRICS = ("sparsity", "variance_entropy", "orthogonality")
"""The metrics of a layer that the paper draws by depth."""
TITLES = {
    "sparsity": "sparsity",
    "variance_entropy": "variance entropy",
    "orthogonality": "orthogonality",
    "clean_acc": "clean accuracy (%)",
}
"""Metric -> its title on an axis."""

LEGEND = alt.Legend(orient="top", symbolOpacity=1)
KIND = alt.Color(
    "kind:N",
    title=None,
    scale=alt.Scale(domain=list(KINDS), range=[ROBUST, STANDARD]),
    legend=LEGEND,
)
KIND_SHAPE = alt.Shape(
    "kind:N", title=None, scale=alt.Scale(domain=list(KINDS), range=["circle", "triangle-up"])
)
DEPTH_BINS = alt.Scale(domain=list(range(11)))
DEPTH = alt.X("depth_bin:O", title="depth bin", scale=DEPTH_BINS, axis=alt.Axis(labelAngle=0))

FOLLOWS = "datum.model_id === followed"


def vega_lite_version() -> str:
    """The Vega-Lite that Altair writes, as vl-convert numbers it."""
    return ".".join(alt.SCHEMA_VERSION.split(".")[:2])


def named(name: str) -> alt.Chart:
    """A chart whose rows the page brings."""
    return alt.Chart(alt.NamedData(name=name))


def dataset_colour(datasets: Sequence[str]) -> alt.Color:
    """A colour per data set."""
    colours = [OKABE_ITO[i % len(OKABE_ITO)] for i in range(len(datasets))]
    scale = alt.Scale(domain=list(datasets), range=colours)
    return alt.Color("dataset:N", title=None, scale=scale, legend=LEGEND)


def texts(*columns: str) -> Iterable[alt.Tooltip]:
    """Tooltip lines of names."""
    return (alt.Tooltip(f"{c}:N") for c in columns)


def counts(*columns: str) -> Iterable[alt.Tooltip]:
    """Tooltip lines of whole numbers, and of those that are short anyway."""
    return (alt.Tooltip(f"{c}:Q") for c in columns)


def numbers(*columns: str) -> Iterable[alt.Tooltip]:
    """Tooltip lines of numbers with four decimals."""
    return (alt.Tooltip(f"{c}:Q", format=".4f") for c in columns)


def of_a_model() -> list[alt.Tooltip]:
    """Tooltip of a chart whose marks are models."""
    shown = (*texts("model_id", "kind"), *numbers("value"))
    return [*shown, *counts("clean_acc", "autoattack_acc")]


def by_following(yes: Any, no: Any) -> Any:
    """A value for the followed model, another one for all others."""
    return alt.condition(FOLLOWS, alt.value(yes), alt.value(no))


def as_spec(chart: Any, height: int | None = 220) -> dict[str, Any]:
    """A chart of the page as JSON, with the parameter that the page sets.

    Args:
        height: in pixels; None: the chart says itself how large it is.
    """
    if height is not None:
        chart = chart.properties(width="container", height=height)
    made = chart.add_params(alt.param(name="followed", value=None))
    spec: dict[str, Any] = made.to_dict(validate=True)
    return {k: v for k, v in spec.items() if k != "config"}
