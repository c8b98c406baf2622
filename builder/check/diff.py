"""What changed between two releases, and which version that calls for.

Rules (design: versions): patch = other bytes, same content; minor = more rows, columns or tables;
major = an existing value or name changed or went away. Numbers that summarise all models of a
release (the union bases of `pca`, `histograms`) follow from its list of models: where models
were only added, their change alone does not make a release major.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb

from builder import schema
from builder.errors import UsageError
from builder.release.manifest import FileFacts
from builder.release.reader import Release, open_release
from builder.release.versions import BUMPS, next_version

_EXAMPLES = 5


@dataclass(frozen=True)
class ColumnChange:
    """Rows in which a column differs; `largest` is the largest absolute difference of numbers."""

    column: str
    rows: int
    largest: float | None = None


@dataclass(frozen=True)
class TableChange:
    """What changed in one table, matched by its key. Row counts; a few keys as examples.

    `path` is the file, where the table has several. `summary_rows` of `changed_rows` summarise
    all models of the release.
    """

    table: str
    path: str = ""
    added_columns: list[str] = field(default_factory=list)
    removed_columns: list[str] = field(default_factory=list)
    retyped_columns: list[str] = field(default_factory=list)
    added_rows: int = 0
    removed_rows: int = 0
    changed_rows: int = 0
    summary_rows: int = 0
    columns: list[ColumnChange] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)


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
        reasons = [("patch", f"other bytes, same content: {', '.join(result.files_changed)}")]
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
            yield level, f"{text}: {', '.join(names)}"
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
            names_changed = ", ".join(c.column for c in t.columns)
            yield "major", f"{name}: {t.changed_rows:,} rows changed in {names_changed}"
        if summaries:
            yield "minor", f"{name}: {summaries:,} rows that summarise all models changed"
        if t.removed_rows:
            yield "major", f"{name}: {t.removed_rows:,} rows removed"
        if t.added_rows:
            yield "minor", f"{name}: {t.added_rows:,} rows added"


def _quoted(path: Path) -> str:
    return "read_parquet('" + str(path).replace("'", "''") + "', hive_partitioning = false)"


def _compare(old: Release, new: Release, path: str, values: bool) -> Iterator[TableChange]:
    """The change of one table file whose content hash differs."""
    table = schema.table_at(path)
    if table is None:
        return  # of a later schema
    name = table.name
    if name == "filters" and not values:
        yield TableChange("filters", path)
        return
    with duckdb.connect() as con:
        for side, release in (("a", old), ("b", new)):
            source = _quoted(release.fetch(path))
            con.execute(f"CREATE VIEW {side} AS FROM {source}")
        types_a, types_b = (
            {r[0]: r[1] for r in con.execute(f"DESCRIBE {side}").fetchall()} for side in "ab"
        )
        shared = [c for c in types_a if c in types_b]
        key = table.key
        if not set(key) <= set(shared):
            raise UsageError(f"{path}: the key {', '.join(key)} is not in both releases.")
        found = _rows(con, key, [c for c in shared if c not in key], types_a)
        summary = _summary_rows(con, name)
    change = TableChange(
        name,
        path if name == "filters" else "",
        added_columns=[c for c in types_b if c not in types_a],
        removed_columns=[c for c in types_a if c not in types_b],
        retyped_columns=[c for c in shared if types_a[c] != types_b[c]],
        summary_rows=summary,
        **found,
    )
    if change != TableChange(name, change.path):
        yield change


def _rows(
    con: duckdb.DuckDBPyConnection,
    key: tuple[str, ...],
    columns: list[str],
    types: dict[str, str],
) -> dict[str, Any]:
    """Counts of added, removed and changed rows and of each changed column."""
    match = " AND ".join(f"a.{k} IS NOT DISTINCT FROM b.{k}" for k in key)
    con.execute(
        f"CREATE TEMP TABLE joined AS {_projection(key, columns)} "
        "FROM (SELECT *, true AS here FROM a) AS a "
        f"FULL JOIN (SELECT *, true AS here FROM b) AS b ON {match}"
    )
    ((added, removed, changed),) = con.execute(
        "SELECT count(*) FILTER (NOT in_a), count(*) FILTER (NOT in_b), "
        "count(*) FILTER (in_a AND in_b AND changed) FROM joined"
    ).fetchall()
    counts: list[ColumnChange] = []
    for i, column in enumerate(columns if changed else []):
        number = types[column] in ("FLOAT", "DOUBLE", "BIGINT", "INTEGER", "SMALLINT")
        far = f"max(abs(a{i}::DOUBLE - b{i}::DOUBLE))" if number else "NULL"
        ((rows, largest),) = con.execute(
            f"SELECT count(*), {far} FROM joined WHERE in_a AND in_b AND a{i} IS DISTINCT FROM b{i}"
        ).fetchall()
        if rows:
            counts.append(ColumnChange(column, rows, largest))
    examples = con.execute(
        "SELECT key FROM joined WHERE NOT in_a OR NOT in_b OR changed "
        f"ORDER BY key LIMIT {_EXAMPLES}"
    ).fetchall()
    return {
        "added_rows": added,
        "removed_rows": removed,
        "changed_rows": changed,
        "columns": counts,
        "examples": [text for (text,) in examples],
    }


def _projection(key: tuple[str, ...], columns: list[str]) -> str:
    pairs = ", ".join(f'a."{c}" AS a{i}, b."{c}" AS b{i}' for i, c in enumerate(columns))
    text = ", ', ', ".join(f"coalesce(a.{k}::VARCHAR, b.{k}::VARCHAR, '-')" for k in key)
    changed = " OR ".join(f'a."{c}" IS DISTINCT FROM b."{c}"' for c in columns) or "false"
    flags = "coalesce(a.here, false) AS in_a, coalesce(b.here, false) AS in_b"
    return f"SELECT concat({text}) AS key, {flags}, {changed} AS changed, {pairs}"


def _summary_rows(con: duckdb.DuckDBPyConnection, name: str) -> int:
    """How many of the changed rows summarise all models of a release."""
    if name == "histograms":
        where = "true"
    elif name == "pca":
        where = f"split(key, ', ')[1] IN {schema.UNIONS}"  # `basis` comes first
    else:
        return 0
    sql = f"SELECT count(*) FROM joined WHERE in_a AND in_b AND changed AND {where}"
    (count,) = con.execute(sql).fetchall()[0]
    return int(count)


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
        if names:
            lines.append(f"{text} ({len(names)}): {', '.join(names)}")
    for t in d.tables:
        counts = [(t.added_rows, "added"), (t.removed_rows, "removed"), (t.changed_rows, "changed")]
        rows = ", ".join(f"{n:,} rows {what}" for n, what in counts if n) or "see above"
        lines.append(f"{t.path or t.table}: {rows}")
        for c in t.columns:
            far = "" if c.largest is None else f", by at most {c.largest:.3g}"
            lines.append(f"  {c.column}: {c.rows:,} rows{far}")
        lines += [f"  e.g. {key}" for key in t.examples]
    others = [p for p in d.files_changed if not p.startswith("data/")]
    if others:
        lines.append(f"other files: {', '.join(others)}")
    if d.bump == "none":
        return "\n".join([*lines, "nothing changed: no new version is called for.\n"])
    lines += [f"  {reason}" for reason in d.reasons]
    return "\n".join(
        [*lines, f"{d.bump} change: the next version is {d.next_version} or higher.\n"]
    )
