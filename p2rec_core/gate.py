"""The quality gate of a refresh: what a new snapshot has to hold before it becomes the current one."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from p2rec_core.settings.refresh import RefreshSettings


@dataclass(frozen=True)
class Check:
    """One condition.

    Attributes:
        name: What is looked at.
        value: What was found; None where it could not be measured.
        bound: What it is held against.
        at_most: Whether the bound is an upper one.
        passed: Whether it holds.
        setting: The setting that the bound comes from.
    """

    name: str
    value: float | None
    bound: float
    at_most: bool
    passed: bool
    setting: str

    def sentence(self) -> str:
        """What was found and what is allowed, for a person."""
        found = "could not be measured" if self.value is None else f"is {self.value:.4g}"
        relation = "at most" if self.at_most else "at least"
        return f"{self.name} {found}; {relation} {self.bound:.4g} is allowed (refresh.{self.setting})"

    def to_json(self) -> dict[str, Any]:
        """The check as JSON values."""
        return asdict(self)


def at_most(name: str, value: float | None, bound: float, setting: str) -> Check:
    """A check against an upper bound; NaN and what could not be measured fail it."""
    finite = _finite(value)
    return Check(name, finite, bound, True, finite is not None and finite <= bound, setting)


def at_least(name: str, value: float | None, bound: float, setting: str) -> Check:
    """A check against a lower bound; NaN and what could not be measured fail it."""
    finite = _finite(value)
    return Check(name, finite, bound, False, finite is not None and finite >= bound, setting)


def data_checks(settings: RefreshSettings, changes: Mapping[str, float]) -> list[Check]:
    """What the interactions have to hold.

    Args:
        settings: The bounds.
        changes: ``drift.InteractionChanges`` by name.
    """
    users, items = changes["n_known_users"], changes["n_known_items"]
    return [
        at_most(
            "share of the interactions that are lost",
            _ratio(changes["n_rows_lost"], changes["n_rows_before"]),
            settings.max_rows_lost,
            "max_rows_lost",
        ),
        at_most(
            "share of the users whose history was rewritten",
            _ratio(changes["n_rewritten_users"], users),
            settings.max_rewritten_users,
            "max_rewritten_users",
        ),
        at_most(
            "share of the users that vanished",
            _ratio(changes["n_vanished_users"], users),
            settings.max_vanished,
            "max_vanished",
        ),
        at_most(
            "share of the items that vanished",
            _ratio(changes["n_vanished_items"], items),
            settings.max_vanished,
            "max_vanished",
        ),
    ]


def drift_checks(settings: RefreshSettings, changes: Mapping[str, float]) -> list[Check]:
    """What preferences and clusters have to hold.

    Args:
        settings: The bounds.
        changes: Has ``preference_drift`` and ``clusters_kept``.
    """
    return [
        at_most(
            "drift of the users' preferences",
            changes["preference_drift"],
            settings.max_preference_drift,
            "max_preference_drift",
        ),
        at_least(
            "share of the items that kept their cluster",
            changes["clusters_kept"],
            settings.min_cluster_agreement,
            "min_cluster_agreement",
        ),
    ]


@dataclass(frozen=True)
class Compared:
    """A new recommender beside the current one of the same kind.

    Attributes:
        label: Its name.
        recorded: The current one's metric on the hold-out that it was evaluated on; None where none is recorded.
        current: Its metric on the new hold-out.
        new: The new one's metric on the new hold-out, of the same users.
        current_coverage: Different items in the current one's lists.
        new_coverage: Different items in the new one's lists.
        finite: Whether all of the new one's item vectors are finite.
    """

    label: str
    recorded: float | None
    current: float | None
    new: float | None
    current_coverage: int
    new_coverage: int
    finite: bool


def recommender_checks(settings: RefreshSettings, compared: Iterable[Compared]) -> list[Check]:
    """What the recommenders have to hold, see ``Compared``; a metric that was zero cannot drop."""
    metric = f"{settings.gate_metric}@{settings.gate_k} {settings.gate_seen}"
    checks = []
    for arm in compared:
        checks += [
            at_most(
                f"{arm.label}: drop in {metric} against the current recommender, both on the new hold-out,",
                _drop(arm.current, arm.new),
                settings.max_metric_drop,
                "max_metric_drop",
            ),
            at_most(
                f"{arm.label}: drop in {metric} of the current recommender from its own hold-out to the new one",
                _drop(arm.recorded, arm.current),
                settings.max_hold_out_drop,
                "max_hold_out_drop",
            ),
            at_least(
                f"{arm.label}: coverage as a part of the current one's",
                _ratio(arm.new_coverage, arm.current_coverage) if arm.finite else None,
                settings.min_coverage,
                "min_coverage",
            ),
        ]
    return checks


def refusals(checks: Sequence[Check]) -> list[str]:
    """Sentences about the checks that do not hold; empty where all do."""
    return [check.sentence() for check in checks if not check.passed]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _drop(before: float | None, after: float | None) -> float | None:
    """How much lower, as a part; negative for a gain; None where it cannot be said."""
    if before is None or after is None:
        return None
    return (before - after) / before if before else 0.0


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
