"""What changed since the night before, and the decision about the fine-tuning."""

import numpy as np
import pytest

from p2rec_core.drift import Drift, History, interaction_changes, preference_drift, tuning_decision
from p2rec_core.errors import DataError

THRESHOLDS = Drift(0.2, 0.3, 0.1)


def history(*users: list[int], n_items: int) -> History:
    user = np.repeat(np.arange(1, len(users) + 1, dtype=np.int32), [len(items) for items in users])
    return History(user, np.array([i for items in users for i in items], np.int32), len(users), n_items)


BEFORE = history([1, 2, 3], [2, 1], [3, 3, 1], n_items=3)


def test_nothing_changed():
    changes = interaction_changes(BEFORE, BEFORE)
    assert (changes.n_touched_users, changes.n_rewritten_users, changes.n_rows_lost, changes.n_rows_added) == (0,) * 4
    assert (changes.n_known_users, changes.n_known_items, changes.n_rows_before) == (3, 3, 8)


def test_an_ordinary_night():
    after = history([1, 2, 3, 4], [2, 1], [3, 3, 1, 2], [4, 1, 2], n_items=4)
    changes = interaction_changes(BEFORE, after)
    assert (changes.n_new_users, changes.n_new_items, changes.n_rows_added) == (1, 1, 5)
    assert (changes.n_touched_users, changes.n_rewritten_users, changes.n_rows_lost) == (2, 0, 0)


def test_a_new_item_that_brings_an_earlier_interaction_rewrites_nobody():
    changes = interaction_changes(BEFORE, history([1, 4, 2, 3], [2, 1], [3, 3, 1], n_items=4))
    assert (changes.n_touched_users, changes.n_rewritten_users) == (1, 0)


def test_lost_rows_are_counted_with_their_repetitions():
    after = history([1, 2, 3], [], [3, 1, 1], n_items=3)
    changes = interaction_changes(BEFORE, after)
    assert changes.n_rows_lost == 3  # one of the two 3s of user 3, and both rows of user 2
    assert changes.n_rows_added == 1
    assert (changes.n_vanished_users, changes.n_vanished_items, changes.n_rewritten_users) == (1, 0, 2)


def test_a_shuffled_history_of_the_same_rows_is_rewritten():
    changes = interaction_changes(BEFORE, history([3, 2, 1], [2, 1], [3, 3, 1], n_items=3))
    assert (changes.n_rows_lost, changes.n_rewritten_users) == (0, 1)


def test_an_item_without_interactions_has_vanished():
    assert interaction_changes(BEFORE, history([1, 3], [1], [3, 3, 1], n_items=3)).n_vanished_items == 1


def test_an_import_that_continues_another_is_no_smaller():
    with pytest.raises(DataError, match="2 users and 3 items cannot continue 3 and 3"):
        interaction_changes(BEFORE, history([1], [2], n_items=3))


def test_drift_is_the_mean_total_variation_of_users_with_preferences_in_both():
    before = np.array([[1, 0], [0.5, 0.5], [0, 0]], np.float32)
    after = np.array([[0, 1], [0.5, 0.5], [1, 0], [1, 0]], np.float32)
    assert preference_drift(before, after) == pytest.approx(0.5)
    assert preference_drift(before[2:], after[2:]) == 0.0
    with pytest.raises(DataError, match="3 clusters cannot be compared with ones over 2"):
        preference_drift(before, np.zeros((4, 3), np.float32))


@pytest.mark.parametrize(
    ("policy", "since", "refused", "tune", "reason"),
    [
        ("always", Drift(), "", True, "refresh.finetune = always"),
        ("never", Drift(1, 1, 1), "", False, "refresh.finetune = never"),
        ("on_drift", Drift(0.2, 0.3, 0.1), "", False, "no drift above its threshold"),
        ("on_drift", Drift(0.21, 0, 0), "", True, "preferences 0.210 > 0.2"),
        ("on_drift", Drift(0, 0.31, 0.5), "", True, "moved_items 0.310 > 0.3, new_items 0.500 > 0.1"),
        ("always", Drift(1, 1, 1), "rows are lost", False, "the interactions are refused (rows are lost)"),
    ],
)
def test_the_policy_decides(policy, since, refused, tune, reason):
    decision = tuning_decision(policy, since, THRESHOLDS, data_refused=refused)
    assert decision.tune is tune
    assert reason in decision.reason


def test_small_drifts_add_up_until_they_call_for_a_tuning():
    since, nights = Drift(), 0
    while not tuning_decision("on_drift", since, THRESHOLDS).tune:
        since += Drift(0.05, 0.01, 0.0)
        nights += 1
    assert nights == 5


def test_an_unknown_policy_is_an_error():
    with pytest.raises(ValueError, match="There is no policy 'weekly'"):
        tuning_decision("weekly", Drift(), THRESHOLDS)
