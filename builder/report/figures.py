"""The paper's figures from a release: PDF and SVG of a column's width, published values behind."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa

from builder import hub, schema
from builder.errors import UsageError
from builder.files import write_atomic
from builder.release.manifest import Manifest
from builder.release.reader import open_release
from builder.report import bases, depth, divergence, models, vega
from builder.report.tables import open_tables, read
from builder.sql import catalog
from builder.sql.run import run_query

WIDTH = 234
"""Points of a column: 3.25 inches."""

CAPTIONS = "captions.md"

_FONT = "Open Sans"
_FONT_FILE = "OpenSans-Latin.ttf"
_CONFIG = {
    "background": "white",
    "font": _FONT,
    "axis": {"labelFontSize": 6.5, "titleFontSize": 7, "titleFontWeight": 400, "gridOpacity": 0.5,
             "titlePadding": 3, "tickSize": 3},
    "legend": {"orient": "top", "labelFontSize": 7, "titleFontSize": 7, "titleFontWeight": 400,
               "symbolSize": 30, "offset": 2, "gradientThickness": 6},
    "title": {"fontSize": 7.5, "fontWeight": 400, "offset": 3, "anchor": "start"},
    "view": {"stroke": None},
}  # fmt: skip

_TABLES = (
    "models",
    "depth_boxes",
    "depth_published",
    "pca",
    "pca_published",
    "divergence_published",
    "pair_values",
)

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Drawing:
    """One figure: its Vega-Lite, what it shows, and the tables of the release it rests on."""

    name: str
    spec: dict[str, Any]
    caption: str
    tables: tuple[str, ...]


def filled(spec: Any, rows: dict[str, Rows]) -> Any:
    """A spec whose named data are replaced by their rows."""
    if isinstance(spec, list):
        return [filled(part, rows) for part in spec]
    if not isinstance(spec, dict):
        return spec
    if set(spec) == {"name"} and spec["name"] in rows:
        return {"values": rows[spec["name"]]}
    return {key: filled(part, rows) for key, part in spec.items()}


def _smaller(spec: Any) -> Any:
    """Marks of the page, for print: a column is a third of a screen."""
    if isinstance(spec, list):
        return [_smaller(part) for part in spec]
    if not isinstance(spec, dict):
        return spec
    factors = {"size": 0.35, "strokeWidth": 0.5, "thickness": 0.6}
    return {
        key: value * factors[key]
        if key in factors and isinstance(value, int | float)
        else _smaller(value)
        for key, value in spec.items()
    }


def _view(spec: dict[str, Any], rows: dict[str, Rows], height: float, title: str) -> dict[str, Any]:
    made: dict[str, Any] = filled(_smaller(spec), rows)
    made |= {"height": height, "width": WIDTH - 40}
    made.pop("$schema", None)
    made.pop("params", None)  # one for all views of a drawing
    return made | ({"title": title} if title else {})


def _stacked(views: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"vconcat": list(views), "spacing": 8, "params": [{"name": "followed", "value": None}]}


def _folded(rows: Iterable[dict[str, Any]], **where: Any) -> Rows:
    return [
        r
        for r in rows
        if r.get("weights", "folded") == "folded" and all(r[k] == v for k, v in where.items())
    ]


_BOXES = {
    ("boxes",): "Boxes: this release.",
    ("published",): "Boxes: published values, for this release holds no layers.",
    ("boxes", "published"): "Narrow boxes: this release; wide, pale ones: published.",
}


def _depth(rows: dict[str, Rows], datasets: Sequence[str]) -> list[Drawing]:
    drawings = []
    for metric in vega.METRICS:
        views = []
        drawn: set[str] = set()
        for dataset in datasets:
            found = {
                name: _folded(rows[table], metric=metric, dataset=dataset)
                for name, table in (("boxes", "depth_boxes"), ("published", "depth_published"))
            }
            drawn |= {name for name, boxes in found.items() if boxes}
            if any(found.values()):
                spec = depth.chart(
                    metric,
                    ours=bool(found["boxes"]),
                    published=bool(found["published"]),
                )
                views.append(_view(spec, found, 80, dataset))
        if views:
            caption = (
                f"{vega.TITLES[metric].capitalize()} by depth, folded weights: one value per "
                f"depth bin and pair member. {_BOXES[tuple(sorted(drawn))]}"
            )
            drawings.append(
                Drawing(f"depth-{metric}", _stacked(views), caption, ("layers", "pairs", "paper"))
            )
    return drawings


def _tiles(ours: Rows, published: Rows) -> Rows:
    cells = []
    for union in schema.UNIONS:
        for name, rows in ((union, ours), (f"{union}, published", published)):
            for r in rows:
                if r["basis"] == union and r["direction"] is not None:
                    cells += [
                        {
                            "basis": name,
                            "component": r["component"],
                            "row": i // 3,
                            "column": i % 3,
                            "value": value,
                            "ratio": r["ratio"],
                        }
                        for i, value in enumerate(r["direction"])
                    ]
    return cells


def _pca(rows: dict[str, Rows]) -> list[Drawing]:
    ours = [r for r in _folded(rows["pca"]) if r["basis"] in schema.UNIONS]
    if not ours:
        return []
    data = {"pca": ours, "published": rows["pca_published"]}
    explained = [_view(bases.explained(c), data, 90, "") for c in ("ratio", "cumulated")]
    tiles = _tiles(ours, rows["pca_published"])
    shown = len({t["basis"] for t in tiles})
    square = bases.size((WIDTH - 75) / 9, shown, shares=False)
    drawn = _view(bases.tiles(square, shares=False), {"tiles": tiles}, square["height"], "")
    drawn["width"] = square["width"]
    return [
        Drawing(
            "explained-variance",
            _stacked(explained),
            "Explained variance ratio of the components, and its running total, folded weights. "
            "Lines: this release; open circles: published.",
            ("pca", "paper"),
        ),
        Drawing(
            "bases",
            _stacked([drawn]),
            "PCA bases as 3x3 tiles, folded weights, this release's and the published ones. The "
            "sign of a direction is arbitrary.",
            ("pca", "paper"),
        ),
    ]


def _divergence(rows: dict[str, Rows], datasets: Sequence[str]) -> list[Drawing]:
    data = {"divergence": rows["divergence"], "published": rows["divergence_published"]}
    ours, published = (bool(found) for found in data.values())
    if not (ours or published):
        return []
    return [
        Drawing(
            "divergence-by-depth",
            _stacked(
                [
                    _view(
                        divergence.by_depth(datasets, ours=ours, published=published), data, 110, ""
                    )
                ]
            ),
            "Divergence of robust and standard filters by depth, folded weights. Lines: this "
            "release; open circles: published.",
            ("histograms", "pca", "pairs", "paper"),
        )
    ]


def _sparsity(rows: dict[str, Rows], datasets: Sequence[str]) -> list[Drawing]:
    views = []
    for dataset in datasets:
        found = _folded(rows["model_values"], metric="sparsity", dataset=dataset)
        if found:
            data = {"models": found, "members": _folded(rows["pair_values"], dataset=dataset)}
            views.append(_view(models.paired_sparsity(), data, 90, dataset))
    caption = "Share of sparse filters of every model, folded weights; lines join pairs."
    return [Drawing("sparsity-pairs", _stacked(views), caption, ("models", "pairs"))] * bool(views)


def _with_font(svg: str) -> str:
    """An SVG that carries its font."""
    data = base64.b64encode(_font().read_bytes()).decode()
    face = (
        f'<defs><style>@font-face {{font-family: "{_FONT}"; '
        f"src: url(data:font/ttf;base64,{data})}}</style></defs>"
    )
    return re.sub(r"(<svg[^>]*>)", lambda m: m[1] + face, svg, count=1)


def _font() -> Path:
    return Path(str(files("builder.report") / "vendor" / _FONT_FILE))


def _caption(drawing: Drawing, manifest: Manifest) -> str:
    hashes = [
        f"`{name}` {facts['content_hash']}"
        for name in drawing.tables
        if (facts := manifest["files"].get(schema.table_path(name)))
    ]
    return f"## {drawing.name}\n\n{drawing.caption}\n\nContent hashes: {', '.join(hashes)}.\n"


def _captions(drawings: Sequence[Drawing], manifest: Manifest) -> str:
    head = (
        f"# Figures of {manifest['name']} {manifest['version']}\n\n"
        f"Cohort {manifest['cohort']['name']}, weights {manifest['weights']}; manifest sha256 "
        f"{manifest.get('sha256', 'none')}. Published values: Gavrikov and Keuper, CVPR Workshops "
        "2022, arXiv 2204.02481, CC BY-SA 4.0.\n"
    )
    return "\n".join([head, *(_caption(d, manifest) for d in drawings)])


def drawings(address: str, memory_limit: str | None = None) -> tuple[list[Drawing], Manifest]:
    """The figures that a release has data for, and its manifest."""
    release = open_release(hub.release_address(address))
    with open_tables(release, memory_limit=memory_limit) as con:
        found = {name: read(con, name) for name in _TABLES}
        found["model_values"] = con.sql("from model_values").to_arrow_table()
        answer = run_query(con, catalog.load("divergence_by_depth"))
        found["divergence"] = pa.Table.from_batches(answer.batches, answer.schema)
    rows = {name: table.to_pylist() for name, table in found.items()}
    datasets = sorted({r["dataset"] for r in rows["models"]})
    drawn = [
        *_depth(rows, datasets),
        *_pca(rows),
        *_divergence(rows, datasets),
        *_sparsity(rows, datasets),
    ]
    return drawn, release.manifest


def write_figures(
    address: str,
    out: Path,
    *,
    memory_limit: str | None = None,
    told: Callable[[Path], None] = lambda path: None,
) -> None:
    """Write every figure as out/NAME.pdf and out/NAME.svg, and out/captions.md.

    Args:
        address: folder, or hf:// address.
        out: a folder, made where it is missing.
        memory_limit: of DuckDB.
        told: is called with each file.

    Raises:
        UsageError: no release there, or one without anything to draw.
    """
    import vl_convert

    drawn, manifest = drawings(address, memory_limit)
    if not drawn:
        raise UsageError(
            f"{address} has nothing to draw: neither layers, bases nor published values."
        )
    vl_convert.register_font_directory(str(_font().parent))
    version = vega.vega_lite_version()
    for drawing in drawn:
        svg = vl_convert.vegalite_to_svg(drawing.spec, vl_version=version, config=_CONFIG)
        for suffix, data in (
            ("pdf", vl_convert.svg_to_pdf(svg)),
            ("svg", _with_font(svg).encode()),
        ):
            path = out / f"{drawing.name}.{suffix}"
            write_atomic(path, data)
            told(path)
    path = out / CAPTIONS
    write_atomic(path, _captions(drawn, manifest).encode())
    told(path)
