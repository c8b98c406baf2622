"""Is this release good, and what changed since another: verify, diff."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from builder import progress
from builder.cli.app import (
    CHECK,
    Address,
    Executor,
    Json,
    Quiet,
    RayAddress,
    app,
    cluster_of,
    folder_or_bucket,
    print_json,
    say,
)
from builder.errors import EXIT_FAILURE, UsageError


@app.command(rich_help_panel=CHECK)
def verify(
    release: Annotated[
        str,
        typer.Argument(help="A folder, or s3://bucket/prefix.", callback=folder_or_bucket),
    ],
    full: Annotated[
        bool,
        typer.Option("--full", help="Recompute content hashes and metrics; run every query."),
    ] = False,
    executor: Executor = "local",
    ray_address: RayAddress = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check a release, byte by byte; with --full, number by number. Needs no torch.

    Example: builder verify out/mini --full
    """
    from builder.check.copied import local_copy
    from builder.check.verify import verify
    from builder.store import is_address
    from builder.workers import HERE

    if is_address(release) and executor != "local":
        raise UsageError(
            f"--executor {executor} verifies a folder that every machine sees; {release} is none."
        )
    shown = progress.show(quiet or as_json)
    with (
        cluster_of(executor, ray_address) as cluster,
        shown as report,
        local_copy(release, report) as root,
    ):
        faults = verify(root, full, report, cluster or HERE)
    if as_json:
        print_json({"release": release, "full": full, "findings": [asdict(f) for f in faults]})
    else:
        for fault in faults:
            sys.stdout.write(f"{fault}\n")
        say(f"{release}: {len(faults)} finding(s)" if faults else f"{release}: good")
    if faults:
        raise typer.Exit(EXIT_FAILURE)


@app.command(rich_help_panel=CHECK)
def diff(a: Address, b: Address, as_json: Json = False) -> None:
    """What changed from release A to release B, and which version that calls for.

    Example: builder diff hf://datasets/org/name@v0.1.0 out/paper
    """
    from builder.check import diff as differences
    from builder.hub import release_address

    found = differences.diff(release_address(a), release_address(b))
    if as_json:
        print_json(asdict(found))
    else:
        sys.stdout.write(differences.as_text(found))
