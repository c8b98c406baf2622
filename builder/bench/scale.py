"""Builds, checks and questions at several sizes, and builds on more cores and with more jobs.

Every size is a part of the paper's cohort with seeded weights. Builds and checks run in processes
of their own, start included, as a command would.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from builder.bench.build import Took, bare_writer, plain_write, timed
from builder.bench.read import stored_filters
from builder.building.options import Options
from builder.building.run import build
from builder.check.verify import verify
from builder.cohort.registry import Cohort, load_cohort
from builder.network.plan import make_plan
from builder.progress import silent
from builder.release.manifest import read_manifest
from builder.release.reader import open_release
from builder.release.views import open_views
from builder.sql.catalog import list_findings, list_queries
from builder.sql.run import run_query

SIZES = (1_000_000, 10_000_000, 100_000_000)
"""Filters, about: a release holds whole models."""

JOBS_SIZE = 5_000_000
"""Filters of the builds that differ in cores and jobs."""


def parts(sizes: tuple[int, ...]) -> dict[int, tuple[str, ...]]:
    """Models of the paper's cohort whose filters add up to each size, or to little more."""
    planned = make_plan(load_cohort("paper"), silent).models
    counts = sorted(((p.n_filters, p.spec.model_id) for p in planned), reverse=True)
    chosen = {}
    for size in sizes:
        left, models = 1.3 * size, []
        for n, model_id in counts:
            if n <= left:
                left -= n
                models.append(model_id)
        chosen[size] = tuple(models)
    return chosen


def in_child(work: Callable[..., Any], *args: object) -> Any:
    """What a function of a module returns, called in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *args).result()


def cost_of(work: Callable[..., object], *args: object) -> Took:
    """What a function of a module takes in a process of its own, imports included."""
    cost: Took = in_child(_cost, work, args)
    return cost


def _cost(work: Callable[..., object], args: tuple[object, ...]) -> Took:
    started = time.perf_counter()
    work(*args)
    wall = time.perf_counter() - started
    return Took(wall, time.process_time())


def build_part(models: tuple[str, ...], out: Path, cores: int, jobs: int) -> None:
    """Build these models of the paper's cohort with seeded weights, without the first layer."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    cohort = load_cohort("paper")
    part = Cohort(cohort.name, tuple(m for m in cohort.models if m.model_id in models))
    options = Options(weights="seeded:0", first_layer=False, device="cpu", jobs=jobs)
    outcome = build(part, out, options, silent)
    if outcome.failures:
        raise next(iter(outcome.failures.values()))


def check(release: Path, full: bool) -> None:
    """Verify a release that is good."""
    faults = verify(release, full)
    assert not faults, faults


def at_size(models: tuple[str, ...], folder: Path, full: bool = True) -> dict[str, Any]:
    """Build a release of these models, check it and ask it everything.

    Args:
        models: as `parts` chose them.
        folder: empty; holds the release afterwards.
        full: verify it in full, too, and run the audits.
    """
    out, cores = folder / "release", os.cpu_count() or 1
    costs = {"build": cost_of(build_part, models, out, cores, max(1, cores // 2))}
    bare = cost_of(write_bare, out, folder / "bare.parquet")
    size = sum(f["bytes"] for f in read_manifest(out)["files"].values())
    plain = timed(lambda: plain_write(folder / "plain", size))
    (folder / "plain").unlink()
    costs["verify"] = cost_of(check, out, False)
    if full:
        costs["verify --full"] = cost_of(check, out, True)
    return {
        "n_filters": read_manifest(out)["totals"]["filters"],
        "models": len(models),
        "bytes": size,
        "bare_writer": bare,
        "plain_write": plain,
        "costs": costs,
        "questions": ask(out, full),
    }


def write_bare(release: Path, target: Path) -> None:
    """Encode and write all filters of a release again, one file after the other."""
    for path in stored_filters(release):
        bare_writer(path, target)
    target.unlink()


def ask(release: Path, audits: bool) -> dict[str, float]:
    """Seconds of all findings together and of each audit, on one open connection."""
    seconds = {"findings": 0.0}
    with open_views(open_release(release)) as connection:
        for query in list_queries() if audits else list_findings():
            started = time.perf_counter()
            run_query(connection, query).rows()
            name = query.name if query.name.startswith("audit/") else "findings"
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
    return seconds


def by_jobs(models: tuple[str, ...], folder: Path) -> list[dict[str, Any]]:
    """Builds of the same models on one core and on all, and with more models at a time."""
    cores = os.cpu_count() or 1
    rows = []
    for used, jobs in dict.fromkeys([(1, 1), (cores, 1), (cores, cores)]):
        cost = cost_of(build_part, models, folder / f"{used}-{jobs}", used, jobs)
        rows.append({"cores": used, "jobs": jobs, "cost": cost})
    return rows
