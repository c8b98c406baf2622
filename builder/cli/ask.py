"""Ask a release: query, findings; and the reference release to ask."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from builder.cli.app import (
    ASK,
    Json,
    MemoryLimit,
    ReleaseOption,
    app,
    print_json,
    say,
    terminal_width,
)
from builder.errors import UsageError


@app.command(rich_help_panel=ASK)
def query(
    name: Annotated[
        str | None, typer.Argument(help="Name of a query, a .sql file, or - for standard input.")
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
) -> None:
    """Run one SQL query on a release, on disk or on the Hub.

    Example: builder query sparsity_overall --release out/mini --format csv
    """
    from builder.sql.run import answer_query, list_text

    if list_:
        sys.stdout.write(list_text(terminal_width()))
        return
    if name is None:
        raise UsageError("which query?", hint="`builder query --list` names them.")
    said = answer_query(
        release,
        name,
        sys.stdout.buffer,
        form=form,
        params=param or (),
        width=terminal_width(),
        memory_limit=memory_limit,
    )
    if said:
        say(said)


@app.command(rich_help_panel=ASK)
def findings(
    release: ReleaseOption = "out/mini", memory_limit: MemoryLimit = None, as_json: Json = False
) -> None:
    """Every finding: what the paper found, what this release shows, whether it holds.

    Exits with 1 if a finding that applies fails on the paper's own models.

    Example: builder findings --release out/mini
    """
    from rich.console import Console

    from builder.sql import findings as claims

    found = claims.examine(release, memory_limit=memory_limit)
    if as_json:
        print_json(claims.as_json(found))
    elif sys.stdout.isatty():
        Console().print(claims.to_table(found))
    else:
        claims.write_lines(found, sys.stdout)
    say(claims.summary(found))
    raise typer.Exit(claims.exit_code(found))


@app.command(rich_help_panel=ASK)
def reference(
    out: Annotated[Path, typer.Argument(help="Folder to make; it must not exist or be empty.")],
) -> None:
    """Write the reference release: the paper's published numbers, no filter, no checkpoint.

    Example: builder reference out/reference && builder findings --release out/reference
    """
    from builder.paper.reference import write_reference

    write_reference(out)
    say(f"{out}: published values, not rebuilt ones. Next: builder findings --release {out}")
