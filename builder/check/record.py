"""What the project keeps of a release in release/, and whether another build is still that release.

Kept are the manifest, the answer of every query and the scalar columns of the small tables as CSV,
and notes: whatever changes a published number shows in review as a changed line. Filters are
compared by content hash, texts and counts exactly, other numbers within the tolerances of the
schema: the answer of a query within the widest of the columns that it names.

Not kept as CSV: `histograms`, for its size, and vectors; the divergences, the frequencies and the
distances of bases follow from them. `paper` is kept once, with the release of published values.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import zip_longest
from pathlib import Path

import pyarrow as pa

from builder import schema
from builder.errors import UsageError
from builder.files import write_atomic
from builder.release.manifest import Manifest, filter_files, read_manifest
from builder.release.reader import open_release
from builder.release.views import open_views
from builder.schema import MANIFEST, Tolerance
from builder.sql import catalog, render
from builder.sql.catalog import Query
from builder.sql.run import run_query

NOTES = "NOTES.md"
KEPT = f"{MANIFEST}, answers/, tables/, {NOTES}"


@dataclass(frozen=True)
class Sheet:
    """One CSV of a record.

    Attributes:
        path: where it lies in the record. query: what it answers.
        columns: tolerance of each column of a table. otherwise: that of any other column.
    """

    path: str
    query: Query
    columns: Mapping[str, Tolerance] = field(default_factory=dict)
    otherwise: Tolerance = schema.EXACT


def folder_of(manifest: Manifest) -> str:
    """Name of a version's folder: `mini-v0.1.0`, or `reference-v0.1.0` for published values."""
    published = manifest["weights"] == "published"
    return f"{'reference' if published else manifest['cohort']['name']}-v{manifest['version']}"


def sheets(manifest: Manifest) -> Iterator[Sheet]:
    """Every CSV of a release's record."""
    for query in catalog.list_queries():
        yield Sheet(f"answers/{query.name}.csv", query, otherwise=_widest(query))
    for name in schema.SMALL_TABLES:
        published = manifest["weights"] == "published"
        kept = published if name == "paper" else name != "histograms"
        if not (kept and manifest["files"][schema.table_path(name)]["rows"]):
            continue
        table = schema.TABLES[name]
        columns = {c.name: c.tolerance for c in table.columns if not pa.types.is_nested(c.type)}
        wanted = ", ".join(f'"{c}"' for c in columns)
        sql = f"select {wanted} from {name} order by {', '.join(table.key)}"
        yield Sheet(f"tables/{name}.csv", Query(name, sql), columns)


def _widest(query: Query) -> Tolerance:
    """The widest tolerance of the columns that a query names, itself or in the views it uses."""
    words = set(re.findall(r"\w+", " ".join([query.sql, *catalog.definitions(query.sql).values()])))
    named = [
        c.tolerance
        for table in schema.TABLES.values()
        for c in table.columns
        if c.name in words and not pa.types.is_integer(c.type)
    ]
    return Tolerance(
        relative=max(t.relative for t in [*named, schema.SHARE]),
        absolute=max(t.absolute for t in [*named, schema.SHARE]),
    )


def record(root: Path, folder: Path, *, update: bool = False) -> Path:
    """Write the record of a release; notes that are there stay.

    Args:
        root: the release. folder: `release/` of the project.
        update: replace the record of another build of this version. Lines that agree within the
            tolerances stay as they are.

    Returns:
        The folder of the version.

    Raises:
        UsageError: no release there, or another build of this version is kept already.
        BuilderError: a query does not run on it.
    """
    manifest = read_manifest(root)
    target = folder / folder_of(manifest)
    raw = (root / MANIFEST).read_bytes()
    kept = target / MANIFEST
    if kept.exists() and kept.read_bytes() != raw and not update:
        raise UsageError(
            f"{target} keeps another release of version {manifest['version']}.",
            hint=f"`builder record {root} --check` says whether they differ; `--update` renews it, "
            "unless it was published: then `builder build --version` gives yours another version.",
        )
    texts = {}
    for sheet, fresh in _answers(root, manifest):
        old = _read(target / sheet.path)
        texts[sheet.path] = _compare(sheet, old, fresh).renewed if old else fresh
    for path, rows in texts.items():
        write_atomic(target / path, _text(rows))
    for stale in _stale(target, texts):
        stale.unlink()
    write_atomic(kept, raw)
    notes = target / NOTES
    if not notes.exists():
        totals = ", ".join(f"{n:,} {what}" for what, n in manifest["totals"].items())
        text = (
            f"# {manifest['name']} {manifest['version']}\n\n"
            f"Cohort `{manifest['cohort']['name']}`, weights `{manifest['weights']}`: {totals}.\n\n"
            "What changed, and why:\n\n- \n"
        )
        write_atomic(notes, text.encode())
    return target


def check(root: Path, folder: Path) -> dict[Path, list[str]]:
    """What differs between a release and the record of its version, by more than is allowed.

    Returns:
        {file of the record: its differences, each a line `FILE:LINE: what`}; empty: none.

    Raises:
        UsageError: no release there, or no record of its version.
    """
    manifest = read_manifest(root)
    target = folder / folder_of(manifest)
    if not (target / MANIFEST).exists():
        raise UsageError(
            f"{target} keeps no record of {root}.", hint=f"`builder record {root}` makes it."
        )
    found = {target / MANIFEST: list(_facts(read_manifest(target), manifest))}
    paths = set()
    for sheet, fresh in _answers(root, manifest):
        paths.add(sheet.path)
        path = target / sheet.path
        old = _read(path)
        found[path] = list(_compare(sheet, old, fresh).faults) if old else ["is not recorded"]
    found |= {path: ["nothing answers it any more"] for path in _stale(target, paths)}
    return {
        path: [f"{path}:{text}" if text[0].isdigit() else f"{path}: {text}" for text in texts]
        for path, texts in found.items()
        if texts
    }


def _facts(kept: Manifest, manifest: Manifest) -> Iterator[str]:
    """Differences of two manifests that no CSV shows."""
    for name in ("weights", "schema_version", "totals", "problems"):
        if kept[name] != manifest[name]:
            yield f"{name}: {manifest[name]}, recorded {kept[name]}"
    sides = [
        {model: m["files"][path]["content_hash"] for model, path in filter_files(m).items()}
        for m in (manifest, kept)
    ]
    for model in sorted(sides[0].keys() | sides[1].keys()):
        new, old = (side.get(model, "none") for side in sides)
        if new != old:
            yield f"filters of {model}: content hash {new}, recorded {old}"


Row = tuple[int, list[str]]
"""A row of a CSV, and the number of its line."""


def _answers(root: Path, manifest: Manifest) -> Iterator[tuple[Sheet, list[Row]]]:
    with open_views(open_release(root)) as con:
        for sheet in sheets(manifest):
            answer = run_query(con, sheet.query)
            text = io.BytesIO()
            render.write(answer.name, answer.schema, answer.batches, "csv", text)
            yield sheet, _parse(text.getvalue().decode())


def _parse(text: str) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""))
    return [(reader.line_num, row) for row in reader]


def _read(path: Path) -> list[Row]:
    """Header and rows of a recorded CSV; none where it is not there."""
    return _parse(path.read_text(encoding="utf-8")) if path.exists() else []


def _text(rows: Iterable[Row]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(row for _, row in rows)
    return text.getvalue().encode()


def _stale(target: Path, paths: Iterable[str]) -> list[Path]:
    """CSVs of a record that no query and no table has any more."""
    return sorted(set(target.rglob("*.csv")) - {target / path for path in paths})


@dataclass(frozen=True)
class _Comparison:
    faults: list[str]
    renewed: list[Row]


def _compare(sheet: Sheet, old: list[Row], fresh: list[Row]) -> _Comparison:
    """A recorded CSV beside a fresh one: what is beyond the tolerances, and the record renewed."""
    names = fresh[0][1]
    if old[0][1] != names:
        there, here = ", ".join(old[0][1]), ", ".join(names)
        return _Comparison([f"1: columns {here}; recorded {there}"], fresh)
    faults, renewed = [], [old[0]]
    for a, b in _matched(old[1:], fresh[1:]):
        beyond = []
        if a and b:
            beyond = list(_cells(sheet, names, a[1], b[1]))
            faults += [f"{a[0]}: {text}" for text in beyond]
        elif a:
            faults.append(f"{a[0]}: gone: {','.join(a[1])}")
        elif b:
            faults.append(f"{renewed[-1][0]}: followed by a new line: {','.join(b[1])}")
        if b:
            renewed.append(a if a and not beyond else (a[0] if a else renewed[-1][0], b[1]))
    return _Comparison(faults, renewed)


def _matched(old: list[Row], fresh: list[Row]) -> Iterator[tuple[Row | None, Row | None]]:
    """Rows side by side, by what is no rounded number in them."""
    here, there = (
        [tuple(c for c in row if not _is_rounded(c)) for _, row in side] for side in (old, fresh)
    )
    matcher = SequenceMatcher(None, here, there, autojunk=False)
    for kind, a, a_end, b, b_end in matcher.get_opcodes():
        if kind == "equal" or a_end - a == b_end - b:
            yield from zip(old[a:a_end], fresh[b:b_end], strict=True)
        else:
            yield from ((row, None) for row in old[a:a_end])
            yield from ((None, row) for row in fresh[b:b_end])


def _is_rounded(cell: str) -> bool:
    """Whether a cell is a float; integers and texts are compared as they are."""
    return re.fullmatch(r"-?(\d+\.\d*|\d+(\.\d*)?e[+-]?\d+)", cell) is not None


def _cells(sheet: Sheet, names: list[str], old: list[str], fresh: list[str]) -> Iterator[str]:
    for name, a, b in zip_longest(names, old, fresh, fillvalue=""):
        if a == b:
            continue
        allowed = ""
        if _is_rounded(a) and _is_rounded(b):
            tolerance = sheet.columns.get(name, sheet.otherwise)
            x, y = float(a), float(b)
            limit = tolerance.absolute + tolerance.relative * max(abs(x), abs(y))
            if abs(x - y) <= limit:
                continue
            allowed = f" (may differ by {limit:.2g})" if limit else ""
        yield f"{name}: {b or 'null'}, recorded {a or 'null'}{allowed}"
