"""The pictures of docs/folding.md: `python docs/pictures.py out/mini` draws them from the mini
release."""

from __future__ import annotations

import sys
from pathlib import Path

import altair as alt
import numpy as np
import vl_convert

from builder import schema
from builder.release.reader import Release, open_release
from builder.report.vega import KIND, KIND_SHAPE, METRICS, OKABE_ITO, TITLES, vega_lite_version

DOCS = Path(__file__).parent
EXAMPLES = (
    ("cifar10-robust-ResNet18_w32", "layer3.1.conv2"),
    ("cifar10-standard-AutoAttackExample", "layer1.1.conv2"),
)
EDGES = np.linspace(-5, 0, 51)
"""Powers of ten; the first bin holds what is smaller, too."""

CHANGES = """
select if(m.robust, 'robust', 'standard') as kind,
       t.sparsity as sparsity_t, f.sparsity as sparsity_f,
       round(t.variance_entropy, 4) as variance_entropy_t,
       round(f.variance_entropy, 4) as variance_entropy_f,
       round(t.orthogonality, 4) as orthogonality_t,
       round(f.orthogonality, 4) as orthogonality_f
from layers as t
join layers as f using (model_id, layer_index)
join models as m using (model_id)
where t.weights = 'trained' and f.weights = 'folded' and t.bn_layer is not null
order by model_id, layer_index
"""


def layers(release: Release) -> alt.HConcatChart:
    """Every layer with a BatchNorm behind it: its metrics before folding and after."""
    rows = release.sql(CHANGES).to_pylist()
    panels = []
    for metric in METRICS:
        title = TITLES[metric]
        values = [r[metric + view] for r in rows for view in ("_t", "_f")]
        low, high = (0.0 if metric == "sparsity" else min(values)), max(values)
        scale = alt.Scale(domain=[low, high], nice=True, zero=False)
        points = (
            alt.Chart(alt.Data(values=rows))
            .mark_point(filled=True, size=30, opacity=0.7)
            .encode(
                x=alt.X(f"{metric}_t:Q", title=f"{title}, trained", scale=scale),
                y=alt.Y(f"{metric}_f:Q", title=f"{title}, folded", scale=scale),
                color=KIND,
                shape=KIND_SHAPE,
            )
        )
        ends = alt.Data(values=[{"v": low}, {"v": high}])
        line = alt.Chart(ends).mark_line(color="#bbb", strokeWidth=1).encode(x="v:Q", y="v:Q")
        panels.append((line + points).properties(width=190, height=190))
    return alt.hconcat(*panels)


def magnitudes(release: Release) -> alt.HConcatChart:
    """Why sparsity changes: filters by their largest weight, relative to that of their layer."""
    panels = []
    for model_id, layer in EXAMPLES:
        rows = []
        for view in schema.WEIGHT_VIEWS:
            weight = release.weight(model_id, layer, view=view)
            largest = np.abs(weight).max(axis=(2, 3)).ravel().astype(np.float64)
            powers = np.log10(np.maximum(largest / largest.max(), 10.0 ** EDGES[0]))
            counts, _ = np.histogram(powers, EDGES)
            rows += [
                {"view": view, "low": float(10**low), "n": int(n)}
                for low, n in zip(EDGES[:-1], counts, strict=True)
            ]
        x = alt.X(
            "low:Q",
            title="largest weight of a filter / of its layer",
            scale=alt.Scale(type="log", domain=[10.0 ** EDGES[0], 1]),
            axis=alt.Axis(values=[0.0001, 0.001, 0.01, 0.1, 1], format="~g"),
        )
        colour = alt.Color(
            "view:N",
            title=None,
            scale=alt.Scale(domain=list(schema.WEIGHT_VIEWS), range=list(OKABE_ITO[1:3])),
            legend=alt.Legend(orient="top"),
        )
        bars = (
            alt.Chart(alt.Data(values=rows))
            .mark_area(opacity=0.55, interpolate="step-after")
            .encode(x=x, y=alt.Y("n:Q", title="filters", stack=None), color=colour)
        )
        rule = alt.Chart(alt.Data(values=[{"low": 0.01}])).mark_rule(strokeDash=[4, 3]).encode(x=x)
        title = alt.Title(model_id, subtitle=layer, fontSize=11, anchor="start")
        panels.append((bars + rule).properties(width=300, height=170, title=title))
    return alt.hconcat(*panels)


PICTURES = {"folding-layers.svg": layers, "folding-magnitudes.svg": magnitudes}
"""File in docs/ -> what draws it from the mini release."""


def draw(release: Release, name: str) -> str:
    """A picture as SVG, on white so that it reads in a dark page, too."""
    spec = (
        PICTURES[name](release)
        .configure(background="white", aria=False)
        .configure_view(stroke=None)
    )
    return str(vl_convert.vegalite_to_svg(spec.to_dict(), vl_version=vega_lite_version()))


def main() -> None:
    release = open_release(sys.argv[1])
    for name in PICTURES:
        (DOCS / name).write_text(draw(release, name), encoding="utf-8")


if __name__ == "__main__":
    main()
