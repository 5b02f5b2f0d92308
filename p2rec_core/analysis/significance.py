"""Paired and unpaired tests over users and seeds, Holm's correction, and intervals of relative gains.

Which test answers which question:

- *Paired t-test over users* (seeds averaged per user first): would other users show the difference too, with these
  trained models? It says nothing about the noise of training.
- *Welch's t-test over seeds*: would other seeds show the difference too, on these users? It needs two seeds per arm.

Every function is defined for every input: where a test has no answer, p is NaN and ``reason`` says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

METRICS = ("HR@5", "HR@10", "NDCG@5", "NDCG@10")
PRIMARY_METRIC = "NDCG@10"
CONFIDENCE = 0.95
ALPHA = 0.05

_NO_SPREAD = 1e-12


@dataclass(frozen=True)
class Outcome:
    """Outcome of a test.

    Attributes:
        p: Two-sided p-value; NaN where the test has no answer.
        reason: Why p is NaN, or 1 by convention; empty otherwise.
    """

    p: float
    reason: str = ""


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval.

    Attributes:
        value: The estimate; NaN where it is not defined.
        low: Lower limit; NaN where there is none.
        high: Upper limit; NaN where there is none.
        reason: Why something is NaN; empty otherwise.
    """

    value: float
    low: float
    high: float
    reason: str = ""


def paired_test(a: NDArray[np.float64], b: NDArray[np.float64]) -> Outcome:
    """Two-sided paired t-test of equal means over users.

    Args:
        a: float64 (n,) metric per user.
        b: float64 (n,) of the same users.
    """
    difference = a - b
    if len(difference) < 2:
        return Outcome(float("nan"), "fewer than two users")
    if not difference.any():
        return Outcome(1.0, "no user differs")
    if _constant(difference):
        return Outcome(float("nan"), "all users differ by the same amount")
    return Outcome(float(stats.ttest_rel(a, b).pvalue))


def welch_test(a: NDArray[np.float64], b: NDArray[np.float64]) -> Outcome:
    """Two-sided Welch's t-test of equal means over seeds.

    Args:
        a: float64 (S,) mean metric per seed of one arm.
        b: float64 (S',) of another arm.
    """
    if min(len(a), len(b)) < 2:
        return Outcome(float("nan"), "needs two seeds per arm")
    if _constant(a) and _constant(b):
        if np.isclose(a.mean(), b.mean(), rtol=_NO_SPREAD, atol=0):
            return Outcome(1.0, "no seed differs")
        return Outcome(float("nan"), "no arm varies between seeds")
    moments = (a.mean(), a.std(ddof=1), len(a), b.mean(), b.std(ddof=1), len(b))
    return Outcome(float(stats.ttest_ind_from_stats(*moments, equal_var=False).pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction.

    Args:
        p_values: p of every test of one family; NaN = the test has no answer and does not belong to the family.

    Returns:
        Adjusted p, in the same order; NaN stays NaN.

    Source:
        Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979).
    """
    p = np.asarray(p_values, np.float64)
    adjusted = np.full(len(p), np.nan)
    family = np.flatnonzero(~np.isnan(p))
    ordered = family[np.argsort(p[family], kind="stable")]
    factors = np.arange(len(ordered), 0, -1)
    adjusted[ordered] = np.minimum(1.0, np.maximum.accumulate(p[ordered] * factors))
    return [float(value) for value in adjusted]


def relative_gain(a: NDArray[np.float64], b: NDArray[np.float64], confidence: float = CONFIDENCE) -> Interval:
    """Relative gain mean(a) / mean(b) - 1 with Fieller's interval over users.

    Fieller's interval is closed-form and needs no random numbers, holds where the delta method does not (a mean of
    b near zero), and contains 0 exactly where the paired t-test has p > 1 - confidence, so that table and test
    cannot contradict each other.

    Args:
        a: float64 (n,) metric per user.
        b: float64 (n,) of the same users, the reference.
        confidence: Probability that the interval covers.

    Source:
        Fieller, "Some problems in interval estimation", J. R. Statist. Soc. B 16 (1954).
    """
    nan = float("nan")
    mean_a, mean_b = (float(a.mean()), float(b.mean())) if len(a) else (nan, nan)
    if not mean_b > 0:
        return Interval(nan, nan, nan, "the reference has no hit" if len(a) else "no users")
    value = mean_a / mean_b - 1
    if len(a) < 2:
        return Interval(value, nan, nan, "fewer than two users")
    if not (a - b).any():
        return Interval(0.0, 0.0, 0.0, "no user differs")
    n = len(a)
    t2 = float(stats.t.ppf((1 + confidence) / 2, n - 1)) ** 2
    (var_a, cov), (_, var_b) = np.cov(a, b) / n
    quadratic, linear, constant = mean_b**2 - t2 * var_b, mean_a * mean_b - t2 * cov, mean_a**2 - t2 * var_a
    if quadratic <= 0:
        return Interval(value, nan, nan, "too few hits of the reference")
    root = np.sqrt(max(0.0, linear**2 - quadratic * constant))
    return Interval(value, float((linear - root) / quadratic - 1), float((linear + root) / quadratic - 1))


def mean_interval(values: NDArray[np.float64], confidence: float = CONFIDENCE) -> Interval:
    """Mean over users with Student's interval.

    Args:
        values: float64 (n,) metric per user.
        confidence: Probability that the interval covers.
    """
    nan = float("nan")
    if not len(values):
        return Interval(nan, nan, nan, "no users")
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, nan, nan, "fewer than two users")
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half)


def combined_interval(
    value: float, components: Sequence[tuple[float, float]], confidence: float = CONFIDENCE
) -> Interval:
    """An estimate whose variance is a sum of estimated variances, with Satterthwaite's degrees of freedom.

    Args:
        value: The estimate.
        components: (variance, degrees of freedom) of its independent parts.
        confidence: Probability that the interval covers.

    Source:
        Satterthwaite, "An approximate distribution of estimates of variance components", Biometrics 2 (1946).
    """
    if not components or any(not degrees > 0 or np.isnan(variance) for variance, degrees in components):
        return Interval(value, float("nan"), float("nan"), "too few observations")
    variance = sum(part for part, _ in components)
    if variance == 0:
        return Interval(value, value, value)
    degrees = variance**2 / sum(part**2 / own for part, own in components)
    half = float(stats.t.ppf((1 + confidence) / 2, degrees) * np.sqrt(variance))
    return Interval(value, value - half, value + half)


def _constant(values: NDArray[np.float64]) -> bool:
    """Whether values differ by no more than rounding."""
    return float(np.ptp(values)) <= _NO_SPREAD * float(np.abs(values).max())
