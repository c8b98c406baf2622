"""The command line: parse, call one function, print, exit code. Nothing else lives here.

Data go to stdout, words and progress to stderr. Every import of a command is inside it, so that
`--help` is quick and commands that need no torch run without it.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.table import Table

from builder import __version__, progress
from builder.errors import EXIT_FAILURE, EXIT_INTERRUPTED, BuilderError

app = typer.Typer(
    name="builder",
    help="Every 3x3 filter of robust and standard CNNs: build, verify, query, publish.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Release = Annotated[Path, typer.Argument(help="A release folder, e.g. out/mini.")]
CohortOption = Annotated[
    str, typer.Option("--cohort", help="mini, paper, or the path of a cohort CSV.")
]
Models = Annotated[
    str | None,
    typer.Option("--models", help="Only models whose model_id matches; commas separate patterns."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def _say(text: str) -> None:
    progress.console().print(text, markup=False)


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


@app.command()
def plan(
    cohort: CohortOption = "mini",
    models: Models = None,
    layers: Annotated[bool, typer.Option("--layers", help="List every 3x3 layer, too.")] = False,
    as_json: Json = False,
) -> None:
    """What would be built: models, layers, filters, bytes, sources. Downloads nothing.

    Example: builder plan --cohort paper --json
    """
    from builder.plan import iter_plan, plan_json
    from builder.registry import load_cohort

    selected = load_cohort(cohort).select(models)
    planned = []
    with progress.show(quiet=as_json) as report:
        for p in iter_plan(selected):
            planned.append(p)
            report("plan", "tracing", len(planned), len(selected.models))
    result = plan_json(selected, planned, layers)
    if as_json:
        _print_json(result)
        return
    names: tuple[str, ...]
    if layers:
        names = (
            "model_id",
            "layer_index",
            "layer",
            "conv_depth",
            "depth_bin",
            "out_channels",
            "in_channels",
            "groups",
            "stride",
            "n_filters",
            "bn_layer",
        )
        _print_table(names, result["layers"])
    else:
        names = ("model_id", "architecture", "n_layers", "n_filters", "bytes", "source")
        _print_table(names, result["models"])
    totals = result["totals"]
    _say(
        f"{totals['n_models']} models, {totals['n_pairs']} pairs, {totals['n_layers']:,} layers, "
        f"{totals['n_filters']:,} filters, {totals['bytes'] / 1e9:.2f} GB of coefficients"
    )


def _print_table(names: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    """A table for people on a terminal, tab-separated values for programs."""
    if not sys.stdout.isatty():
        for line in [names, *([row[n] for n in names] for row in rows)]:
            sys.stdout.write("\t".join("" if v is None else str(v) for v in line) + "\n")
        return
    from rich.console import Console

    table = Table(box=None, header_style="bold")
    for name in names:
        number = rows and isinstance(rows[0][name], int)
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(
            *(f"{row[n]:,}" if isinstance(row[n], int) else str(row[n] or "") for n in names)
        )
    Console().print(table)


@app.command()
def build(
    cohort: CohortOption = "mini",
    out: Annotated[
        Path | None, typer.Option("--out", help="Release folder; default out/COHORT.")
    ] = None,
    models: Models = None,
    weights: Annotated[
        str,
        typer.Option(help="checkpoints, or seeded:N: pseudo-random weights for a rehearsal."),
    ] = "checkpoints",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    jobs: Annotated[int, typer.Option(min=0, help="Models at a time; 0: half the cores.")] = 0,
    checkpoints: Annotated[
        Path | None,
        typer.Option(help="Folder of checkpoints fetched by hand.", exists=True, file_okay=False),
    ] = None,
    discard_checkpoints: Annotated[
        bool, typer.Option("--discard-checkpoints", help="Delete each download after use.")
    ] = False,
    first_layer: Annotated[
        bool,
        typer.Option(help="Measure the first layer's response to perturbations (attacks models)."),
    ] = True,
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Start over, or go on from what is there.")
    ] = False,
    version: Annotated[str, typer.Option(help="Version of the data set, X.Y.Z.")] = "0.1.0",
    quiet: Quiet = False,
) -> None:
    """Build a release: extract every 3x3 filter of a cohort and measure it.

    Interrupted in whatever way, the same command goes on from where it was.

    Example: builder build --cohort paper --weights seeded:0 --models 'cifar10-*R18*'
    """
    from builder.build import Options, build
    from builder.registry import load_cohort

    chosen = load_cohort(cohort)
    root = out or Path("out") / chosen.name
    options = Options(
        weights=weights,
        models=models,
        first_layer=first_layer,
        version=version,
        device=device,
        jobs=jobs or max(1, (os.cpu_count() or 1) // 2),
        fresh=fresh,
        checkpoints=checkpoints,
        discard_checkpoints=discard_checkpoints,
    )
    with progress.show(quiet) as report:
        outcome = build(chosen, root, options, report)
    for model_id, error in outcome.failures.items():
        _say(f"failed: {model_id}: {error}" + (f"\n  {error.hint}" if error.hint else ""))
    for problem in outcome.problems:
        _say(f"problem: {problem}")
    if outcome.failures:
        n = len(outcome.failures)
        _say(f"{n} of {outcome.n_models} models failed; nothing was released in {root}.")
        _say("Run the same command again: it goes on from there.")
        codes = {e.exit_code for e in outcome.failures.values()}
        raise typer.Exit(max(codes) if len(codes) == 1 else EXIT_FAILURE)
    _summary(root, outcome.already_there)
    if outcome.problems:
        raise typer.Exit(EXIT_FAILURE)


def _summary(root: Path, already_there: bool) -> None:
    from builder.release import read_manifest

    manifest = read_manifest(root)
    totals, size = manifest["totals"], sum(f["bytes"] for f in manifest["files"].values())
    _say(
        f"{root}: {'already complete: ' if already_there else ''}{totals['models']} models, "
        f"{totals['pairs']} pairs, {totals['layers']:,} layers, {totals['filters']:,} filters, "
        f"{size / 1e6:,.1f} MB"
    )
    if manifest["weights"] != "checkpoints":
        _say(f"SYNTHETIC: weights are {manifest['weights']}, no trained network is in here.")
    for group in manifest["duplicates"]:
        _say(f"identical filters: {', '.join(group)}")
    if not already_there:
        _say(f"next: builder verify {root}   builder findings --release {root}")


@app.command()
def verify(
    release: Release,
    full: Annotated[
        bool,
        typer.Option("--full", help="Recompute content hashes and metrics; run every query."),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check a release, byte by byte; with --full, number by number. Needs no torch.

    Example: builder verify out/mini --full
    """
    from builder.verify import verify

    with progress.show(quiet or as_json) as report:
        findings = verify(release, full, lambda check, i, n: report("verify", check, i, n))
    if as_json:
        _print_json(
            {"release": str(release), "full": full, "findings": [asdict(f) for f in findings]}
        )
    else:
        for finding in findings:
            sys.stdout.write(f"{finding}\n")
        _say(f"{release}: {len(findings)} finding(s)" if findings else f"{release}: good")
    if findings:
        raise typer.Exit(EXIT_FAILURE)


bench = typer.Typer(help="Benchmarks. Quote ratios of one run: machines are noisy.")
app.add_typer(bench, name="bench")


@bench.command("build")
def bench_build(
    model: Annotated[
        str | None, typer.Option(help="model_id in the paper cohort; default a WideResNet-70-16.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Json = False,
) -> None:
    """First pass over one model with seeded weights, next to a bare Parquet writer.

    Example: builder bench build --device cuda
    """
    from builder.bench import LARGE, bench_build

    result = bench_build(model or LARGE, device)
    if as_json:
        _print_json(result)
        return
    sys.stdout.write(
        f"{result['model_id']}, {result['weights']} (SYNTHETIC), {result['device']}: "
        f"{result['n_filters']:,} filters, {result['bytes'] / 1e6:,.0f} MB\n"
        f"build        {result['build_s']:7.1f} s  {result['filters_per_s'] / 1e6:5.2f} M filters/s"
        f"  peak memory {result['peak_memory_bytes'] / 1e9:.2f} GB\n"
        f"bare writer  {result['bare_writer_s']:7.1f} s  "
        f"{result['bare_writer_filters_per_s'] / 1e6:5.2f} M filters/s\n"
        f"build / bare writer {result['build_over_bare_writer']:.2f}\n"
    )


def main() -> NoReturn:
    """Entry point: run a command, and turn a user's mistake into one message and an exit code."""
    try:
        app(standalone_mode=True)
    except BuilderError as e:
        _say(f"error: {e}" + (f"\n  {e.hint}" if e.hint else ""))
        sys.exit(e.exit_code)
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on from where it was.")
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output left: nothing to say to anyone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(0)
