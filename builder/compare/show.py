"""A measurement and its comparison on a terminal: one screen of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from builder.compare.columns import MEASURED
from builder.compare.comparison import MODEL_METRICS, Comparison, DepthRow
from builder.compare.measurement import Measurement
from builder.compare.reference import DEPTH_METRICS, KINDS, load_reference, mini_first_layer

_BIN = {0: "first", **{b: f"{(b - 1) / 10:.1f}-{b / 10:.1f}" for b in range(1, 11)}}
_MARK = {-1: "<", 0: " ", 1: ">"}


WIDTH = 80
PERTURBATIONS = ("random", "pgd")


def lines(measured: Measurement, comparison: Comparison | None) -> Iterator[str]:
    """The screen, line by line."""
    yield from _prose(head(measured))
    if measured.first_layer:
        yield ""
        yield from _first_layer(measured)
    if comparison is not None:
        yield from _prose([f"against: {comparison.against}"])
        if comparison.depth:
            yield ""
            yield from _depth(comparison)
        if comparison.models:
            yield ""
            yield from _models(comparison)
        if comparison.depth or comparison.models:
            yield ""
        yield from _prose([*comparison.sentences, *comparison.not_compared])


def _prose(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from textwrap.wrap(text, WIDTH, subsequent_indent="  ")


def head(measured: Measurement) -> Iterator[str]:
    numbers = measured.summary
    plain = "_trained" if measured.view == "trained" else ""
    yield (
        f"{measured.name}: {numbers.get('filters/n_layers', 0):,.0f} layers, "
        f"{numbers.get('filters/n_filters', 0):,.0f} filters of 3x3, {measured.view} view"
    )
    if measured.recognised:
        yield measured.recognised
    shown = [
        f"{metric.replace('_', ' ')} {numbers[name]:.4f}"
        for metric in (*DEPTH_METRICS, "explained_variance_first", "pca_entropy")
        if (name := f"filters/{metric}{plain}") in numbers
    ]
    if shown:
        yield ", ".join(shown)
    yield from measured.unknown


def _first_layer(measured: Measurement) -> Iterator[str]:
    """Response of the first layer behind its activation, beside the mini release's pairs."""
    yield "first layer: how much of a perturbation passes, against natural content (1: as much)"
    yield f"{'':30}{'random signs':>21}{'PGD':>21}"
    own = [r for r in measured.first_layer if r["out_channel"] is None]
    for layer in dict.fromkeys(row["layer"] for row in own):
        found = {r["perturbation"]: r["response_post"] for r in own if r["layer"] == layer}
        yield f"{layer:30}" + "".join(f"{_number(found.get(p)):>21}" for p in PERTURBATIONS)
    pairs = mini_first_layer()
    for architecture in dict.fromkeys(row["architecture"] for row in pairs):
        cells = [
            f"{float(row['robust_post']):.3f} / {float(row['standard_post']):.3f}"
            for p in PERTURBATIONS
            for row in pairs
            if (row["architecture"], row["perturbation"]) == (architecture, p)
        ]
        yield f"{architecture + ', robust / standard':30}" + "".join(f"{c:>21}" for c in cells)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def references() -> list[str]:
    """What a network can be compared with."""
    return [
        "paper: " + load_reference("paper").name,
        "a release folder, e.g. out/mini: every number of its layers",
        "hf://datasets/ORG/NAME@TAG: the same, on the Hub",
    ]


def _depth(comparison: Comparison) -> Iterator[str]:
    """Per depth bin: the network's value, and the quartiles of robust and standard members."""
    where = comparison.dataset
    yield f"by depth on {where}, in hundredths: the model, then the quartiles of robust"
    yield "and of standard models, each behind a < or > where the model lies outside them"
    yield "depth   " + " ".join(f"{m.replace('_', ' '):^23}" for m in DEPTH_METRICS).rstrip()
    cells: dict[tuple[int, str], dict[str, DepthRow]] = {}
    for row in comparison.depth:
        cells.setdefault((row.depth_bin, row.metric), {})[row.kind] = row
    for depth_bin in sorted({key[0] for key in cells}):
        parts = [_cell(cells.get((depth_bin, metric), {})) for metric in DEPTH_METRICS]
        yield f"{_BIN[depth_bin]:8}" + " ".join(parts).rstrip()


def _cell(rows: dict[str, DepthRow]) -> str:
    """23 characters: the value; per kind where it lies (< > or within) and the three quartiles."""
    if not rows:
        return " " * 23
    text = f"{100 * next(iter(rows.values())).value:3.0f}"
    for kind in KINDS:
        row = rows.get(kind)
        quartiles = [100 * q for q in (row.q1, row.median, row.q3)] if row else []
        mark = _MARK[row.place] if row else " "
        text += f"{mark}" + "".join(f"{q:3.0f}" for q in quartiles).rjust(9)
    return f"{text:23}"


def _models(comparison: Comparison) -> Iterator[str]:
    """Per number of the whole network: its value, rank and median among each kind."""
    kinds = [kind for kind in KINDS if any(row.kind == kind for row in comparison.models)]
    sizes = {row.kind: row.n for row in comparison.models}
    heads = "".join(f"{f'among {sizes[k]} {k}':>21}" for k in kinds)
    yield f"{'whole network':30}{'model':>8}{heads}"
    yield " " * 38 + f"{'rank':>10}{'median':>11}" * len(kinds)
    for metric, words in MODEL_METRICS.items():
        rows = {row.kind: row for row in comparison.models if row.metric == metric}
        if rows:
            value = next(iter(rows.values())).value
            places = "".join(
                f"{rows[k].rank:>10}{rows[k].median:>11.4f}" for k in kinds if k in rows
            )
            yield f"{words:30}{value:8.4f}{places}"


def layer_rows(measured: Measurement) -> tuple[tuple[str, ...], list[dict[str, object]]]:
    """(columns, rows) of `--layers`: every convolution, in the plain view where it was measured."""
    names = ("layer", "kernel_size", "n_filters", "depth_bin", *DEPTH_METRICS, "status", "reason")
    rows = [
        {name: row[name] for name in names}
        for row in measured.layers.to_pylist()
        if row["status"] != MEASURED or row["weights"] == measured.view
    ]
    return names, rows
