"""Ranks of every user's held-out targets, for anything that scores items, and the methods that learn nothing."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p2rec_core.metrics import SEEN_POLICIES
from p2rec_core.progress import Progress, silent
from p2rec_core.ranking import Scorer, popularity_scores, ranks_of_users, recency_scores, successor_scores
from p2rec_core.repeats import RepeatBias, RepeatObservations
from p2rec_core.sequences import RaggedSequences

MakeScorer = Callable[[RaggedSequences], Scorer]
"""From histories to what scores their next items."""


@dataclass(frozen=True)
class HeldOutRanks:
    """Ranks of the held-out targets.

    Attributes:
        users: Split → int64 (n,) zero-based rows of the users that have a target.
        ranks: Split → seen policy → int32 (n,) ranks; NOT_ELIGIBLE for a target that may not be recommended.
        repeat_bias: What ``weigh`` adds to the scores of a user's own items, fitted on the validation targets.
    """

    users: dict[str, NDArray[np.int64]]
    ranks: dict[str, dict[str, NDArray[np.int32]]]
    repeat_bias: RepeatBias


def held_out_ranks(
    make_scorer: MakeScorer,
    training: RaggedSequences,
    validation: NDArray[np.int32],
    test: NDArray[np.int32],
    *,
    progress: Progress = silent,
) -> HeldOutRanks:
    """Rank the validation items after the training parts, and the test items after both.

    Args:
        make_scorer: The method.
        training: Training parts of all users.
        validation: int32 (users,) validation item of each user, 0 = none.
        test: int32 (users,) test item of each user, 0 = none.
        progress: Told after every block of users.

    Raises:
        ModelError: A score is not finite.
    """
    n_scorings = [int((validation > 0).sum())] * 2 + [int((test > 0).sum())]

    def told(place: int, split: str) -> Progress:
        before = sum(n_scorings[:place])
        return lambda done, _, message: progress(before + done, sum(n_scorings), f"{split}: {message}")

    scorer = make_scorer(training)
    observed = RepeatObservations()

    def observing(rows: NDArray[np.int64]) -> Tensor:
        scores = scorer.score(rows)
        observed.add(scores, validation[rows], training, rows)
        return scores

    watched = replace(scorer, score=observing)
    ranks = {"validation": ranks_of_users(watched, validation, progress=told(0, "validation"))}
    bias = observed.fit()
    ranks["validation"] |= ranks_of_users(
        scorer, validation, seen=("weigh",), bias=bias, progress=told(1, "validation, seen items weighed")
    )
    later = make_scorer(training.appended(validation))
    ranks["test"] = ranks_of_users(later, test, seen=SEEN_POLICIES, bias=bias, progress=told(2, "test"))
    users = {"validation": np.flatnonzero(validation > 0), "test": np.flatnonzero(test > 0)}
    return HeldOutRanks(users, ranks, bias)


NO_LEARNING = ("popularity", "recency copy", "id + 1")
"""Rows that stand beside every table: the most popular items, the user's own latest items, and the item numbered
one above the last (a leak detector, near zero where item numbers say nothing)."""


def no_learning_scorer(method: str, history: RaggedSequences, n_items: int) -> Scorer:
    """One of ``NO_LEARNING`` as what ranks are computed from.

    Raises:
        KeyError: No such method.
    """
    popularity = popularity_scores(history, n_items)
    scores: dict[str, Callable[[NDArray[np.int64]], NDArray[np.float32]]] = {
        "popularity": lambda rows: np.tile(popularity, (len(rows), 1)),
        "recency copy": lambda rows: recency_scores(history, rows, n_items),
        "id + 1": lambda rows: successor_scores(history, rows, n_items),
    }
    chosen = scores[method]
    return Scorer(history, lambda rows: torch.from_numpy(chosen(rows)), history.lengths)
