"""The methods that learn nothing, which stand beside every table: popularity, recency copy and id + 1.

Each scores all items alike for all users but for a few items of each user. So the ranks come from one sorted list of
scores and the users' exceptions from it, without a matrix of users x items; time and memory grow with the interactions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2rec_core.evaluation import HeldOutRanks
from p2rec_core.metrics import SEEN_POLICIES
from p2rec_core.progress import Progress, silent
from p2rec_core.ranking import TargetCounts
from p2rec_core.repeat_fit import N_HIGHEST, RepeatFit
from p2rec_core.repeats import OwnItems
from p2rec_core.sequences import RaggedSequences

NO_LEARNING = ("popularity", "recency copy", "id + 1")
"""Rows that stand beside every table: the most popular items, the user's own latest items, and the item numbered
one above the last (a leak detector, near zero where item numbers say nothing)."""


@dataclass(frozen=True)
class SharedScores:
    """Scores that all users share, but for exceptions.

    Attributes:
        shared: float32 (N,) score of every item for a user without exceptions.
        row: int64 (M,) user of each exception, ascending.
        item: int64 (M,) its item, 1 … N; no item twice for a user.
        score: float32 (M,) its score.
        is_own: bool (M,) whether it is an item that the user had. All of these are among the exceptions, in the
            order of ``OwnItems``; of others a user has one at most.
        n_users: B.
    """

    shared: NDArray[np.float32]
    row: NDArray[np.int64]
    item: NDArray[np.int64]
    score: NDArray[np.float32]
    is_own: NDArray[np.bool_]
    n_users: int

    def of(self, items: NDArray[np.int64]) -> NDArray[np.float32]:
        """The scores of one item of each user, int64 (B,) from 1; float32 (B,)."""
        scores = self.shared[items - 1]
        hit = self.item == items[self.row]
        scores[self.row[hit]] = self.score[hit]
        return scores

    def count(self, places: NDArray[np.int64], levels: NDArray[np.floating]) -> NDArray[np.int64]:
        """See ``ranking.Count``."""
        level = np.full(self.n_users, np.nan, np.float32)
        level[places] = levels
        ordered = np.sort(self.shared)
        below, reached = (np.searchsorted(ordered, levels, side) for side in ("left", "right"))
        counts = np.stack([len(ordered) - reached, reached - below])
        own_level = level[self.row]  # NaN for users that are not asked for: neither above nor at it
        for values, sign in ((self.score, 1), (self.shared[self.item - 1], -1)):
            for number, met in enumerate((values > own_level, values == own_level)):
                counts[number] += sign * np.bincount(self.row[met], minlength=self.n_users)[places]
        return counts

    def highest_unseen(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """The highest scores of items that a user never had.

        Args:
            rows: int64 (R,) users.

        Returns:
            float64 (R, N_HIGHEST), falling; -inf where there are no more such items.
        """
        order = np.argsort(-self.shared, kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        at = place[self.item - 1]
        ranked = np.lexsort((at, self.row))
        row, at = self.row[ranked], at[ranked]
        n_exceptions = np.bincount(row, minlength=self.n_users)
        within = np.arange(len(row)) - np.repeat(np.cumsum(n_exceptions) - n_exceptions, n_exceptions)
        # the item in place j among those that are no exception stands behind every exception with at most j before it
        before = np.minimum(at - within, N_HIGHEST)
        passed = np.bincount(row * (N_HIGHEST + 1) + before, minlength=self.n_users * (N_HIGHEST + 1))
        behind = np.arange(N_HIGHEST) + passed.reshape(-1, N_HIGHEST + 1)[rows, :N_HIGHEST].cumsum(axis=1)
        falling = np.append(self.shared[order].astype(np.float64), -np.inf)
        found = falling[np.minimum(behind, len(order))]
        extra = np.full(self.n_users, -np.inf)
        np.maximum.at(extra, self.row[~self.is_own], self.score[~self.is_own].astype(np.float64))
        return -np.sort(-np.column_stack([found, extra[rows]]), axis=1)[:, :N_HIGHEST]


def no_learning_scores(
    method: str, history: RaggedSequences, rows: NDArray[np.int64], own: OwnItems, n_items: int
) -> SharedScores:
    """The scores of one of ``NO_LEARNING``.

    ``popularity`` is an item's number of interactions. ``recency copy`` scores a user's own items by how late they
    stand in the history, all others 0. ``id + 1`` scores the item numbered one above the user's last 1, all others 0.

    Args:
        method: One of ``NO_LEARNING``.
        history: What is known of all users.
        rows: int64 (B,) the users to score for.
        own: Their own items.
        n_items: N.

    Raises:
        KeyError: There is no such method.
    """
    nothing = np.zeros(n_items, np.float32)
    all_own = np.ones(len(own.row), bool)

    def popularity() -> SharedScores:
        counts = np.bincount(history.items, minlength=n_items + 1)[1:].astype(np.float32)
        return SharedScores(counts, own.row, own.item, counts[own.item - 1], all_own, len(rows))

    def recency_copy() -> SharedScores:
        return SharedScores(nothing, own.row, own.item, (own.within + 1).astype(np.float32), all_own, len(rows))

    def id_plus_one() -> SharedScores:
        last = history.last_items(rows)
        following = np.where((last > 0) & (last < n_items), last + 1, 0)
        hit = own.item == following[own.row]
        following[own.row[hit]] = 0  # an own item, which is an exception already
        users = np.flatnonzero(following)
        row, item = np.concatenate([own.row, users]), np.concatenate([own.item, following[users]])
        score = np.concatenate([hit, np.ones(len(users), bool)]).astype(np.float32)
        is_own = np.concatenate([all_own, np.zeros(len(users), bool)])
        order = np.argsort(row, kind="stable")
        return SharedScores(nothing, row[order], item[order], score[order], is_own[order], len(rows))

    methods: dict[str, Callable[[], SharedScores]] = {
        "popularity": popularity,
        "recency copy": recency_copy,
        "id + 1": id_plus_one,
    }
    return methods[method]()


def no_learning_ranks(
    method: str,
    n_items: int,
    training: RaggedSequences,
    validation: NDArray[np.int32],
    test: NDArray[np.int32],
    *,
    progress: Progress = silent,
) -> HeldOutRanks:
    """Rank the held-out items by a method that learns nothing; see ``evaluation.held_out_ranks``.

    Args:
        method: One of ``NO_LEARNING``.
        n_items: N.
        training: Training parts of all users.
        validation: int32 (users,) validation item of each user, 0 = none.
        test: int32 (users,) test item of each user, 0 = none.
        progress: Told after each split.

    Raises:
        KeyError: There is no such method.
    """
    observed = RepeatFit()
    counts = {}
    parts = {"validation": (training, validation), "test": (training.appended(validation), test)}
    for done, (split, (history, targets)) in enumerate(parts.items(), 1):
        rows = np.flatnonzero(targets > 0)
        own = OwnItems.of(history, rows)
        scores = no_learning_scores(method, history, rows, own, n_items)
        wanted = targets[rows].astype(np.int64)
        own_scores, reached = scores.score[scores.is_own], scores.of(wanted)
        met = scores.count(np.arange(len(rows)), reached)
        counts[split] = TargetCounts(wanted, own, own_scores, reached, met, scores.count)
        if split == "validation":
            observed.add(counts[split], scores.highest_unseen(np.flatnonzero(counts[split].is_own)))
        progress(done, len(parts), f"{split}: {len(rows)} users")
    bias = observed.fit()
    return HeldOutRanks(
        {split: np.flatnonzero(targets > 0) for split, (_, targets) in parts.items()},
        {split: found.ranks(SEEN_POLICIES, bias) for split, found in counts.items()},
        bias,
    )
