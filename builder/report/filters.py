"""Filters themselves: first layers in colour with what they let pass, and a gallery."""

from __future__ import annotations

from typing import Any

import altair as alt

from builder.report import vega
from builder.report.parts import Figure, Section, Tables, both, has, source


def responses() -> dict[str, Any]:
    """Response of every channel of a robust first layer and its partner's. Data: responses."""
    chart = (
        vega.named("responses")
        .mark_point(filled=True, size=30, opacity=0.85)
        .encode(
            x=alt.X(
                "place:Q",
                title="channel, strongest first",
                scale=alt.Scale(zero=False, nice=False, padding=8),
                axis=alt.Axis(tickMinStep=1),
            ),
            y=alt.Y("response_post:Q", title="response behind the activation"),
            color=vega.KIND,
            shape=vega.KIND_SHAPE,
            tooltip=[
                *vega.texts("model_id", "kind", "perturbation", "layer"),
                *vega.counts("out_channel"),
                *vega.numbers("response_pre", "response_post", "activation_pass"),
            ],
        )
    )
    return vega.as_spec(chart)


def _coloured(tables: Tables) -> list[Figure]:
    if not tables["first_filters"].num_rows:
        return []
    return [
        Figure(
            f"first-{kind}",
            f"First-layer filters of {whose}",
            both(
                "One tile per output channel: the three input channels as red, green and blue, "
                "grey where a weight is 0; one scale for the whole layer. Eight bits per weight."
            ),
            None,
            {"first": {"derive": f"first-{kind}"}},
            "first",
        )
        for kind, whose in (("chosen", "the chosen model"), ("partner", "its standard partner"))
    ]


def _responding(tables: Tables) -> list[Figure]:
    return [
        Figure(
            f"response-{perturbation}",
            f"Response to {what}, per channel",
            both(
                "Relative change behind the activation over that of the image, one point a "
                "channel, strongest first: the chosen model and its partner."
            ),
            responses(),
            {"responses": source("responses", perturbation=perturbation, model_id="$pair")},
            "responses",
        )
        for perturbation, what in (("random", "random signs"), ("pgd", "an attack (PGD)"))
        if has(tables["responses"], perturbation=perturbation)
    ]


def first_layer(tables: Tables) -> Section:
    """Filters of a model and of its partner, then what they let pass."""
    missing = [
        text
        for text, table in (
            ("no 3x3 first layer of three channels", "first_filters"),
            ("no measured response of the first layer", "responses"),
        )
        if not tables[table].num_rows
    ]
    return Section(
        "first-layer",
        "First layer",
        "What the first convolution of a model looks like, and what it lets pass of a small "
        "perturbation.",
        [*_coloured(tables), *_responding(tables)],
        f"This release has {' and '.join(missing)}." if missing else "",
    )


def gallery(tables: Tables) -> Section:
    """Filters of any layer."""
    shown = tables["sample"].num_rows > 0
    figure = Figure(
        "gallery-layer",
        "Filters of a layer",
        both(
            "A few filters of the chosen layer, evenly spaced over it. Each is divided by its own "
            "largest |weight|: dark is negative, yellow positive."
        ),
        None,
        {"sample": {"derive": "sample"}},
        "sample",
        wide=True,
    )
    return Section(
        "gallery",
        "Gallery",
        "Filters of any layer of any model, from the release's stratified sample.",
        [figure] if shown else [],
        "" if shown else "This release has no sample of filters.",
    )
