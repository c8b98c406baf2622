"""Histograms of stored filters against NumPy's, and the range found without looking at them all."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_measure import conv_of

from builder.metrics import histograms
from builder.metrics.histograms import Projector
from builder.metrics.layer import measure_layer
from builder.metrics.longest import Longest, read
from builder.network.extract import Layer
from builder.release.write import filter_writer

DIRECTIONS = np.linalg.qr(np.random.default_rng(9).normal(size=(9, 9)))[0].T.copy("C")
MEAN = np.linspace(-0.2, 0.3, 9)


def stored(
    path: Path, weights: list[np.ndarray], scales: list[np.ndarray | None]
) -> tuple[Projector, np.ndarray, np.ndarray]:
    """A projector over layers (out, in, 9), and what it should see: depth bins, coefficients."""
    rows, bins, scaled = [], [], []
    with filter_writer(path, "cifar10", "m", "checkpoints") as writer, np.errstate(all="ignore"):
        for i, (w, s) in enumerate(zip(weights, scales, strict=True)):
            filters = w.reshape(-1, 9)
            writer.append(i, w.shape[1], filters.T, np.abs(filters).max(axis=1), s)
            folded = w if s is None else w * s[:, None, None]
            folded = folded.reshape(-1, 9).astype(np.float64)
            length = np.abs(folded).max(axis=1)
            finite = bool(np.isfinite(length).all())
            row: dict[str, Any] = {"layer_index": i, "depth_bin": i % 3}
            rows.append(row | {"layer_linf": float(length.max()) if finite else None})
            keep = (length > length.max() / 100) & finite
            bins += [i % 3] * int(keep.sum())
            scaled.append(folded[keep] / length[keep, None])
    coefficients = (np.concatenate(scaled) - MEAN) @ DIRECTIONS.T
    projector = Projector(lambda: path, rows, DIRECTIONS, MEAN, threading.Event())
    return projector, np.array(bins), coefficients


def layers() -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    draw = np.random.default_rng(0)
    weights = [draw.normal(size=(o, i, 9)).astype(np.float32) for o, i in [(40, 30)] * 5]
    weights[1][:20] *= 1e-3  # sparse
    weights[2][3, 3, 3] = np.nan  # no metrics
    weights[3] *= np.float32(1e-22)
    weights[4][:] = 0
    scales: list[np.ndarray | None] = [None] * 5
    scales[0] = draw.normal(size=40).astype(np.float32)
    scales[3] = np.full(40, 1e-22, np.float32)  # products of a few units of 1.4e-45
    return weights, scales


def test_counts_are_those_of_numpy(tmp_path: Path):
    projector, bins, coefficients = stored(tmp_path / "f.parquet", *layers())
    low, high = projector.extent()
    assert (low, high) == pytest.approx((coefficients.min(), coefficients.max()), rel=1e-12)
    counts = projector.counts(low, high)
    assert counts.sum() == coefficients.size
    for depth in range(3):
        for k in range(9):
            expected = np.histogram(coefficients[bins == depth, k], 70, (low, high))[0]
            moved = np.abs(counts[depth, k] - expected).sum()
            assert moved <= 2, (depth, k)  # one at an edge: rounding


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0, 1.1])
def test_the_range_is_exact_whatever_range_is_known_before(tmp_path: Path, share: float):
    projector, _, _ = stored(tmp_path / "f.parquet", *layers())
    low, high = projector.extent()
    found = projector.extent(low * share, high * share)
    assert found == (min(low, low * share), max(high, high * share))


def test_filters_that_cannot_widen_the_range_are_not_projected(tmp_path: Path, monkeypatch):
    weights, _ = layers()
    projector, _, coefficients = stored(tmp_path / "f.parquet", weights[:1], [None])
    low, high = projector.extent()
    seen = []
    scaled = Projector._scaled
    monkeypatch.setattr(
        Projector, "_scaled", lambda self, part: seen.append(len(part[0])) or scaled(self, part)
    )
    projector.extent(low, high)
    assert sum(seen) < 0.6 * len(coefficients)


def test_a_model_without_a_filter_to_count_has_no_range(tmp_path: Path):
    weights, _ = layers()
    projector, _, _ = stored(tmp_path / "f.parquet", [weights[2], weights[4]], [None, None])
    assert projector.extent() == (math.inf, -math.inf)
    assert not projector.counts(0.0, 0.0).any()


def test_a_pass_that_is_stopped_ends_without_reading_on(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(histograms, "_STEP", 8)
    projector, _, _ = stored(tmp_path / "f.parquet", *layers())
    projector._stop.set()
    assert not projector.counts(-3, 3).any()


def test_the_range_has_the_same_digits_however_few_filters_are_looked_at(tmp_path: Path):
    weights, _ = layers()
    projector, _, _ = stored(tmp_path / "f.parquet", weights[:1], [None])
    filters = weights[0].reshape(-1, 9).T
    columns = [np.zeros(1200, int), *filters, abs(filters).max(axis=0), np.ones(1200, np.float32)]
    for i in range(50):
        one, twice = ([c[at] for c in columns] for at in ([i], [i, i]))
        assert projector.extent(longest=one) == projector.extent(longest=twice)


@pytest.mark.parametrize("room", [0, 8, 300, 10_000])
def test_the_longest_filters_make_the_range_or_say_that_they_do_not(tmp_path: Path, room: int):
    import torch

    weights, scales = layers()
    projector, _, _ = stored(tmp_path / "f.parquet", weights, scales)
    longest = Longest(0, room)
    for i, (w, s) in enumerate(zip(weights, scales, strict=True)):
        weight = torch.from_numpy(w).view(*w.shape[:2], 3, 3)
        layer = Layer(i, conv_of(weight), weight, None if s is None else torch.from_numpy(s))
        longest.add(layer, measure_layer(layer))
    longest.write(tmp_path / "longest.arrow")
    kept, above = read(tmp_path / "longest.arrow")
    assert len(kept[0]) == min(room, 3 * 1200)  # but no zeros, and none of NaN's layer
    assert (np.diff(kept[0]) >= 0).all()
    found = projector.extent(longest=kept)
    assert projector.extent(*found) == projector.extent()
    if above <= projector.reach(*found):
        assert found == projector.extent()
    assert (above == 0) == (room == 10_000)


def test_without_longest_filters_every_filter_is_looked_at(tmp_path: Path):
    kept, above = read(tmp_path / "none.arrow")
    projector, _, _ = stored(tmp_path / "f.parquet", *layers())
    assert projector.extent(longest=kept) == (math.inf, -math.inf)
    assert above > projector.reach(*projector.extent())


def test_bins_narrower_than_rounding_hold_every_filter(tmp_path: Path):
    weights, scales = layers()
    projector, _, coefficients = stored(tmp_path / "f.parquet", weights[:1], scales[:1])
    middle = float(np.median(coefficients))
    counts = projector.counts(middle, math.nextafter(middle, 9))
    assert counts.sum() == coefficients.size
    assert np.abs(counts[..., 0].sum() - (coefficients <= middle).sum()) <= 2
