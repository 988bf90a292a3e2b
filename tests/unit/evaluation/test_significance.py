"""Comparisons over seeds: against scipy's tests and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from xsalt.errors import UserError
from xsalt.evaluation.significance import compare, spread


def by_seed(values: list[float]) -> dict[int, float]:
    return dict(enumerate(values, start=1))


@pytest.mark.parametrize("n", [2, 5, 9])
def test_mean_gain_p_and_interval_are_those_of_scipy(n: int) -> None:
    random = np.random.default_rng(n)
    baseline, method = random.normal(0.65, 0.01, n), random.normal(0.66, 0.01, n)
    found = compare(by_seed(method.tolist()), by_seed(baseline.tolist()))
    expected = stats.ttest_rel(method, baseline)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.gain.mean == pytest.approx(method.mean() - baseline.mean(), rel=1e-9)
    assert found.method.sd == pytest.approx(np.std(method, ddof=1), rel=1e-12)
    assert found.baseline.n == found.gain.n == n


def test_a_gain_worked_out_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, sd 1, t = 2 sqrt(3); with 2 degrees of freedom p = 1 - t / sqrt(2 + t**2)."""
    found = compare({1: 11.0, 2: 22.0, 3: 33.0}, {1: 10.0, 2: 20.0, 3: 30.0})
    t = 2 * math.sqrt(3)
    assert (found.gain.mean, found.gain.sd, found.gain.n) == (2.0, 1.0, 3)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-12)
    # the 97.5 % quantile of Student's t with 2 degrees of freedom: 0.95 / sqrt(2 * 0.975 * 0.025)
    margin = 0.95 / math.sqrt(2 * 0.975 * 0.025) / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((2 - margin, 2 + margin), rel=1e-9)


def test_pairs_are_made_by_seed_and_not_by_order() -> None:
    found = compare({2: 0.5, 1: 0.7, 3: 0.65}, {1: 0.6, 3: 0.6, 2: 0.45})
    assert found.gain.mean == pytest.approx((0.05 + 0.1 + 0.05) / 3)
    assert found.gain.sd == pytest.approx(np.std([0.05, 0.1, 0.05], ddof=1))


def test_wilcoxon_is_made_from_six_pairs_on_and_is_scipys() -> None:
    baseline = [0.60, 0.61, 0.62, 0.63, 0.64, 0.65]
    method = [0.61, 0.63, 0.65, 0.62, 0.69, 0.71]
    assert compare(by_seed(method[:5]), by_seed(baseline[:5])).wilcoxon_p is None
    found = compare(by_seed(method), by_seed(baseline)).wilcoxon_p
    assert found == pytest.approx(stats.wilcoxon(np.round(np.subtract(method, baseline), 9)).pvalue, rel=1e-9)
    better = compare(by_seed([x + 0.001 * (i + 1) for i, x in enumerate(baseline)]), by_seed(baseline))
    assert better.wilcoxon_p == pytest.approx(2 / 2**6)  # all signs alike: one of 2**6 assignments, two-sided


def test_pairs_without_a_difference_do_not_count_for_wilcoxon() -> None:
    baseline = [0.60, 0.61, 0.62, 0.63, 0.64, 0.65]
    assert compare(by_seed([*baseline[:-1], 0.7]), by_seed(baseline)).wilcoxon_p is None


@pytest.mark.parametrize("gain", [0.0, 0.01])
def test_equal_differences_leave_the_test_undefined(gain: float) -> None:
    baseline = by_seed([0.61, 0.64, 0.66, 0.69])
    found = compare({seed: value + gain for seed, value in baseline.items()}, baseline)
    assert found.p is None
    assert found.low == found.high == pytest.approx(gain, abs=1e-12)


def test_a_single_value_has_no_standard_deviation() -> None:
    assert spread([0.5]).sd is None
    assert spread([1.0, 3.0]).sd == pytest.approx(math.sqrt(2))


def test_unequal_seeds_are_named() -> None:
    with pytest.raises(UserError, match=r"seed 3, 4: compare runs with the same seeds"):
        compare({1: 0.5, 2: 0.6, 3: 0.7}, {1: 0.5, 2: 0.6, 4: 0.7})


def test_one_pair_is_too_few() -> None:
    with pytest.raises(UserError, match=r"1 pair of runs: a test over seeds needs at least 2"):
        compare({1: 0.5}, {1: 0.6})


@pytest.mark.parametrize("values", [[], [0.5, math.nan]])
def test_nothing_and_nan_are_refused(values: list[float]) -> None:
    with pytest.raises(UserError):
        spread(values)
