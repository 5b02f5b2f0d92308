"""Full-ranking evaluation: the rank of each target among all items, and the metrics of ranks.

rank = 1 + eligible items with a strictly higher score + half of the ties, rounded up, so that a constant scorer
gets no free hits. PAD is never eligible. Under ``seen = mask`` the user's history is not eligible either; a target
that is in the history then has no rank (0 here) and counts as a miss. Under ``seen = weigh`` it is eligible at scores
that a bias was added to.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p2rec_core.errors import ModelError
from p2rec_core.metrics import user_metric
from p2rec_core.progress import Progress, silent
from p2rec_core.repeats import OwnItems, RepeatBias
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
        score: From rows of ``history``, int64 (B,), to the score of every item without PAD, float (B, N), finite, on
            any device. The caller may write there, and so may the next call.
        lengths: int64 (users,) how much is read of each user; users of like length are scored together.
    """

    history: RaggedSequences
    score: Callable[[NDArray[np.int64]], Tensor]
    lengths: NDArray[np.int64]


Count = Callable[[NDArray[np.int64], NDArray[np.floating]], NDArray[np.int64]]
"""From rows of a batch, int64 (M,), and a score for each, (M,), to how many of all N items have a higher score and how
many the same, int64 (2, M)."""


@dataclass(frozen=True)
class TargetCounts:
    """How the targets of some users stand among all items, and the users' own items, which policies treat apart.

    All items are compared with a target once. Own items are few: they are taken out of the count, or put into it
    otherwise. Only a target that is an own item has all items compared with it again to be weighed.

    Attributes:
        targets: int64 (B,) target items, 1 … N.
        own: The users' own items.
        own_scores: float (M,) scores of the own items.
        target_scores: float (B,) scores of the targets.
        counts: int64 (2, B) items with a higher score than the target's, and with the same, itself among them.
        count: Counts again, for other scores.
    """

    targets: NDArray[np.int64]
    own: OwnItems
    own_scores: NDArray[np.floating]
    target_scores: NDArray[np.floating]
    counts: NDArray[np.int64]
    count: Count

    def ranks(self, seen: Iterable[str], bias: RepeatBias | None = None) -> dict[str, NDArray[np.int32]]:
        """Ranks of the targets.

        Args:
            seen: Policies of ``metrics.SEEN_POLICIES``.
            bias: What ``weigh`` adds to the scores of own items.

        Returns:
            Policy → int32 (B,) ranks.

        Raises:
            ValueError: ``weigh`` is asked for without a bias.
        """
        wanted = set(seen)
        if "weigh" in wanted and bias is None:
            raise ValueError("Seen items cannot be weighed without a bias.")
        ranks = {}
        if "keep" in wanted:
            ranks["keep"] = _ranks(self.counts)
        if "mask" in wanted:
            ranks["mask"] = np.where(self.is_own, np.int32(NOT_ELIGIBLE), _ranks(self.unseen_counts()))
        if bias is not None and "weigh" in wanted:
            weighed = self.own.weighed(self.own_scores, bias)
            among_all, reached = self.counts, self.target_scores
            if self.is_own.any():
                among_all, reached, again = among_all.copy(), reached.copy(), np.flatnonzero(self.is_own)
                reached[self.own.row[self.is_target]] = weighed[self.is_target]
                among_all[:, again] = self.count(again, reached[again])
            ranks["weigh"] = self._weighed_ranks(among_all, reached, weighed)
        return ranks

    def weighed_ranks(self, bias: RepeatBias) -> NDArray[np.int32]:
        """Ranks under ``weigh`` without counting again, int32 (B,); meaningless where ``is_own``."""
        return self._weighed_ranks(self.counts, self.target_scores, self.own.weighed(self.own_scores, bias))

    def unseen_counts(self) -> NDArray[np.int64]:
        """``counts`` without the own items, int64 (2, B); an own target is then not counted either."""
        return self.counts - self._own_counts(self.own_scores, self.target_scores)

    @property
    def is_own(self) -> NDArray[np.bool_]:
        """Which targets are own items, bool (B,)."""
        held = np.zeros(len(self.targets), bool)
        held[self.own.row[self.is_target]] = True
        return held

    @property
    def is_target(self) -> NDArray[np.bool_]:
        """Which own items are the target of their row, bool (M,)."""
        found: NDArray[np.bool_] = self.own.item == self.targets[self.own.row]
        return found

    def _weighed_ranks(
        self, among_all: NDArray[np.int64], reached: NDArray[np.floating], weighed: NDArray[np.floating]
    ) -> NDArray[np.int32]:
        unseen = among_all - self._own_counts(self.own_scores, reached)
        return _ranks(unseen + self._own_counts(weighed, reached))

    def _own_counts(self, values: NDArray[np.floating], reached: NDArray[np.floating]) -> NDArray[np.int64]:
        """How many own items' values are above, and at, the score of their row, int64 (2, B)."""
        level = reached[self.own.row]
        higher, same = self.own.row[values > level], self.own.row[values == level]
        return np.stack([np.bincount(rows, minlength=len(reached)) for rows in (higher, same)])


def _ranks(counts: NDArray[np.int64]) -> NDArray[np.int32]:
    """Ranks from the numbers of items above and at the target, itself among the latter, int32 (B,)."""
    higher, same = counts
    ties = np.maximum(same - 1, 0)
    ranks: NDArray[np.int32] = (1 + higher + (ties + 1) // 2).astype(np.int32)
    return ranks


def target_counts(
    scores: Tensor, targets: NDArray[np.int32], history: RaggedSequences, rows: NDArray[np.int64]
) -> TargetCounts:
    """Count by the scores of all items.

    Args:
        scores: float (B, N) finite score of every item, without PAD; a NaN would rank its row's target first.
        targets: int (B,) target items, 1 … N.
        history: The users' histories.
        rows: int64 (B,) rows of ``history`` that the batch is about.
    """
    wanted = targets.astype(np.int64)
    reached = scores.gather(1, torch.from_numpy(wanted - 1).to(scores.device)[:, None]).squeeze(1)
    own = OwnItems.of(history, rows)
    place = [torch.from_numpy(index).to(scores.device) for index in (own.row, own.item - 1)]

    def count(places: NDArray[np.int64], levels: NDArray[np.floating]) -> NDArray[np.int64]:
        chosen = scores if len(places) == len(scores) else scores[torch.from_numpy(places).to(scores.device)]
        level = torch.from_numpy(levels).to(scores.device)[:, None]
        return np.stack([_row_counts(chosen > level), _row_counts(chosen == level)])

    target_scores = reached.cpu().numpy()
    counts = count(np.arange(len(rows)), target_scores)
    return TargetCounts(wanted, own, scores[place[0], place[1]].cpu().numpy(), target_scores, counts, count)


def counted_blocks(
    scorer: Scorer, targets: NDArray[np.int32], *, progress: Progress = silent
) -> Iterator[tuple[NDArray[np.int64], Tensor, TargetCounts]]:
    """Score the users that have a target, ``SCORED_ROWS`` of like length at a time.

    Args:
        scorer: Scores the users.
        targets: int32 (users,); 0 leaves a user out.
        progress: Told after every block of users.

    Yields:
        int64 (B,) users, their scores, float (B, N), and how their targets stand among them.

    Raises:
        ModelError: A score is not finite.
    """
    users = np.flatnonzero(targets > 0)
    by_length = users[np.argsort(scorer.lengths[users], kind="stable")]
    for start in range(0, len(users), SCORED_ROWS):
        rows = by_length[start : start + SCORED_ROWS]
        scores = scorer.score(rows)
        if not torch.isfinite(scores.sum()):
            # a comparison with NaN is false, so that a broken model would rank everything first
            raise ModelError(
                "The model gives scores that are not finite numbers.",
                remedy="Train it again, with a lower learning rate.",
            )
        yield rows, scores, target_counts(scores, targets[rows], scorer.history, rows)
        del scores  # before the next are computed
        done = start + len(rows)
        progress(done, len(users), f"{done} of {len(users)} users")


def ranks_of_users(
    scorer: Scorer,
    targets: NDArray[np.int32],
    *,
    seen: Collection[str] = ("keep", "mask"),
    bias: RepeatBias | None = None,
    progress: Progress = silent,
) -> dict[str, NDArray[np.int32]]:
    """Rank each user's target among all items.

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
    ranks = {policy: np.zeros(len(targets), np.int32) for policy in seen}
    for rows, _, counts in counted_blocks(scorer, targets, progress=progress):
        for policy, found in counts.ranks(seen, bias).items():
            ranks[policy][rows] = found
        del _, counts  # they hold the block's scores
    return {policy: of_all[targets > 0] for policy, of_all in ranks.items()}


def _row_counts(condition: Tensor) -> NDArray[np.int64]:
    """How many entries of each row hold; on a CPU torch's sum of booleans is many times slower than numpy's count."""
    if condition.device.type == "cpu":
        counts: NDArray[np.int64] = np.count_nonzero(condition.numpy(), axis=1)
        return counts
    return condition.sum(1).cpu().numpy()


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
