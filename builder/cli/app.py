"""The typer application, and what its commands share: options, output, words."""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

import builder
from builder import __version__, progress
from builder.errors import EXIT_INTERRUPTED, EXIT_OK, BuilderError, UsageError
from builder.tables import write_rows

if TYPE_CHECKING:
    from builder.workers import Cluster

PANELS = ("Make", "Measure your own", "Check", "Ask", "Look", "Share", "Benchmarks")
MAKE, OWN, CHECK, ASK, LOOK, SHARE, BENCHMARKS = PANELS
"""Panels of `builder --help`, in the order of the flow."""


class Commands(TyperGroup):
    """Commands that end in the words and codes of this project, where typer has its own or none."""

    def list_commands(self, ctx: Any) -> list[str]:
        def place(name: str) -> int:
            panel = getattr(self.commands[name], "rich_help_panel", "")
            return PANELS.index(panel) if panel in PANELS else len(PANELS)

        return sorted(super().list_commands(ctx), key=place)

    def invoke(self, ctx: Any) -> Any:
        try:
            try:
                return super().invoke(ctx)
            except (typer.Exit, typer.Abort):
                raise
            except BaseException:
                if debugging(ctx):
                    traceback.print_exc()
                raise
            finally:
                _flush()
        except (KeyboardInterrupt, RuntimeError) as e:
            if not _interrupted(e):
                raise
            say("interrupted" + (f"; {e}." if isinstance(e, _Resumable) else "."))
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:  # the reader of our output left: nothing to say to anyone
            raise typer.Exit(EXIT_OK) from None
        except OSError as e:
            name, why = e.filename2 or e.filename, e.strerror or e
            raise BuilderError(f"{name}: {why}." if name else f"{why}.") from None


class _Resumable(KeyboardInterrupt):
    """An interruption after which not all has to be done again; the text says so."""


@contextmanager
def resumable(said: str = "the same command goes on from where it was") -> Iterator[None]:
    """Around what a command need not do twice: said when it is interrupted there."""
    try:
        yield
    except (KeyboardInterrupt, RuntimeError) as e:
        if not _interrupted(e):
            raise
        raise _Resumable(said) from e


def _interrupted(e: BaseException) -> bool:
    return isinstance(e, KeyboardInterrupt) or str(e) == "Query interrupted"  # as DuckDB has it


def _flush() -> None:
    """Flush stdout here, where an error can still be told; drop what cannot be written."""
    try:
        sys.stdout.flush()
    except OSError as e:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries again
        e.filename = "standard output"
        raise


def debugging(ctx: Any) -> bool:
    """Whether the command was started with --debug."""
    return bool(ctx.find_root().params.get("debug"))


app = typer.Typer(
    name="builder",
    cls=Commands,
    help="Every 3x3 filter of robust and standard CNNs: build, verify, query, publish.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 good, 1 findings or failures, 2 wrong usage, 4 network, 130 interrupted.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
bench = typer.Typer(help="Benchmarks. Quote ratios of one run: machines are noisy.")
app.add_typer(bench, name="bench", rich_help_panel=BENCHMARKS)


def _a_folder(release: Path) -> Path:
    from builder import hub, store

    address = re.sub(
        "^([a-z0-9]+):/+", r"\1://", str(release)
    )  # a Path has lost one of the slashes
    if store.is_address(address):
        raise UsageError(
            f"{address} is in object storage; this command reads a folder.",
            hint="fetch it first with the tool of your cloud, e.g. aws s3 sync ADDRESS FOLDER",
        )
    if hub.is_address(address) and (address.startswith("hf://") or "@" in address):
        repo_id, _, tag = address.removeprefix("hf://datasets/").partition("@")
        raise UsageError(
            f"{address} is on the Hub; this command reads a folder.",
            hint=f"fetch it first: hf download {repo_id} --repo-type dataset"
            + (f" --revision {tag}" if tag else "")
            + " --local-dir FOLDER",
        )
    return release


def folder_or_bucket(release: str) -> str:
    """An argument that is neither on the Hub nor, but by its scheme, elsewhere."""
    from builder.store import is_address

    return release if is_address(release) else str(_a_folder(Path(release)))


CohortOption = Annotated[
    str, typer.Option("--cohort", help="mini, paper, robustbench, or the path of a cohort CSV.")
]
Models = Annotated[
    str | None,
    typer.Option("--models", help="Only models whose model_id matches; commas separate patterns."),
]
ReleaseOption = Annotated[
    str,
    typer.Option("--release", help="A folder, hf://datasets/org/name@tag or s3://bucket/prefix."),
]
MemoryLimit = Annotated[
    str | None, typer.Option("--memory-limit", help="DuckDB's memory, e.g. 4GB.")
]
Release = Annotated[
    Path, typer.Argument(help="A release folder, e.g. out/mini.", callback=_a_folder)
]
Address = Annotated[
    str, typer.Argument(help="A folder, hf://datasets/org/name@tag or s3://bucket/prefix.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Executor = Annotated[
    str, typer.Option("--executor", help="local, or ray: the machines of a Ray cluster.")
]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray-address", help="host:6379 or auto; default $RAY_ADDRESS, or this machine."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


@contextmanager
def cluster_of(executor: str, address: str | None) -> Iterator[Cluster | None]:
    """The cluster of --executor ray; None for this process."""
    from builder.workers import ray_cluster

    if executor not in ("local", "ray"):
        raise UsageError(f"--executor {executor}: expected local or ray.")
    if executor == "local":
        if address is not None:
            raise UsageError("--ray-address is for --executor ray.")
        yield None
        return
    with ray_cluster(address) as cluster:
        yield cluster


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def say(text: str) -> None:
    """Words for people, on stderr."""
    progress.console().print(text, markup=False)


def print_table(names: tuple[str, ...], rows: list[dict[str, Any]], everything: str) -> None:
    """A table on stdout; words on stderr where a terminal hides some of it.

    Args:
        everything: what shows all of the table, e.g. "--json".
    """
    said = write_rows(sys.stdout, names, ([row[n] for n in names] for row in rows))
    if said:
        say(f"{said}; {everything} has all.")


def _version(show: bool) -> None:
    if show:
        sys.stdout.write(f"builder {__version__} from {Path(builder.__file__).parent}\n")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of whatever goes wrong.")
    ] = False,
) -> None:
    pass
