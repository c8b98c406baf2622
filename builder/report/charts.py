"""The charts of the page and of the paper's figures, as Vega-Lite through Altair.

A chart names its data; the page gives it rows, and figures.py too. Two parameters belong to every
chart of the page: `followed`, the model_id that the reader follows (or null).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

ROBUST, STANDARD = "#0072B2", "#D55E00"
FOLLOWED, OVERLAID, PUBLISHED = "#CC79A7", "#009E73", "#888888"
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
"""The colours of Okabe and Ito (2008), which colour-blind readers tell apart."""

KINDS = ("robust", "standard")
UNIONS = ("full", "robust", "standard")
METRICS = {
    "sparsity": "sparsity",
    "variance_entropy": "variance entropy",
    "orthogonality": "orthogonality",
    "clean_acc": "clean accuracy (%)",
}
"""Metric -> its title on an axis."""

_FOLLOWS = "datum.model_id === followed"
_KIND = alt.Color(
    "kind:N",
    title=None,
    scale=alt.Scale(domain=list(KINDS), range=[ROBUST, STANDARD]),
    legend=alt.Legend(orient="top", symbolOpacity=1),
)
_KIND_SHAPE = alt.Shape(
    "kind:N", title=None, scale=alt.Scale(domain=list(KINDS), range=["circle", "triangle-up"])
)


def vega_lite_version() -> str:
    """The Vega-Lite that Altair writes, as vl-convert numbers it."""
    return ".".join(alt.SCHEMA_VERSION.split(".")[:2])


def _named(name: str) -> alt.Chart:
    return alt.Chart(alt.NamedData(name=name))


def _page(chart: Any, height: int | None = 220) -> dict[str, Any]:
    """A chart of the page as JSON, with the parameters that the page sets."""
    size: dict[str, Any] = {"width": "container"} | ({"height": height} if height else {})
    made = chart.properties(**size).add_params(alt.param(name="followed", value=None))
    spec: dict[str, Any] = made.to_dict(validate=True)
    return {k: v for k, v in spec.items() if k != "config"}


def _by_following(yes: Any, no: Any) -> Any:
    return alt.condition(_FOLLOWS, alt.value(yes), alt.value(no))


def _offset(padding: float) -> alt.XOffset:
    """Robust beside standard inside a depth bin, centred whatever the padding."""
    room = alt.Scale(domain=list(KINDS), paddingInner=padding, paddingOuter=padding / 2)
    return alt.XOffset("kind:N", scale=room)


def _boxes(name: str, metric: str, *, published: bool) -> list[alt.Chart]:
    """Box plots per depth bin and kind, from their numbers; published ones are pale and wider."""
    x = alt.X(
        "depth_bin:O",
        title="depth bin",
        scale=alt.Scale(domain=list(range(11))),
        axis=alt.Axis(labelAngle=0),
    )
    offset = _offset(0.1 if published else 0.5)
    title = METRICS[metric]
    tooltip = [
        alt.Tooltip("kind:N", title="published" if published else "kind"),
        *(alt.Tooltip(f"{c}:Q") for c in ("depth_bin", "n_points")),
        *(
            alt.Tooltip(f"{c}:Q", format=".4f")
            for c in ("whisker_low", "q1", "median", "q3", "whisker_high", "mean")
        ),
        alt.Tooltip("n_outliers:Q"),
    ]
    base = _named(name).encode(x=x, xOffset=offset, tooltip=tooltip)
    scale = alt.Scale(zero=False)
    whisker = alt.Y("whisker_low:Q", title=title, scale=scale)
    low = alt.Y("q1:Q", title=title, scale=scale)
    middle = alt.Y("median:Q", title=title, scale=scale)
    if published:
        return [
            base.mark_rule(strokeWidth=4, opacity=0.22).encode(
                y=whisker, y2="whisker_high:Q", color=_KIND
            ),
            base.mark_bar(opacity=0.3).encode(y=low, y2="q3:Q", color=_KIND),
            base.mark_tick(thickness=2, opacity=0.75).encode(y=middle, color=_KIND),
        ]
    return [
        base.mark_rule().encode(y=whisker, y2="whisker_high:Q", color=_KIND),
        base.mark_bar(fillOpacity=0.55, strokeWidth=1).encode(
            y=low, y2="q3:Q", color=_KIND, stroke=alt.Stroke("kind:N", legend=None)
        ),
        base.mark_tick(thickness=2.5).encode(y=middle, color=_KIND),
        base.mark_point(filled=True, size=14, shape="diamond", opacity=1).encode(
            y=alt.Y("mean:Q", title=title), color=_KIND
        ),
    ]


def depth(
    metric: str, *, ours: bool, published: bool, overlay: bool = False, points: bool = True
) -> dict[str, Any]:
    """Box plots of a metric by depth, its layers as points, the followed model as a line.

    Data: boxes, published, layers, members, overlay; each only where it is asked for.
    """
    x = alt.X("depth_bin:O", scale=alt.Scale(domain=list(range(11))))
    offset = _offset(0.5)
    value = alt.Y(f"{metric}:Q", title=METRICS[metric], scale=alt.Scale(zero=False))
    layer = [
        *(alt.Tooltip(f"{c}:N") for c in ("model_id", "layer", "kind")),
        *(alt.Tooltip(f"{c}:Q") for c in ("depth_bin", "n_filters")),
        alt.Tooltip(f"{metric}:Q", format=".4f"),
    ]
    layers = _boxes("published", metric, published=True) if published else []
    if ours and not points:
        layers += _boxes("boxes", metric, published=False)
    elif ours:
        marks = _named("layers").encode(x=x, xOffset=offset, y=value, tooltip=layer)
        layers += [
            marks.mark_circle(size=12, cursor="pointer").encode(
                color=_KIND, opacity=_by_following(0, 0.3)
            ),
            *_boxes("boxes", metric, published=False),
            _named("members")
            .mark_line(color=FOLLOWED, strokeWidth=2, aria=False)
            .encode(x=x, xOffset=offset, y=alt.Y("value:Q", title=METRICS[metric]))
            .transform_filter(_FOLLOWS),
            marks.mark_point(
                aria=False,
                filled=True,
                size=45,
                color=FOLLOWED,
                stroke="white",
                strokeWidth=0.7,
                opacity=1,
            ).transform_filter(_FOLLOWS),
        ]
    if overlay:
        mine = _named("overlay").encode(
            x=x,
            y=value,
            tooltip=[alt.Tooltip("name:N"), alt.Tooltip("layer:N"), alt.Tooltip(f"{metric}:Q")],
        )
        layers += [
            mine.mark_line(color=OVERLAID, strokeWidth=2.5).encode(
                y=alt.Y(f"mean({metric}):Q", title=METRICS[metric]), tooltip=alt.value(None)
            ),
            mine.mark_point(
                filled=True, shape="square", size=40, color=OVERLAID, stroke="white", opacity=1
            ),
        ]
    return _page(alt.layer(*layers).resolve_scale(xOffset="independent"))


def bases(rows: int) -> dict[str, Any]:
    """PCA bases as 3x3 tiles: a row per basis, a column per component.

    Data: tiles, with basis, component, row, column, value.
    """
    chart = (
        _named("tiles")
        .mark_rect()
        .encode(
            x=alt.X(
                "component:O",
                title="component",
                scale=alt.Scale(paddingInner=0.12),
                axis=alt.Axis(labelAngle=0),
            ),
            xOffset=alt.XOffset("column:O", scale=alt.Scale(paddingInner=0, paddingOuter=0)),
            y=alt.Y("basis:N", title=None, sort=None, scale=alt.Scale(paddingInner=0.12)),
            yOffset=alt.YOffset("row:O", scale=alt.Scale(paddingInner=0, paddingOuter=0)),
            color=alt.Color(
                "value:Q",
                title="coefficient",
                scale=alt.Scale(scheme="viridis", domain=[-0.7, 0.7], clamp=True),
                legend=alt.Legend(orient="top", gradientLength=120),
            ),
            tooltip=[
                alt.Tooltip("basis:N"),
                *(alt.Tooltip(f"{c}:Q") for c in ("component", "row", "column")),
                alt.Tooltip("value:Q", format=".4f"),
                alt.Tooltip("ratio:Q", title="explained variance ratio", format=".4f"),
            ],
        )
    )
    return _page(chart, 40 + 80 * rows)


def _basis_colour() -> alt.Color:
    return alt.Color(
        "basis:N",
        title=None,
        scale=alt.Scale(domain=list(UNIONS), range=["#808080", ROBUST, STANDARD]),
        legend=alt.Legend(orient="top", symbolOpacity=1),
    )


def explained(column: str) -> dict[str, Any]:
    """Explained variance ratio (or its running total, `cumulated`) by component.

    Data: pca, published. Models of `pca` show where they are followed.
    """
    title = {"ratio": "explained variance ratio", "cumulated": "cumulated ratio"}[column]
    x = alt.X("component:O", title="component", axis=alt.Axis(labelAngle=0))
    y = alt.Y(f"{column}:Q", title=title)
    tooltip = [
        alt.Tooltip("basis:N"),
        alt.Tooltip("component:Q"),
        *(alt.Tooltip(f"{c}:Q", format=".4f") for c in ("ratio", "cumulated")),
    ]
    union = f"indexof({list(UNIONS)}, datum.basis) >= 0"
    ours = _named("pca").encode(x=x, y=y, tooltip=tooltip)
    return _page(
        alt.layer(
            _named("published")
            .mark_point(size=130, strokeWidth=2.5, opacity=0.45)
            .encode(x=x, y=y, color=_basis_colour(), tooltip=tooltip),
            ours.transform_filter(union)
            .mark_line(point={"size": 35, "filled": True}, strokeWidth=1.8)
            .encode(color=_basis_colour()),
            ours.transform_filter("datum.basis === followed").mark_line(
                color=FOLLOWED,
                strokeWidth=2.5,
                aria=False,
                point={"color": FOLLOWED, "size": 45, "aria": False},
            ),
        )
    )


def histograms() -> dict[str, Any]:
    """Coefficients on the full basis, one small chart a component. Data: histograms."""
    chart = (
        _named("histograms")
        .mark_bar(opacity=0.5, binSpacing=0)
        .encode(
            x=alt.X("bin_low:Q", title="coefficient", axis=alt.Axis(tickCount=5)).bin("binned"),
            x2="bin_high:Q",
            y=alt.Y(
                "share:Q", title="share", axis=alt.Axis(format=".3~%", tickCount=4, minExtent=34)
            ).stack(None),
            color=_KIND,
            tooltip=[
                alt.Tooltip("kind:N"),
                *(alt.Tooltip(f"{c}:Q") for c in ("component", "bin_low", "bin_high")),
                alt.Tooltip("share:Q", format=".4f"),
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
        .add_params(alt.param(name="followed", value=None))
    )
    spec: dict[str, Any] = chart.to_dict()
    return {k: v for k, v in spec.items() if k != "config"}


def divergence(datasets: Sequence[str]) -> dict[str, Any]:
    """Divergence of robust and standard filters by depth. Data: divergence, published."""
    colours = [OKABE_ITO[i % len(OKABE_ITO)] for i in range(len(datasets))]
    colour = alt.Color(
        "dataset:N",
        title=None,
        scale=alt.Scale(domain=list(datasets), range=colours),
        legend=alt.Legend(orient="top", symbolOpacity=1),
    )
    x = alt.X(
        "depth_bin:O",
        title="depth bin",
        scale=alt.Scale(domain=list(range(11))),
        axis=alt.Axis(labelAngle=0),
    )
    y = alt.Y("divergence:Q", title="symmetric KL divergence")
    tooltip = [
        alt.Tooltip("dataset:N"),
        alt.Tooltip("depth_bin:Q"),
        alt.Tooltip("divergence:Q", format=".4f"),
    ]
    return _page(
        alt.layer(
            _named("published")
            .mark_point(size=130, strokeWidth=2.5, opacity=0.45)
            .encode(x=x, y=y, color=colour, tooltip=tooltip),
            _named("divergence")
            .mark_line(point={"size": 45, "filled": True})
            .encode(x=x, y=y, color=colour, tooltip=tooltip),
        )
    )


_MODEL = [
    *(alt.Tooltip(f"{c}:N") for c in ("model_id", "kind")),
    alt.Tooltip("value:Q", format=".4f"),
    *(alt.Tooltip(f"{c}:Q") for c in ("clean_acc", "autoattack_acc")),
]


def paired_sparsity() -> dict[str, Any]:
    """Sparsity of every model of a data set, the members of a pair joined by a line.

    Data: models, members (with `pair`).
    """
    x = alt.X(
        "kind:N",
        title=None,
        sort=list(KINDS),
        scale=alt.Scale(domain=list(KINDS), padding=0.35),
        axis=alt.Axis(labelAngle=0),
    )
    y = alt.Y("value:Q", title="share of sparse filters", axis=alt.Axis(format=".3~%"))
    return _page(
        alt.layer(
            _named("members")
            .mark_line(color=PUBLISHED, strokeWidth=1)
            .encode(
                x=x,
                y=y,
                detail="pair:N",
                opacity=alt.condition("datum.pair === followed", alt.value(1), alt.value(0.45)),
                strokeWidth=alt.condition("datum.pair === followed", alt.value(3), alt.value(1)),
            ),
            _named("models")
            .mark_point(filled=True, cursor="pointer", strokeWidth=1.5)
            .encode(
                x=x,
                y=y,
                color=_KIND,
                shape=_KIND_SHAPE,
                opacity=alt.value(0.8),
                size=_by_following(160, 40),
                stroke=_by_following(FOLLOWED, "transparent"),
                tooltip=_MODEL,
            ),
        ),
        260,
    )


def against_autoattack(metric: str, datasets: Sequence[str]) -> dict[str, Any]:
    """A metric of robust models against their accuracy under AutoAttack. Data: models."""
    colours = [OKABE_ITO[i % len(OKABE_ITO)] for i in range(len(datasets))]
    chart = (
        _named("models")
        .mark_point(filled=True, cursor="pointer", strokeWidth=2)
        .encode(
            x=alt.X(
                "autoattack_acc:Q", title="AutoAttack accuracy (%)", scale=alt.Scale(zero=False)
            ),
            y=alt.Y("value:Q", title=METRICS[metric], scale=alt.Scale(zero=False)),
            color=alt.Color(
                "dataset:N",
                title=None,
                scale=alt.Scale(domain=list(datasets), range=colours),
                legend=alt.Legend(orient="top", symbolOpacity=1),
            ),
            shape=alt.Shape("dataset:N", title=None, scale=alt.Scale(domain=list(datasets))),
            opacity=alt.value(0.8),
            size=_by_following(170, 45),
            stroke=_by_following(FOLLOWED, "transparent"),
            tooltip=[alt.Tooltip("dataset:N"), *_MODEL],
        )
    )
    return _page(chart)


def responses() -> dict[str, Any]:
    """Response of every channel of a robust first layer and its partner's. Data: responses."""
    chart = (
        _named("responses")
        .mark_point(filled=True, size=30, opacity=0.85)
        .encode(
            x=alt.X("place:Q", title="channel, strongest first", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("response_post:Q", title="response behind the activation"),
            color=_KIND,
            shape=_KIND_SHAPE,
            tooltip=[
                *(alt.Tooltip(f"{c}:N") for c in ("model_id", "kind", "perturbation", "layer")),
                alt.Tooltip("out_channel:Q"),
                *(
                    alt.Tooltip(f"{c}:Q", format=".4f")
                    for c in ("response_pre", "response_post", "activation_pass")
                ),
            ],
        )
    )
    return _page(chart)
