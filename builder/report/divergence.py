"""How far robust and standard filters differ: divergence by depth, histograms behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from builder.report import vega
from builder.report.parts import Figure, Section, Tables, both, has, rows, source


def by_depth(datasets: Sequence[str], *, ours: bool, published: bool) -> dict[str, Any]:
    """Divergence by depth. Data: divergence, published; published ones stand behind, or alone."""
    colour = vega.dataset_colour(datasets)
    y = alt.Y("divergence:Q", title="symmetric KL divergence")
    tooltip = [*vega.texts("dataset"), *vega.counts("depth_bin"), *vega.numbers("divergence")]

    def base(name: str) -> alt.Chart:
        return vega.named(name).encode(x=vega.DEPTH, y=y, color=colour, tooltip=tooltip)

    circles = base("published").mark_point(size=130, strokeWidth=2.5, opacity=0.45)
    main = base("divergence" if ours else "published")
    line = main.mark_line(point={"size": 45, "filled": True})
    return vega.as_spec(alt.layer(*([circles] if ours and published else []), line))


def histograms() -> dict[str, Any]:
    """Coefficients on the full basis, one small chart a component. Data: histograms."""
    chart = (
        vega.named("histograms")
        .mark_bar(opacity=0.5, binSpacing=0)
        .encode(
            x=alt.X("bin_low:Q", title="coefficient", axis=alt.Axis(tickCount=5)).bin("binned"),
            x2="bin_high:Q",
            y=alt.Y(
                "share:Q", title="share", axis=alt.Axis(format=".3~%", tickCount=4, minExtent=34)
            ).stack(None),
            color=vega.KIND,
            tooltip=[
                *vega.texts("kind"),
                *vega.counts("component", "bin_low", "bin_high"),
                *vega.numbers("share"),
            ],
        )
        .properties(width=220, height=110)
        .facet(
            facet=alt.Facet(
                "component:O", title=None, header=alt.Header(labelExpr="'component ' + datum.value")
            ),
            columns=3,
            bounds="flush",
            spacing={"row": 45, "column": 60},
        )
        .resolve_scale(y="independent")
    )
    return vega.as_spec(chart, None)


def _by_depth(tables: Tables, datasets: Sequence[str]) -> Figure:
    ours, published = tables["divergence"], tables["divergence_published"]
    shown = ours if ours.num_rows else published
    places = [
        f"{max(found, key=lambda r: r['divergence'])['depth_bin']} ({d})"
        for d in datasets
        if (found := rows(shown, dataset=d))
    ]
    text = (
        ("" if ours.num_rows else "Published values, as this release has no histograms: ")
        + f"Robust and standard filters differ most in depth bin {', '.join(places)}. Folded "
        "weights." + (" Open circles: the paper's published values." if ours and published else "")
    )
    return Figure(
        "divergence-by-depth",
        "Divergence by depth",
        both(text),
        by_depth(datasets, ours=ours.num_rows > 0, published=published.num_rows > 0),
        ({"divergence": source("divergence")} if ours.num_rows else {})
        | ({"published": source("divergence_published")} if published.num_rows else {}),
        "divergence" if ours.num_rows else "published",
        wide=True,
    )


def section(tables: Tables, datasets: Sequence[str]) -> Section:
    """Divergence by depth, then the histograms of each data set."""
    figures = []
    if tables["divergence"].num_rows or tables["divergence_published"].num_rows:
        figures.append(_by_depth(tables, datasets))
    figures += [
        Figure(
            f"histograms-{dataset}",
            f"Coefficients on the full basis, {dataset}",
            both(
                "Shares of filters by coefficient on each component of the full basis, robust and "
                "standard over each other: what the divergences compare. Folded weights; standard "
                "models once per pair."
            ),
            histograms(),
            {"histograms": source("histograms", dataset=dataset)},
            "histograms",
            wide=True,
        )
        for dataset in datasets
        if has(tables["histograms"], dataset=dataset)
    ]
    return Section(
        "divergence",
        "Divergence",
        "Symmetric Kullback-Leibler divergence between the filters of robust models and of their "
        "standard counterparts, weighted by explained variance.",
        figures,
        ""
        if figures
        else "No histograms of pairs here: a divergence needs robust and standard "
        "models with filters.",
    )
