"""Figures whose marks are models: sparsity in pairs, metrics against AutoAttack accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from builder import schema
from builder.report import vega
from builder.report.parts import Figure, Section, Tables, rows, source


def paired_sparsity() -> dict[str, Any]:
    """Sparsity of every model of a data set, the members of a pair joined by a line.

    Data: models, members (with `pair`).
    """
    x = alt.X(
        "kind:N",
        title=None,
        sort=list(vega.KINDS),
        scale=alt.Scale(domain=list(vega.KINDS), padding=0.35),
        axis=alt.Axis(labelAngle=0),
    )
    y = alt.Y("value:Q", title="share of sparse filters", axis=alt.Axis(format=".3~%"))
    followed = "datum.pair === followed"
    return vega.as_spec(
        alt.layer(
            vega.named("members")
            .mark_line(color=vega.NEUTRAL, strokeWidth=1)
            .encode(
                x=x,
                y=y,
                detail="pair:N",
                opacity=alt.condition(followed, alt.value(1), alt.value(0.45)),
                strokeWidth=alt.condition(followed, alt.value(3), alt.value(1)),
            ),
            vega.named("models")
            .mark_point(filled=True, cursor="pointer", strokeWidth=1.5)
            .encode(
                x=x,
                y=y,
                color=vega.KIND,
                shape=vega.KIND_SHAPE,
                opacity=alt.value(0.8),
                size=vega.by_following(160, 40),
                stroke=vega.by_following(vega.FOLLOWED, "transparent"),
                tooltip=vega.of_a_model(),
            ),
        ),
        260,
    )


def against_autoattack(metric: str, datasets: Sequence[str]) -> dict[str, Any]:
    """A metric of robust models against their accuracy under AutoAttack. Data: models."""
    attacked = alt.X(
        "autoattack_acc:Q", title="AutoAttack accuracy (%)", scale=alt.Scale(zero=False)
    )
    chart = (
        vega.named("models")
        .mark_point(filled=True, cursor="pointer", strokeWidth=2)
        .encode(
            x=attacked,
            y=alt.Y("value:Q", title=vega.TITLES[metric], scale=alt.Scale(zero=False)),
            color=vega.dataset_colour(datasets),
            shape=alt.Shape("dataset:N", title=None, scale=alt.Scale(domain=list(datasets))),
            opacity=alt.value(0.8),
            size=vega.by_following(170, 45),
            stroke=vega.by_following(vega.FOLLOWED, "transparent"),
            tooltip=[*vega.texts("dataset"), *vega.of_a_model()],
        )
    )
    return vega.as_spec(chart)


def _sparsity_words(found: dict[str, Any] | None, view: str) -> str:
    if found is None:
        return f"No sparsity of {view} weights."
    means = [f"{kind} {100 * found[kind]:.2f} %" for kind in vega.KINDS if found[kind] is not None]
    pairs = (
        f"The robust member is less sparse in {found['below']} of {found['pairs']} pairs."
        if found["pairs"]
        else "No pairs."
    )
    return (
        f"Mean share of sparse filters of {found['models']} model(s): {', '.join(means)} "
        f"({view} weights). {pairs}"
    )


def sparsity(tables: Tables, datasets: Sequence[str]) -> Section:
    """A figure per data set."""
    figures = []
    for dataset in datasets:
        found = {r["weights"]: r for r in rows(tables["sparsity_summary"], dataset=dataset)}
        if found:
            figures.append(
                Figure(
                    f"sparsity-{dataset}",
                    f"Sparsity of every model, {dataset}",
                    {v: _sparsity_words(found.get(v), v) for v in schema.WEIGHT_VIEWS},
                    paired_sparsity(),
                    {
                        "models": source("model_values", metric="sparsity", dataset=dataset),
                        "members": source("pair_values", dataset=dataset),
                    },
                    "models",
                )
            )
    return Section(
        "sparsity",
        "Sparsity",
        "A filter is sparse where its largest |weight| is at most a hundredth of its layer's. "
        "Lines join the members of a pair.",
        figures,
        "" if figures else "No model of this release has a sparsity: there are no filters.",
    )


def _correlation_words(found: list[dict[str, Any]]) -> str:
    said = [
        f"{r['dataset']} {r['spearman']:.4f} ({r['models']} models"
        + (f"; published {r['published']:.4f})" if r["published"] is not None else ")")
        for r in found
    ]
    if not said:
        return "Too few robust models with this metric for a rank correlation."
    return f"Spearman's rank correlation: {', '.join(said)}."


def accuracy(tables: Tables, datasets: Sequence[str]) -> Section:
    """A figure per metric that robust models of known robust accuracy have."""
    values = rows(tables["model_values"], kind="robust")
    known = {r["metric"] for r in values if r["autoattack_acc"] is not None}
    figures = [
        Figure(
            f"accuracy-{metric}",
            f"{vega.TITLES[metric].removesuffix(' (%)').capitalize()} against AutoAttack",
            {
                view: _correlation_words(rows(tables["correlations"], metric=metric, weights=view))
                for view in schema.WEIGHT_VIEWS
            },
            against_autoattack(metric, datasets),
            {"models": source("model_values", metric=metric, kind="robust")},
            "models",
        )
        for metric in ("clean_acc", *vega.METRICS)
        if metric in known
    ]
    return Section(
        "accuracy",
        "Accuracy",
        "Robust models: each metric against accuracy under AutoAttack.",
        figures,
        "" if figures else "No robust model of this release has a known AutoAttack accuracy.",
    )
