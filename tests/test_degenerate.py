"""Honest releases of degenerate layers pass `verify --full`; no number forged above 1e-6 does."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_verify import with_value

from builder import schema
from builder.check import recompute as recompute_
from builder.check.recompute import _METRICS, differs, recompute
from builder.check.verify import verify

torch = pytest.importorskip("torch")

Weight = np.ndarray[Any, np.dtype[np.float32]]
Shape = tuple[int, int]
Make = Callable[[np.random.Generator, Shape], Weight]


def normal(rng: np.random.Generator, shape: Shape) -> Weight:
    return rng.normal(size=(*shape, 3, 3)).astype(np.float32)


def collinear(rng: np.random.Generator, shape: Shape) -> Weight:
    """Every channel a multiple of the first."""
    return normal(rng, (1, shape[1])) * rng.normal(size=(shape[0], 1, 1, 1)).astype(np.float32)


def opposite(rng: np.random.Generator, shape: Shape) -> Weight:
    """For every channel its negative: the mean is zero but for rounding."""
    weight = normal(rng, shape)
    weight[shape[0] // 2 :] = -weight[: shape[0] - shape[0] // 2]
    return weight


def nearly_equal(rng: np.random.Generator, shape: Shape) -> Weight:
    """One filter, and the float32 numbers next to it."""
    one = np.broadcast_to(normal(rng, (1, 1)), (*shape, 3, 3))
    return np.nextafter(one, rng.choice([-1, 1], size=one.shape).astype(np.float32) * np.inf)


def mixed_scales(rng: np.random.Generator, shape: Shape) -> Weight:
    scale = 10.0 ** rng.uniform(-44, 38, size=(*shape, 1, 1))
    return (normal(rng, shape) / 8 * scale).astype(np.float32)


def outlier(rng: np.random.Generator, shape: Shape) -> Weight:
    """One filter far from all others, which are as good as equal."""
    weight = nearly_equal(rng, shape)
    weight[0, 0] = -rng.uniform(1, 90) * weight[-1, -1]
    return weight


def single(rng: np.random.Generator, shape: Shape) -> Weight:
    weight = np.zeros((*shape, 3, 3), np.float32)
    weight[-1, -1] = normal(rng, (1, 1))
    return weight


KINDS: dict[str, Make] = {
    "normal": normal,
    "zero": lambda rng, shape: np.zeros((*shape, 3, 3), np.float32),
    "all equal": lambda rng, shape: np.full((*shape, 3, 3), rng.normal(), np.float32),
    "equal filters": lambda rng, shape: np.broadcast_to(normal(rng, (1, 1)), (*shape, 3, 3)),
    "equal channels": lambda rng, shape: np.broadcast_to(
        normal(rng, (1, shape[1])), (*shape, 3, 3)
    ),
    "collinear": collinear,
    "opposite": opposite,
    "nearly equal": nearly_equal,
    "one filter": single,
    "denormal": lambda rng, shape: normal(rng, shape) * np.float32(1e-41),
    "least denormal": lambda rng, shape: np.sign(normal(rng, shape)) * np.float32(1e-45),
    "huge": lambda rng, shape: normal(rng, shape) * np.float32(5e37),
    "mixed scales": mixed_scales,
    "outlier": outlier,
}

SCALES: dict[str, Callable[[np.random.Generator, int], np.ndarray[Any, Any]]] = {
    "ones": lambda rng, n: np.ones(n),
    "normal": lambda rng, n: rng.normal(size=n),
    "zero": lambda rng, n: np.zeros(n),
    "half zero": lambda rng, n: np.arange(n) % 2 * rng.normal(size=n),
    "tiny": lambda rng, n: rng.normal(size=n) * 1e-38,
    "huge": lambda rng, n: rng.normal(size=n) * 1e30,
    "mixed": lambda rng, n: 10.0 ** rng.uniform(-38, 30, size=n),
}


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from([*KINDS]),
    scale=st.sampled_from([*SCALES]),
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 5)),
)
def test_a_degenerate_layer_is_measured_as_it_is_recomputed(
    kind: str, scale: str, seed: int, shape: Shape
) -> None:
    from builder.metrics.layer import measure_layer

    rng = np.random.default_rng(seed)
    weight = np.array(KINDS[kind](rng, shape), np.float32)
    factor = SCALES[scale](rng, shape[0]).astype(np.float32)
    layer: Any = SimpleNamespace(weight=torch.tensor(weight), bn_scale=torch.tensor(factor))
    measured = measure_layer(layer).views
    with np.errstate(over="ignore", invalid="ignore"):
        folded = (weight * factor[:, None, None, None]).reshape(-1, 9)
    for view, filters in (("trained", weight.reshape(-1, 9)), ("folded", folded)):
        expected = recompute(filters, shape[0])
        for column in _METRICS:
            have = measured[view][column.name]
            have = have.tolist() if isinstance(have, np.ndarray) else have
            assert not differs(have, expected[column.name], column), (view, column.name)


@pytest.mark.parametrize("entries", [1, 12, 25, 10**6])
def test_cosines_in_blocks_are_the_cosines(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(12, 18))
    rows[3] = 0
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    expected = 1 - np.abs(unit @ unit.T - np.eye(12)).sum() / (12 * 11)
    monkeypatch.setattr(recompute_, "_BLOCK", entries)
    assert recompute_._orthogonality(recompute_._channels(rows)) == pytest.approx(
        expected, abs=1e-15
    )


def build_chain(folder: Path, kinds: list[str], scales: list[str], seed: int) -> Path:
    """A release of one network whose ten layers are of the given kinds, by the real build."""
    from conftest import build_toy
    from toy_networks import Chain

    rng = np.random.default_rng(seed)
    state = Chain().state_dict()
    names = [n for n, w in state.items() if w.ndim == 4]
    for name, kind in zip(names, kinds, strict=True):
        state[name] = torch.tensor(np.array(KINDS[kind](rng, (*state[name].shape[:2],))))
    gammas = [n for n in state if n.startswith("norms.") and n.endswith(".weight")]
    for name, scale in zip(gammas, scales, strict=True):
        state[name] = torch.tensor(SCALES[scale](rng, len(state[name])).astype(np.float32))
    torch.save(state, folder / "chain.pt")
    with (folder / "chain.csv").open("w", newline="") as f:
        out = csv.writer(f)
        out.writerow(["network", "dataset", "robust", "architecture", "constructor", "checkpoint"])
        out.writerow(
            ["chain", "cifar10", "true", "Chain", "toy_networks:Chain", folder / "chain.pt"]
        )
    options = {"weights": "checkpoints", "first_layer": False, "pins": folder / "pins"}
    done = build_toy(folder / "chain.csv", folder / "out", **options)
    assert not done.failures
    return folder / "out"


@pytest.mark.parametrize("first", [0, 7])
def test_a_release_of_every_degenerate_kind_is_good(tmp_path: Path, first: int) -> None:
    kinds = [*KINDS, *KINDS][first : first + 10]
    scales = [*SCALES, *SCALES][first // 7 : first // 7 + 8]
    assert verify(build_chain(tmp_path, kinds, scales, seed=first), full=True) == []


@pytest.mark.slow
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kinds=st.lists(st.sampled_from([*KINDS]), min_size=10, max_size=10),
    scales=st.lists(st.sampled_from([*SCALES]), min_size=8, max_size=8),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_release_of_any_degenerate_layers_is_good(
    tmp_path: Path, kinds: list[str], scales: list[str], seed: int
) -> None:
    folder = tmp_path / "build"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    assert verify(build_chain(folder, kinds, scales, seed), full=True) == []


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kinds = ["normal", "equal channels", "collinear", *["normal"] * 7]
    return build_chain(tmp_path_factory.mktemp("chain"), kinds, ["normal"] * 8, seed=1)


def wrong_by(value: Any, step: float) -> Any:
    """The value, or the largest entry of a vector, moved by 2e-6: of itself, or of 1 if `step`."""
    if isinstance(value, list):
        at = max(range(len(value)), key=lambda i: abs(value[i]))
        return [wrong_by(v, step) if i == at else v for i, v in enumerate(value)]
    return value + 1 if isinstance(value, int) else value + 2e-6 * (step or value or 1)


@pytest.mark.parametrize("column", _METRICS, ids=lambda column: column.name)
@pytest.mark.parametrize("row", [0, 1, 2, 3, 4, 5])
def test_a_metric_forged_by_more_than_1e_6_is_found(
    chain: Path, column: schema.Column, row: int
) -> None:
    from builder.check.recompute import wrong_metrics
    from builder.progress import silent

    path = chain / schema.table_path("layers")
    honest = path.read_bytes()
    value = pq.read_table(path)[column.name][row].as_py()
    step = 1.0 if column.tolerance.absolute else 0.0
    try:
        rows = with_value(column.name, row, wrong_by(value, step))(pq.read_table(path))
        pq.write_table(rows, path)
        (wrong,) = wrong_metrics(chain, silent)
    finally:
        path.write_bytes(honest)
    assert f": {column.name} is " in wrong[1]
