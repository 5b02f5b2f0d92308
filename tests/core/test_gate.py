"""The quality gate: each check by itself, at its bound and beyond."""

import dataclasses

import pytest

from p2rec_core.gate import Compared, data_checks, drift_checks, recommender_checks, refusals
from p2rec_core.settings.refresh import RefreshSettings

SETTINGS = RefreshSettings(
    max_rows_lost=0.01,
    max_rewritten_users=0.1,
    max_vanished=0.02,
    max_preference_drift=0.5,
    min_cluster_agreement=0.3,
    max_metric_drop=0.05,
    max_hold_out_drop=0.3,
    min_coverage=0.5,
)
CHANGES = {
    "n_known_users": 100,
    "n_known_items": 100,
    "n_rows_before": 1000,
    "n_rows_lost": 10,
    "n_rewritten_users": 10,
    "n_vanished_users": 2,
    "n_vanished_items": 2,
    "preference_drift": 0.5,
    "clusters_kept": 0.3,
}
EQUAL = Compared("sasrec p2rec", 0.4, 0.4, 0.4, 100, 100, True)


def data(**changes: float) -> list[str]:
    values = CHANGES | changes
    return refusals([*data_checks(SETTINGS, values), *drift_checks(SETTINGS, values)])


def arm(**changes: object) -> list[str]:
    return refusals(recommender_checks(SETTINGS, [dataclasses.replace(EQUAL, **changes)]))


def test_what_is_at_its_bound_passes():
    assert data() == []
    assert arm(new=0.39, current_coverage=200) == []


@pytest.mark.parametrize(
    ("measure", "value", "sentence"),
    [
        ("n_rows_lost", 300, "share of the interactions that are lost is 0.3; at most 0.01 is allowed"),
        ("n_rewritten_users", 11, "whose history was rewritten is 0.11; at most 0.1 is allowed"),
        ("n_vanished_users", 3, "share of the users that vanished is 0.03; at most 0.02"),
        ("n_vanished_items", 3, "share of the items that vanished is 0.03; at most 0.02"),
        ("preference_drift", 0.51, "drift of the users' preferences is 0.51; at most 0.5"),
        ("clusters_kept", 0.29, "kept their cluster is 0.29; at least 0.3"),
        ("preference_drift", float("nan"), "drift of the users' preferences could not be measured"),
    ],
)
def test_beyond_its_bound_each_measure_refuses_alone(measure, value, sentence):
    [refusal] = data(**{measure: value})
    assert sentence in refusal
    assert "(refresh." in refusal


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"new": 0.37}, "both on the new hold-out, is 0.075; at most 0.05 is allowed (refresh.max_metric_drop)"),
        ({"new": None}, "both on the new hold-out, could not be measured"),
        ({"new": float("nan")}, "both on the new hold-out, could not be measured"),
        ({"current": 0.2, "new": 0.2}, "from its own hold-out to the new one is 0.5; at most 0.3 is allowed"),
        ({"recorded": None}, "from its own hold-out to the new one could not be measured"),
        ({"new_coverage": 49}, "coverage as a part of the current one's is 0.49; at least 0.5 is allowed"),
        ({"finite": False}, "coverage as a part of the current one's could not be measured"),
    ],
)
def test_a_recommender_that_is_worse_is_refused(changes, sentence):
    [refusal] = arm(**changes)
    assert refusal.startswith("sasrec p2rec: ")
    assert sentence in refusal


def test_a_gain_is_no_drop_and_zero_cannot_drop():
    assert arm(new=0.8) == []
    assert arm(recorded=0.0, current=0.0, new=0.0) == []


def test_one_bad_arm_is_enough():
    bad = dataclasses.replace(EQUAL, label="sasrec ci", new=0.1)
    assert len(refusals(recommender_checks(SETTINGS, [EQUAL, bad]))) == 1
