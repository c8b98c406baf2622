"""Metrics by depth: box plots, the layers behind them, one model through all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from builder import schema
from builder.report import vega
from builder.report.parts import Figure, Section, Tables, has, rows, source


def _offset(padding: float) -> alt.XOffset:
    """Robust beside standard inside a depth bin, centred whatever the padding."""
    room = alt.Scale(domain=list(vega.KINDS), paddingInner=padding, paddingOuter=padding / 2)
    return alt.XOffset("kind:N", scale=room)


def _boxes(name: str, metric: str, *, behind: bool) -> list[alt.Chart]:
    """Box plots per depth bin and kind, from their numbers; pale and wider behind others."""
    tooltip = [
        alt.Tooltip("kind:N", title="published" if name == "published" else "kind"),
        *vega.counts("depth_bin", "n_points"),
        *vega.numbers("whisker_low", "q1", "median", "q3", "whisker_high", "mean"),
        *vega.counts("n_outliers"),
    ]
    offset = _offset(0.1 if behind else 0.5)
    base = vega.named(name).encode(x=vega.DEPTH, xOffset=offset, tooltip=tooltip, color=vega.KIND)

    def height(column: str) -> alt.Y:
        return alt.Y(f"{column}:Q", title=vega.TITLES[metric], scale=alt.Scale(zero=False))

    whiskers = {"y": height("whisker_low"), "y2": "whisker_high:Q"}
    box = {"y": height("q1"), "y2": "q3:Q"}
    if behind:
        return [
            base.mark_rule(strokeWidth=4, opacity=0.22).encode(**whiskers),
            base.mark_bar(opacity=0.3).encode(**box),
            base.mark_tick(thickness=2, opacity=0.75).encode(y=height("median")),
        ]
    outline = alt.Stroke("kind:N", legend=None)
    return [
        base.mark_rule().encode(**whiskers),
        base.mark_bar(fillOpacity=0.55, strokeWidth=1).encode(**box, stroke=outline),
        base.mark_tick(thickness=2.5).encode(y=height("median")),
        base.mark_point(filled=True, size=14, shape="diamond", opacity=1).encode(y=height("mean")),
    ]


def chart(
    metric: str, *, ours: bool, published: bool, overlay: bool = False, points: int = 0
) -> dict[str, Any]:
    """Box plots of a metric by depth, its layers as points, the followed model as a line.

    Data: boxes, published, layers, members, overlay; each only where it is asked for. Published
    boxes stand behind ours, or alone. `points` says how many layers there are to draw: the
    more, the paler; none leaves them out.
    """
    opacity = 0.3 if points < 500 else 0.12
    offset = _offset(0.5)
    value = alt.Y(f"{metric}:Q", title=vega.TITLES[metric], scale=alt.Scale(zero=False))
    behind = _boxes("published", metric, behind=ours) if published else []
    layers: list[alt.Chart] = []
    marks = vega.named("layers").encode(
        x=vega.DEPTH,
        xOffset=offset,
        y=value,
        tooltip=[
            *vega.texts("model_id", "layer", "kind"),
            *vega.counts("depth_bin", "n_filters"),
            *vega.numbers(metric),
        ],
    )
    if ours and points:
        layers.append(
            marks.mark_circle(size=12, cursor="pointer").encode(
                color=vega.KIND, opacity=vega.by_following(0, opacity)
            )
        )
    if ours:
        layers += _boxes("boxes", metric, behind=False)
    if ours and points:
        line = vega.named("members").mark_line(color=vega.FOLLOWED, strokeWidth=2, aria=False)
        layers += [
            line.encode(
                x=vega.DEPTH, xOffset=offset, y=alt.Y("value:Q", title=vega.TITLES[metric])
            ).transform_filter(vega.FOLLOWS),
            marks.mark_point(
                aria=False,
                filled=True,
                size=45,
                color=vega.FOLLOWED,
                stroke="white",
                strokeWidth=0.7,
                opacity=1,
            ).transform_filter(vega.FOLLOWS),
        ]
    if overlay:
        mine = vega.named("overlay").encode(
            x=vega.DEPTH, y=value, tooltip=[*vega.texts("name", "layer"), *vega.numbers(metric)]
        )
        mean = alt.Y(f"mean({metric}):Q", title=vega.TITLES[metric])
        layers += [
            mine.mark_line(color=vega.OVERLAID, strokeWidth=2.5).encode(
                y=mean, tooltip=alt.value(None)
            ),
            mine.mark_point(
                filled=True,
                shape="square",
                size=40,
                color=vega.OVERLAID,
                stroke="white",
                opacity=1,
            ),
        ]
    # Each group has boxes of its own width; inside a group, points stand in the middle of them.
    groups = [alt.layer(*group) for group in (behind, layers) if group]
    return vega.as_spec(alt.layer(*groups).resolve_scale(xOffset="independent"))


def _compared(name: str, whose: str, found: dict[str, Any], view: str) -> str:
    side = "below" if found["below"] > found["above"] else "above"
    return (
        f"{whose} mean {name} of robust models lies {side} that of standard ones in "
        f"{found[side]} of {found['bins']} depth bins ({view} weights)."
    )


def _words(tables: Tables, metric: str, dataset: str) -> dict[str, str]:
    name = vega.TITLES[metric]
    key = {"metric": metric, "dataset": dataset}
    found = {r["weights"]: r for r in rows(tables["depth_summary"], **key)}
    published = found.get("published")
    words = {}
    for view in schema.WEIGHT_VIEWS:
        missing = sum(r[metric] for r in rows(tables["unmeasured"], dataset=dataset, weights=view))
        if view in found:
            said = [_compared(name, "The", found[view], view)]
            if published:
                said.append("Pale, wide boxes: published (folded).")
        elif published:
            said = [_compared(name, "Published values: the", published, "folded")]
        else:
            said = [f"This release has no layers of pairs here ({view} weights)."]
        if missing:
            said.append(f"{missing} layer(s) have no {name} and are not drawn.")
        words[view] = " ".join(said)
    return words


def _figure(tables: Tables, metric: str, dataset: str) -> Figure | None:
    key = {"metric": metric, "dataset": dataset}
    layers = len(rows(tables["layers"], dataset=dataset))
    ours = layers > 0
    published = has(tables["depth_published"], **key)
    overlay = "overlay" in tables
    data: dict[str, Any] = {}
    if has(tables["depth_boxes"], **key):
        data["boxes"] = source("depth_boxes", **key)
    if published:
        data["published"] = source("depth_published", **key)
    if ours:
        data["layers"] = source("layers", dataset=dataset)
        data["boxes"] = source("depth_boxes", **key)
        data["members"] = source("member_lines", **key)
    if overlay:
        data["overlay"] = source("overlay")
    if not data:
        return None
    behind = next(iter(data))  # the most telling one there is
    return Figure(
        f"depth-{metric}-{dataset}",
        f"{vega.TITLES[metric].capitalize()} by depth, {dataset}",
        _words(tables, metric, dataset),
        chart(metric, ours=ours, published=published, overlay=overlay, points=layers),
        data,
        behind,
    )


def section(tables: Tables, datasets: Sequence[str]) -> Section:
    """A figure per metric and data set."""
    made = [_figure(tables, metric, d) for metric in vega.METRICS for d in datasets]
    figures = [f for f in made if f is not None]
    layers = tables["layers"].num_rows > 0
    return Section(
        "depth",
        "Depth",
        "Three metrics of every layer, by where the layer sits: depth bin 0 is the first "
        "convolution, bins 1 to 10 are deciles of depth. A box has one value per pair member; "
        "the line is the median, the diamond the mean."
        + (
            " Points are layers. Choose a point, or a model above, to follow one model through "
            "all figures."
            if layers
            else ""
        ),
        figures,
        "" if figures else "This release has no layers, and the paper has no values for its data.",
    )
