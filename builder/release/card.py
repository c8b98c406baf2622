"""The dataset card: dataset_card.md filled in from the manifest, the schema and `models`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builder import schema
from builder.files import project_file
from builder.release import sample
from builder.release.manifest import FileFacts, Manifest
from builder.release.split import SPLITS
from builder.release.write import ROWS_PER_GROUP

SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
    (10**10, "1B<n<10B"),
)

SHAREABLE = {
    "MIT",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "CC-BY-4.0",
    "CC-BY-SA-4.0",
}
"""Licences whose filters may be passed on under CC BY-SA 4.0."""

TAGS = (
    "tabular",
    "convolution",
    "cnn",
    "weights",
    "adversarial-robustness",
    "robustbench",
    "interpretability",
    "parquet",
    "duckdb",
)


def render_card(
    manifest: Manifest, root: Path, repo_id: str | None = None, findings: str = ""
) -> str:
    """The card of a release as Markdown with its YAML head.

    Args:
        manifest: the release's manifest; `files` need not name README.md.
        root: the release folder, its tables in place.
        repo_id: "org/name" on the Hub, for the loading examples; None: the folder itself.
        findings: what there is to say of the queries at that place, as Markdown.
    """
    models = pq.read_table(root.absolute() / schema.table_path("models")).to_pylist()
    tag = f"v{manifest['version']}"
    files, totals = manifest["files"], manifest["totals"]
    datasets = sorted({m["dataset"] for m in models})
    tables = {n: t for n, t in schema.TABLES.items() if _has(files, n)}
    data = [f for path, f in files.items() if path.startswith("data/")]
    values = {
        "metadata": "\n".join(_metadata(manifest, models, datasets)),
        "title": "Robust Filter Lens",
        "notice": _notice(manifest["weights"]),
        "robust_models": str(sum(m["robust"] for m in models)),
        "standard_models": str(sum(not m["robust"] for m in models)),
        "tag": tag,
        "cohort": f"cohort `{manifest['cohort']['name']}`",
        **{name: f"{totals[name]:,}" for name in ("models", "pairs", "layers", "filters")},
        "size": _bytes(sum(f["bytes"] for f in data)),
        "license_text": _license_text(models),
        **_provenance(manifest["cohort"]["name"]),
        # datasets names the data set after its folder, so "." will not do.
        "load": f'"{repo_id}"' if repo_id else "os.getcwd()",
        "import_cwd": "" if repo_id else "import os\n\n",
        "open": f'"{repo_id}"' if repo_id else '"."',
        "revision": f', revision="{tag}"' if repo_id else "",
        "tag_argument": f', "{tag}"' if repo_id else "",
        "files": f"hf://datasets/{repo_id}@{tag}" if repo_id else ".",
        "dataset": datasets[0],
        "findings": findings,
        "polars_example": _polars(repo_id, tag),
        "row_group": f"{ROWS_PER_GROUP:,}",
        "structure": _structure(files, datasets),
        "tables": "\n\n".join(_columns(t) for t in tables.values()),
        "splits": _splits(models),
        "made": _made(manifest),
        "sources": "\n".join(_sources(models)),
        "limits": "\n".join(_limits(manifest)),
    }
    template = project_file("dataset_card.md").read_text(encoding="utf-8")
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def _has(files: dict[str, FileFacts], table: str) -> bool:
    return table == "filters" or schema.table_path(table) in files


def _metadata(
    manifest: Manifest, models: list[dict[str, Any]], datasets: list[str]
) -> Iterator[str]:
    """The YAML head: what the Hub and `datasets` read."""
    if _restricted(models):
        yield "license: other"
        yield "license_name: per-model"
        yield "license_link: README.md#sources-and-licences"
    else:
        yield "license: cc-by-sa-4.0"
    yield "pretty_name: Robust Filter Lens"
    yield "size_categories:"
    yield f"- {size_category(manifest['totals']['filters'])}"
    yield "tags:"
    yield from (f"- {tag}" for tag in TAGS)
    yield "source_datasets:"
    yield "- original"
    yield "configs:"
    for name, pattern in configs(manifest["files"], datasets).items():
        yield f"- config_name: {name}"
        if name == "models":
            yield "  default: true"
        yield "  data_files:"
        yield "  - split: train"
        yield f"    path: {json.dumps(pattern)}"


def configs(files: dict[str, FileFacts], datasets: list[str]) -> dict[str, str]:
    """{configuration: its files}, `models` first: what load_dataset offers.

    An empty table is none: `datasets` cannot read a Parquet file without rows.
    """
    filled = [
        n for n in schema.SMALL_TABLES if _has(files, n) and files[schema.table_path(n)]["rows"]
    ]
    small = sorted(filled, key=lambda name: name != "models")
    found = {name: schema.table_path(name) for name in small}
    found |= {f"filters_{d}": schema.filters_path(d, "*") for d in datasets}
    if schema.SAMPLE in files:
        found["filters_sample"] = schema.SAMPLE
    return found


def size_category(n: int) -> str:
    """The Hub's size category of n rows."""
    return next((name for limit, name in SIZES if n < limit), "10B<n<100B")


def _restricted(models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [m for m in models if m["license"] not in SHAREABLE]


def _license_text(models: list[dict[str, Any]]) -> str:
    if not _restricted(models):
        return (
            "CC BY-SA 4.0 as a whole (that of the paper's data; every checkpoint here allows it), "
            "each model under its own, see `models.license`."
        )
    names = ", ".join(
        f"`{m['model_id']}` ({m['license'] or 'unknown'})" for m in _restricted(models)
    )
    return (
        "CC BY-SA 4.0 for what this project made; each model under its own, see `models.license`. "
        f"More restrictive or unknown: {names}."
    )


def _provenance(cohort: str) -> dict[str, str]:
    """Whence the models and their accuracies are."""
    if cohort == "paper":
        return {
            "accuracies": "accuracies are copied from RobustBench and the paper, not measured anew",
            "selection": "what RobustBench listed and the paper paired",
        }
    if cohort == "mini":
        return {
            "accuracies": "few epochs, one seed; accuracies are on a JPEG copy of CIFAR-10",
            "selection": "small networks that this project trained, and AutoAttack's example",
        }
    return {
        "accuracies": "accuracies are what the cohort lists",
        "selection": f"what the cohort `{cohort}` lists",
    }


def _notice(weights: str) -> str:
    if not weights.startswith("seeded"):
        return ""
    return (
        f"\n> **These are not trained filters.** The weights are pseudo-random (`{weights}`): a "
        "rehearsal of the pipeline. No number below says anything about real networks. Do not "
        "publish or cite.\n"
    )


def _bytes(n: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            break
        n /= 1000
    return f"{n:.3g} {unit}" if n < 1000 else f"{n:,.0f} {unit}"


def _polars(repo_id: str | None, tag: str) -> str:
    """Polars' own hf:// knows one endpoint only, so on the Hub the file is fetched first."""
    if repo_id is None:
        lines = ['path = "./data/layers.parquet"']
    else:
        lines = [
            "from huggingface_hub import hf_hub_download",
            "",
            f'at = {{"repo_type": "dataset", "revision": "{tag}"}}',
            f'path = hf_hub_download("{repo_id}", "data/layers.parquet", **at)',
        ]
    lines += [
        'mean = pl.scan_parquet(path).group_by("model_id").agg(pl.col("orthogonality").mean())',
        "print(mean.collect())",
    ]
    gap = [] if repo_id else [""]
    return "\n".join(["```python", "import polars as pl", *gap, *lines, "```"])


def _structure(files: dict[str, FileFacts], datasets: list[str]) -> str:
    lines = ["| configuration | rows | size | one row is |", "|---|---|---|---|"]
    for name, pattern in configs(files, datasets).items():
        stem, end = pattern.split("*") if "*" in pattern else (pattern, "")
        mine = [f for p, f in files.items() if p.startswith(stem) and p.endswith(end)]
        text = {"filters_sample": f"a filter; {sample.PER_LAYER} of each layer, evenly spaced"}.get(
            name, schema.TABLES["filters" if name.startswith("filters") else name].description
        )
        rows = sum(f["rows"] or 0 for f in mine)
        lines.append(f"| `{name}` | {rows:,} | {_bytes(sum(f['bytes'] for f in mine))} | {text} |")
    return "\n".join(lines)


def type_name(type_: pa.DataType) -> str:
    """An Arrow type in a reader's words."""
    if pa.types.is_dictionary(type_):
        return "string (dictionary)"
    if pa.types.is_fixed_size_list(type_):
        return f"{type_.value_type}[{type_.list_size}]"
    return {"float": "float32", "double": "float64"}.get(str(type_), str(type_))


def _columns(table: schema.Table) -> str:
    """The column table of one table."""
    lines = [f"### {table.name}", "", f"{table.description} Key: {', '.join(table.key)}.", ""]
    lines += ["| column | type | null | meaning |", "|---|---|---|---|"]
    for c in table.columns:
        text = c.description.replace("|", "\\|")
        null = "yes" if c.nullable else ""
        lines.append(f"| `{c.name}` | {type_name(c.type)} | {null} | {text} |")
    return "\n".join(lines)


def _splits(models: list[dict[str, Any]]) -> str:
    """How many models, groups and filters each split has."""
    total = sum(m["n_filters"] for m in models) or 1
    parts = []
    for name in SPLITS:
        mine = [m for m in models if m["split"] == name]
        share = sum(m["n_filters"] for m in mine) / total
        groups = len({m["group"] for m in mine})
        parts.append(f"{name} {len(mine)} models in {groups} groups, {share:.1%} of the filters")
    return f": {'; '.join(parts)}"


def _made(manifest: Manifest) -> str:
    tools = ", ".join(f"{name} {v}" for name, v in sorted(manifest["tools"].items()))
    return f"Weights: `{manifest['weights']}`. Made with {tools}."


def _sources(models: list[dict[str, Any]]) -> Iterator[str]:
    """One line per paper: the attribution its licence asks for."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for m in models:
        facts = ("title", "authors", "venue", "year", "paper_url", "license", "source")
        groups.setdefault(tuple(m[f] for f in facts), []).append(m["model_id"])
    yield "| models | paper | licence | weights from |"
    yield "|---|---|---|---|"
    ordered = sorted(groups.items(), key=lambda item: item[1])
    for (title, authors, venue, year, url, license_, source), ids in ordered:
        names = ", ".join(f"`{i}`" for i in ids)
        paper = f"[{title or 'paper'}]({url})" if url else (title or "")
        where = " ".join(str(v) for v in (venue, year) if v)
        cited = ". ".join(part for part in (authors, paper, where) if part).replace("|", "\\|")
        yield f"| {names} | {cited} | {license_ or 'unknown'} | {source} |"


def _limits(manifest: Manifest) -> Iterator[str]:
    """Limits that belong to this release in particular."""
    for group in manifest["duplicates"]:
        yield f"- Identical filters: {', '.join(f'`{m}`' for m in group)}."
    for problem in manifest["problems"]:
        yield f"- Known problem: {problem}"
