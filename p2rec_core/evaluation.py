"""Ranks of every user's target for a trained recommender and for the rows that learn nothing."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from p2rec_core.ranking import popularity_scores, ranks_of_users, recency_scores, successor_scores
from p2rec_core.recommender import Recommender, rank_targets
from p2rec_core.sequences import RaggedSequences


@dataclass(frozen=True)
class SplitRanks:
    """Ranks of one split's targets.

    Attributes:
        users: int64 (n,) zero-based rows of the users that have a target.
        keep: int32 (n,) ranks where seen items are eligible.
        mask: int32 (n,) ranks where they are not; NOT_ELIGIBLE for a target that was seen before.
    """

    users: NDArray[np.int64]
    keep: NDArray[np.int32]
    mask: NDArray[np.int32]


def recommender_ranks(
    model: Recommender,
    history: RaggedSequences,
    targets: NDArray[np.int32],
    *,
    max_length: int,
    device: torch.device,
) -> SplitRanks:
    """Rank the targets (int32 (users,), 0 = none) with a trained recommender."""
    keep, mask = rank_targets(model, history, targets, max_length=max_length, device=device)
    return SplitRanks(np.flatnonzero(targets > 0), keep, mask)


NO_LEARNING = ("popularity", "recency copy", "id + 1")
"""Rows that stand beside every table: the most popular items, the user's own latest items, and the item numbered
one above the last (a leak detector, near zero where item numbers say nothing)."""


def no_learning_ranks(method: str, history: RaggedSequences, targets: NDArray[np.int32], n_items: int) -> SplitRanks:
    """Rank the targets (int32 (users,), 0 = none) with one of ``NO_LEARNING``.

    Raises:
        KeyError: No such method.
    """
    popularity = popularity_scores(history, n_items)
    scorers: dict[str, Callable[[NDArray[np.int64]], NDArray[np.float32]]] = {
        "popularity": lambda rows: np.tile(popularity, (len(rows), 1)),
        "recency copy": lambda rows: recency_scores(history, rows, n_items),
        "id + 1": lambda rows: successor_scores(history, rows, n_items),
    }
    scorer = scorers[method]
    keep, mask = ranks_of_users(lambda rows: torch.from_numpy(scorer(rows)), targets, history, history.lengths)
    return SplitRanks(np.flatnonzero(targets > 0), keep, mask)
