"""A release as a torch data set: no row twice, none lost, whoever reads, wherever it stopped."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_release import make_world, write_release
from tiny_release import MODELS, Tiny, filters, write_tiny_release
from torch.utils.data import DataLoader

import robust_filter_lens as rfl
from builder import schema
from builder.errors import UsageError
from builder.loading import pieces, positions
from builder.loading.dataset import ReleaseDataset
from builder.paper.reference import write_reference
from builder.release.manifest import file_facts, read_manifest, write_manifest
from builder.release.reader import open_release
from builder.release.write import ROWS_PER_GROUP, filter_writer

ROWS = 50
"""Rows of a piece here, so that a small release has many."""


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "ROWS_PER_GROUP", ROWS)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Row groups of other sizes than the pieces."""
    root = write_tiny_release(tmp_path_factory.mktemp("many"))
    for path, facts in files(root).items():
        rows = filters(next(m for m in MODELS if m.model_id == Path(path).stem))
        pq.write_table(rows, root / path, row_group_size=37)
        assert pq.read_metadata(root / path).num_row_groups > 2 and facts["rows"]
    return root


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of one row group, and one without any row: a model that has no 3x3 layer."""
    models = (*MODELS, Tiny("Empty"))
    root = write_tiny_release(tmp_path_factory.mktemp("odd"), models=models)
    manifest = read_manifest(root)
    empty = schema.filters_path("cifar10", Tiny("Empty").model_id)
    with filter_writer(root / empty, "cifar10", Tiny("Empty").model_id, "checkpoints") as writer:
        pass
    assert writer.written is not None
    manifest["files"][empty] = writer.written
    path = root / schema.table_path("layers")
    layers = pq.ParquetFile(path).read().to_pylist()
    kept = [row for row in layers if "Empty" not in row["model_id"]]
    pq.write_table(pa.Table.from_pylist(kept, schema=schema.LAYERS.arrow), path)
    manifest["files"][schema.table_path("layers")] |= file_facts(path.read_bytes()) | {
        "rows": len(kept), "content_hash": "0"}  # fmt: skip
    write_manifest(root, manifest)
    groups = [pq.read_metadata(root / p).num_row_groups for p in files(root)]
    assert set(groups) == {0, 1}
    return root


def files(root: Path) -> dict[str, Any]:
    return {p: f for p, f in read_manifest(root)["files"].items() if schema.filters_key(p)}


def expected(root: Path, unit: str) -> Counter[tuple[Any, ...]]:
    """The keys of a release, from its reader."""
    release = open_release(root)
    if unit == "model":
        return Counter((m,) for m in release.model_ids)
    rows: Counter[tuple[Any, ...]] = Counter()
    for b in release.filters():
        for key in zip(b.layer_index, b.out_channel, b.in_channel, strict=True):
            rows[b.model_id, *map(int, key)] += 1
    if unit == "layer":
        return Counter({(m, index): 1 for m, index, *_ in rows})
    return rows


def keys(batch: dict[str, Any], unit: str) -> list[tuple[Any, ...]]:
    """The keys of a row, or of a batch as a DataLoader makes it."""
    columns = {"model": (), "layer": ("layer_index",)}.get(
        unit, ("layer_index", "out_channel", "in_channel")
    )
    numbers = [np.atleast_1d(np.asarray(batch[c])).tolist() for c in columns]
    models = batch["model_id"]
    names = [models] * max(1, np.size(np.asarray(batch["position"]))) if isinstance(
        models, str) else models  # fmt: skip
    return list(zip(names, *numbers, strict=True))


def read(data: ReleaseDataset, workers: int, batch: int | None, stop: int | None = None) -> Any:
    """Keys that were read until `stop` batches, said to be used, and the state then."""
    seen: Counter[tuple[Any, ...]] = Counter()
    loader = DataLoader(data, batch_size=batch, num_workers=workers)
    for i, found in enumerate(loader):
        if i == stop:
            break
        seen.update(keys(found, data._unit))
        data.used(found)
    return seen, json.loads(json.dumps(data.state_dict()))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("unit", pieces.UNITS)
@pytest.mark.parametrize("which", ["many", "odd"])
def test_two_ranks_of_two_workers_read_every_row_once_over_a_stop(
    which: str, unit: str, shuffle: bool, request: pytest.FixtureRequest
) -> None:
    root = request.getfixturevalue(which)
    batch = 7 if unit == "filter" else None
    draw = random.Random(f"{which}{unit}{shuffle}")
    seen: Counter[tuple[Any, ...]] = Counter()
    states = []
    for rank in range(2):
        data = ReleaseDataset(root, unit, shuffle=shuffle, seed=3, rank=rank, world_size=2)
        first, state = read(data, 2, batch, stop=draw.randrange(0, 6))
        seen += first
        states.append(state)
    for rank in range(2):
        data = ReleaseDataset(root, unit, shuffle=shuffle, seed=3, rank=rank, world_size=2)
        data.load_state_dict(states[rank])
        seen += read(data, 2, batch)[0]
    assert seen == expected(root, unit)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 400), st.integers(1, 4), st.integers(1, 3), st.sampled_from([None, 1, 16]))
def test_a_stop_at_any_row_and_another_number_of_ranks(
    many: Path, stop: int, before: int, after: int, batch: int | None
) -> None:
    def all_of(world: int, states: list[dict[str, Any]], limit: int | None) -> Any:
        out = []
        for rank in range(world):
            data = ReleaseDataset(
                many, shuffle=True, seed=1, batch_rows=batch, rank=rank, world_size=world
            )
            if states:
                data.load_state_dict(*states)
            for n, row in enumerate(data):
                seen.update(keys(row, "filter"))
                if limit is not None and n >= limit:
                    break
            out.append(data.state_dict())
        return out

    seen: Counter[tuple[Any, ...]] = Counter()
    states = all_of(before, [], stop)
    was = seen.total()
    states = all_of(after, states, None)
    assert seen == expected(many, "filter")
    # What was left is shared equally, too.
    rows = [sum(b - a for a, b in s["done"]) - was for s in states]
    assert max(rows) - min(rows) <= 1


def test_a_rank_goes_on_alone_after_the_ranks_were_others(many: Path) -> None:
    def made(rank: int, world: int, *states: Any, stop: int | None = None) -> dict[str, Any]:
        data = ReleaseDataset(many, shuffle=True, rank=rank, world_size=world)
        if states:
            data.load_state_dict(*states)
        for row in islice(data, stop):
            seen.update(keys(row, "filter"))
        state: dict[str, Any] = json.loads(json.dumps(data.state_dict()))
        return state

    seen: Counter[tuple[Any, ...]] = Counter()
    of_two = [made(rank, 2, stop=50 + rank) for rank in range(2)]
    of_three = [made(rank, 3, *of_two, stop=20) for rank in range(3)]
    for rank in range(3):
        made(rank, 3, of_three[rank])
    assert seen == expected(many, "filter")
    for rank, world, states in ((1, 2, of_two[:1]), (0, 4, of_two[:1]), (0, 3, of_three[:2])):
        with pytest.raises(UsageError, match="expected those of all, or that of rank"):
            made(rank, world, *states)


def test_ranks_of_torch_distributed_share_the_rows(odd: Path, tmp_path: Path) -> None:
    source = """
import json, sys
from torch import distributed
from torch.utils.data import DataLoader
import robust_filter_lens as rfl
rank, root, meet, out = int(sys.argv[1]), *sys.argv[2:]
distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=2)
data = rfl.ReleaseDataset(root, shuffle=True)
found = []
for batch in DataLoader(data, batch_size=5, num_workers=2):
    columns = [batch[c] for c in ("layer_index", "out_channel", "in_channel")]
    found += zip(batch["model_id"], *[c.tolist() for c in columns])
distributed.barrier()
json.dump(found, open(f"{out}.{rank}", "w"))
distributed.destroy_process_group()
"""
    args = [str(odd), str(tmp_path / "meet"), str(tmp_path / "out")]
    started = [
        subprocess.Popen([sys.executable, "-c", source, str(rank), *args]) for rank in range(2)
    ]
    assert [p.wait(120) for p in started] == [0, 0]
    parts = [json.loads((tmp_path / f"out.{rank}").read_text()) for rank in range(2)]
    seen = Counter(tuple(key) for part in parts for key in part)
    assert seen == expected(odd, "filter") and abs(len(parts[0]) - len(parts[1])) <= 1


@pytest.mark.slow
def test_the_mini_release_is_read_once_over_ranks_workers_and_a_stop(
    mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "ROWS_PER_GROUP", ROWS_PER_GROUP)
    release = open_release(mini)

    def coded(batch: Any) -> np.ndarray:
        """Each key as one number."""
        get = batch.__getitem__ if isinstance(batch, dict) else batch.__getattribute__
        parts = [np.asarray(get(k), np.int64) for k in ("layer_index", "out_channel", "in_channel")]
        model = release.model_ids.index(get("model_id"))
        return (model << 48) | (parts[0] << 32) | (parts[1] << 16) | parts[2]

    found = []
    for rank in range(2):
        made: Any = {"shuffle": True, "batch_rows": 10_007, "rank": rank, "world_size": 2}
        data = ReleaseDataset(mini, **made)
        stop = random.Random(rank).randrange(1, 60)
        for i, batch in enumerate(DataLoader(data, batch_size=None, num_workers=2)):
            if i == stop:
                break
            found.append(coded(batch))
            data.used(batch)
        resumed = ReleaseDataset(mini, **made)
        resumed.load_state_dict(json.loads(json.dumps(data.state_dict())))
        found += [coded(b) for b in DataLoader(resumed, batch_size=None, num_workers=2)]
    wanted = np.concatenate([coded(batch) for batch in release.filters()])
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), np.sort(wanted))
    for unit in ("layer", "model"):
        rows = Counter(k for row in ReleaseDataset(mini, unit) for k in keys(row, unit))
        assert rows == Counter(set(rows)) and len(rows) == ReleaseDataset(mini, unit).rows


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from builder.building.run import Options, build
    from builder.cohort.registry import load_cohort

    root = tmp_path_factory.mktemp("mini") / "mini"
    options = Options(weights="checkpoints", first_layer=False)
    assert not build(load_cohort("mini"), root, options, lambda *progress: None).failures
    return root


@pytest.mark.parametrize("view", schema.WEIGHT_VIEWS)
@pytest.mark.parametrize("batch", [None, 9])
def test_filters_are_those_of_the_reader(many: Path, view: str, batch: int | None) -> None:
    release = rfl.open_release(many)
    wanted = np.concatenate([b.filters for b in release.filters(view=view)])
    data = rfl.ReleaseDataset(release, view=view, batch_rows=batch)
    found = [row["filter"].reshape(-1, 3, 3) for row in data]
    assert torch.cat(found).dtype == torch.float32
    np.testing.assert_array_equal(torch.cat(found).numpy(), wanted)


def test_layers_and_models_are_the_weights_of_the_reader(many: Path) -> None:
    release = rfl.open_release(many)
    layers = release.table("layers", where=[("weights", "=", "folded")]).to_pylist()
    of_layer = {(r["model_id"], r["layer_index"]): r for r in layers}
    for row in ReleaseDataset(many, "layer", view="folded", shuffle=True):
        facts = of_layer.pop((row["model_id"], row["layer_index"]))
        assert {k: facts[k] for k in ("layer", "depth_bin")} == {
            k: row[k] for k in ("layer", "depth_bin")
        }
        weight = release.weight(row["model_id"], row["layer_index"], view="folded")
        np.testing.assert_array_equal(row["weight"].numpy(), weight)
    assert not of_layer
    for row in ReleaseDataset(many, "model"):
        assert row["robust"] == ("-robust-" in row["model_id"])
        for name, weight in row["weights"].items():
            np.testing.assert_array_equal(weight.numpy(), release.weight(row["model_id"], name))


def test_where_and_layers_choose(many: Path) -> None:
    data = ReleaseDataset(many, where=[("robust", "=", False)], layers=[0, 2])
    found = {(r["model_id"], r["layer_index"]) for r in data}
    standard = [m.model_id for m in MODELS if not m.robust]
    assert found == {(m, i) for m in standard for i in (0, 2)}
    names = {row["layer"] for row in ReleaseDataset(many, "layer", layers=[0])}
    assert len(names) == 1
    with pytest.raises(UsageError, match="has the 3x3 layer 99"):
        ReleaseDataset(many, layers=[99])


def test_epochs_differ_and_the_same_one_is_the_same(many: Path) -> None:
    def order(epoch: int, seed: int = 0) -> list[tuple[Any, ...]]:
        data = ReleaseDataset(many, shuffle=True, seed=seed)
        data.set_epoch(epoch)
        return [k for row in data for k in keys(row, "filter")]

    assert order(0) == order(0) and Counter(order(0)) == Counter(order(1))
    assert order(0) != order(1) and order(0) != order(0, seed=1)
    assert order(0)[0][0] != order(0)[-1][0] or order(0)[0] != sorted(order(0))[0]


def test_workers_that_stay_alive_hear_of_a_new_epoch(many: Path) -> None:
    data = ReleaseDataset(many, shuffle=True)
    loader = DataLoader(data, batch_size=50, num_workers=1, persistent_workers=True)
    first = [k for b in loader for k in keys(b, "filter")]
    data.set_epoch(1)
    second = [k for b in loader for k in keys(b, "filter")]
    assert first != second and Counter(first) == Counter(second)


def test_a_look_at_a_few_rows_takes_none_from_the_next_pass(many: Path) -> None:
    data = ReleaseDataset(many)
    next(iter(data))
    assert len(list(data)) == data.rows == sum(f["rows"] for f in files(many).values())


def test_a_state_of_other_rows_is_refused(many: Path, odd: Path) -> None:
    state = ReleaseDataset(many, shuffle=True, seed=1).state_dict()
    for other, said in (
        (ReleaseDataset(many, shuffle=True, seed=2), "seed 1, this data set 2"),
        (ReleaseDataset(many, "layer"), "unit 'filter'"),
        (ReleaseDataset(many, shuffle=True, seed=1, where=[("robust", "=", True)]), "rows"),
        (ReleaseDataset(odd, shuffle=True, seed=1), "release"),
    ):
        with pytest.raises(UsageError, match=said):
            other.load_state_dict(state)
    data = ReleaseDataset(many, shuffle=True, seed=1)
    with pytest.raises(UsageError, match="epoch 4"):
        data.load_state_dict(state, {**state, "epoch": 4})


def test_a_row_used_twice_is_refused(many: Path) -> None:
    data = ReleaseDataset(many)
    row = next(iter(data))
    data.used(row)
    with pytest.raises(UsageError, match="used twice in epoch 0"):
        data.used(row)
    data.set_epoch(1)
    data.used(row)


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"unit": "kernel"}, "unknown unit 'kernel'"),
        ({"view": "bent"}, "unknown view 'bent'"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"rank": 0}, "belong together"),
        ({"batch_rows": 0}, "batch_rows=0"),
        ({"unit": "layer", "batch_rows": 4}, "batch_rows=4"),
    ],
)
def test_what_cannot_be_is_refused(many: Path, given_: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ReleaseDataset(many, **given_)


def test_a_release_without_filters_is_refused(tmp_path: Path) -> None:
    write_reference(tmp_path / "reference")
    with pytest.raises(UsageError, match="has no filters"):
        ReleaseDataset(tmp_path / "reference")


def test_another_release_is_read_whole_too(tmp_path: Path) -> None:
    root = write_release(tmp_path, make_world())
    seen = Counter(k for row in ReleaseDataset(root, shuffle=True) for k in keys(row, "filter"))
    assert seen == expected(root, "filter")


@given(st.lists(st.integers(0, 30), unique=True), st.integers(0, 30), st.integers(0, 30))
def test_intervals_are_sets_of_positions(done: list[int], a: int, b: int) -> None:
    intervals = positions.of(done)
    assert {i for low, high in intervals for i in range(low, high)} == set(done)
    assert positions.size(intervals) == len(done)
    left = positions.difference(((min(a, b), max(a, b)),), intervals)
    assert {i for low, high in left for i in range(low, high)} == (
        set(range(min(a, b), max(a, b))) - set(done)
    )
    parts = [positions.share(intervals, i, b + 1) for i in range(b + 1)]
    assert positions.union(*parts) == intervals
    sizes = [positions.size(part) for part in parts]
    assert sum(sizes) == len(done) and max(sizes) - min(sizes) <= 1
