"""Make a release: plan, build, train; and the cohort robustbench."""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from builder import progress
from builder.cli.app import (
    MAKE,
    CohortOption,
    Device,
    Executor,
    Json,
    Models,
    Quiet,
    RayAddress,
    app,
    cluster_of,
    debugging,
    print_json,
    print_table,
    resumable,
    say,
)
from builder.errors import EXIT_FAILURE, EXIT_NETWORK, BuilderError, UsageError

if TYPE_CHECKING:
    from builder.cohort.registry import Cohort

T = TypeVar("T")


@app.command(rich_help_panel=MAKE)
def plan(
    ctx: typer.Context,
    cohort: CohortOption = "mini",
    models: Models = None,
    layers: Annotated[bool, typer.Option("--layers", help="List every 3x3 layer, too.")] = False,
    as_json: Json = False,
) -> None:
    """What would be built: models, layers, filters, bytes, sources. Downloads nothing.

    Example: builder plan --cohort paper --json
    """
    from builder.network.plan import make_plan, plan_json
    from builder.training.members import missing_counterparts

    with progress.show(quiet=as_json) as report:
        found = make_plan(_chosen(cohort).select(models), report)
    result = plan_json(found, layers) | {"counterparts": missing_counterparts(found, cohort)}
    if as_json:
        print_json(result)
    else:
        _print_plan(result, layers)
    _say_failures(found.failures, debugging(ctx))
    if found.failures:
        raise typer.Exit(EXIT_FAILURE)


def _print_plan(result: dict[str, Any], layers: bool) -> None:
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
        print_table(names, result["layers"], "--json")
    else:
        names = ("model_id", "architecture", "n_layers", "n_filters", "bytes", "source")
        print_table(names, result["models"], "--json")
    for reason, missing in _by_reason(result["left_out"]).items():
        say(f"left out: {', '.join(missing)}: {reason}")
    for c in result["counterparts"]:
        many = f" and {len(c['model_ids']) - 1} more" if c["model_ids"][1:] else ""
        say(f"no standard member: {c['model_ids'][0]}{many}: {c['command'] or c['reason']}")
    totals = result["totals"]
    if len({t["threat_model"] for t in totals["by_threat_model"]}) > 1:
        for t in totals["by_threat_model"]:
            of = f"{t['dataset']} {t['threat_model']}"
            say(f"{of}: {t['n_models']} robust models, {t['n_pairs']} of them paired")
    say(
        f"{totals['n_models']} models, {totals['n_pairs']} pairs, {totals['n_layers']:,} layers, "
        f"{totals['n_filters']:,} filters, {totals['bytes'] / 1e9:.2f} GB of coefficients"
    )


def _by_reason(left_out: list[dict[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for m in left_out:
        found.setdefault(m["reason"], []).append(f"{m['dataset']} {m['network']}")
    return found


def _chosen(cohort: str) -> Cohort:
    """A cohort, with what is odd in it said."""
    from builder.cohort.registry import load_cohort, questions

    chosen = load_cohort(cohort)
    for question in questions(chosen):
        say(f"odd: {question}")
    return chosen


@app.command(rich_help_panel=MAKE)
def build(
    ctx: typer.Context,
    cohort: CohortOption = "mini",
    out: Annotated[
        str | None,
        typer.Option("--out", help="Folder or s3://BUCKET/PREFIX; default out/COHORT."),
    ] = None,
    models: Models = None,
    weights: Annotated[
        str,
        typer.Option(help="checkpoints, or seeded:N: pseudo-random weights for a rehearsal."),
    ] = "checkpoints",
    device: Device = "auto",
    jobs: Annotated[
        int, typer.Option(min=0, metavar="<int>", help="Models at a time; 0: half the cores.")
    ] = 0,
    checkpoints: Annotated[
        Path | None,
        typer.Option(help="Folder of checkpoints fetched by hand.", exists=True, file_okay=False),
    ] = None,
    discard_checkpoints: Annotated[
        bool, typer.Option("--discard-checkpoints", help="Delete each download after use.")
    ] = False,
    no_first_layer: Annotated[
        bool,
        typer.Option("--no-first-layer", help="No response to perturbations: attack no model."),
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over instead of going on from what is there.")
    ] = False,
    version: Annotated[str, typer.Option(help="Version of the data set, X.Y.Z.")] = "0.1.0",
    executor: Executor = "local",
    ray_address: RayAddress = None,
    quiet: Quiet = False,
) -> None:
    """Build a release: extract every 3x3 filter of a cohort and measure it.

    Interrupted in whatever way, the same command goes on from where it was.

    Example: builder build --cohort paper --weights seeded:0 --models 'cifar10-*R18*'
    """
    from builder.building.options import Options
    from builder.building.run import build

    chosen = _chosen(cohort)
    root = out or str(Path("out") / chosen.name)
    options = Options(
        weights=weights,
        models=models,
        first_layer=not no_first_layer,
        version=version,
        device=device,
        jobs=jobs or max(1, (os.cpu_count() or 1) // 2),
        fresh=fresh,
        checkpoints=checkpoints,
        discard_checkpoints=discard_checkpoints,
    )
    with (
        resumable(*(["without --fresh, the same command goes on"] if fresh else [])),
        cluster_of(executor, ray_address) as cluster,
        progress.show(quiet) as report,
    ):
        outcome = build(chosen, root, options, report, cluster)
    _say_failures(outcome.failures, debugging(ctx))
    for why, names in _shared(outcome.unmeasured).items():
        say(f"first layer not measured: {', '.join(names)}: {why}")
    for problem in outcome.problems:
        say(f"problem: {problem}")
    if outcome.failures:
        n = len(outcome.failures)
        say(f"{n} of {outcome.n_models} models failed; nothing was released in {root}.")
        codes = {e.exit_code for e in outcome.failures.values()}
        if EXIT_NETWORK in codes:
            say("Run the same command again: it goes on with what is there.")
        else:
            say("Put right what they name. A cohort that has changed is a new build: --fresh.")
        raise typer.Exit(max(codes) if len(codes) == 1 else EXIT_FAILURE)
    _summary(root, outcome.already_there)
    if outcome.problems:
        raise typer.Exit(EXIT_FAILURE)


@app.command(rich_help_panel=MAKE)
def cohort(
    name: Annotated[str, typer.Argument(help="robustbench: all of the installed RobustBench.")],
    model_info: Annotated[
        Path | None,
        typer.Option(help="Facts from the folder model_info of a RobustBench checkout."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the CSV and its tables.")] = Path(
        "out/cohort"
    ),
    quiet: Quiet = False,
) -> None:
    """Make the cohort robustbench again, from the installed registry. Downloads nothing.

    Example: builder cohort robustbench --out builder/cohort
    """
    from builder.cohort.registry import load_cohort
    from builder.robustbench.make import NAME, make_cohort, registry, write
    from builder.robustbench.model_info import read_checkout, read_table

    if name != NAME:
        raise UsageError(f"'{name}' is no cohort that a command makes; expected {NAME}.")
    shipped, facts = load_cohort(NAME), read_table()
    if out.exists() and not out.is_dir():  # before minutes of tracing
        raise UsageError(f"{out} is no folder.", hint="choose another --out.")
    if model_info is not None:
        facts = read_checkout(model_info, registry(), facts)
    with progress.show(quiet) as report:
        made = make_cohort(facts, report)
    write(made, facts, out)
    was, now = ({m.model_id: m for m in c.models} for c in (shipped, made))
    changed = sum(now[m] != was[m] for m in now.keys() & was.keys())
    say(
        f"{out / NAME}.csv: {len(now)} models, {len(made.pairs)} pairs, {len(made.left_out)} left "
        f"out. Against the shipped one: {len(now.keys() - was.keys())} new, "
        f"{len(was.keys() - now.keys())} gone, {changed} changed."
    )


def _say_failures(failures: Mapping[str, BuilderError], debug: bool) -> None:
    """Every failed model by name, and each reason once, however many models share it."""
    for error in failures.values() if debug else ():
        traceback.print_exception(error)
    reasons = {m: (str(error).removeprefix(f"{m}: "), error.hint) for m, error in failures.items()}
    for (reason, hint), names in _shared(reasons).items():
        say(f"failed: {', '.join(names)}: {reason}" + (f"\n  {hint}" if hint else ""))


def _shared(reasons: Mapping[str, T]) -> dict[T, list[str]]:
    """Each reason once, with the models that share it."""
    models: dict[T, list[str]] = {}
    for model_id, reason in reasons.items():
        models.setdefault(reason, []).append(model_id)
    return models


def _summary(root: str, already_there: bool) -> None:
    from builder.hub import release_address
    from builder.release.reader import open_release

    manifest = open_release(release_address(root)).manifest
    totals, size = manifest["totals"], sum(f["bytes"] for f in manifest["files"].values())
    say(
        f"{root}: {'already complete: ' if already_there else ''}{totals['models']} models, "
        f"{totals['pairs']} pairs, {totals['layers']:,} layers, {totals['filters']:,} filters, "
        f"{size / 1e6:,.1f} MB"
    )
    if manifest["weights"] != "checkpoints":
        say(f"SYNTHETIC: weights are {manifest['weights']}, no trained network is in here.")
    for group in manifest["duplicates"]:
        say(f"identical filters: {', '.join(group)}")
    if not already_there:
        named = quote(str(root))
        say(f"next: builder verify {named}   builder findings --release {named}")


@app.command(rich_help_panel=MAKE)
def train(
    target: Annotated[
        str,
        typer.Argument(help="`mini`, or a model_id of --cohort to train the standard member for."),
    ],
    only: Annotated[
        str | None, typer.Option("--only", help="Only members of the mini zoo that match.")
    ] = None,
    cohort: CohortOption = "paper",
    data: Annotated[
        str | None,
        typer.Option(help="CIFAR: a folder, a Parquet file, or `hub` for the Hub's copy."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of weights, cards, checkpoints.")] = Path(
        "out/train"
    ),
    device: Device = "auto",
    force: Annotated[bool, typer.Option("--force", help="Train finished members again.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the mini zoo again, or a standard counterpart for a model of a cohort.

    Interrupted in whatever way, the same command goes on from its own checkpoint.

    Example: builder train mini --only 'cifar10-robust-*' --data ~/cifar10
    """
    from builder.cohort.registry import load_cohort
    from builder.training.members import counterparts, read_recipes, select, train_members

    if target == "mini":
        recipes = select(read_recipes(), only)
    else:
        recipes = counterparts(load_cohort(cohort), target)
    cards = []
    shown = progress.show(quiet or as_json, every=math.inf)  # a log has a line an epoch
    with resumable(), shown as report:
        for card in train_members(
            recipes, data=data, out=out, device=device, report=report, force=force
        ):
            cards.append(card)
            say(f"{card['name']}: clean {card['clean_acc']} %, PGD-20 {card['pgd20_acc']} %")
    if as_json:
        print_json({"members": cards})
