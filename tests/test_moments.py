"""Moments, entropy and bases against scikit-learn, SciPy and arithmetic by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from builder.release.moments import (
    Moments,
    explained_variance_ratio,
    merge,
    pack,
    principal_directions,
    random_entropy,
    unpack,
    variance_entropy,
)


def of(x: np.ndarray) -> Moments:
    mean = x.mean(axis=0)
    return Moments(len(x), mean, (x - mean).T @ (x - mean))


def samples(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 9)) @ rng.normal(size=(9, 9)) + rng.normal(size=9)


def test_merged_parts_equal_the_whole():
    x = samples(1000)
    whole, merged = of(x), merge([of(x[:3]), of(x[3:700]), of(x[700:])])
    assert merged.n == 1000
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.scatter, whole.scatter, rtol=1e-11)


def test_merging_nothing_is_empty_and_empty_parts_do_not_matter():
    assert merge([]).n == 0
    empty = Moments(0, np.zeros(9), np.zeros((9, 9)))
    part = of(samples(50))
    np.testing.assert_array_equal(merge([empty, part, empty]).scatter, part.scatter)


def test_bases_are_those_of_scikit_learn():
    x = samples(500)
    pca = PCA().fit(x)
    variances, directions = principal_directions(of(x))
    np.testing.assert_allclose(variances, pca.explained_variance_, rtol=1e-10)
    np.testing.assert_allclose(
        explained_variance_ratio(of(x).scatter), pca.explained_variance_ratio_, rtol=1e-10
    )
    np.testing.assert_allclose(np.abs((directions * pca.components_).sum(axis=1)), 1, rtol=1e-10)
    assert (directions[np.arange(9), np.abs(directions).argmax(axis=1)] > 0).all()


def test_packing_is_reversible():
    scatter = of(samples(20)).scatter
    assert pack(scatter).shape == (45,)
    np.testing.assert_array_equal(unpack(pack(scatter)), scatter)


def test_equal_variances_have_the_largest_entropy():
    assert variance_entropy(np.eye(9)) == pytest.approx(math.log10(9))


def test_one_direction_has_no_entropy():
    scatter = np.zeros((9, 9))
    scatter[4, 4] = 7.0
    assert variance_entropy(scatter) == 0.0
    assert math.copysign(1, variance_entropy(scatter)) == 1


def test_two_equal_directions_have_the_entropy_of_a_coin():
    assert variance_entropy(np.diag([1.0, 1, 0, 0, 0, 0, 0, 0, 0])) == pytest.approx(math.log10(2))


def test_no_variance_has_no_entropy():
    assert variance_entropy(np.zeros((9, 9))) == 0.0
    assert explained_variance_ratio(np.zeros((9, 9))).tolist() == [0.0] * 9


@given(st.floats(1e-150, 1e150))
def test_entropy_does_not_depend_on_scale(scale: float):
    scatter = of(samples(30)).scatter
    assert variance_entropy(scatter * scale) == pytest.approx(variance_entropy(scatter), rel=1e-9)


def test_threshold_is_that_of_torchconvquality():
    # log2 64 = 6; exp(-0.88767525 * 3.69563565) = 0.037610; 1.2618047 / 1.037610 = 1.216070
    assert random_entropy(64) == pytest.approx(0.905562, abs=1e-6)
    assert random_entropy(1) is None
    assert random_entropy(0) is None
