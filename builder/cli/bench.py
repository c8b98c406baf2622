"""Benchmarks: bench build, bench metrics, bench read, bench all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from builder.cli.app import (
    Device,
    Json,
    bench,
    print_json,
    say,
)


@bench.command("build")
def bench_build(
    model: Annotated[
        str | None, typer.Option(help="model_id in the paper cohort; default a WideResNet-70-16.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """First pass over one model with seeded weights, next to a bare Parquet writer.

    Example: builder bench build --device cuda
    """
    from builder.bench.build import LARGE, bench_build

    result = bench_build(model or LARGE, device)
    if as_json:
        print_json(result)
        return
    sys.stdout.write(
        f"{result['model_id']}, {result['weights']} (SYNTHETIC), {result['device']}: "
        f"{result['n_filters']:,} filters, {result['bytes'] / 1e6:,.0f} MB\n"
        f"build        {result['build_s']:7.1f} s  {result['filters_per_s'] / 1e6:5.2f} M filters/s"
        f"  peak memory {result['peak_memory_bytes'] / 1e9:.2f} GB\n"
        f"bare writer  {result['bare_writer_s']:7.1f} s  "
        f"{result['bare_writer_filters_per_s'] / 1e6:5.2f} M filters/s\n"
        f"plain write  {result['plain_write_s']:7.1f} s\n"
        f"build / bare writer {result['build_over_bare_writer']:.2f}, "
        f"of the seconds of all cores {result['build_over_bare_writer_cpu']:.2f}\n"
    )


@bench.command("metrics")
def bench_metrics(as_json: Json = False) -> None:
    """Metrics in both views, next to torchconvquality and the paper's formulas in one view.

    Example: builder bench metrics
    """
    from builder.bench.metrics import bench_metrics

    rows = bench_metrics()
    if as_json:
        print_json({"metrics": rows})
        return
    for row in rows:
        sys.stdout.write(
            f"{row['model_id']}, seeded:0 (SYNTHETIC): {row['n_filters']:,} filters, "
            f"{row['cores']} cores\n"
            f"both views                 {row['ours_s']:7.3f} s\n"
            f"torchconvquality, one view {row['torchconvquality_s']:7.3f} s  "
            f"{row['torchconvquality_over_ours']:5.1f} times ours, "
            f"values differ by {row['differs_from_torchconvquality']:.0e}\n"
            f"NumPy with SVD, one view   {row['paper_s']:7.3f} s  "
            f"{row['paper_over_ours']:5.1f} times ours, "
            f"values differ by {row['differs_from_paper']:.0e}\n"
        )


@bench.command("read")
def bench_read(
    release: Annotated[Path, typer.Argument(help="A release folder.")] = Path("out/mini"),
    as_json: Json = False,
) -> None:
    """Read every filter of a release back in Arrow batches: millions of filters per second.

    Example: builder bench read out/mini
    """
    from builder.bench.read import bench_read

    result = bench_read(release)
    if as_json:
        print_json(result)
        return
    n, rows = result.pop("n_filters"), result.pop("batch_rows")
    sys.stdout.write(f"{result.pop('release')}: {n:,} filters, batches of {rows:,}\n")
    for route, rate in result.items():
        sys.stdout.write(f"{route:26} {rate:6.1f} M filters/s\n")


@bench.command("all")
def bench_all(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The page, Markdown; a plot lies beside it.")
    ] = Path("performance.md"),
    filters: Annotated[
        list[int] | None,
        typer.Option(help="Filters of a release to build, about; may be repeated."),
    ] = None,
    audit_up_to: Annotated[
        int, typer.Option(help="Filters up to which verify --full and the audits run.")
    ] = 10**9,
) -> None:
    """Every benchmark in one run, as a page: builds, metrics, reading, questions, cores and jobs.

    Needs the extras build, hub and report, torchconvquality, polars, and disk.

    A release takes 40 bytes a filter: by default up to 100 million filters.

    Example: builder bench all -o docs/performance.md
    """
    from builder.bench.page import bench_all
    from builder.bench.scale import SIZES

    bench_all(out, say, tuple(filters or SIZES), audit_up_to)
    say(f"{out} is written.")
