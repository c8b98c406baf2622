"""Look at a release: report, figures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from builder.cli.app import LOOK, Address, MemoryLimit, app, say


@app.command(rich_help_panel=LOOK)
def report(
    release: Address,
    out: Annotated[Path, typer.Option("-o", "--out", help="The page to write.")] = Path(
        "report.html"
    ),
    overlay: Annotated[
        Path | None,
        typer.Option("--overlay", help="A model of yours: the JSON of `builder measure -o`."),
    ] = None,
    memory_limit: MemoryLimit = None,
) -> None:
    """The study of a release as one page: figures, tables, findings. Opens without a network.

    Example: builder report out/mini -o report.html
    """
    from builder.report.page import write_report

    n = write_report(release, out, overlay=overlay, memory_limit=memory_limit)
    sys.stdout.write(f"{out}\n")
    say(f"{n / 1e6:.1f} MB; open it in a browser.")


@app.command(rich_help_panel=LOOK)
def figures(
    release: Address,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the files.")] = Path(
        "figures"
    ),
    memory_limit: MemoryLimit = None,
) -> None:
    """The paper's figures from a release, as PDF and SVG of a column's width, with captions.

    Example: builder figures out/mini -o figures
    """
    from builder.report.figures import write_figures

    write_figures(release, out, memory_limit=memory_limit, told=lambda path: typer.echo(path))
