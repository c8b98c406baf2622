"""Benchmarks: bench build, bench metrics, bench read."""

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
    from builder.building.bench import LARGE, bench_build

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
        f"build / bare writer {result['build_over_bare_writer']:.2f}\n"
    )


@bench.command("metrics")
def bench_metrics(as_json: Json = False) -> None:
    """Metrics in both views, next to torchconvquality and the paper's formulas in one view.

    Example: builder bench metrics
    """
    from builder.building.bench import bench_metrics

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
    from builder.building.bench import bench_read

    result = bench_read(release)
    if as_json:
        print_json(result)
        return
    n, rows = result.pop("n_filters"), result.pop("batch_rows")
    sys.stdout.write(f"{result.pop('release')}: {n:,} filters, batches of {rows:,}\n")
    for route, rate in result.items():
        sys.stdout.write(f"{route:26} {rate:6.1f} M filters/s\n")
