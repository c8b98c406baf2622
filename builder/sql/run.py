"""Run one query on the views of a release, and write its answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, BinaryIO

import duckdb
import pyarrow as pa

from builder import hub
from builder.errors import UsageError
from builder.release.reader import Release, open_release
from builder.release.views import explained, first_line, one_select, open_views
from builder.secrets import redact
from builder.sql import catalog, render
from builder.sql.catalog import Query
from builder.sql.spark import MASTER, run_on_spark

BATCH_ROWS = 65_536
ENGINES = ("duckdb", "spark")


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
    read = " ".join([query.sql, *catalog.definitions(query.sql).values()])
    variables = {*re.findall(r"getvariable\('(\w+)'\)", read)} - {"release"}
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
    memory_limit: str | None = None,
    engine: str = "duckdb",
    master: str | None = None,
) -> str:
    """Run one query and write its answer; the whole of `builder query`.

    Args:
        release: folder or Hub address.
        name: name of a query, path of a .sql file, `-`, or SQL itself.
        out: where the answer goes, e.g. sys.stdout.buffer.
        form: one of `render.FORMATS`.
        params: `k=v` texts.
        memory_limit: e.g. "4GB"; DuckDB's.
        engine: one of `ENGINES`.
        master: Spark's, e.g. "spark://host:7077"; default this machine.

    Returns:
        What to tell the user beside the answer; often nothing.
    """
    if form not in render.FORMATS:
        raise UsageError(f"--format {form}: expected {', '.join(render.FORMATS)}.")
    if engine not in ENGINES:
        raise UsageError(f"--engine {engine}: expected {' or '.join(ENGINES)}.")
    owners = {"--memory-limit": (memory_limit, "duckdb"), "--master": (master, "spark")}
    for option, (value, owner) in owners.items():
        if value is not None and engine != owner:
            raise UsageError(f"{option} is for --engine {owner}.")
    query = catalog.load(name)
    given = parse_params(params)
    opened = open_release(hub.release_address(release))
    _check_model(opened, query, given)
    _check_threat_model(opened, query, given)
    with ExitStack() as stack:
        if engine == "spark":
            _check(query, given)
            answer = _collected(query.name, run_on_spark(opened, query, given, master or MASTER))
        else:
            con = stack.enter_context(open_views(opened, memory_limit=memory_limit))
            answer = run_query(con, query, given)
        first = next(answer.batches, None)
        said = render.write(answer.name, answer.schema, _again(first, answer.batches), form, out)
    if first is None:
        given_words = ", ".join(f"{k}={v}" for k, v in given.items())
        return f"{query.name}: no row" + (f" matches {given_words}." if given else ".")
    return said


def _collected(name: str, table: pa.Table) -> Answer:
    return Answer(name, table.schema, iter(table.to_batches(BATCH_ROWS)))


def _again(
    first: pa.RecordBatch | None, rest: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    if first is not None:
        yield first
        yield from rest


def _check_model(release: Release, query: Query, params: Mapping[str, str]) -> None:
    """Refuse a model_id that the release does not have, where the query's header declares one.

    Raises:
        UsageError: no such model; the message suggests the nearest ones.
    """
    if "model_id" not in params or "model_id" not in query.param_names:
        return
    known = release.table("models", columns=["model_id"])["model_id"].to_pylist()
    if params["model_id"] not in known:
        near = get_close_matches(params["model_id"], known, 3, 0.5)
        raise UsageError(
            f"no model '{params['model_id']}' in this release"
            + (f"; did you mean {', '.join(near)}?" if near else "."),
            hint='`builder query "select model_id from models"` names them.',
        )


def _check_threat_model(release: Release, query: Query, params: Mapping[str, str]) -> None:
    """Refuse a threat model that no robust model of the release has.

    Raises:
        UsageError: no such threat model; the hint lists those there are.
    """
    if "threat_model" not in params or "study" not in catalog.definitions(query.sql):
        return
    models = release.table("models", columns=["robust", "threat_model"]).to_pylist()
    known = sorted({m["threat_model"] or "Linf" for m in models if m["robust"]})
    if params["threat_model"] not in known:
        raise UsageError(
            f"no robust model of this release has the threat model '{params['threat_model']}'.",
            hint=f"it has {', '.join(known)}." if known else "it has no robust model.",
        )
