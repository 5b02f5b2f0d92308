"""Ranks of every user's held-out targets, for anything that scores items."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from p2rec_core.metrics import SEEN_POLICIES
from p2rec_core.progress import Progress, silent
from p2rec_core.ranking import Scorer, counted_blocks, ranks_of_users
from p2rec_core.repeat_fit import RepeatFit, highest_unseen
from p2rec_core.repeats import RepeatBias
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
    n_scorings = [int((targets > 0).sum()) for targets in (validation, test)]

    def told(place: int, split: str) -> Progress:
        before = sum(n_scorings[:place])
        return lambda done, _, message: progress(before + done, sum(n_scorings), f"{split}: {message}")

    scorer = make_scorer(training)
    observed = RepeatFit()
    blocks = []
    for rows, scores, counts in counted_blocks(scorer, validation, progress=told(0, "validation")):
        observed.add(counts, highest_unseen(scores, counts))
        blocks.append((rows, replace(counts, count=_forgotten)))
        del scores, counts  # before the next block is scored
    bias = observed.fit()
    of_all = {policy: np.zeros(len(validation), np.int32) for policy in SEEN_POLICIES}
    returning = np.zeros_like(validation)
    for rows, counts in blocks:
        for policy, found in (counts.ranks(("keep", "mask")) | {"weigh": counts.weighed_ranks(bias)}).items():
            of_all[policy][rows] = found
        returning[rows[counts.is_own]] = validation[rows[counts.is_own]]
    # only a target that is weighed itself has to be compared with all items again
    of_all["weigh"][returning > 0] = ranks_of_users(scorer, returning, seen=("weigh",), bias=bias)["weigh"]
    ranks = {"validation": {policy: found[validation > 0] for policy, found in of_all.items()}}
    later = make_scorer(training.appended(validation))
    ranks["test"] = ranks_of_users(later, test, seen=SEEN_POLICIES, bias=bias, progress=told(1, "test"))
    users = {"validation": np.flatnonzero(validation > 0), "test": np.flatnonzero(test > 0)}
    return HeldOutRanks(users, ranks, bias)


def _forgotten(places: NDArray[np.int64], levels: NDArray[np.floating]) -> NDArray[np.int64]:
    raise ValueError("The scores are no longer in memory.")
