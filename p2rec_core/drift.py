"""What changed from one night to the next, and whether the language model has to be tuned for it."""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from p2rec_core.errors import DataError


@dataclass(frozen=True)
class InteractionChanges:
    """What the new interactions are beside the current snapshot's; users and items keep their indices.

    Attributes:
        n_known_users: Users of the current snapshot.
        n_known_items: Items of the current snapshot.
        n_new_users: Users that it did not have.
        n_new_items: Items that it did not have.
        n_touched_users: Known users whose history is not what it was.
        n_rewritten_users: Those of them whose history, new items left out, does not begin with what it was. A new
            item may come between: one that has only now enough interactions brings earlier ones with it.
        n_vanished_users: Known users with interactions before and none now.
        n_vanished_items: Known items with interactions before and none now.
        n_rows_before: Interactions of the current snapshot.
        n_rows_added: Interactions that it did not have, of new users and items included.
        n_rows_lost: Interactions of it that are missing.
    """

    n_known_users: int
    n_known_items: int
    n_new_users: int
    n_new_items: int
    n_touched_users: int
    n_rewritten_users: int
    n_vanished_users: int
    n_vanished_items: int
    n_rows_before: int
    n_rows_added: int
    n_rows_lost: int


@dataclass(frozen=True)
class History:
    """The interactions of one import.

    Attributes:
        user: int32 (rows,), from 1, rising; a user's rows are in order of time.
        item: int32 (rows,), from 1.
        n_users: Users in all.
        n_items: Items in all.
    """

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    n_users: int
    n_items: int


def interaction_changes(before: History, after: History) -> InteractionChanges:
    """Compare two imports whose known users and items have the same indices.

    An interaction is its user and its item; one that occurs twice counts twice.

    Raises:
        DataError: The later import has fewer users or items than the earlier one.
    """
    if after.n_users < before.n_users or after.n_items < before.n_items:
        raise DataError(
            f"{after.n_users} users and {after.n_items} items cannot continue {before.n_users} and {before.n_items}.",
            remedy="Compare an import with one whose numbering it continues.",
        )
    old_pairs, old_counts = _pairs(before, after.n_items)
    new_pairs, new_counts = _pairs(after, after.n_items)
    place = np.searchsorted(new_pairs, old_pairs)
    found = np.append(new_pairs, -1)[place] == old_pairs
    present = np.where(found, np.append(new_counts, 0)[place], 0)
    n_lost = int(np.maximum(old_counts - present, 0).sum())
    known = before.n_users
    old_length = np.bincount(before.user, minlength=known + 1)[1 : known + 1]
    new_length = np.bincount(after.user, minlength=after.n_users + 1)[1 : known + 1]
    rewritten = _rewritten(before, after, old_length)
    old_items = np.bincount(before.item, minlength=before.n_items + 1)[1:]
    new_items = np.bincount(after.item, minlength=after.n_items + 1)[1 : before.n_items + 1]
    return InteractionChanges(
        n_known_users=known,
        n_known_items=before.n_items,
        n_new_users=after.n_users - known,
        n_new_items=after.n_items - before.n_items,
        n_touched_users=int((rewritten | (new_length != old_length)).sum()),
        n_rewritten_users=int(rewritten.sum()),
        n_vanished_users=int(((old_length > 0) & (new_length == 0)).sum()),
        n_vanished_items=int(((old_items > 0) & (new_items == 0)).sum()),
        n_rows_before=len(before.user),
        n_rows_added=len(after.user) - len(before.user) + n_lost,
        n_rows_lost=n_lost,
    )


def _pairs(history: History, n_items: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    pairs, counts = np.unique(history.user.astype(np.int64) * (n_items + 1) + history.item, return_counts=True)
    return pairs, counts.astype(np.int64)


def _rewritten(before: History, after: History, old_length: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each known user's history of known items begins otherwise than it did, bool (known users,)."""
    n_known = len(old_length)
    comparable = (after.user <= n_known) & (after.item <= before.n_items)
    item = after.item[comparable]
    new_length = np.bincount(after.user[comparable], minlength=n_known + 1)[1:]
    old_start = np.cumsum(old_length) - old_length
    new_start = np.cumsum(new_length) - new_length
    compared = np.minimum(old_length, new_length)
    user = np.repeat(np.arange(n_known), compared)
    within = np.arange(len(user)) - np.repeat(np.cumsum(compared) - compared, compared)
    other = before.item[old_start[user] + within] != item[new_start[user] + within]
    differs: NDArray[np.bool_] = np.bincount(user[other], minlength=n_known) > 0
    return differs | (new_length < old_length)


def preference_drift(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """Mean total variation, 0…1, between the preferences of users who have some in both.

    Args:
        before: float32 (U, K).
        after: float32 (U', K), U' >= U; the first U rows are the same users. Clusters have the same meaning.

    Returns:
        0 where there is no such user.

    Raises:
        DataError: The numbers of clusters differ.
    """
    if before.shape[1] != after.shape[1]:
        raise DataError(
            f"Preferences over {after.shape[1]} clusters cannot be compared with ones over {before.shape[1]}.",
            remedy="Compute a snapshot with these settings with `p2rec run`.",
        )
    now = after[: len(before)]
    both = (before.sum(axis=1) > 0) & (now.sum(axis=1) > 0)
    if not both.any():
        return 0.0
    return float(np.abs(before[both].astype(np.float64) - now[both]).sum(axis=1).mean() / 2)


@dataclass(frozen=True)
class Drift:
    """How far things have moved; the measures of several nights can be summed.

    Attributes:
        preferences: Mean total variation between users' preferences; a sum over nights bounds the whole from above.
        moved_items: Share of known items that changed their cluster.
        new_items: New items as a part of the known ones.
    """

    preferences: float = 0.0
    moved_items: float = 0.0
    new_items: float = 0.0

    def __add__(self, other: "Drift") -> "Drift":
        return Drift(
            self.preferences + other.preferences,
            self.moved_items + other.moved_items,
            self.new_items + other.new_items,
        )

    def to_json(self) -> dict[str, float]:
        """The measures by name."""
        return asdict(self)


@dataclass(frozen=True)
class TuningDecision:
    """Whether the language model is tuned anew.

    Attributes:
        tune: Whether it is.
        reason: Why, for a person.
    """

    tune: bool
    reason: str


def tuning_decision(policy: str, since_tuning: Drift, thresholds: Drift, *, data_refused: str = "") -> TuningDecision:
    """Decide on the fine-tuning.

    Args:
        policy: ``always``, ``never`` or ``on_drift``.
        since_tuning: Drift since the last fine-tuning, tonight's included.
        thresholds: A measure above its threshold calls for a fine-tuning.
        data_refused: Why tonight's interactions are refused; no fine-tuning is spent on such ones. Empty where they
            are not.

    Raises:
        ValueError: There is no such policy.
    """
    if policy not in ("always", "never", "on_drift"):
        raise ValueError(f"There is no policy {policy!r}.")
    if data_refused:
        return TuningDecision(False, f"the interactions are refused ({data_refused}), the current adapter is used")
    if policy != "on_drift":
        return TuningDecision(policy == "always", f"refresh.finetune = {policy}")
    above = [
        f"{name} {value:.3f} > {getattr(thresholds, name):g}"
        for name, value in since_tuning.to_json().items()
        if value > getattr(thresholds, name)
    ]
    if above:
        return TuningDecision(True, f"since the last fine-tuning: {', '.join(above)}")
    told = ", ".join(f"{name} {value:.3f}" for name, value in since_tuning.to_json().items())
    return TuningDecision(False, f"no drift above its threshold since the last fine-tuning: {told}")
