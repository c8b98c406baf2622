"""From a cohort to a verified release: each model in turn, then what spans the models."""

from __future__ import annotations

import errno
import math
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from builder import schema
from builder.building import finish
from builder.building.workspace import Workspace, open_workspace
from builder.cohort.registry import N_CLASSES, Cohort, ModelSpec
from builder.errors import BuilderError, UsageError
from builder.files import cache_folder, file_sha256, pins_file
from builder.metrics.layer import METRICS_VERSION, measure_layer
from builder.network.device import resolve_device
from builder.network.extract import iter_layers
from builder.network.plan import PlannedModel, construct_on_meta, layer_graph, make_plan
from builder.progress import WHOLE, Report
from builder.release import sample
from builder.release.manifest import Manifest, read_manifest, tools
from builder.release.versions import parse_version
from builder.release.write import filter_writer
from builder.sources import fetch as sources
from builder.sources.addresses import local_file, resolve
from builder.sources.guest import prints_to_stderr
from builder.sources.hosts import Resolves, resolver
from builder.sources.seeded import SeededState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What a build is asked for. The first five decide its content.

    Raises:
        UsageError: weights or version of no known form.
    """

    weights: str = "checkpoints"  # or seeded:N
    models: str | None = None
    first_layer: bool = True
    seed: int = 0  # of the perturbations of the first-layer response
    version: str = "0.1.0"
    device: str = "auto"
    jobs: int = 1
    fresh: bool = False
    checkpoints: Path | None = None
    discard_checkpoints: bool = False
    cache: Path = field(default_factory=cache_folder)
    pins: Path = field(default_factory=pins_file)

    def __post_init__(self) -> None:
        parse_version(self.version)
        _ = self.weights_seed

    @property
    def weights_seed(self) -> int | None:
        """N of `seeded:N`; None for checkpoints."""
        kind, _, number = self.weights.partition(":")
        if kind == "checkpoints" and not number:
            return None
        if kind == "seeded" and number.isdecimal():
            return int(number)
        raise UsageError(
            f"--weights is {self.weights!r}; expected 'checkpoints' or 'seeded:N', "
            "N a whole number."
        )


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


def build(cohort: Cohort, out: Path, options: Options, report: Report) -> Outcome:
    """Build a release of `cohort` in `out`, resuming what an earlier run left there.

    A model that fails (a checkpoint that is missing, wrong or refused) does not stop the others;
    the release is completed only when none failed.

    Raises:
        UsageError: a wrong option, or a folder that holds something else.
        BuilderError: the disk is full, or another build holds the folder.
    """
    import torch

    device = resolve_device(options.device)
    selected = cohort.select(options.models)
    # One thread measures while another encodes, so sums do not depend on the number of cores;
    # more cores take more models at once.
    torch.set_num_threads(1)
    try:
        made_of = identity(cohort, options)
        with prints_to_stderr(), open_workspace(out, made_of, options.fresh) as workspace:
            if workspace is None:
                manifest = read_manifest(out)
                _refuse_changed(out, manifest, selected)
                return Outcome(len(selected.models), {}, manifest["problems"], already_there=True)
            plan = make_plan(selected, report)
            planned = list(plan.models)
            if plan.failures and (
                not planned or (options.fresh and (out / schema.MANIFEST).exists())
            ):
                return Outcome(len(selected.models), plan.failures, [])  # what is there stays
            workspace.begin(made_of, options.fresh)
            failures = plan.failures | _build_models(workspace, planned, options, device, report)
            unmeasured = _unmeasured(workspace, planned)
            if failures:
                return Outcome(len(selected.models), failures, [], unmeasured)
            entries = [_entry(workspace, p) for p in planned]
            problems = finish.finish(
                out, made_of, selected, planned, entries, max(1, options.jobs), report
            )
            return Outcome(len(planned), {}, problems, unmeasured)
    except OSError as e:
        raise _disk_error(e, out) from e


def _disk_error(error: OSError, out: Path) -> BuilderError:
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


def _refuse_changed(out: Path, manifest: Manifest, cohort: Cohort) -> None:
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


class _Stopped(KeyboardInterrupt):
    """Raised inside a model's work when the build is ending; no network's code swallows it."""


def _build_models(
    workspace: Workspace,
    planned: list[PlannedModel],
    options: Options,
    device: str,
    report: Report,
) -> dict[str, BuilderError]:
    """Build every model that is not finished; reasons of those that failed."""
    failures: dict[str, BuilderError] = {}
    stop = threading.Event()
    resolves = resolver()

    def report_or_stop(subject: str, what: str, done: int, total: int | None) -> None:
        if stop.is_set():
            raise _Stopped
        report(subject, what, done, total)

    def one(position: int, p: PlannedModel) -> None:
        model_id = p.spec.model_id
        if stop.is_set():
            return
        entry = workspace.entry(model_id)
        if entry and _still_good(entry, p.spec):
            report(model_id, "already there", position, len(planned))
            return
        try:
            build_model(workspace, p, options, device, report_or_stop, resolves)
        except _Stopped:
            return
        except BuilderError as e:
            failures[model_id] = e
            report(model_id, "failed", position, len(planned))
            return
        report(model_id, "done", position, len(planned))

    report(WHOLE, "models", 0, len(planned))
    with ThreadPoolExecutor(max(1, options.jobs), thread_name_prefix="model") as pool:
        try:
            futures = [pool.submit(one, i, p) for i, p in enumerate(planned, 1)]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        except BaseException:
            stop.set()
            raise
        if any(f.exception() for f in done):  # a full disk ends the build, a bad model does not
            stop.set()
    for future in futures:
        future.result()
    return dict(sorted(failures.items()))


def build_model(
    workspace: Workspace,
    p: PlannedModel,
    options: Options,
    device: str,
    report: Report,
    resolves: Resolves | None = None,
) -> None:
    """Fetch, extract, measure, write and journal one model."""
    spec = p.spec
    workspace.forget(spec.model_id)
    meta = construct_on_meta(spec)
    state: Mapping[str, torch.Tensor]
    fetched = None
    if options.weights_seed is not None:
        state = SeededState(meta, spec.model_id, options.weights_seed)
    else:
        report(spec.model_id, "fetching", 0, None)
        fetched = sources.fetch(
            spec,
            cache=options.cache,
            checkpoints=options.checkpoints,
            pins=options.pins,
            report=report,
            resolves=resolves,
        )
        state = sources.load_state(spec, fetched, meta)
    path = schema.filters_path(spec.dataset, spec.model_id)
    layers: list[dict[str, Any]] = []
    problems: list[str] = []
    n = 0
    with filter_writer(
        workspace.root / path, spec.dataset, spec.model_id, options.weights
    ) as writer:
        for layer in _ahead(iter_layers(p.convs, state, device)):
            measured = measure_layer(layer)
            scale = None if layer.bn_scale is None else layer.bn_scale.cpu().numpy()
            writer.append(
                layer.index,
                layer.conv.in_channels,
                measured.columns.cpu().numpy(),
                measured.linf.cpu().numpy(),
                scale,
            )
            for view, metrics in measured.views.items():
                if metrics["layer_linf"] is None:
                    problems.append(
                        f"{spec.model_id}: layer {layer.conv.layer} has NaN or infinite "
                        f"{view} weights; its metrics are null."
                    )
                layers.append(
                    {
                        "dataset": spec.dataset,
                        "model_id": spec.model_id,
                        "layer_index": layer.index,
                        "layer": layer.conv.layer,
                        "weights": view,
                        **layer_graph(layer.conv),
                        "reparametrized": layer.reparametrized,
                        **{k: _plain(v) for k, v in metrics.items()},
                    }
                )
            n += layer.conv.n_filters
            report(spec.model_id, "filters", n, p.n_filters)
    first_layer = []
    if options.first_layer:
        first_layer = _first_layer(p, state, options, device, report)
    assert writer.written is not None
    workspace.note(
        spec.model_id,
        {
            "path": path,
            "file": writer.written,
            "layers": layers,
            "first_layer": first_layer,
            "checkpoint": None
            if fetched is None
            else {"urls": fetched.urls, "sha256": fetched.sha256, "bytes": fetched.bytes},
            "problems": problems,
            "sample": sample.as_text(writer.sample()),
            "made_with": {**tools("torch", "numpy"), "device": device, "metrics": METRICS_VERSION},
        },
    )
    if fetched is not None and options.discard_checkpoints:
        sources.discard(fetched)


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield `items`, the next of which is made on another thread while the caller works on one."""
    with ThreadPoolExecutor(1, "ahead") as thread:
        upcoming = thread.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = thread.submit(next, items, None)
            yield item


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float) else value.tolist()


def _first_layer(
    p: PlannedModel,
    state: Mapping[str, torch.Tensor],
    options: Options,
    device: str,
    report: Report,
) -> list[dict[str, Any]]:
    import torch

    from builder.first_layer.response import measure_response, unmeasured

    def reached(*forward: object) -> None:  # a report may end the build: hence one per module
        report(p.spec.model_id, "first layer", 0, None)

    reached()
    eps, layers = p.spec.eps_value, [c.layer for c in p.convs if c.conv_depth == 0]
    try:
        model = sources.instantiate(p.spec, dict(state)).to(device)
        for module in model.modules():
            if not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
                module.register_forward_pre_hook(reached)
        rows = measure_response(
            model,
            layers=layers,
            eps=eps,
            image_size=p.image_size,
            n_classes=N_CLASSES[p.spec.dataset],
            seed=options.seed,
            device=device,
        )
    except UsageError as e:  # the constructor works without memory alone
        rows = [row for kind in ("random", "pgd") for row in unmeasured(layers, kind, eps, e)]
    return [
        {
            "dataset": p.spec.dataset,
            "model_id": p.spec.model_id,
            **{
                k: None if isinstance(v, float) and not math.isfinite(v) else v
                for k, v in row.items()
            },
        }
        for row in rows
    ]
