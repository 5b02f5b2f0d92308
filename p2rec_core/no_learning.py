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
from p2rec_core.repeats import TEMPERATURES, OwnItems, RepeatObservations
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
            order of ``OwnItems``.
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

    def unseen_masses(self) -> NDArray[np.float64]:
        """Logarithm of the sum of exp(score / temperature) over the items that a user never had.

        The sum over all items from the first place on that is no exception, less the exceptions below it: what stays is
        never less than the largest term, so that nothing cancels.

        Returns:
            float64 (temperatures, B); -inf where there is no such item.
        """
        order = np.argsort(-self.shared, kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        at = place[self.item - 1]
        ranked = np.lexsort((at, self.row))
        row, at = self.row[ranked], at[ranked]
        n_exceptions = np.bincount(row, minlength=self.n_users)
        within = np.arange(len(row)) - np.repeat(np.cumsum(n_exceptions) - n_exceptions, n_exceptions)
        # exceptions that fill the first places without a gap
        first = np.bincount(row[at == within], minlength=self.n_users)
        left = first < len(order)
        falling = np.append(self.shared[order].astype(np.float64), -np.inf)
        top = falling[first]
        below = at > within
        extra = ~self.is_own
        masses = np.full((len(TEMPERATURES), self.n_users), -np.inf)
        for temperature, mass in zip(TEMPERATURES, masses, strict=True):
            tails = np.append(np.logaddexp.accumulate(falling[-2::-1] / temperature)[::-1], -np.inf)
            terms = np.exp((falling[at[below]] - top[row[below]]) / temperature)
            taken = np.bincount(row[below], weights=terms, minlength=self.n_users)
            level = top[left] / temperature
            mass[left] = np.log(np.exp(tails[first[left]] - level) - taken[left]) + level
            np.logaddexp.at(mass, self.row[extra], self.score[extra].astype(np.float64) / temperature)
        return masses


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
    observed = RepeatObservations()
    counts = {}
    parts = {"validation": (training, validation), "test": (training.appended(validation), test)}
    for done, (split, (history, targets)) in enumerate(parts.items(), 1):
        rows = np.flatnonzero(targets > 0)
        own = OwnItems.of(history, rows)
        scores = no_learning_scores(method, history, rows, own, n_items)
        wanted = targets[rows].astype(np.int64)
        own_scores, reached = scores.score[scores.is_own], scores.of(wanted)
        if split == "validation":
            observed.note(
                scores.unseen_masses(), own, own_scores.astype(np.float64), targets[rows], reached.astype(np.float64)
            )
        met = scores.count(np.arange(len(rows)), reached)
        counts[split] = TargetCounts(wanted, own, own_scores, reached, met, scores.count)
        progress(done, len(parts), f"{split}: {len(rows)} users")
    bias = observed.fit()
    return HeldOutRanks(
        {split: np.flatnonzero(targets > 0) for split, (_, targets) in parts.items()},
        {split: found.ranks(SEEN_POLICIES, bias) for split, found in counts.items()},
        bias,
    )
