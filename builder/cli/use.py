"""Commands right of the release: none of them needs torch."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from builder import progress
from builder.cli.app import (
    Json,
    MemoryLimit,
    Quiet,
    ReleaseOption,
    app,
    print_json,
    say,
    terminal_width,
)
from builder.errors import EXIT_FAILURE, UsageError

Release = Annotated[Path, typer.Argument(help="A release folder, e.g. out/mini.")]
Address = Annotated[str, typer.Argument(help="A folder, or hf://datasets/org/name@tag.")]


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
        print_json(
            {"release": str(release), "full": full, "findings": [asdict(f) for f in findings]}
        )
    else:
        for finding in findings:
            sys.stdout.write(f"{finding}\n")
        say(f"{release}: {len(findings)} finding(s)" if findings else f"{release}: good")
    if findings:
        raise typer.Exit(EXIT_FAILURE)


@app.command()
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
    from builder.sql.query import answer_query, list_text

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


@app.command()
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


@app.command()
def reference(
    out: Annotated[Path, typer.Argument(help="Folder to make; it must not exist or be empty.")],
) -> None:
    """Write the reference release: the paper's published numbers, no filter, no checkpoint.

    Example: builder reference out/reference && builder findings --release out/reference
    """
    from builder.paper.reference import write_reference

    write_reference(out)
    say(f"{out}: published values, not rebuilt ones. Next: builder findings --release {out}")


@app.command()
def diff(a: Address, b: Address, as_json: Json = False) -> None:
    """What changed from release A to release B, and which version that calls for.

    Example: builder diff hf://datasets/org/name@v0.1.0 out/paper
    """
    from builder import diff as differences
    from builder.hub import release_address

    found = differences.diff(release_address(a), release_address(b))
    if as_json:
        print_json(asdict(found))
    else:
        sys.stdout.write(differences.as_text(found))


@app.command()
def record(
    release: Release,
    folder: Annotated[Path, typer.Option(help="Where versions are kept.")] = Path("release"),
) -> None:
    """Keep a version in the project: manifest, the answer of every query, notes to fill in.

    Example: builder record out/paper
    """
    from builder.sql.record import record

    say(f"{record(release, folder)}: manifest.json, answers/, NOTES.md")


@app.command()
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
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Publish a verified release on the Hugging Face Hub as an immutable version.

    Interrupted in whatever way, the same command goes on and sends nothing twice.

    Example: builder publish out/paper --repo-id org/robust-filter-lens --dry-run
    """
    from builder.hub import publish as publication
    from builder.hub.preflight import make_plan

    plan = make_plan(release, repo_id, parent=parent, notes=notes, create_pr=create_pr)
    if dry_run:
        if as_json:
            print_json(publication.as_json(plan))
        else:
            sys.stdout.write(publication.as_text(plan).rstrip("\n") + "\n")
        return
    with progress.show(quiet or as_json) as report:
        done = publication.publish(
            plan, private=private, report=lambda stage, i, n: report("publish", stage, i, n)
        )
    if as_json:
        print_json(asdict(done))
    else:
        sys.stdout.write(f"{done.url}\n")
        say(f"{done.repo_id} {done.tag or '(pull request)'}: {done.sent_files} files sent")


@app.command()
def export(
    release: Address,
    model_id: Annotated[
        str | None, typer.Argument(help="The model; omit it with --croissant.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A .safetensors or .npz file to write.")
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option(help="Module path of a layer; may be repeated.")
    ] = None,
    weights: Annotated[str, typer.Option(help="trained or folded.")] = "trained",
    croissant: Annotated[
        bool, typer.Option("--croissant", help="Croissant metadata of the release, on stdout.")
    ] = False,
) -> None:
    """Export a model's filters for other tools, or Croissant metadata of the release.

    Example: builder export out/mini cifar10-standard-AutoAttackExample -o filters.safetensors
    """
    from builder import export as exporting
    from builder.hub import release_address
    from builder.reader import open_release

    opened = open_release(release_address(release))
    if croissant:
        print_json(exporting.croissant(opened))
        return
    if model_id is None or out is None:
        raise UsageError("which model, and where to?", hint="builder export RELEASE MODEL -o FILE")
    names = exporting.export_weights(opened, model_id, out, layers=layer, view=weights)
    say(f"{out}: {len(names)} layers of {model_id} ({weights})")
