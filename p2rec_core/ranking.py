"""Full-ranking evaluation: the rank of each target among all items, and the metrics of ranks.

rank = 1 + eligible items with a strictly higher score + half of the ties, rounded up, so that a constant scorer
gets no free hits. PAD is never eligible. Under ``seen = mask`` the user's history is not eligible either; a target
that is in the history then has no rank (0 here) and counts as a miss. Under ``seen = weigh`` it is eligible at scores
that a bias was added to.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p2rec_core.errors import ModelError
from p2rec_core.metrics import user_metric
from p2rec_core.progress import Progress, silent
from p2rec_core.repeats import RepeatBias, add_repeat_bias
from p2rec_core.sequences import RaggedSequences

NOT_ELIGIBLE = 0
"""Rank of a target that may not be recommended."""

SCORED_ROWS = 512
"""Users whose scores are in memory at once; changes memory, not results."""


@dataclass(frozen=True)
class Scorer:
    """A method that scores all items for users of whom something is known.

    Attributes:
        history: What is known of each user.
        score: From rows of ``history``, int64 (B,), to the score of every item without PAD, float (B, N), finite, in
            memory of its own, on any device.
        lengths: int64 (users,) how much is read of each user; users of like length are scored together.
    """

    history: RaggedSequences
    score: Callable[[NDArray[np.int64]], Tensor]
    lengths: NDArray[np.int64]


def target_ranks(
    scores: Tensor,
    targets: Tensor,
    history: RaggedSequences,
    rows: NDArray[np.int64],
    *,
    seen: Iterable[str] = ("keep", "mask"),
    bias: RepeatBias | None = None,
) -> dict[str, Tensor]:
    """Ranks of one target per row under some seen policies.

    Args:
        scores: float (B, N) finite score of every item, without PAD; a NaN would rank its row's target first.
            Changed in place.
        targets: int64 (B,) target items, 1 … N.
        history: The users' histories.
        rows: int64 (B,) rows of ``history`` that the batch is about.
        seen: Policies of ``metrics.SEEN_POLICIES``.
        bias: What ``weigh`` adds to the scores of a user's own items.

    Returns:
        Policy → int32 (B,) ranks.

    Raises:
        ValueError: ``weigh`` is asked for without a bias.
    """
    wanted = set(seen)
    column = (targets - 1)[:, None]
    target_score = scores.gather(1, column)
    ranks = {}
    if "keep" in wanted:
        ranks["keep"] = _rank(scores, target_score)
    if "weigh" in wanted:
        if bias is None:
            raise ValueError("Seen items cannot be weighed without a bias.")
        add_repeat_bias(scores, history, rows, bias)
        ranks["weigh"] = _rank(scores, scores.gather(1, column))
    if "mask" in wanted:
        row, item = history.coordinates(rows)
        scores[torch.from_numpy(row).to(scores.device), torch.from_numpy(item - 1).to(scores.device)] = -torch.inf
        masked = torch.isneginf(scores.gather(1, column)).squeeze(1)
        ranks["mask"] = torch.where(masked, NOT_ELIGIBLE, _rank(scores, target_score))
    return ranks


def ranks_of_users(
    scorer: Scorer,
    targets: NDArray[np.int32],
    *,
    seen: Collection[str] = ("keep", "mask"),
    bias: RepeatBias | None = None,
    progress: Progress = silent,
) -> dict[str, NDArray[np.int32]]:
    """Rank each user's target among all items, ``SCORED_ROWS`` users at a time.

    Args:
        scorer: Scores the users.
        targets: int32 (users,); 0 leaves a user out.
        seen: Policies of ``metrics.SEEN_POLICIES``.
        bias: What ``weigh`` adds to the scores of a user's own items.
        progress: Told after every block of users.

    Returns:
        Policy → int32 ranks of the users that have a target, in user order.

    Raises:
        ModelError: A score is not finite.
        ValueError: ``weigh`` is asked for without a bias.
    """
    users = np.flatnonzero(targets > 0)
    by_length = users[np.argsort(scorer.lengths[users], kind="stable")]
    ranks = {policy: np.zeros(len(targets), np.int32) for policy in seen}
    for start in range(0, len(users), SCORED_ROWS):
        rows = by_length[start : start + SCORED_ROWS]
        scores = scorer.score(rows)
        if not torch.isfinite(scores.sum()):
            # a comparison with NaN is false, so that a broken model would rank everything first
            raise ModelError(
                "The model gives scores that are not finite numbers.",
                remedy="Train it again, with a lower learning rate.",
            )
        target = torch.from_numpy(targets[rows].astype(np.int64)).to(scores.device)
        for policy, found in target_ranks(scores, target, scorer.history, rows, seen=seen, bias=bias).items():
            ranks[policy][rows] = found.cpu().numpy()
        done = start + len(rows)
        progress(done, len(users), f"{done} of {len(users)} users")
    return {policy: of_all[users] for policy, of_all in ranks.items()}


def _rank(scores: Tensor, target_score: Tensor) -> Tensor:
    higher = _row_counts(scores > target_score)
    ties = (_row_counts(scores == target_score) - 1).clamp_min(0)
    return (1 + higher + (ties + 1) // 2).to(torch.int32)


def _row_counts(condition: Tensor) -> Tensor:
    """How many entries of each row hold; on a CPU torch's sum of booleans is many times slower than numpy's count."""
    if condition.device.type == "cpu":
        return torch.from_numpy(np.count_nonzero(condition.numpy(), axis=1))
    return condition.sum(1)


def rank_metrics(ranks: NDArray[np.int32], cutoffs: Iterable[int]) -> dict[tuple[str, int], float]:
    """HR@k and NDCG@k, means over all users.

    Args:
        ranks: int (users,) from 1; NOT_ELIGIBLE is a miss.
        cutoffs: The k.

    Returns:
        ``("HR", k)`` and ``("NDCG", k)`` → value; NaN where there are no users.
    """
    values: dict[tuple[str, int], float] = {}
    for k in cutoffs:
        for name in ("HR", "NDCG"):
            values[name, k] = float(user_metric(ranks, f"{name}@{k}").mean()) if len(ranks) else float("nan")
    return values


def popularity_scores(history: RaggedSequences, n_items: int) -> NDArray[np.float32]:
    """Score every item by its number of interactions: float32 (N,)."""
    return np.bincount(history.items, minlength=n_items + 1)[1:].astype(np.float32)


def recency_scores(history: RaggedSequences, rows: NDArray[np.int64], n_items: int) -> NDArray[np.float32]:
    """Score a user's own items by how recent they are, all others 0: float32 (B, N) for the rows ``rows``."""
    scores = np.zeros((len(rows), n_items), np.float32)
    row, item = history.coordinates(rows)
    lengths = history.lengths[rows]
    within = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    np.maximum.at(scores, (row, item - 1), (within + 1).astype(np.float32))
    return scores


def successor_scores(history: RaggedSequences, rows: NDArray[np.int64], n_items: int) -> NDArray[np.float32]:
    """Score the item numbered one above the user's last, all others 0: float32 (B, N); a leak detector.

    Where item numbers carry no information this hits by chance only.
    """
    scores = np.zeros((len(rows), n_items), np.float32)
    last = history.last_items(rows)
    known = np.flatnonzero((last > 0) & (last < n_items))
    scores[known, last[known]] = 1.0
    return scores
