"""How a recommender of an earlier night stands on today's hold-out: on like terms with the one that may replace it."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p2rec_core.progress import Progress, silent
from p2rec_core.ranking import Scorer, ranks_of_users
from p2rec_core.recommender import Recommender, recommender_scorer
from p2rec_core.sequences import RaggedSequences


@dataclass(frozen=True)
class Standing:
    """Test ranks of a recommender, and how many items it shows.

    Attributes:
        ranks: Seen policy → int32 (n,) ranks of the users that have a target.
        coverage: Different items in the first k places of all these users' lists, before anything is masked.
    """

    ranks: dict[str, NDArray[np.int32]]
    coverage: int


def only_known(history: RaggedSequences, n_known: int) -> RaggedSequences:
    """Histories without the items above ``n_known``."""
    known = history.items <= n_known
    kept = np.concatenate([[0], np.cumsum(known)])
    return RaggedSequences(history.items[known], kept[history.offsets].astype(np.int64))


def earlier_scorer(
    model: Recommender, history: RaggedSequences, *, n_known: int, n_items: int, max_length: int, device: torch.device
) -> Scorer:
    """A recommender of a smaller catalogue as what ranks over a larger one are computed from.

    It does as it would in service: items that it does not know are passed over in histories, and it recommends them
    after all others.

    Args:
        model: The recommender, in evaluation mode.
        history: What is known of each user, today.
        n_known: Items that it knows: 1 … n_known.
        n_items: Items that there are today.
        max_length: Most recent items that the encoder reads.
        device: Where the model is.
    """
    scorer = recommender_scorer(model, only_known(history, n_known), max_length=max_length, device=device)
    if n_items == n_known:
        return replace(scorer, history=history)

    def score(rows: NDArray[np.int64]) -> Tensor:
        scores = scorer.score(rows)
        last = scores.min(dim=1, keepdim=True).values - 1
        return torch.cat([scores, last.expand(-1, n_items - n_known)], dim=1)

    return Scorer(history, score, scorer.lengths)


def standing(
    scorer: Scorer, test: NDArray[np.int32], *, seen: tuple[str, ...], k: int, progress: Progress = silent
) -> Standing:
    """Rank the test items, and count the items that are shown.

    Args:
        scorer: The recommender, after training parts and validation items.
        test: int32 (users,) test item of each user, 0 = none.
        seen: ``keep``, ``mask`` or both.
        k: Length of a list.
        progress: Told after every block of users.

    Raises:
        ModelError: A score is not finite.
    """
    shown = np.zeros(0, bool)

    def watched(rows: NDArray[np.int64]) -> Tensor:
        nonlocal shown
        scores = scorer.score(rows)
        if not len(shown):
            shown = np.zeros(scores.shape[1], bool)
        shown[scores.topk(min(k, scores.shape[1]), dim=1).indices.cpu().numpy().ravel()] = True
        return scores

    ranks = ranks_of_users(replace(scorer, score=watched), test, seen=seen, progress=progress)
    return Standing(ranks, int(shown.sum()))
