"""The typer application, and what its commands share: options, output, words."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from builder import __version__, progress

app = typer.Typer(
    name="builder",
    help="Every 3x3 filter of robust and standard CNNs: build, verify, query, publish.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
bench = typer.Typer(help="Benchmarks. Quote ratios of one run: machines are noisy.")
app.add_typer(bench, name="bench")

CohortOption = Annotated[
    str, typer.Option("--cohort", help="mini, paper, or the path of a cohort CSV.")
]
Models = Annotated[
    str | None,
    typer.Option("--models", help="Only models whose model_id matches; commas separate patterns."),
]
ReleaseOption = Annotated[
    str, typer.Option("--release", help="A folder, or hf://datasets/org/name@tag.")
]
MemoryLimit = Annotated[
    str | None, typer.Option("--memory-limit", help="DuckDB's memory, e.g. 4GB.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def say(text: str) -> None:
    """Words for people, on stderr."""
    progress.console().print(text, markup=False)


def terminal_width() -> int:
    """Columns of the terminal on stdout; 0 where stdout is none."""
    return Console().width if sys.stdout.isatty() else 0


def print_table(names: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    """A table for people on a terminal, tab-separated values for programs."""
    if not sys.stdout.isatty():
        for line in [names, *([row[n] for n in names] for row in rows)]:
            sys.stdout.write("\t".join("" if v is None else str(v) for v in line) + "\n")
        return
    table = Table(box=None, header_style="bold")
    for name in names:
        number = rows and isinstance(rows[0][name], int)
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(
            *(f"{row[n]:,}" if isinstance(row[n], int) else str(row[n] or "") for n in names)
        )
    Console().print(table)


def _version(show: bool) -> None:
    if show:
        sys.stdout.write(f"builder {__version__}\n")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
