"""Run one query on the views of a release, and write its answer."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO

import duckdb
import pyarrow as pa

from builder import hub
from builder.errors import UsageError
from builder.files import write_atomic
from builder.release.reader import open_release
from builder.release.views import explained, first_line, one_select, open_views
from builder.secrets import redact
from builder.sql import catalog, render
from builder.sql.catalog import Query, list_queries

BATCH_ROWS = 65_536


def parse_params(texts: Sequence[str]) -> dict[str, str]:
    """`["k=v", ...]` as a dictionary.

    Raises:
        UsageError: a text without "=", or a name that is none.
    """
    params = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UsageError(f"--param {text!r}: expected name=value.")
        params[name] = value
    return params


def _check(query: Query, params: Mapping[str, str]) -> duckdb.Statement:
    """The one SELECT of a query, after its parameters were checked."""
    statement = one_select(query.name, query.sql)
    variables = re.findall(r"getvariable\('(\w+)'\)", query.sql)
    known = {*query.param_names, *variables, *statement.named_parameters}
    for name in params:
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise UsageError(
                f"{query.name} has no parameter '{name}'"
                + (f"; did you mean {near[0]}?" if near else "."),
                hint=f"it has {', '.join(sorted(known))}." if known else "it has none.",
            )
    unset = sorted(statement.named_parameters - params.keys())
    if unset:
        raise UsageError(f"{query.name} needs " + ", ".join(f"--param {n}=..." for n in unset))
    return statement


@dataclass(frozen=True)
class Answer:
    """An answer: its columns, and its rows in batches, which may be larger than memory."""

    name: str
    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]

    def rows(self) -> list[dict[str, Any]]:
        """All rows, as dictionaries."""
        return [row for batch in self.batches for row in batch.to_pylist()]


def run_query(
    con: duckdb.DuckDBPyConnection, query: Query, params: Mapping[str, str] | None = None
) -> Answer:
    """Run a query. Read the answer before the connection runs another one.

    A parameter is the SQL variable `getvariable('name')`, which the project's queries read with
    a default, and binds `$name` where a query has that.

    Raises:
        UsageError: not one SELECT, unknown parameters, or whatever DuckDB finds wrong.
        BuilderError: the memory limit is too low.
    """
    params = dict(params or {})
    statement = _check(query, params)
    with explained(query.name):
        for name, value in params.items():
            con.execute(f'set variable "{name}" = ?', [value])
        bound = {n: v for n, v in params.items() if n in statement.named_parameters}
        reader = con.sql(query.sql, params=bound or None).to_arrow_reader(BATCH_ROWS)
    return Answer(query.name, reader.schema, _batches(query.name, reader))


def _batches(name: str, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    try:
        yield from reader
    except pa.ArrowException as e:  # how DuckDB's errors arrive once rows are flowing
        raise UsageError(f"{name}: {redact(first_line(e))}") from None


def answer_query(
    release: str,
    name: str,
    out: BinaryIO,
    *,
    form: str = "table",
    params: Sequence[str] = (),
    width: int = 0,
    memory_limit: str | None = None,
) -> str:
    """Run one query and write its answer; the whole of `builder query`.

    Args:
        release: folder or Hub address.
        name: name of a query, path of a .sql file, or `-`.
        out: where the answer goes, e.g. sys.stdout.buffer.
        form: one of `render.FORMATS`.
        params: `k=v` texts.
        width: columns of the terminal, for the table; 0: no limit.
        memory_limit: e.g. "4GB".

    Returns:
        What to tell the user beside the answer; often nothing.
    """
    if form not in render.FORMATS:
        raise UsageError(f"--format {form}: expected {', '.join(render.FORMATS)}.")
    query = catalog.load(name)
    given = parse_params(params)
    with open_views(open_release(hub.release_address(release)), memory_limit=memory_limit) as con:
        answer = run_query(con, query, given)
        return render.write(answer.name, answer.schema, answer.batches, form, out, width)


def write_answers(release: str, folder: Path) -> None:
    """The answer of every finding query on a release, as folder/NN_subject.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    with open_views(open_release(release)) as con:
        for query in catalog.list_findings():
            answer = run_query(con, query)
            text = io.BytesIO()
            render.write(answer.name, answer.schema, answer.batches, "csv", text)
            write_atomic(folder / f"{query.name}.csv", text.getvalue())


def list_text(width: int = 0) -> str:
    """Every query and its title, for `--list`."""
    rows = [[q.name, q.title] for q in list_queries()]
    return render.text_table(["query", "title"], rows, [False, False], width)[0]
