"""Measure a network of one's own: measure."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from builder import progress
from builder.cli.app import OWN, Json, Quiet, app, print_json, print_table, say
from builder.errors import UsageError


@app.command(rich_help_panel=OWN)
def measure(
    target: Annotated[
        str | None,
        typer.Argument(
            help="A checkpoint: path, URL, hf://, timm:TAG, robustbench:...; or, with --release, "
            "a model_id."
        ),
    ] = None,
    constructor: Annotated[
        str | None,
        typer.Option(help="What builds it, as in a cohort; default: recognised by its keys."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Compare with models of cifar10, cifar100 or imagenet.")
    ] = None,
    against: Annotated[
        str,
        typer.Option(help="paper (published values), a release folder, or hf://...@tag; or list."),
    ] = "paper",
    release: Annotated[
        str | None,
        typer.Option("--release", help="Measure a model of this release. Needs no torch."),
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="List every convolution, measured or not, and why.")
    ] = False,
    first_layer: Annotated[
        bool,
        typer.Option("--first-layer", help="The first layer's response to perturbations, too."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write a .parquet, .csv or .json file.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure the filters of a network of your own, beside robust and standard models.

    Example: builder measure model.pth --dataset cifar10
    """
    from builder.compare import show
    from builder.compare.measurement import SUFFIXES, of_released
    from builder.compare.reference import load_reference
    from builder.hub import release_address
    from builder.release.reader import open_release

    if against == "list":
        say("\n".join(show.references()))
        return
    if target is None:
        what = f"MODEL_ID --release {release}" if release else "CHECKPOINT --dataset cifar10"
        raise UsageError("measure what?", hint=f"builder measure {what}")
    if release is not None and (constructor is not None or first_layer):
        option = "--first-layer" if constructor is None else "--constructor"
        raise UsageError(
            f"{option} is for a checkpoint; --release measures from what the release holds."
        )
    if out is not None and out.suffix not in SUFFIXES:
        raise UsageError(f"cannot save to {out.name}; expected {' or '.join(SUFFIXES)}.")
    reference = load_reference(against if against == "paper" else release_address(against))
    if release is not None:
        measured = of_released(open_release(release_address(release)), target)
    else:
        from builder.measure.target import measure_checkpoint

        with progress.show(quiet or as_json) as report:
            measured = measure_checkpoint(
                target,
                constructor=constructor,
                dataset=dataset,
                first_layer=first_layer,
                report=report,
            )
    comparison = measured.compare(dataset, reference)
    if out is not None:
        measured.save(out, comparison)
    if as_json:
        print_json(measured.as_json(comparison))
    elif layers:
        print_table(*show.layer_rows(measured), "-o FILE.csv")
        say("\n".join(show.head(measured)))
    else:
        sys.stdout.write("\n".join(show.lines(measured, comparison)) + "\n")
