"""The views of a release, for DuckDB: in a folder, on the Hub, or in object storage.

They come from queries/views.sql, the same file a bare duckdb shell reads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from builder import hub, schema
from builder.errors import BuilderError, NetworkError, UsageError
from builder.files import project_file, scratch
from builder.release.listed import listed_files
from builder.release.manifest import Manifest, filter_files
from builder.secrets import redact

if TYPE_CHECKING:
    from builder.release.reader import Release


_AWAY = "filters of a release that are not in the cache of the Hub, which does not answer"


@contextmanager
def open_views(
    release: Release, *, memory_limit: str | None = None, threads: int | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with the views of a release; closed at the end, whatever happens.

    Args:
        release: from open_release.
        memory_limit: as DuckDB writes it, e.g. "4GB"; more goes to temporary files.
        threads: upper bound; default all cores.

    Raises:
        UsageError: a memory limit that DuckDB does not understand, or files it cannot read.
        NetworkError: the Hub does not answer.
    """
    with connect(memory_limit=memory_limit, threads=threads) as con:
        if release.opened is not None:
            sizes = {path: facts["bytes"] for path, facts in release.manifest["files"].items()}
            con.register_filesystem(listed_files(release.address, sizes, release.opened))
        create_views(con, release.address, release.manifest)
        yield con


@contextmanager
def connect(
    *, memory_limit: str | None = None, threads: int | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to an empty database; what does not fit into memory goes to a temporary folder.

    Raises:
        UsageError: a memory limit that DuckDB does not understand.
    """
    settings: dict[str, str | int] = {}
    if memory_limit is not None:
        settings["memory_limit"] = memory_limit
    if threads is not None:
        settings["threads"] = threads
    with scratch() as spill:
        try:
            con = duckdb.connect(config={**settings, "temp_directory": str(spill)})
        except duckdb.Error as e:
            raise UsageError(f"--memory-limit {memory_limit}: {first_line(e)}") from None
        with con:
            # DuckDB takes `python -c` for a person at a terminal, and draws a bar on its output.
            con.execute("set enable_progress_bar = false")
            yield con


def create_views(con: duckdb.DuckDBPyConnection, root: str, manifest: Manifest) -> None:
    """Run views.sql on a release; a release without filters gets an empty view of them.

    Args:
        root: folder, hf:// or s3:// address of the release, without a slash at the end.
        manifest: its manifest, which says whether there are filters.
    """
    has_filters = bool(filter_files(manifest))
    away = hub.is_away(root)
    if not away:
        root = literal(root)
    con.execute("set variable release = ?", [root])
    views = (project_file("queries") / "views.sql").read_text(encoding="utf-8")
    for statement in duckdb.extract_statements(views):
        if not has_filters and "view filters" in statement.query:
            con.register("filters", schema.FILTERS.arrow.empty_table())
            continue
        try:
            with explained("the views"):
                con.execute(statement)
        except BuilderError as e:
            if not ("view filters" in statement.query and away):
                raise
            _say_when_asked(con, _AWAY if root.startswith("hf://") else f"NetworkError: {e}")


def _say_when_asked(con: duckdb.DuckDBPyConnection, why: str) -> None:
    """A view `filters` that fails when it is read: the small tables are there without it."""
    con.register("no_filters", schema.FILTERS.arrow.empty_table())
    quoted = why.replace("'", "''")
    failure = f"error('{quoted}')"
    columns = ", ".join(
        f'{failure}::{kind} as "{name}"'
        for name, kind, *_ in con.execute("describe no_filters").fetchall()
    )
    con.execute(f"create or replace view filters as select {columns} where {failure} is null")


def literal(path: str | Path) -> str:
    """A file or folder of this machine as a text that DuckDB takes for that path and nothing else.

    Not for a pattern, though it hold `*`, `?` or `[`; not for an address or somebody's home, though
    it begin with `s3:` or `~`.

    Raises:
        UsageError: a name DuckDB cannot read.
    """
    text = str(Path(path).absolute())
    if os.sep == "/" and "\\" in text:
        raise UsageError(
            f"{path} has a backslash in its name, which DuckDB takes for a slash.",
            hint="rename the folder, or reach it by a link of another name.",
        )
    return re.sub(r"[*?[]", r"[\g<0>]", text)


def scan(file: str) -> str:
    """SQL that reads one Parquet file of a release: a `literal` path, or an address on the Hub.

    Without Hive's partitions: the columns of a release are in its files, and no folder above it
    that is called `robust=false` has a say.
    """
    quoted = file.replace("'", "''")
    return f"read_parquet('{quoted}', hive_partitioning = false)"


def one_select(name: str, sql: str) -> duckdb.Statement:
    """The one SELECT that a text is: nothing that is asked of a release writes anything.

    Raises:
        UsageError: several statements, none, or another kind.
    """
    with explained(name):
        statements = duckdb.extract_statements(sql)
    kinds = [s.type for s in statements]
    if kinds != [duckdb.StatementType.SELECT]:
        found = ", ".join(k.name for k in kinds) or "nothing"
        raise UsageError(f"{name}: expected one SELECT, found {found}.")
    (statement,) = statements
    return statement


@contextmanager
def explained(name: str) -> Iterator[None]:
    """DuckDB's own words, in the project's kind of error."""
    try:
        yield
    except duckdb.Error as e:
        raise _in_our_words(name, e) from None


def _in_our_words(name: str, error: duckdb.Error) -> BuilderError:
    # What a file system of ours raises arrives inside of DuckDB's error, traceback and all.
    if ours := re.search(r"NetworkError: (?:the views: )?(.+)", str(error)):
        return NetworkError(f"{name}: {ours[1]}", hint="run the same command again.")
    if isinstance(error, duckdb.OutOfMemoryException):
        return BuilderError(
            f"{name}: out of memory: {first_line(error)}", hint="try a higher --memory-limit."
        )
    if isinstance(error, duckdb.IOException | duckdb.HTTPException):
        text = redact(first_line(error))
        if "hf://" in text or "HTTP" in text:
            return NetworkError(f"{name}: {text}")
        return UsageError(
            f"{name}: {text}", hint="`builder verify RELEASE` says whether the release is whole."
        )
    if _AWAY in str(error):
        return NetworkError(
            f"{name}: {_AWAY}.",
            hint="connect (unset HF_HUB_OFFLINE), or fetch the release once: "
            "hf download ORG/NAME --repo-type dataset --revision TAG",
        )
    return UsageError(
        f"{name}: {redact(str(error).strip())}",
        hint="`builder query 'show tables'` lists the tables of a release."
        if "Table with name" in str(error)
        else "",
    )


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
