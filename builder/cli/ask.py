"""Ask a release: query, findings, score; and the reference release to ask."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from builder.cli.app import (
    ASK,
    Json,
    MemoryLimit,
    ReleaseOption,
    app,
    print_json,
    print_table,
    say,
)
from builder.errors import UsageError


class _TakesSql(TyperCommand):
    """A command whose argument may start with an SQL comment, which is no option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [f" {a}" if re.match(r"--\s", a) else a for a in args])


@app.command(cls=_TakesSql, rich_help_panel=ASK)
def query(
    name: Annotated[
        str | None,
        typer.Argument(help="Name of a query, a .sql file, - for standard input, or SQL itself."),
    ] = None,
    release: ReleaseOption = "out/mini",
    form: Annotated[
        str, typer.Option("--format", help="table, csv, json, parquet or markdown.")
    ] = "table",
    param: Annotated[
        list[str] | None, typer.Option("--param", help="name=value; may be repeated.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Every query and its title.")] = False,
    memory_limit: MemoryLimit = None,
    engine: Annotated[
        str, typer.Option("--engine", help="duckdb, or spark for what reads every filter.")
    ] = "duckdb",
    master: Annotated[
        str | None, typer.Option("--master", help="Spark's; default local[*], this machine.")
    ] = None,
) -> None:
    """Run one SQL query on a release, on disk or on the Hub.

    Example: builder query sparsity_overall --release out/mini --format csv
    Example: builder query "select network, sparsity from models order by all"
    Example: builder query audit/linf --release /shared/paper --engine spark --master spark://head:7077
    """
    from builder.sql.catalog import list_queries
    from builder.sql.run import answer_query

    if list_:
        rows = [{"query": q.name, "title": q.title} for q in list_queries()]
        print_table(("query", "title"), rows, "a wider terminal")
        return
    if name is None:
        raise UsageError("which query?", hint="`builder query --list` names them.")
    said = answer_query(
        release,
        name,
        sys.stdout.buffer,
        form=form,
        params=param or (),
        memory_limit=memory_limit,
        engine=engine,
        master=master,
    )
    if said:
        say(said)


@app.command(rich_help_panel=ASK)
def findings(
    release: ReleaseOption = "out/mini",
    explain: Annotated[
        bool, typer.Option("--explain", help="Also the query, and what the verdict rests on.")
    ] = False,
    audits: Annotated[
        bool, typer.Option("--audits", help="Also the findings that need every filter read.")
    ] = False,
    memory_limit: MemoryLimit = None,
    as_json: Json = False,
) -> None:
    """Every finding: what the paper (or we) found, what this release shows, whether it holds.

    Exits with 1 if a finding that applies fails on the paper's own models.

    Example: builder findings --release out/mini
    """
    from rich.console import Console

    from builder.hub import release_address
    from builder.release.reader import open_release
    from builder.sql import findings as claims

    found = claims.examine(release, audits=audits, memory_limit=memory_limit)
    if as_json:
        print_json(claims.as_json(found))
    elif sys.stdout.isatty():
        Console(highlight=False).print(claims.to_grid(found, explain=explain))
    else:
        print_table(claims.COLUMNS, [asdict(f) for f in found], "--json")
    models = open_release(release_address(release)).table("models").to_pylist()
    if apart := claims.scope(m["threat_model"] for m in models if m["robust"]):
        say(apart)
    say(claims.summary(found))
    raise typer.Exit(claims.exit_code(found))


@app.command(rich_help_panel=ASK)
def score(
    task: Annotated[str, typer.Argument(help="robust, depth_bin or autoattack_acc.")],
    predictions: Annotated[
        Path, typer.Argument(help="CSV: the keys of the examples, and a column of the task's name.")
    ],
    release: ReleaseOption = "out/mini",
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    as_json: Json = False,
) -> None:
    """Score a file of predictions on one of the fixed tasks.

    Example: builder score robust predictions.csv --release out/mini
    """
    from builder.hub import release_address
    from builder.release.reader import open_release
    from builder.tasks.examples import task_of
    from builder.tasks.score import score

    found = score(open_release(release_address(release)), task_of(task), predictions, split)
    if as_json:
        print_json(asdict(found))
        return
    rows = [{"measure": name, "value": value} for name, value in found.measures.items()]
    print_table(("measure", "value"), rows, "--json")
    say(
        f"{found.task}, {found.split}: {found.examples} examples of {found.models} models in "
        f"{found.groups} groups"
    )


@app.command(rich_help_panel=ASK)
def reference(
    out: Annotated[Path, typer.Argument(help="Folder to make; it must not exist or be empty.")],
) -> None:
    """Write the reference release: the paper's published numbers, no filter, no checkpoint.

    Example: builder reference out/reference && builder findings --release out/reference
    """
    from builder.paper.reference import write_reference

    write_reference(out)
    say(
        f"{out}: published values, not rebuilt ones. Next: builder findings --release "
        f"{quote(str(out))}"
    )
