"""Pass a release on: record, publish, export."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from builder import progress
from builder.cli.app import (
    SHARE,
    Address,
    Json,
    Quiet,
    Release,
    app,
    print_json,
    resumable,
    say,
)
from builder.errors import EXIT_FAILURE, UsageError
from builder.files import write_atomic

SHOWN = 10
"""Differences of one recorded file that are shown."""


@app.command(rich_help_panel=SHARE)
def record(
    release: Release,
    folder: Annotated[Path, typer.Option(help="Where versions are kept.")] = Path("release"),
    check: Annotated[
        bool, typer.Option("--check", help="Only compare with what is kept, within tolerances.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Renew what is kept of this version.")
    ] = False,
) -> None:
    """Keep a version in the project: manifest, answers and tables as CSV, notes to fill in.

    Example: builder record out/mini --check
    """
    from builder.check import record as recording

    if check and update:
        raise UsageError("--check writes nothing, --update does: which one?")
    if not check:
        say(f"{recording.record(release, folder, update=update)}: {recording.KEPT}")
        return
    found = recording.check(release, folder)
    for path, lines in found.items():
        sys.stdout.writelines(f"{line}\n" for line in lines[:SHOWN])
        if len(lines) > SHOWN:
            sys.stdout.write(f"{path}: {len(lines) - SHOWN:,} more\n")
    if found:
        n = sum(map(len, found.values()))
        say(f"{release}: {n:,} differences from what is recorded")
        say(f"  if they are meant: builder record {release} --update")
        raise typer.Exit(EXIT_FAILURE)
    say(f"{release}: as recorded")


@app.command(rich_help_panel=SHARE)
def publish(
    release: Release,
    repo_id: Annotated[str, typer.Option("--repo-id", help="ORG/NAME on the Hub.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, send nothing.")] = (
        False
    ),
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = (
        False
    ),
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Send to a pull request; tag after its merge.")
    ] = False,
    parent: Annotated[
        str | None, typer.Option(help="Commit of main you have looked at, if others pushed.")
    ] = None,
    notes: Annotated[
        Path | None, typer.Option(help="Text for the tag; needed for a major change.")
    ] = None,
    space: Annotated[
        str | None,
        typer.Option("--space", help="ORG/NAME of a static Space for the report, at the tag."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Publish a verified release on the Hugging Face Hub as an immutable version.

    Interrupted in whatever way, the same command goes on and sends nothing twice.

    Example: builder publish out/paper --repo-id org/robust-filter-lens --dry-run
    """
    from builder.publish.plan import as_json as plan_json
    from builder.publish.plan import as_text, make_plan
    from builder.publish.send import publish as send

    plan = make_plan(
        release,
        repo_id,
        parent=parent,
        notes=notes,
        create_pr=create_pr,
        private=private,
        space=space,
    )
    if dry_run:
        if as_json:
            print_json(plan_json(plan))
        else:
            sys.stdout.write(as_text(plan).rstrip("\n") + "\n")
        return
    sent = resumable("the same command goes on and sends nothing twice")
    with sent, progress.show(quiet or as_json) as report:
        done = send(plan, report=report)
    if as_json:
        print_json(asdict(done))
    else:
        sys.stdout.write("".join(f"{url}\n" for url in (done.url, done.space) if url))
        say(f"{done.repo_id} {done.tag or '(pull request)'}: {done.sent_files} files sent")


@app.command(rich_help_panel=SHARE)
def export(
    release: Address,
    model_id: Annotated[
        str | None, typer.Argument(help="The model; omit it with --croissant.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write: .safetensors or .npz.")
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option(help="Module path of a layer; may be repeated.")
    ] = None,
    view: Annotated[str, typer.Option(help="View of the weights: trained or folded.")] = "trained",
    croissant: Annotated[
        bool, typer.Option("--croissant", help="Croissant metadata, to stdout or to --out.")
    ] = False,
) -> None:
    """Export a model's filters for other tools, or Croissant metadata of the release.

    Example: builder export out/mini cifar10-standard-AutoAttackExample -o filters.safetensors
    """
    from builder.hub import release_address
    from builder.release import export as exporting
    from builder.release.reader import open_release

    opened = open_release(release_address(release))
    if croissant:
        if model_id is not None or layer:
            raise UsageError("--croissant is of the whole release: it takes no model and no layer.")
        if out is None:
            print_json(exporting.croissant(opened))
        else:
            write_atomic(out, (json.dumps(exporting.croissant(opened), indent=1) + "\n").encode())
        return
    if model_id is None or out is None:
        raise UsageError(
            "which model?" if model_id is None else "where to?",
            hint=f"builder export {release} {model_id or 'MODEL_ID'} -o {out or 'FILE.npz'}",
        )
    names = exporting.export_weights(opened, model_id, out, layers=layer, view=view)
    say(f"{out}: {len(names)} {'layer' if len(names) == 1 else 'layers'} of {model_id} ({view})")
