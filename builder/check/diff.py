"""What changed between two releases, and which version that calls for.

Rules (design: versions): patch = other bytes, same content but for the rounding that the schema
allows each column; minor = more rows, columns or tables; major = an existing value or name changed
or went away. What follows from all models of a release (the union bases of `pca`, `histograms`,
`models.group` and `models.split`) follows from its list of models: where models were only added,
its change alone does not make a release major.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from builder import schema
from builder.check.rows import RowChanges, column_types, compare_filters, compare_rows
from builder.release.manifest import FileFacts
from builder.release.reader import Release, open_release
from builder.release.versions import BUMPS, next_version

SHOWN = 10
"""Names of one kind that the text lists."""
NAMED = 3
"""Names that a reason gives."""


@dataclass(frozen=True)
class TableChange(RowChanges):
    """What changed in one table, matched by its key; `path` is the file, where it has several."""

    table: str = ""
    path: str = ""
    added_columns: list[str] = field(default_factory=list)
    removed_columns: list[str] = field(default_factory=list)
    retyped_columns: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Diff:
    """Release `b` against release `a`.

    `bump` is one of BUMPS, `next_version` the lowest version `b` may have, `reasons` say why.
    """

    a: dict[str, str]
    b: dict[str, str]
    models_added: list[str]
    models_removed: list[str]
    models_changed: list[str]
    tables_added: list[str]
    tables_removed: list[str]
    tables: list[TableChange]
    files_changed: list[str]
    bump: str
    next_version: str
    reasons: list[str]


def diff(a: str | Path | Release, b: str | Path | Release, *, values: bool = True) -> Diff:
    """Compare two releases: folders, "hf://datasets/org/name@tag", or open ones.

    Filter files whose content hash is the same, and small tables whose bytes are, are not opened
    (nor downloaded).

    Args:
        a: the earlier release.
        b: the later release.
        values: compare filters of changed models value by value; False only says that they
            changed, without reading (or downloading) them.

    Raises:
        UsageError: no release.
        NetworkError: a Hub release that cannot be read.
    """
    old, new = (r if isinstance(r, Release) else open_release(r) for r in (a, b))
    models_old, models_new = set(old.manifest["models"]), set(new.manifest["models"])
    only_added = models_old < models_new
    files_a, files_b = _tables(old), _tables(new)
    changes = [
        change
        for path in sorted(files_a.keys() & files_b.keys())
        if _differs(path, files_a[path], files_b[path])
        for change in _compare(old, new, path, values)
    ]
    changed = sorted(
        Path(c.path).stem
        for c in changes
        if c.table == "filters"
        and c.path != schema.SAMPLE
        and (c.changed_rows or c.added_rows or c.removed_rows or not values)
    )
    small_a, small_b = (
        {p for p in files if not schema.filters_key(p)} for files in (files_a, files_b)
    )
    result = Diff(
        a=_about(old),
        b=_about(new),
        models_added=sorted(models_new - models_old),
        models_removed=sorted(models_old - models_new),
        models_changed=changed,
        tables_added=sorted(Path(p).stem for p in small_b - small_a),
        tables_removed=sorted(Path(p).stem for p in small_a - small_b),
        tables=changes,
        files_changed=_other_files(old, new),
        bump="none",
        next_version=old.manifest["version"],
        reasons=[],
    )
    reasons = sorted(_reasons(result, only_added), key=lambda r: -BUMPS.index(r[0]))
    if result.files_changed and not reasons:
        reasons = [("patch", f"other bytes, same content: {_some(result.files_changed)}")]
    bump = reasons[0][0] if reasons else "none"
    said = [f"{level}: {text}" for level, text in reasons]
    version = next_version(result.a["version"], bump)
    return replace(result, bump=bump, next_version=version, reasons=said)


def _about(release: Release) -> dict[str, str]:
    return {"address": release.address, "version": release.manifest["version"]}


def _tables(release: Release) -> dict[str, FileFacts]:
    return {p: f for p, f in release.manifest["files"].items() if f["content_hash"] is not None}


def _differs(path: str, a: FileFacts, b: FileFacts) -> bool:
    """Whether to look inside. A content hash ignores the width of integers; bytes do not."""
    if schema.filters_key(path):
        return a["content_hash"] != b["content_hash"]
    return a["sha256"] != b["sha256"]


def _other_files(old: Release, new: Release) -> list[str]:
    """Files whose bytes differ or that are on one side only, the manifest aside."""
    a, b = old.manifest["files"], new.manifest["files"]
    return sorted(
        p for p in {*a, *b} if p not in a or p not in b or a[p]["sha256"] != b[p]["sha256"]
    )


def _reasons(d: Diff, only_added: bool) -> Iterator[tuple[str, str]]:
    """(bump, why) for everything that changed."""
    for level, names, text in (
        ("major", d.models_removed, "models removed"),
        ("major", d.tables_removed, "tables removed"),
        ("major", d.models_changed, "filters changed"),
        ("minor", d.models_added, "models added"),
        ("minor", d.tables_added, "tables added"),
    ):
        if names:
            yield level, f"{text}: {_some(names)}"
    for t in d.tables:
        name = t.path or t.table
        if t.path == schema.SAMPLE:
            continue  # follows from the filters
        for columns, level, text in (
            (t.removed_columns, "major", "columns removed"),
            (t.retyped_columns, "major", "column types changed"),
            (t.added_columns, "minor", "columns added"),
        ):
            if columns:
                yield level, f"{name}: {text}: {', '.join(columns)}"
        if t.table == "filters":
            continue  # its rows are said above, by model
        summaries = t.summary_rows if only_added else 0
        if t.changed_rows > summaries:
            names_changed = ", ".join(c.column for c in t.columns if not c.rounding)
            yield "major", f"{name}: {t.changed_rows:,} rows changed in {names_changed}"
        if summaries:
            yield "minor", f"{name}: {summaries:,} rows that summarise all models changed"
        if t.removed_rows:
            yield "major", f"{name}: {t.removed_rows:,} rows removed"
        if t.added_rows:
            yield "minor", f"{name}: {t.added_rows:,} rows added"
    if rounded := [t for t in d.tables if t.rounding_rows]:
        yield "patch", _rounding(rounded)


def _rounding(tables: list[TableChange]) -> str:
    """One line on the differences that are rounding."""
    rows = ", ".join(f"{t.rounding_rows:,} rows of {t.table}" for t in tables)
    apart = max(c.largest or 0 for t in tables for c in t.columns if c.rounding)
    return f"rounding, within the tolerances of the columns: {rows}, by at most {apart:.3g}"


def _compare(old: Release, new: Release, path: str, values: bool) -> Iterator[TableChange]:
    """The change of one table file whose content hash differs."""
    table = schema.table_at(path)
    if table is None:
        return  # of a later schema
    name = table.name
    if name == "filters" and not values:
        yield TableChange(table=name, path=path)
        return
    a, b = old.fetch(path), new.fetch(path)
    types_a, types_b = column_types(a), column_types(b)
    shared = {c: type_ for c, type_ in types_a.items() if c in types_b}
    walk = schema.filters_key(path) is not None
    found = compare_filters(a, b, shared) if walk else compare_rows(a, b, table, shared)
    change = TableChange(
        **vars(found),
        table=name,
        path=path if name == "filters" else "",
        added_columns=[c for c in types_b if c not in types_a],
        removed_columns=[c for c in types_a if c not in types_b],
        retyped_columns=[c for c in shared if types_a[c] != types_b[c]],
    )
    if change != TableChange(table=name, path=change.path):
        yield change


def _some(names: list[str]) -> str:
    """Names in a sentence; of many, the first and how many more."""
    more = f" and {len(names) - NAMED} more" if names[NAMED:] else ""
    return ", ".join(names[:NAMED]) + more


def _listed(text: str, names: list[str]) -> Iterator[str]:
    """Names one a line below their heading; of many, the first and how many more."""
    if names:
        yield f"{text} ({len(names)}):"
        yield from (f"  {name}" for name in names[:SHOWN])
    if names[SHOWN:]:
        yield f"  and {len(names) - SHOWN} more; --json has all"


def as_text(d: Diff) -> str:
    """The difference in words, for people."""
    lines = [f"a: {d.a['address']} ({d.a['version']})", f"b: {d.b['address']} ({d.b['version']})"]
    for text, names in (
        ("models added", d.models_added),
        ("models removed", d.models_removed),
        ("models with other filters", d.models_changed),
        ("tables added", d.tables_added),
        ("tables removed", d.tables_removed),
    ):
        lines += _listed(text, names)
    for t in d.tables:
        counts = [(t.added_rows, "added"), (t.removed_rows, "removed"), (t.changed_rows, "changed")]
        rows = ", ".join(f"{n:,} rows {what}" for n, what in counts if n)
        if not rows and t.rounding_rows:
            continue  # one reason says it of all tables
        lines.append(f"{t.path or t.table}: {rows or 'see above'}")
        for c in t.columns:
            if c.rounding:
                continue
            far = "" if c.largest is None else f", by at most {c.largest:.3g}"
            lines.append(f"  {c.column}: {c.rows:,} rows{far}")
        lines += [f"  e.g. {key}" for key in t.examples]
    others = [p for p in d.files_changed if not p.startswith("data/")]
    if others:
        lines += _listed("other files", others)
    if d.bump == "none":
        return "\n".join([*lines, "nothing changed: no new version is called for.\n"])
    lines += [f"  {reason}" for reason in d.reasons]
    return "\n".join(
        [*lines, f"{d.bump} change: the next version is {d.next_version} or higher.\n"]
    )
