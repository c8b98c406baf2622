"""From a cohort to a verified release: each model in turn, then what spans the models."""

from __future__ import annotations

import errno
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder import schema
from builder.building import finish
from builder.building.model import build_model, needs
from builder.building.options import Options
from builder.building.workspace import Workspace, open_workspace
from builder.cohort.registry import Cohort, ModelSpec
from builder.errors import BuilderError, UsageError
from builder.files import file_sha256
from builder.metrics.layer import METRICS_VERSION
from builder.network.device import resolve_device
from builder.network.plan import PlannedModel, make_plan
from builder.progress import WHOLE, Report
from builder.release.manifest import Manifest
from builder.release.reader import open_release
from builder.sources.addresses import local_file, resolve
from builder.sources.guest import prints_to_stderr
from builder.sources.hosts import Resolves
from builder.workers import HERE, Cluster, Stopped, Workers, each_done


@dataclass(frozen=True)
class Outcome:
    """How a build ended: failed models and their reasons, and problems inside finished ones.

    `unmeasured`: of finished models whose first-layer response has null rows, why.
    """

    n_models: int
    failures: dict[str, BuilderError]
    problems: list[str]
    unmeasured: dict[str, str] = field(default_factory=dict)
    already_there: bool = False


def identity(cohort: Cohort, options: Options) -> dict[str, Any]:
    """What decides the content of a release, as its manifest records it."""
    return {
        "schema_version": schema.SCHEMA_VERSION,
        "version": options.version,
        "cohort": {"name": cohort.name, "digest": cohort.digest, "models": options.models},
        "weights": options.weights,
        "options": {"first_layer": options.first_layer, "seed": options.seed},
    }


def build(
    cohort: Cohort,
    out: Path | str,
    options: Options,
    report: Report,
    cluster: Cluster | None = None,
) -> Outcome:
    """Build a release of `cohort` in `out`, resuming what an earlier run left there.

    A model that fails (a checkpoint that is missing, wrong or refused) does not stop the others;
    the release is completed only when none failed.

    Args:
        out: a folder, or an address in object storage (s3://bucket/prefix).
        cluster: machines that do the work and see `out` under the same path; default this process.

    Raises:
        UsageError: a wrong option, or a folder that holds something else.
        BuilderError: the disk is full, or another build holds the folder.
    """
    import torch

    device = cluster.device(options.device) if cluster else resolve_device(options.device)
    workers = cluster or HERE
    selected = cohort.select(options.models)
    torch.set_num_threads(1)  # as in build_model
    try:
        made_of = identity(cohort, options)
        with prints_to_stderr(), open_workspace(out, made_of, options.fresh) as workspace:
            if workspace is None:
                manifest = open_release(out).manifest
                _refuse_changed(out, manifest, selected)
                return Outcome(len(selected.models), {}, manifest["problems"], already_there=True)
            plan = make_plan(selected, report)
            planned = list(plan.models)
            if plan.failures and (not planned or (options.fresh and workspace.released)):
                return Outcome(len(selected.models), plan.failures, [])  # what is there stays
            workspace.begin(made_of, options.fresh)
            failures = plan.failures | _build_models(
                workspace, planned, options, device, workers, report
            )
            unmeasured = _unmeasured(workspace, planned)
            if failures:
                return Outcome(len(selected.models), failures, [], unmeasured)
            entries = [_entry(workspace, p) for p in planned]
            jobs = max(1, options.jobs)
            problems = finish.finish(
                workspace, made_of, selected, planned, entries, jobs, workers, report
            )
            return Outcome(len(planned), {}, problems, unmeasured)
    except OSError as e:
        raise _disk_error(e, out) from e


def _disk_error(error: OSError, out: Path | str) -> BuilderError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BuilderError(
            f"the disk of {out} is full; what was finished is kept.",
            hint="free some space and run the same command again: it goes on from there.",
        )
    where = f" ({error.filename})" if error.filename else ""
    return BuilderError(f"cannot write to {out}: {error.strerror or error}{where}.")


def _changed(spec: ModelSpec, sha256: str | None) -> bool:
    """Whether a checkpoint that is a file of this machine is no longer the one of this digest.

    A download is held to its pinned digest instead; and a file that is gone says nothing against
    what was made of it.
    """
    address = resolve(spec) if sha256 else None
    if address is None or not address.local:
        return False
    try:
        return file_sha256(local_file(address)) != sha256
    except (UsageError, OSError):  # gone, or not to be read
        return False


def _refuse_changed(out: Path | str, manifest: Manifest, cohort: Cohort) -> None:
    made_of = manifest["models"]
    for spec in cohort.models:
        if _changed(spec, made_of[spec.model_id]["checkpoint_sha256"]):
            raise UsageError(
                f"{out} holds a different build: the checkpoint of {spec.model_id} has changed "
                f"since ({spec.checkpoint}).",
                hint="choose another --out, or --fresh to delete that one and start over.",
            )


def _entry(workspace: Workspace, planned: PlannedModel) -> dict[str, Any]:
    entry = workspace.entry(planned.spec.model_id)
    if entry is None:
        raise BuilderError(
            f"the filters of {planned.spec.model_id} disappeared during the build.",
            hint="run the same command again.",
        )
    return entry


def _unmeasured(workspace: Workspace, planned: list[PlannedModel]) -> dict[str, str]:
    """Why the first-layer response of a finished model could not be measured, or not all of it."""
    found: dict[str, str] = {}
    for p in planned:
        entry = workspace.entry(p.spec.model_id)
        why: dict[str, list[str]] = {}
        for row in entry["first_layer"] if entry else ():
            if row["reason"] is not None:
                why.setdefault(row["reason"], []).append(row["perturbation"])
        if why:
            found[p.spec.model_id] = "; ".join(
                f"{' and '.join(dict.fromkeys(kinds))}: {reason}" for reason, kinds in why.items()
            )
    return found


def _still_good(entry: dict[str, Any], spec: ModelSpec) -> bool:
    """Whether a finished model need not be made again: same checkpoint, same metrics."""
    checkpoint = entry["checkpoint"] or {}
    measured_by = entry.get("made_with", {}).get("metrics")
    return measured_by == METRICS_VERSION and not _changed(spec, checkpoint.get("sha256"))


def _build_models(
    workspace: Workspace,
    planned: list[PlannedModel],
    options: Options,
    device: str,
    workers: Workers,
    report: Report,
) -> dict[str, BuilderError]:
    """Build every model that is not finished; reasons of those that failed."""
    failures: dict[str, BuilderError] = {}
    stop = threading.Event()
    resolves = Resolves()

    def one(position: int, p: PlannedModel) -> None:
        model_id = p.spec.model_id
        if stop.is_set():
            return
        entry = workspace.entry(model_id)
        if entry and _still_good(entry, p.spec):
            report(model_id, "already there", position, len(planned))
            return
        try:
            workers.call(
                build_model,
                *(workspace, p, options, device, resolves),
                stop=stop,
                needs=needs(p, device),
                report=report,
            )
        except Stopped:
            return
        except BuilderError as e:
            traceback.clear_frames(e.__traceback__)  # which hold the checkpoint open
            failures[model_id] = e
            report(model_id, "failed", position, len(planned))
            return
        report(model_id, "done", position, len(planned))

    report(WHOLE, "models", 0, len(planned))
    threads = workers.threads(max(1, options.jobs), len(planned))
    with ThreadPoolExecutor(threads, thread_name_prefix="model") as pool:
        try:
            futures = [pool.submit(one, i, p) for i, p in enumerate(planned, 1)]
            for _ in each_done(futures):  # a full disk ends the build, a bad model does not
                pass
        except BaseException:
            stop.set()
            raise
    return dict(sorted(failures.items()))
