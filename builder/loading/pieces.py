"""What a pass over a release is cut into: ranges of filters, single layers or single models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from builder.errors import UsageError
from builder.loading import positions
from builder.release.manifest import filter_files
from builder.release.reader import Release
from builder.release.write import ROWS_PER_GROUP

UNITS = ("filter", "layer", "model")


@dataclass(frozen=True)
class Layer:
    """A 3x3 layer of a chosen model, and where its filters lie in the file: rows start to stop."""

    layer_index: int
    layer: str
    depth_bin: int
    out_channels: int
    start: int
    stop: int


@dataclass(frozen=True)
class Piece:
    """What is read at a time: the rows start to stop of a model's file, `rows` rows of the pass."""

    model_id: str
    start: int
    stop: int
    rows: int
    layers: tuple[Layer, ...]


def choose(
    release: Release, unit: str, view: str, where: Any, layers: Sequence[str | int] | None
) -> tuple[dict[str, bool], list[Piece]]:
    """{model_id: robust} of the chosen models, and their pieces in the order of the release.

    Args:
        unit: one of `UNITS`, of which a piece holds as many as it has rows.
        view: "trained" or "folded".
        where: which rows of `models`. layers: module paths or values of layer_index; default all.

    Raises:
        UsageError: a release without filters, a layer that none of the models has.
    """
    files = filter_files(release.manifest)
    if not files:
        raise UsageError(f"{release.address} has no filters.")
    table = release.table("models", columns=["model_id", "robust"], where=where)
    robust = {row["model_id"]: row["robust"] for row in table.to_pylist()}
    chosen = release.layer_indices(list(robust), layers)
    rows = release.table(
        "layers",
        columns=["model_id", "layer_index", "layer", "depth_bin", "out_channels", "n_filters"],
        where=[("weights", "=", view)],
    ).to_pylist()
    found: dict[str, list[Layer]] = {model_id: [] for model_id in sorted(robust)}
    ends = dict.fromkeys(robust, 0)
    for row in sorted(rows, key=lambda row: int(row["layer_index"])):
        model_id, n = row.pop("model_id"), row.pop("n_filters")
        if model_id not in robust:
            continue
        start = ends[model_id]
        ends[model_id] += n
        if layers is None or row["layer_index"] in chosen[model_id]:
            found[model_id].append(Layer(**row, start=start, stop=start + n))
    for model_id, end in ends.items():
        held = release.manifest["files"][files[model_id]]["rows"]
        if held != end:
            raise UsageError(f"{model_id}: {held} filters, but its layers have {end}.")
    return robust, [p for model, of in found.items() for p in _cut(unit, model, of)]


def _cut(unit: str, model_id: str, layers: list[Layer]) -> Iterator[Piece]:
    """The pieces of a model."""
    if unit == "model":
        start = min((one.start for one in layers), default=0)
        stop = max((one.stop for one in layers), default=0)
        yield Piece(model_id, start, stop, 1, tuple(layers))
        return
    if unit == "layer":
        for one in layers:
            yield Piece(model_id, one.start, one.stop, 1, (one,))
        return
    for start, stop in positions.union([(one.start, one.stop) for one in layers]):
        while start < stop:
            # At the borders of row groups, as this project writes them.
            end = min(stop, (start // ROWS_PER_GROUP + 1) * ROWS_PER_GROUP)
            within = tuple(one for one in layers if one.start < end and one.stop > start)
            yield Piece(model_id, start, end, end - start, within)
            start = end
