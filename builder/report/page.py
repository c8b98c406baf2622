"""The page: one self-contained HTML file of a release."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from builder import hub, schema
from builder.errors import UsageError
from builder.files import write_atomic
from builder.hub import Place
from builder.release.manifest import Manifest
from builder.release.reader import open_release
from builder.report.answers import answered
from builder.report.overlay import read_overlay
from builder.report.parts import Section
from builder.report.pictures import packed
from builder.report.sections import sections
from builder.report.tables import DETAILED_MODELS, columnar, open_tables, read
from builder.report.vega import vega_lite_version
from builder.sql import catalog
from builder.sql.findings import NOT_APPLICABLE, VERDICTS, scope
from builder.sql.run import run_query

_DRAWN = (
    "models",
    "layers",
    "member_lines",
    "depth_boxes",
    "depth_published",
    "pca",
    "pca_published",
    "histograms",
    "divergence_published",
    "pair_values",
    "responses",
)
"""Tables that charts draw from."""

_SAID = ("depth_summary", "unmeasured", "sparsity_summary", "correlations")
"""Tables that only the words of figures are made of."""


_LEADING = (
    "11_explained_variance",
    "06_sparsity_overall",
    "09_variance_entropy_by_depth",
    "18_first_layer_response",
    "14_divergence",
    "05_accuracy_correlation",
    "25_paired_effects",
)
"""Findings in the order in which a page opens with them."""


def _part(name: str) -> str:
    return (files("builder.report") / name).read_text(encoding="utf-8")


@functools.cache
def _libraries() -> dict[str, str]:
    """The JavaScript and style that the page carries: Vega once for all charts, and DataTables."""
    import vl_convert

    version = vega_lite_version()
    table = files("itables") / "html"
    return {
        "vega": vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version),
        "datatables": (table / "dt_bundle.js").read_text(encoding="utf-8"),
        "datatables_css": (table / "dt_bundle.css").read_text(encoding="utf-8"),
    }


def script(code: str) -> str:
    """JavaScript that can stand inside a <script>: what would end or open one is written as \\x3c.

    In a library such texts occur inside literals only, where the two mean the same.
    """
    return re.sub(r"<(?=/script|!--|script)", r"\\x3c", code, flags=re.I)


def without_libraries(page: str) -> str:
    """A page as far as it comes from a release, without the JavaScript and style of others."""
    return re.sub(r"<(script|style)(?! type=.application/json).*?</\1>", "", page, flags=re.DOTALL)


def embedded(value: Any) -> str:
    """JSON that can stand inside a <script>, whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def tag_of(address: str) -> Place | None:
    """Where a release is on the Hub, if its address names a revision there."""
    if not hub.is_address(address):
        return None
    place = hub.parse(address)
    return place if place.revision else None


def _notices(manifest: Manifest, tables: dict[str, pa.Table]) -> list[str]:
    """What a reader must know before the first figure."""
    kind = manifest["weights"].partition(":")[0]
    said = []
    if kind == "seeded":
        said.append(
            f"Synthetic: the weights are {manifest['weights']}, random numbers of the right "
            "shapes. Nothing here says anything about trained networks."
        )
    if kind == "published":
        said.append("Published values, copied and not rebuilt: no checkpoint was read.")
    models = tables["models"].num_rows
    if not models:
        said.append("This release has no models.")
    elif not manifest["totals"]["pairs"]:
        said.append(
            "This release has no pairs of a robust and a standard model: nothing is compared."
        )
    rows = tables["models"].select(["kind", "threat_model"]).to_pylist()
    if apart := scope(r["threat_model"] for r in rows if r["kind"] == "robust"):
        said.append(apart)
    if models > DETAILED_MODELS:
        said.append(
            f"Layers, bases and filters are shown of {DETAILED_MODELS} of {models:,} models, "
            "those of pairs first; box plots, sparsity, accuracies and findings are over all."
        )
    return said


def _headlines(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The findings that a page opens with: those of `_LEADING` that this release can tell."""
    by_name = {f["query"]: f for f in found}
    told = (by_name[name] for name in _LEADING if by_name[name]["verdict"] != NOT_APPLICABLE)
    return list(islice(told, 4))


def _identity(manifest: Manifest) -> dict[str, Any]:
    totals = manifest["totals"]
    return {
        "name": manifest["name"],
        "version": manifest["version"],
        "cohort": manifest["cohort"]["name"],
        "weights": manifest["weights"],
        "digest": manifest.get("sha256", ""),
        "totals": {k: f"{n:,}" for k, n in totals.items()},
    }


def _json(section: Sequence[Section]) -> list[dict[str, Any]]:
    keep = ("id", "title", "spec", "data", "behind", "texts")
    return [{k: asdict(f)[k] for k in keep} for s in section for f in s.figures]


def render(
    address: str,
    *,
    overlay: Path | None = None,
    place: Place | None = None,
    memory_limit: str | None = None,
    threads: int | None = None,
) -> str:
    """The page of a release, as HTML.

    Args:
        address: folder, or hf:// address.
        overlay: JSON of `builder measure`, laid over the depth figures.
        place: where the release is (or will be) on the Hub at a tag, for links to its SQL
            console; default: what the address says.
        memory_limit: of DuckDB, e.g. "4GB".
        threads: of DuckDB; with one, the same release has the same page to the byte.

    Raises:
        UsageError: no release there, or no measurement in `overlay`.
    """
    from jinja2 import Environment

    release = open_release(hub.release_address(address))
    place = place or tag_of(address)
    with open_tables(release, memory_limit=memory_limit, threads=threads) as con:
        tables = {name: read(con, name) for name in (*_DRAWN, *_SAID, "first_filters", "sample")}
        tables["model_values"] = con.sql("from model_values").to_arrow_table()
        answer = run_query(con, catalog.load("divergence_by_depth"))
        tables["divergence"] = pa.Table.from_batches(answer.batches, answer.schema)
        found = answered(con, release.manifest, place)
    if release.manifest["weights"] == "published":  # nothing to be laid over itself
        tables["pca_published"] = tables["pca_published"].slice(0, 0)
    if overlay is not None:
        tables["overlay"] = read_overlay(overlay)
    parts = sections(tables)
    drawn = {*_DRAWN, "model_values", "divergence", "overlay"} & tables.keys()
    data = {
        "tables": {name: columnar(tables[name]) for name in sorted(drawn)}
        | {
            "first_filters": packed(tables["first_filters"], scale_by="model_id"),
            "sample": packed(tables["sample"]),
        },
        "figures": _json(parts),
        "findings": [{k: f[k] for k in ("query", "sql", "columns", "rows")} for f in found],
        "unions": list(schema.UNIONS),
    }
    libraries = _libraries()
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        _part("page.html.jinja")
    )
    counts = Counter(f["verdict"] for f in found)
    return template.render(
        release=_identity(release.manifest),
        place=place,
        notices=_notices(release.manifest, tables),
        sections=parts,
        findings=found,
        headlines=_headlines(found),
        verdicts=[(v, counts[v]) for v in VERDICTS if counts[v]],
        overlay=tables["overlay"]["name"][0].as_py() if overlay is not None else None,
        has_trained=_has_trained(tables),
        n_models=tables["models"].num_rows,
        n_layers=tables["layers"].num_rows,
        css=libraries["datatables_css"].replace("</style", "<\\/style") + _part("page.css"),
        vega=script(libraries["vega"]),
        datatables=script(libraries["datatables"]),
        page=script(_part("page.js")),
        data=embedded(data),
    )


def _has_trained(tables: dict[str, pa.Table]) -> bool:
    """Whether anything was measured on trained weights: the published study has none."""
    return any("trained" in tables[n].column("weights").to_pylist() for n in ("layers", "pca"))


def write_report(
    address: str,
    out: Path,
    *,
    overlay: Path | None = None,
    place: Place | None = None,
    memory_limit: str | None = None,
) -> int:
    """Write the page of a release to a file; returns its bytes. Arguments as `render`."""
    if out.is_dir():
        raise UsageError(f"{out} is a folder.", hint=f"name a file, e.g. {out / 'report.html'}")
    if out.suffix not in (".html", ".htm"):
        raise UsageError(f"cannot write the page to {out.name}; expected .html.")
    page = render(address, overlay=overlay, place=place, memory_limit=memory_limit).encode()
    write_atomic(out, page)
    return len(page)
