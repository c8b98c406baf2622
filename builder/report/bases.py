"""PCA bases: 3x3 tiles, explained variance and its running total."""

from __future__ import annotations

from typing import Any

import altair as alt

from builder import schema
from builder.report import vega
from builder.report.parts import Figure, Section, Tables, both, rows, source

_GAP = 0.12
"""Share of a step between two tiles."""

_COMPONENT = alt.X("component:O", title="component", axis=alt.Axis(labelAngle=0))


def size(step: float, shown: int, *, shares: bool = True) -> dict[str, float]:
    """Width and height in pixels of `tiles`, in which a coefficient is a square.

    Args:
        step: from one component to the next. shown: bases. shares: as `tiles`.
    """
    return {"width": 9 * step, "height": shown * step * (4 / 3 if shares else 1)}


def tiles(square: dict[str, float], *, shares: bool = True) -> dict[str, Any]:
    """PCA bases as 3x3 tiles: a row per basis, a column per component.

    Data: tiles, with basis, component, row, column, value, ratio.

    Args:
        square: from `size`; the page fits it to its own.
        shares: whether the share of variance stands below each tile, as a fourth row.
    """
    apart = alt.Scale(paddingInner=_GAP, paddingOuter=_GAP / 2)
    flush = alt.Scale(paddingInner=0, paddingOuter=0)
    plain = alt.Axis(domain=False, ticks=False, labelAngle=0)
    two_lines = alt.Axis(domain=False, ticks=False, labelExpr="split(datum.label, ', ')")
    base = vega.named("tiles").encode(
        x=alt.X("component:O", title="component", scale=apart, axis=plain),
        xOffset=alt.XOffset("column:O", scale=flush),
        y=alt.Y("basis:N", title=None, sort=None, scale=apart, axis=two_lines),
    )
    lines = alt.Scale(paddingInner=0, paddingOuter=0, domain=[0, 1, 2, 3] if shares else [0, 1, 2])
    cells = base.mark_rect().encode(
        yOffset=alt.YOffset("row:O", scale=lines),
        color=alt.Color(
            "value:Q",
            title="coefficient",
            scale=alt.Scale(scheme="viridis", domain=[-0.7, 0.7], clamp=True),
            legend=alt.Legend(gradientLength=120),
        ),
        tooltip=[
            *vega.texts("basis"),
            *vega.counts("component", "row", "column"),
            *vega.numbers("value"),
            alt.Tooltip("ratio:Q", title="explained variance ratio", format=".4f"),
        ],
    )
    below = (
        base.transform_filter("datum.row === 2 && datum.column === 1")
        .transform_calculate(below="3")
        .mark_text(aria=False)
        .encode(
            yOffset=alt.YOffset("below:O", scale=lines), text=alt.Text("ratio:Q", format=".2~p")
        )
    )
    return vega.as_spec(alt.layer(cells, *([below] if shares else [])).properties(**square), None)


def _colour() -> alt.Color:
    scale = alt.Scale(domain=list(schema.UNIONS), range=[vega.NEUTRAL, vega.ROBUST, vega.STANDARD])
    return alt.Color("basis:N", title=None, scale=scale, legend=vega.LEGEND)


def explained(column: str) -> dict[str, Any]:
    """Explained variance ratio (or its running total, `cumulated`) by component.

    Data: pca, published. Models of `pca` show where they are followed.
    """
    title = {"ratio": "explained variance ratio", "cumulated": "cumulated ratio"}[column]
    y = alt.Y(f"{column}:Q", title=title)
    tooltip = [
        *vega.texts("basis"),
        *vega.counts("component"),
        *vega.numbers("ratio", "cumulated"),
    ]
    ours = vega.named("pca").encode(x=_COMPONENT, y=y, tooltip=tooltip)
    published = vega.named("published").encode(x=_COMPONENT, y=y, tooltip=tooltip)
    point = {"color": vega.FOLLOWED, "size": 45, "aria": False}
    return vega.as_spec(
        alt.layer(
            published.mark_point(size=130, strokeWidth=2.5, opacity=0.45).encode(color=_colour()),
            ours.transform_filter(f"indexof({list(schema.UNIONS)}, datum.basis) >= 0")
            .mark_line(point={"size": 35, "filled": True}, strokeWidth=1.8)
            .encode(color=_colour()),
            ours.transform_filter("datum.basis === followed").mark_line(
                color=vega.FOLLOWED, strokeWidth=2.5, aria=False, point=point
            ),
        ),
        160,
    )


_MOST = 0.95
"""Share of the variance for which the words of the running total count components."""


def _words(tables: Tables, column: str) -> dict[str, str]:
    words = {}
    for view in schema.WEIGHT_VIEWS:
        found = {}
        for r in rows(tables["pca"], weights=view):  # by component, so the first to reach it counts
            if r["basis"] not in schema.UNIONS:
                continue
            if column == "ratio" and r["component"] == 1:
                found[r["basis"]] = f"{100 * r['ratio']:.1f} %"
            if column == "cumulated" and r["cumulated"] >= _MOST:
                found.setdefault(r["basis"], str(r["component"]))
        said = {
            "ratio": "The first component explains {} of the variance",
            "cumulated": f"Components for {100 * _MOST:.0f} % of the variance: {{}}",
        }[column]
        text = said.format(", ".join(f"{value} ({basis})" for basis, value in found.items()))
        words[view] = f"{text} ({view} weights)."
        if not found:
            words[view] = f"This release has no basis of {view} weights."
        elif tables["pca_published"].num_rows:
            words[view] += " Open circles: the paper's published values."
    return words


def section(tables: Tables) -> Section:
    """Tiles beside explained variance."""
    lead = (
        "A row per basis, a column per component: nine coefficients, and the share of the variance "
        "that they explain. A followed model's basis joins them."
    )
    data = {"pca": source("pca"), "published": source("pca_published")}
    figures = [
        Figure(
            "bases",
            "PCA bases as 3x3 tiles",
            both(lead),
            tiles(size(60, len(schema.UNIONS))),
            {"tiles": {"derive": "tiles"}},
            "tiles",
            wide=True,
        ),
        *(
            Figure(name, title, _words(tables, column), explained(column), data, "pca")
            for name, title, column in (
                ("explained", "Explained variance", "ratio"),
                ("cumulated", "Cumulated explained variance", "cumulated"),
            )
        ),
    ]
    shown = tables["pca"].num_rows > 0
    return Section(
        "pca",
        "PCA bases",
        "Principal components of the filters, each divided by its largest |weight|, without the "
        "sparse ones.",
        figures if shown else [],
        "" if shown else "This release has no PCA basis: none of its models has filters.",
    )
