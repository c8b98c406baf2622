"""What the page shows: its figures, their words, the rows behind them, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from builder import schema
from builder.report import charts

METRICS = ("sparsity", "variance_entropy", "orthogonality")

Tables = Mapping[str, pa.Table]


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        id: unique on the page. title: its heading.
        texts: {weights view: what it shows, in words}.
        spec: Vega-Lite, or null for a figure that the page itself draws.
        data: {name in the spec: {"table": name, "where": {column: value}}}.
        behind: the name in `data` whose rows are the table and the CSV of the figure.
    """

    id: str
    title: str
    texts: dict[str, str]
    spec: dict[str, Any] | None
    data: dict[str, dict[str, Any]] = field(default_factory=dict)
    behind: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page; `missing` says why where it has no figure."""

    id: str
    title: str
    intro: str
    figures: list[Figure]
    missing: str = ""


def _both(text: str) -> dict[str, str]:
    return dict.fromkeys(schema.WEIGHT_VIEWS, text)


def _source(table: str, **where: Any) -> dict[str, Any]:
    return {"table": table, "where": where}


def _has(table: pa.Table, **where: Any) -> bool:
    return any(all(row[k] == v for k, v in where.items()) for row in table.to_pylist())


def _rows(table: pa.Table, **where: Any) -> list[dict[str, Any]]:
    return [r for r in table.to_pylist() if all(r[k] == v for k, v in where.items())]


def _depth_words(tables: Tables, metric: str, dataset: str) -> dict[str, str]:
    name = charts.METRICS[metric]
    published = _has(tables["depth_published"], metric=metric, dataset=dataset)
    words = {}
    for view in schema.WEIGHT_VIEWS:
        found = _rows(tables["depth_summary"], metric=metric, dataset=dataset, weights=view)
        missing = sum(r[metric] for r in _rows(tables["unmeasured"], dataset=dataset, weights=view))
        text = (
            f"The mean {name} of robust models lies below that of standard ones in "
            f"{found[0]['below']} of {found[0]['bins']} depth bins ({view} weights)."
            if found
            else f"This release has no layers of pairs here ({view} weights)."
        )
        if missing:
            text += f" {missing} layer(s) have no {name} and are not drawn."
        if published:
            text += " Pale, wide boxes: the paper's published values (folded weights)."
        words[view] = text
    return words


def _depth(tables: Tables, datasets: Sequence[str]) -> Section:
    figures = []
    overlay = "overlay" in tables
    for metric in METRICS:
        for dataset in datasets:
            ours = _has(tables["layers"], dataset=dataset)
            published = _has(tables["depth_published"], metric=metric, dataset=dataset)
            if not (ours or published or overlay):
                continue
            key = {"metric": metric, "dataset": dataset}
            data = {}
            if published:
                data["published"] = _source("depth_published", **key)
            if ours:
                data |= {
                    "layers": _source("layers", dataset=dataset),
                    "boxes": _source("depth_boxes", **key),
                    "members": _source("member_lines", **key),
                }
            if overlay:
                data["overlay"] = _source("overlay")
            figures.append(
                Figure(
                    f"depth-{metric}-{dataset}",
                    f"{charts.METRICS[metric].capitalize()} by depth, {dataset}",
                    _depth_words(tables, metric, dataset),
                    charts.depth(metric, ours=ours, published=published, overlay=overlay),
                    data,
                    "boxes"
                    if _has(tables["depth_boxes"], **key)
                    else ("published" if published else "layers" if ours else "overlay"),
                )
            )
    return Section(
        "depth",
        "Depth",
        "Three metrics of every layer, by where the layer sits: depth bin 0 is the first "
        "convolution, bins 1 to 10 are deciles of depth. A box has one value per pair member (the "
        "line is the median, the diamond the mean); points are layers. Choose a point, or a model "
        "above, to follow one model through all figures.",
        figures,
        "" if figures else "This release has no layers, and the paper has no values for its data.",
    )


def _pca(tables: Tables) -> Section:
    text = (
        "Full, robust and standard bases"
        + (" with the paper's published ones" if tables["pca_published"].num_rows else "")
        + "; a followed model's basis joins them. "
    )
    first = {
        view: {
            r["basis"]: r["ratio"]
            for r in _rows(tables["pca"], component=1, weights=view)
            if r["basis"] in schema.UNIONS
        }
        for view in schema.WEIGHT_VIEWS
    }
    words = {
        view: "The first component explains "
        + ", ".join(f"{100 * r:.1f} % ({basis})" for basis, r in ratios.items())
        + f" of the variance ({view} weights). Open circles: the paper's published values."
        if ratios
        else f"This release has no basis of {view} weights."
        for view, ratios in first.items()
    }
    data = {"pca": _source("pca"), "published": _source("pca_published")}
    figures = [
        Figure(
            "bases",
            "PCA bases as 3x3 tiles",
            {v: text + words[v] for v in words},
            charts.bases(4),
            {"tiles": {"derive": "tiles"}},
            "tiles",
        ),
        Figure("explained", "Explained variance", words, charts.explained("ratio"), data, "pca"),
        Figure(
            "cumulated", "Cumulated explained variance", words, charts.explained("cumulated"),
            data, "pca",
        ),
    ]  # fmt: skip
    shown = tables["pca"].num_rows > 0
    return Section(
        "pca",
        "PCA bases",
        "Principal components of the filters, each divided by its largest |weight|, without the "
        "sparse ones.",
        figures if shown else [],
        "" if shown else "This release has no PCA basis: none of its models has filters.",
    )


def _divergence(tables: Tables, datasets: Sequence[str]) -> Section:
    figures = []
    ours, published = tables["divergence"], tables["divergence_published"]
    if ours.num_rows or published.num_rows:
        places = {
            d: max(rows, key=lambda r: r["divergence"])["depth_bin"]
            for d in datasets
            if (rows := _rows(ours if ours.num_rows else published, dataset=d))
        }
        text = (
            ("This release" if ours.num_rows else "The paper (this release has no histograms)")
            + ": robust and standard filters differ most in depth bin "
            + ", ".join(f"{b} ({d})" for d, b in places.items())
            + ". Folded weights. Open circles: the paper's published values."
        )
        figures.append(
            Figure(
                "divergence-by-depth",
                "Divergence by depth",
                _both(text),
                charts.divergence(datasets),
                {
                    "divergence": _source("divergence"),
                    "published": _source("divergence_published"),
                },
                "divergence" if ours.num_rows else "published",
            )
        )
    figures += [
        Figure(
            f"histograms-{dataset}",
            f"Coefficients on the full basis, {dataset}",
            _both(
                "Shares of filters by coefficient on each component of the full basis, robust and "
                "standard over each other: what the divergences compare. Folded weights; standard "
                "models once per pair."
            ),
            charts.histograms(),
            {"histograms": _source("histograms", dataset=dataset)},
            "histograms",
        )
        for dataset in datasets
        if _has(tables["histograms"], dataset=dataset)
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


def _sparsity(tables: Tables, datasets: Sequence[str]) -> Section:
    figures = []
    for dataset in datasets:
        found = {r["weights"]: r for r in _rows(tables["sparsity_summary"], dataset=dataset)}
        if not found:
            continue
        words = {}
        for view in schema.WEIGHT_VIEWS:
            r = found.get(view)
            means = [
                f"{kind} {100 * r[kind]:.2f} %"
                for kind in charts.KINDS
                if r is not None and r[kind] is not None
            ]
            words[view] = (
                f"Mean share of sparse filters of {r['models']} model(s): {', '.join(means)} "
                f"({view} weights). "
                + (
                    f"The robust member is less sparse in {r['below']} of {r['pairs']} pairs."
                    if r["pairs"]
                    else "No pairs."
                )
                if r is not None
                else f"No sparsity of {view} weights."
            )
        figures.append(
            Figure(
                f"sparsity-{dataset}",
                f"Sparsity of every model, {dataset}",
                words,
                charts.paired_sparsity(),
                {
                    "models": _source("model_values", metric="sparsity", dataset=dataset),
                    "members": _source("pair_values", dataset=dataset),
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


def _accuracy(tables: Tables, datasets: Sequence[str]) -> Section:
    figures = []
    values = _rows(tables["model_values"], kind="robust")
    known = {r["metric"] for r in values if r["autoattack_acc"] is not None}
    for metric in ("clean_acc", *METRICS):
        if metric not in known:
            continue
        words = {}
        for view in schema.WEIGHT_VIEWS:
            found = _rows(tables["correlations"], metric=metric, weights=view)
            said = [
                f"{r['dataset']} {r['spearman']:.4f} ({r['models']} models"
                + (f"; published {r['published']:.4f})" if r["published"] is not None else ")")
                for r in found
            ]
            words[view] = (
                f"Spearman's rank correlation: {', '.join(said)}."
                if said
                else "Too few robust models with this metric for a rank correlation."
            )
        figures.append(
            Figure(
                f"accuracy-{metric}",
                f"{charts.METRICS[metric].capitalize()} against AutoAttack",
                words,
                charts.against_autoattack(metric, datasets),
                {"models": _source("model_values", metric=metric, kind="robust")},
                "models",
            )
        )
    return Section(
        "accuracy",
        "Accuracy",
        "Robust models: each metric against accuracy under AutoAttack.",
        figures,
        "" if figures else "No robust model of this release has a known AutoAttack accuracy.",
    )


def _first_layer(tables: Tables) -> Section:
    figures = []
    if tables["first_filters"].num_rows:
        for kind, whose in (("chosen", "the chosen model"), ("partner", "its standard partner")):
            figures.append(
                Figure(
                    f"first-{kind}",
                    f"First-layer filters of {whose}",
                    _both(
                        "One tile per output channel: the three input channels as red, green and "
                        "blue, grey where a weight is 0; one scale for the whole layer. Eight "
                        "bits per weight."
                    ),
                    None,
                    {"first": {"derive": f"first-{kind}"}},
                    "first",
                )
            )
    if tables["responses"].num_rows:
        for perturbation, what in (("random", "random signs"), ("pgd", "an attack (PGD)")):
            if _has(tables["responses"], perturbation=perturbation):
                figures.append(
                    Figure(
                        f"response-{perturbation}",
                        f"Response to {what}, per channel",
                        _both(
                            "Relative change behind the activation over that of the image, one "
                            "point a channel, strongest first: the chosen model and its partner."
                        ),
                        charts.responses(),
                        {
                            "responses": _source(
                                "responses", perturbation=perturbation, model_id="$pair"
                            )
                        },
                        "responses",
                    )
                )
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
        figures,
        f"This release has {' and '.join(missing)}." if missing else "",
    )


def _gallery(tables: Tables) -> Section:
    shown = tables["sample"].num_rows > 0
    figure = Figure(
        "gallery-layer",
        "Filters of a layer",
        _both(
            "A few filters of the chosen layer, evenly spaced over it. Each is divided by its own "
            "largest |weight|: dark is negative, yellow positive."
        ),
        None,
        {"sample": {"derive": "sample"}},
        "sample",
    )
    return Section(
        "gallery",
        "Gallery",
        "Filters of any layer of any model, from the release's stratified sample.",
        [figure] if shown else [],
        "" if shown else "This release has no sample of filters.",
    )


def sections(tables: Tables) -> list[Section]:
    """The parts of the page that hold figures, in order.

    Args:
        tables: by name; `overlay` only where there is one.
    """
    datasets = sorted({r["dataset"] for r in tables["models"].to_pylist()})
    return [
        _depth(tables, datasets),
        _pca(tables),
        _divergence(tables, datasets),
        _sparsity(tables, datasets),
        _accuracy(tables, datasets),
        _first_layer(tables),
        _gallery(tables),
    ]
