"""Arms compared with arms: gains, intervals and tests, one family of tests at a time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from p2rec_core.analysis.results import CellResult, ExperimentResults, ResultsIncomplete
from p2rec_core.analysis.significance import (
    METRICS,
    PRIMARY_METRIC,
    Interval,
    combined_interval,
    holm,
    paired_test,
    relative_gain,
    welch_test,
)
from p2rec_core.metrics import user_metric


@dataclass(frozen=True, eq=False)
class ArmScores:
    """Metrics of one arm of one method on one dataset under one seen policy.

    Attributes:
        dataset: The dataset.
        method: The method.
        arm: The arm.
        seen: The seen policy.
        seeds: Its seeds, ascending.
        per_user: Metric → float64 (n,), mean over seeds of every user.
        per_seed: Metric → float64 (S,), mean over users of every seed.
    """

    dataset: str
    method: str
    arm: str
    seen: str
    seeds: tuple[int, ...]
    per_user: Mapping[str, NDArray[np.float64]]
    per_seed: Mapping[str, NDArray[np.float64]]

    def mean(self, metric: str) -> float:
        """Mean over users and seeds; NaN without users."""
        return float(self.per_user[metric].mean()) if len(self.per_user[metric]) else float("nan")

    def sd(self, metric: str) -> float:
        """Standard deviation between seeds (n - 1); NaN with one seed."""
        values = self.per_seed[metric]
        return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


@dataclass(frozen=True)
class Comparison:
    """An arm against a reference arm of the same method, dataset and seen policy.

    Attributes:
        dataset: The dataset.
        method: The method.
        arm: The arm.
        reference: The arm that it is compared with.
        seen: The seen policy.
        metric: The metric.
        n_users: Users.
        n_seeds: Seeds of the arm.
        n_reference_seeds: Seeds of the reference.
        mean: Mean of the arm over users and seeds.
        reference_mean: Mean of the reference.
        gain: Relative gain, mean / reference_mean - 1.
        low: Lower limit of Fieller's interval of the gain.
        high: Upper limit.
        p_users: Paired t-test over users, seeds averaged per user first.
        p_users_holm: The same after Holm's correction within the family.
        p_seeds: Welch's t-test over seeds.
        p_seeds_holm: The same after Holm's correction within the family.
        reason: Why something is NaN, or 1 by convention.
    """

    dataset: str
    method: str
    arm: str
    reference: str
    seen: str
    metric: str
    n_users: int
    n_seeds: int
    n_reference_seeds: int
    mean: float
    reference_mean: float
    gain: float
    low: float
    high: float
    p_users: float
    p_users_holm: float
    p_seeds: float
    p_seeds_holm: float
    reason: str

    def significant(self, alpha: float) -> bool:
        """Whether the test over users, after Holm's correction, is below ``alpha``."""
        return self.p_users_holm <= alpha

    def holds_over_seeds(self, alpha: float) -> bool:
        """Whether the test over seeds, after Holm's correction, is below ``alpha``, too."""
        return self.significant(alpha) and self.p_seeds_holm <= alpha


@dataclass(frozen=True)
class MeanGain:
    """Mean relative gain over cells (method x dataset).

    Attributes:
        arm: The arm.
        reference: The arm that it is compared with.
        seen: The seen policy.
        metric: The metric.
        gain: Unweighted mean over cells, with its interval over users.
        with_seeds: The same with an interval over users and seeds; NaN limits where an arm has one seed.
        n_cells: Cells that have both arms.
        n_above: Cells where the arm's mean is the higher one.
    """

    arm: str
    reference: str
    seen: str
    metric: str
    gain: Interval
    with_seeds: Interval
    n_cells: int
    n_above: int


class Scores:
    """Metrics of every arm of an experiment, each computed once.

    Args:
        results: The experiment.
    """

    def __init__(self, results: ExperimentResults) -> None:
        self.results = results
        self._cache: dict[tuple[str, str, str, str], ArmScores | None] = {}
        self._families: dict[tuple[tuple[tuple[str, str], ...], str, str], list[Comparison]] = {}

    def of(self, dataset: str, method: str, arm: str, seen: str = "keep") -> ArmScores | None:
        """Metrics of an arm; None where no cell of it has ranks under the seen policy."""
        key = (dataset, method, arm, seen)
        if key not in self._cache:
            cells = [cell for cell in self.results.of(dataset, method, arm) if seen in cell.ranks]
            self._cache[key] = _arm_scores(cells, seen) if cells else None
        return self._cache[key]

    @cached_property
    def backbones(self) -> list[tuple[str, str]]:
        """(dataset, method) of every backbone that has a cell."""
        return [(d, m) for d in self.results.dataset_names() for m in self.results.backbones(d)]

    def family(self, pairs: Iterable[tuple[str, str]], seen: str, metric: str) -> Sequence[Comparison]:
        """Compare pairs of arms on every dataset and backbone; all of them are one family for Holm's correction.

        Args:
            pairs: (arm, reference); a pair of which one is not there is left out.
            seen: The seen policy.
            metric: The metric.
        """
        key = (tuple(pairs), seen, metric)
        if key not in self._families:
            self._families[key] = self._compare_all(*key)
        return self._families[key]

    def _compare_all(self, pairs: tuple[tuple[str, str], ...], seen: str, metric: str) -> list[Comparison]:
        found = []
        for dataset, method in self.backbones:
            for arm, reference in pairs:
                a, b = self.of(dataset, method, arm, seen), self.of(dataset, method, reference, seen)
                if a is not None and b is not None:
                    found.append(_compare(a, b, metric))
        users, seeds = holm([c.p_users for c in found]), holm([c.p_seeds for c in found])
        return [replace(c, p_users_holm=u, p_seeds_holm=s) for c, u, s in zip(found, users, seeds, strict=True)]

    def table(self, seen: str, metric: str = PRIMARY_METRIC) -> Sequence[Comparison]:
        """The family of Table 2: +CI against Base, +P2Rec against Base and against +CI, for one metric."""
        base, ci, p2rec = self.results.roles.main
        return self.family([(ci, base), (p2rec, base), (p2rec, ci)], seen, metric)

    def against_base(self, seen: str = "keep", metric: str = PRIMARY_METRIC) -> Sequence[Comparison]:
        """The family of the ablations: every arm against Base, and +P2Rec against every ablation."""
        roles = self.results.roles
        arms = {arm for dataset, method in self.backbones for arm in self.results.arms_of(dataset, method)}
        others = sorted(arms - set(roles.main), key=[*roles.ablations, *sorted(arms)].index)
        pairs = [(arm, roles.base) for arm in (roles.ci, roles.p2rec, *others)]
        return self.family([*pairs, *((roles.p2rec, arm) for arm in others)], seen, metric)

    def mean_gain(self, arm: str, reference: str, seen: str = "keep", metric: str = PRIMARY_METRIC) -> MeanGain | None:
        """Mean relative gain over all cells that have both arms; None where there is none.

        The intervals come from the delta method: a gain's deviation is the mean over users of (a - r b) / mean(b), r
        the ratio of means. Cells of one dataset share users, so their deviations are averaged per user before the
        variance is taken; datasets are independent. The second interval adds the variance between seeds of each arm;
        what users and seeds share is in it twice, so that it errs on the wide side.
        """
        deviations: dict[str, list[NDArray[np.float64]]] = {}
        gains: list[float] = []
        seeds: list[tuple[float, float]] = []
        for dataset, method in self.backbones:
            a, b = self.of(dataset, method, arm, seen), self.of(dataset, method, reference, seen)
            if a is None or b is None or not b.mean(metric) > 0:
                continue
            mean_b = b.mean(metric)
            ratio = a.mean(metric) / mean_b
            gains.append(ratio - 1)
            deviations.setdefault(dataset, []).append((a.per_user[metric] - ratio * b.per_user[metric]) / mean_b)
            for scores, factor in ((a, 1 / mean_b), (b, ratio / mean_b)):
                n_seeds = len(scores.seeds)
                seeds.append(((factor * scores.sd(metric)) ** 2 / n_seeds, n_seeds - 1))
        if not gains:
            return None
        sums = [np.sum(parts, axis=0) / len(gains) for parts in deviations.values()]
        users = [
            (float(part.var(ddof=1)) / len(part) if len(part) > 1 else float("nan"), len(part) - 1) for part in sums
        ]
        both = [*users, *((variance / len(gains) ** 2, degrees) for variance, degrees in seeds)]
        mean, n_above = float(np.mean(gains)), sum(gain > 0 for gain in gains)
        intervals = combined_interval(mean, users), combined_interval(mean, both)
        return MeanGain(arm, reference, seen, metric, *intervals, len(gains), n_above)


def require_comparable(results: ExperimentResults) -> None:
    """Check that there is something to compare.

    Raises:
        ResultsIncomplete: There is no cell, or no backbone has a cell of Base together with one of another arm.
    """
    pairs = [(d, m) for d in results.dataset_names() for m in results.backbones(d)]
    if any(results.roles.base in (arms := results.arms_of(d, m)) and len(arms) > 1 for d, m in pairs):
        return
    problem = "has no cell" if not results.cells else f"has no backbone with '{results.roles.base}' and another arm"
    names = [str(cell) for cell in results.missing]
    missing = f" Missing: {', '.join(names)}." if names else ""
    remedy = f"Run: {results.command}" if results.command else "Run the experiment's cells first."
    raise ResultsIncomplete(f"The experiment '{results.name}' {problem} to report on.{missing}", remedy=remedy)


def _arm_scores(cells: list[CellResult], seen: str) -> ArmScores:
    values = {metric: np.stack([user_metric(cell.ranks[seen], metric) for cell in cells]) for metric in METRICS}
    n_users = len(cells[0].users)
    first = cells[0].cell
    return ArmScores(
        first.dataset,
        first.method,
        first.arm,
        seen,
        tuple(cell.cell.seed for cell in cells),
        {metric: table.mean(axis=0) for metric, table in values.items()},
        {metric: table.mean(axis=1) if n_users else np.full(len(cells), np.nan) for metric, table in values.items()},
    )


def _compare(a: ArmScores, b: ArmScores, metric: str) -> Comparison:
    gain = relative_gain(a.per_user[metric], b.per_user[metric])
    users = paired_test(a.per_user[metric], b.per_user[metric])
    seeds = welch_test(a.per_seed[metric], b.per_seed[metric])
    reasons = dict.fromkeys(reason for reason in (gain.reason, users.reason, seeds.reason) if reason)
    return Comparison(
        dataset=a.dataset,
        method=a.method,
        arm=a.arm,
        reference=b.arm,
        seen=a.seen,
        metric=metric,
        n_users=len(a.per_user[metric]),
        n_seeds=len(a.seeds),
        n_reference_seeds=len(b.seeds),
        mean=a.mean(metric),
        reference_mean=b.mean(metric),
        gain=gain.value,
        low=gain.low,
        high=gain.high,
        p_users=users.p,
        p_users_holm=float("nan"),
        p_seeds=seeds.p,
        p_seeds_holm=float("nan"),
        reason="; ".join(reasons),
    )
