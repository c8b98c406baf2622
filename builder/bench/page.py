"""All benchmarks of one run as a page, with the plot of cost by size beside it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from builder.bench import scale
from builder.bench.build import LARGE, Took, bench_build
from builder.bench.machine import describe, load
from builder.bench.metrics import bench_metrics
from builder.bench.read import bench_read
from builder.files import scratch, write_atomic

Say = Callable[[str], None]


def bench_all(
    out: Path, say: Say, sizes: Sequence[int] = scale.SIZES, largest_full: int = 10**9
) -> None:
    """Run every benchmark and write the page, and an SVG of the same name beside it.

    Args:
        out: the page, Markdown.
        say: told what is running.
        sizes: filters of the releases to build, about.
        largest_full: up to how many filters `verify --full` and the audits run.
    """
    with scratch() as folder:
        before = describe(folder)
        say("first pass over one model")
        one = scale.in_child(bench_build, LARGE, "cpu")
        say("metrics")
        metrics = bench_metrics()
        say("planning")
        chosen = scale.parts((*sizes, scale.JOBS_SIZE))
        say("cores and jobs")
        jobs = scale.by_jobs(chosen.pop(scale.JOBS_SIZE), folder / "jobs")
        shutil.rmtree(folder / "jobs")
        at, reading = [], None
        for size, models in chosen.items():
            say(f"{size:,} filters")
            at.append(scale.at_size(models, folder / str(size), size <= largest_full))
            if reading is None:
                say("reading")
                reading = bench_read(folder / str(size) / "release")
            shutil.rmtree(folder / str(size))
        machine = {**before, "load before": before["load"], "load after": load()}
        del machine["load"]
    svg = out.with_suffix(".svg")
    write_atomic(svg, _plot(at).encode())
    text = _page(machine, one, metrics, at, reading, jobs, svg.name)
    write_atomic(out, text.encode())


def _page(
    machine: dict[str, str],
    one: dict[str, Any],
    metrics: list[dict[str, Any]],
    at: list[dict[str, Any]],
    reading: dict[str, Any] | None,
    jobs: list[dict[str, Any]],
    svg: str,
) -> str:
    parts = [
        "# Performance\n",
        "What builds, checks and questions cost, beside what the disk and the Parquet encoder take "
        "for the same bytes.\n",
        "Written by `builder bench all`; every number is of one run. All weights are seeded: "
        "SYNTHETIC, of the shapes of the paper's networks. Seconds are of the clock; `core s` are "
        "those of all cores together, which change less where others use the machine, too.\n",
        _table(("", "machine"), machine.items()),
        "\n## The first pass over one model\n",
        f"`{one['model_id']}`, {one['n_filters']:,} filters, {one['bytes'] / 1e6:,.0f} MB: weights "
        "made, both views measured, written. The bare writer encodes and writes the same columns "
        "with the same settings, from memory, on one thread; the plain write has as many bytes.\n",
        _table(
            ("", "s", "core s", "M filters/s", "of the bare writer, s", "core s"),
            [
                ("build", *_pair(one, "build"), _rate(one, "build_s"),
                 f"{one['build_over_bare_writer']:.2f}",
                 f"{one['build_over_bare_writer_cpu']:.2f}"),
                ("bare writer", *_pair(one, "bare_writer"), _rate(one, "bare_writer_s"), "1", "1"),
                ("plain write", f"{one['plain_write_s']:.1f}", "", _rate(one, "plain_write_s"),
                 f"{one['plain_write_s'] / one['bare_writer_s']:.2f}", ""),
            ],
        ),
        f"\nLargest memory of the build: {one['peak_memory_bytes'] / 1e9:.2f} GB.\n",
        "\n## Metrics\n",
        "Ours in both views of the weights, the others in one; the best of three runs each.\n",
        _table(
            ("model", "filters", "ours, s", "torchconvquality, s", "times ours", "differs by",
             "paper's formulas in NumPy, s", "times ours", "differs by"),
            [
                (f"`{row['model_id']}`", f"{row['n_filters']:,}", f"{row['ours_s']:.2f}",
                 f"{row['torchconvquality_s']:.2f}", f"{row['torchconvquality_over_ours']:.1f}",
                 f"{row['differs_from_torchconvquality']:.0e}", f"{row['paper_s']:.2f}",
                 f"{row['paper_over_ours']:.1f}", f"{row['differs_from_paper']:.0e}")
                for row in metrics
            ],
        ),
        "\n## By size\n",
        f"![Core seconds by number of filters]({svg})\n",
        _sizes(at),
        "\n## Questions\n",
        "Seconds: all findings together, from the small tables; each audit of every filter.\n",
        _questions(at),
        "\n## Reading\n",
    ]  # fmt: skip
    if reading:
        n, rows = reading.pop("n_filters"), reading.pop("batch_rows")
        reading.pop("release")
        parts += [
            f"A release of {n:,} filters, in batches of {rows:,} where the library has batches.\n",
            _table(("", "M filters/s"), [(k, f"{rate:.1f}") for k, rate in reading.items()]),
        ]
    parts += [
        "\n## Cores and jobs\n",
        "The same models on one core and on all, `--jobs` models at a time.\n",
        _table(
            ("cores", "jobs", "s", "core s"),
            [
                (row["cores"], row["jobs"], f"{row['cost'].wall_s:.1f}",
                 f"{row['cost'].cpu_s:.1f}")
                for row in jobs
            ],
        ),
    ]  # fmt: skip
    return "\n".join(parts)


def _pair(one: dict[str, Any], name: str) -> tuple[str, str]:
    return f"{one[f'{name}_s']:.1f}", f"{one[f'{name}_cpu_s']:.1f}"


def _rate(one: dict[str, Any], name: str) -> str:
    return f"{one['n_filters'] / one[name] / 1e6:.1f}"


def _sizes(at: list[dict[str, Any]]) -> str:
    rows: list[tuple[str, ...]] = []
    for part in at:
        bare, filters = part["bare_writer"], f"{part['n_filters']:,} ({part['models']})"
        rows.append((filters, "bare writer", _s(bare), _s(bare, cpu=True), "1", "1"))
        plain = part["plain_write"]
        rows.append(("", "plain write", _s(plain), "", f"{plain.wall_s / bare.wall_s:.2f}", ""))
        for name, cost in part["costs"].items():
            of_bare = (cost.wall_s / bare.wall_s, cost.cpu_s / bare.cpu_s)
            ratios = [f"{ratio:.2f}" for ratio in of_bare]
            rows.append(("", f"`{name}`", _s(cost), _s(cost, cpu=True), *ratios))
    names = ("filters (models)", "", "s", "core s", "of the bare writer, s", "core s")
    return _table(names, rows)


def _s(cost: Took, cpu: bool = False) -> str:
    return f"{cost.cpu_s if cpu else cost.wall_s:.1f}"


def _questions(at: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for part in at for name in part["questions"]))
    header = ("", *(f"{part['n_filters']:,} filters" for part in at))
    rows = [
        (name, *(f"{part['questions'][name]:.2f}" if name in part["questions"] else "not run"
                 for part in at))
        for name in names
    ]  # fmt: skip
    return _table(header, rows)


def _table(names: Sequence[str], rows: Any) -> str:
    lines = [" | ".join(map(str, row)) for row in (names, ["---"] * len(names), *rows)]
    return "\n".join(f"| {line} |" for line in lines)


def _plot(at: list[dict[str, Any]]) -> str:
    """Core seconds of builds and checks by number of filters, on logarithmic axes, as SVG."""
    import vl_convert

    points = [
        {"filters": part["n_filters"], "seconds": cost.cpu_s, "what": name}
        for part in at
        for name, cost in {"bare writer": part["bare_writer"], **part["costs"]}.items()
    ]
    lowest = 10.0 ** math.floor(math.log10(min(p["seconds"] for p in points)))
    axes = {
        "x": {"field": "filters", "type": "quantitative", "scale": {"type": "log", "nice": False},
              "axis": {"format": "~s", "title": "filters"}},
        "y": {"field": "seconds", "type": "quantitative",
              "scale": {"type": "log", "domainMin": lowest}, "axis": {"title": "core seconds"}},
        "color": {"field": "what", "type": "nominal", "title": None},
    }  # fmt: skip
    spec = {
        "data": {"values": points},
        "mark": {"type": "line", "point": True},
        "encoding": axes,
        "width": 420,
        "height": 260,
    }
    svg: str = vl_convert.vegalite_to_svg(spec)
    return svg
