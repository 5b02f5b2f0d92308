"""Tests, Holm's correction and intervals: by hand, against scipy, and on degenerate input."""

import math

import numpy as np
import pytest
from scipy import stats

from p2rec_core.analysis.significance import (
    combined_interval,
    holm,
    mean_interval,
    paired_test,
    relative_gain,
    welch_test,
)

RNG = np.random.default_rng(0)
A = RNG.gamma(1.0, 0.06, 400)
B = 0.7 * A + RNG.gamma(1.0, 0.015, 400)


def test_paired_test_by_hand():
    # differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t = 2 sqrt(3), two degrees of freedom
    outcome = paired_test(np.array([2.0, 4.0, 6.0]), np.array([1.0, 2.0, 3.0]))
    t = 2 * math.sqrt(3)
    assert outcome.p == pytest.approx(1 - t / math.sqrt(t**2 + 2))
    assert outcome.reason == ""


def test_tests_are_scipys():
    assert paired_test(A, B).p == stats.ttest_rel(A, B).pvalue
    assert welch_test(A[:3], B[:4]).p == pytest.approx(stats.ttest_ind(A[:3], B[:4], equal_var=False).pvalue)


@pytest.mark.parametrize(
    ("a", "b", "p", "reason"),
    [
        ([], [], math.nan, "fewer than two users"),
        ([0.5], [0.1], math.nan, "fewer than two users"),
        ([0.5, 0.2, 0.0], [0.5, 0.2, 0.0], 1.0, "no user differs"),
        ([0.0, 0.0], [0.0, 0.0], 1.0, "no user differs"),
        ([0.6, 0.3, 0.1], [0.5, 0.2, 0.0], math.nan, "all users differ by the same amount"),
    ],
)
def test_paired_test_is_defined_for(a, b, p, reason):
    outcome = paired_test(np.array(a, float), np.array(b, float))
    assert (outcome.p, outcome.reason) == (pytest.approx(p, nan_ok=True), reason)


@pytest.mark.parametrize(
    ("a", "b", "p", "reason"),
    [
        ([0.5], [0.4, 0.3], math.nan, "needs two seeds per arm"),
        ([], [], math.nan, "needs two seeds per arm"),
        ([0.5, 0.5], [0.5, 0.5], 1.0, "no seed differs"),
        ([0.5, 0.5], [0.4, 0.4], math.nan, "no arm varies between seeds"),
        ([0.0, 0.0], [0.0, 0.0], 1.0, "no seed differs"),
    ],
)
def test_welch_test_is_defined_for(a, b, p, reason):
    outcome = welch_test(np.array(a, float), np.array(b, float))
    assert (outcome.p, outcome.reason) == (pytest.approx(p, nan_ok=True), reason)


def test_one_arm_without_spread_is_enough_for_welch():
    assert 0 < welch_test(np.array([0.5, 0.5]), np.array([0.4, 0.3])).p < 1


def test_holm_by_hand():
    # sorted .01 .02 .03 .04, times 4 3 2 1: .04 .06 .06 .04, running maximum: .04 .06 .06 .06
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_leaves_out_what_has_no_answer():
    adjusted = holm([math.nan, 0.01, 0.02])
    assert math.isnan(adjusted[0])
    assert adjusted[1:] == pytest.approx([0.02, 0.02])


def test_gain_by_hand():
    # means 12 and 10; variances of the means 4/3 and 1/3, covariance 2/3; t(2) = 4.302653, squared 18.512820
    gain = relative_gain(np.array([10.0, 12.0, 14.0]), np.array([9.0, 10.0, 11.0]))
    assert gain.value == pytest.approx(0.2)
    # 93.829060 r^2 - 2 * 107.658120 r + 119.316239 = 0
    assert (gain.low, gain.high) == pytest.approx((-0.0644155, 0.3591868), abs=1e-6)


def test_the_limits_solve_fiellers_equation():
    gain = relative_gain(A, B)
    t = stats.t.ppf(0.975, len(A) - 1)
    for limit in (gain.low, gain.high):
        difference = A - (1 + limit) * B
        assert abs(difference.mean()) == pytest.approx(t * difference.std(ddof=1) / math.sqrt(len(A)))
    assert gain.low < gain.value < gain.high


@pytest.mark.parametrize("shift", np.linspace(-0.01, 0.01, 21))
def test_the_interval_excludes_zero_exactly_where_the_test_rejects(shift):
    rng = np.random.default_rng(3)
    b = rng.gamma(1.0, 0.06, 300)
    a = b + rng.normal(shift, 0.04, 300)
    gain = relative_gain(a, b)
    assert (gain.low > 0 or gain.high < 0) == (paired_test(a, b).p < 0.05)


def test_the_interval_agrees_with_a_bootstrap():
    rng = np.random.default_rng(1)
    draws = rng.integers(0, len(A), (4000, len(A)))
    gains = A[draws].mean(axis=1) / B[draws].mean(axis=1) - 1
    gain = relative_gain(A, B)
    assert [gain.low, gain.high] == pytest.approx(np.quantile(gains, [0.025, 0.975]).tolist(), abs=0.006)


@pytest.mark.parametrize(
    ("a", "b", "value", "reason"),
    [
        ([], [], math.nan, "no users"),
        ([0.5], [0.25], 1.0, "fewer than two users"),
        ([0.5, 0.2], [0.0, 0.0], math.nan, "the reference has no hit"),
        ([0.5, 0.0, 0.0], [1.0, 0.0, 0.0], -0.5, "too few hits of the reference"),
    ],
)
def test_gain_says_why_it_has_no_interval(a, b, value, reason):
    gain = relative_gain(np.array(a, float), np.array(b, float))
    assert gain.value == pytest.approx(value, nan_ok=True)
    assert math.isnan(gain.low)
    assert math.isnan(gain.high)
    assert gain.reason == reason


def test_no_difference_is_no_gain_with_certainty():
    gain = relative_gain(A, A.copy())
    assert (gain.value, gain.low, gain.high, gain.reason) == (0, 0, 0, "no user differs")


def test_mean_interval_is_students():
    interval = mean_interval(A)
    expected = stats.t.interval(0.95, len(A) - 1, loc=A.mean(), scale=stats.sem(A))
    assert (interval.low, interval.high) == pytest.approx(expected)
    assert mean_interval(A[:0]).reason == "no users"
    assert mean_interval(A[:1]).reason == "fewer than two users"


def test_combined_interval_of_one_part_is_students():
    interval = combined_interval(1.0, [(0.04, 5)])
    assert interval.high - 1 == pytest.approx(stats.t.ppf(0.975, 5) * 0.2)


def test_combined_interval_of_two_parts_by_hand():
    # degrees of freedom (1 + 1)^2 / (1/4 + 1/4) = 8
    interval = combined_interval(0.0, [(1.0, 4), (1.0, 4)])
    assert interval.high == pytest.approx(stats.t.ppf(0.975, 8) * math.sqrt(2))


@pytest.mark.parametrize("components", [[], [(0.1, 0)], [(math.nan, 3)]])
def test_combined_interval_is_defined(components):
    interval = combined_interval(1.0, components)
    assert interval.value == 1.0
    assert math.isnan(interval.low)
    assert interval.reason == "too few observations"


def test_combined_interval_without_variance_is_a_point():
    assert combined_interval(1.0, [(0.0, 3)]).high == 1.0
