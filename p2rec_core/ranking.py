"""Full-ranking evaluation: the rank of each target among all items, and the metrics of ranks.

rank = 1 + eligible items with a strictly higher score + half of the ties, rounded up, so that a constant scorer
gets no free hits. PAD is never eligible. Under ``seen = mask`` the user's history is not eligible either; a target
that is in the history then has no rank (0 here) and counts as a miss.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p2rec_core.metrics import user_metric
from p2rec_core.progress import Progress, silent
from p2rec_core.sequences import RaggedSequences

NOT_ELIGIBLE = 0
"""Rank of a target that may not be recommended."""

SCORED_ROWS = 512
"""Users whose scores are in memory at once; changes memory, not results."""


def target_ranks(
    scores: Tensor, targets: Tensor, history: RaggedSequences | None, rows: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """Ranks of one target per row under both seen policies.

    Args:
        scores: float (B, N) finite score of every item, without PAD; a NaN would rank its row's target first.
            Changed in place where a history is given.
        targets: int64 (B,) target items, 1 … N.
        history: The users' histories; None ranks under ``keep`` only and gives it for both.
        rows: int64 (B,) rows of ``history`` that the batch is about.

    Returns:
        int32 (B,) ranks under ``keep`` and int32 (B,) ranks under ``mask``.
    """
    column = (targets - 1)[:, None]
    target_score = scores.gather(1, column)
    keep = _rank(scores, target_score)
    if history is None:
        return keep, keep
    row, item = _history_coordinates(history, rows)
    row_t, item_t = torch.from_numpy(row).to(scores.device), torch.from_numpy(item).to(scores.device)
    scores[row_t, item_t - 1] = -torch.inf
    masked = torch.isneginf(scores.gather(1, column)).squeeze(1)
    mask = _rank(scores, target_score)
    return keep, torch.where(masked, NOT_ELIGIBLE, mask)


def ranks_of_users(
    score: Callable[[NDArray[np.int64]], Tensor],
    targets: NDArray[np.int32],
    history: RaggedSequences,
    lengths: NDArray[np.int64],
    *,
    mask: bool = True,
    progress: Progress = silent,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Rank each user's target among all items, ``SCORED_ROWS`` users at a time.

    Args:
        score: From rows of ``history``, int64 (B,), to scores as of ``target_ranks``, float (B, N), on any device.
        targets: int32 (users,); 0 leaves a user out.
        history: What is known of each user.
        lengths: int64 (users,) how much is read of each user; users of like length are scored together.
        mask: Whether to rank under ``seen = mask`` too; otherwise the second result equals the first.
        progress: Told after every block of users.

    Returns:
        int32 ranks under ``keep`` and ``mask`` of the users that have a target, in user order.
    """
    users = np.flatnonzero(targets > 0)
    by_length = users[np.argsort(lengths[users], kind="stable")]
    keep, masked = np.zeros(len(targets), np.int32), np.zeros(len(targets), np.int32)
    for start in range(0, len(users), SCORED_ROWS):
        rows = by_length[start : start + SCORED_ROWS]
        scores = score(rows)
        target = torch.from_numpy(targets[rows].astype(np.int64)).to(scores.device)
        k, m = target_ranks(scores, target, history if mask else None, rows)
        keep[rows], masked[rows] = k.cpu().numpy(), m.cpu().numpy()
        done = start + len(rows)
        progress(done, len(users), f"{done} of {len(users)} users")
    return keep[users], masked[users]


def _rank(scores: Tensor, target_score: Tensor) -> Tensor:
    higher = _row_counts(scores > target_score)
    ties = (_row_counts(scores == target_score) - 1).clamp_min(0)
    return (1 + higher + (ties + 1) // 2).to(torch.int32)


def _row_counts(condition: Tensor) -> Tensor:
    """How many entries of each row hold; on a CPU torch's sum of booleans is many times slower than numpy's count."""
    if condition.device.type == "cpu":
        return torch.from_numpy(np.count_nonzero(condition.numpy(), axis=1))
    return condition.sum(1)


def _history_coordinates(
    history: RaggedSequences, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(row within the batch, item) of every interaction of the rows' histories."""
    lengths = history.lengths[rows]
    row = np.repeat(np.arange(len(rows)), lengths)
    within = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return row, history.items[history.offsets[rows][row] + within].astype(np.int64)


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
    row, item = _history_coordinates(history, rows)
    lengths = history.lengths[rows]
    within = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    np.maximum.at(scores, (row, item - 1), (within + 1).astype(np.float32))
    return scores


def successor_scores(history: RaggedSequences, rows: NDArray[np.int64], n_items: int) -> NDArray[np.float32]:
    """Score the item numbered one above the user's last, all others 0: float32 (B, N); a leak detector.

    Where item numbers carry no information this hits by chance only.
    """
    scores = np.zeros((len(rows), n_items), np.float32)
    nonempty = np.flatnonzero(history.lengths[rows] > 0)
    last = history.items[history.offsets[rows[nonempty] + 1] - 1]
    inside = last < n_items
    scores[nonempty[inside], last[inside]] = 1.0
    return scores
