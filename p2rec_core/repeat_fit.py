"""How much a user's own items gain or lose so that held-out items stand highest: two numbers, by the ranking itself.

A likelihood would have them as probable as they are on average. But a model that is surer of its first places than it
should be then ranks them too low, and no temperature mends that, since it is not as sure of its other places. So the
two numbers are those with the best NDCG@10 of the items that are to be predicted (docs/adr/0012).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, from_numpy

from p2rec_core.metrics import user_metric
from p2rec_core.ranking import NOT_ELIGIBLE, TargetCounts
from p2rec_core.repeats import RepeatBias

K = 10
"""Places that count."""

N_HIGHEST = 2 * K
"""Unseen items that an own item is compared with. Half of a tie counts, so that twice K tell whether it is below K."""

CHANCE = 2.0
"""Standard errors by which the mean over users has to rise for anything to be added."""

_UNSEEN, _LAST, _EARLIER = range(3)
_QUANTILES = np.array([0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1])
_ROUNDS = 4
_NEAR = 1e-3
"""Part of the best value that is given up to stay nearer to adding nothing."""


def highest_unseen(scores: Tensor, counts: TargetCounts) -> NDArray[np.float64]:
    """The highest scores of items that a user never had, of the users whose target is an own item.

    Args:
        scores: float (B, N) finite score of every item.
        counts: How the B users' targets stand.

    Returns:
        float64 (R, N_HIGHEST), falling; -inf where there are no more such items.
    """
    asked = np.flatnonzero(counts.is_own)
    place = np.full(len(counts.targets), -1)
    place[asked] = np.arange(len(asked))
    row, item = counts.own.row, counts.own.item
    held = place[row] >= 0
    others = scores[from_numpy(asked).to(scores.device)].double()
    others[from_numpy(place[row[held]]).to(scores.device), from_numpy(item[held] - 1).to(scores.device)] = -np.inf
    found = others.topk(min(N_HIGHEST, others.shape[1]), dim=1).values.cpu().numpy()
    padded: NDArray[np.float64] = np.full((len(asked), N_HIGHEST), -np.inf)
    padded[:, : found.shape[1]] = found
    return padded


class RepeatFit:
    """Collects how targets stand, and finds the bias. Memory grows with users' own items, not with users x items."""

    def __init__(self) -> None:
        self._blocks: list[_Stands] = []
        self._n_users = 0

    def add(self, counts: TargetCounts, highest: NDArray[np.float64]) -> None:
        """Take note of some users.

        Args:
            counts: How their targets stand.
            highest: float64 (R, N_HIGHEST), what ``highest_unseen`` is of those whose target is an own item, in
                their order.
        """
        self._blocks.append(_Stands.of(counts, highest))
        self._n_users += len(counts.targets)

    def fit(self) -> RepeatBias:
        """The bias with the best NDCG@10 of what was noted; zero where the gain over adding nothing could be chance."""
        if not self._n_users:
            return RepeatBias()
        stands = _Stands.joined(self._blocks)
        found = stands.best()
        gain = stands.gains(*found) - stands.gains(0.0, 0.0)
        mean = gain.sum() / self._n_users
        error = np.sqrt(max((gain**2).sum() / self._n_users - mean**2, 0.0) / self._n_users)
        return RepeatBias(*map(float, found)) if mean > CHANCE * error else RepeatBias()

    def ranks(self, bias: RepeatBias) -> NDArray[np.int32]:
        """Ranks of all targets noted, with a bias added: int32 (users,), in no order, ``NOT_ELIGIBLE`` below K."""
        found: NDArray[np.int32] = np.full(self._n_users, NOT_ELIGIBLE, np.int32)
        if self._n_users:
            ranks = _Stands.joined(self._blocks).ranks(bias.last, bias.earlier)
            found[: len(ranks)] = np.where(ranks <= K, ranks, NOT_ELIGIBLE)
        return found


@dataclass(frozen=True)
class _Stands:
    """The users U for whom a bias may matter, and their own items beside the targets, M.

    Attributes:
        kinds: int64 (U,) kinds of the targets.
        higher: int64 (U,) unseen items above an unseen target; 0 for an own one.
        ties: int64 (U,) others with its score; likewise.
        leads: float64 (U, N_HIGHEST) how far the highest unseen items are above an own target; -inf for an unseen one.
        row: int64 (M,) user of each own item, from 0.
        lead: float64 (M,) how far it is above the target.
        kind: int64 (M,) its kind.
    """

    kinds: NDArray[np.int64]
    higher: NDArray[np.int64]
    ties: NDArray[np.int64]
    leads: NDArray[np.float64]
    row: NDArray[np.int64]
    lead: NDArray[np.float64]
    kind: NDArray[np.int64]

    @classmethod
    def of(cls, counts: TargetCounts, highest: NDArray[np.float64]) -> "_Stands":
        """Those of one block; arguments as of ``RepeatFit.add``."""
        own, is_target = counts.own, counts.is_target
        reached = counts.target_scores.astype(np.float64)
        kinds = np.full(len(counts.targets), _UNSEEN)
        kinds[own.row[is_target]] = np.where(own.is_last[is_target], _LAST, _EARLIER)
        unseen = kinds == _UNSEEN
        higher, same = counts.unseen_counts()
        higher, ties = np.where(unseen, higher, 0), np.where(unseen, np.maximum(same - 1, 0), 0)
        leads = np.full((len(kinds), N_HIGHEST), -np.inf)
        leads[~unseen] = highest - reached[~unseen, None]
        # a target below K unseen items has no place among the first, whatever is added
        matters = np.flatnonzero(higher < K)
        place = np.full(len(kinds), -1)
        place[matters] = np.arange(len(matters))
        beside = ~is_target & (place[own.row] >= 0)
        row = own.row[beside]
        return cls(
            kinds[matters],
            higher[matters],
            ties[matters],
            leads[matters],
            place[row],
            counts.own_scores[beside].astype(np.float64) - reached[row],
            np.where(own.is_last[beside], _LAST, _EARLIER),
        )

    @classmethod
    def joined(cls, blocks: Sequence["_Stands"]) -> "_Stands":
        """All of them as one."""
        before = np.cumsum([0, *(len(block.kinds) for block in blocks)])
        moved = [replace(block, row=block.row + start) for block, start in zip(blocks, before[:-1], strict=True)]
        return cls(
            **{name.name: np.concatenate([getattr(block, name.name) for block in moved]) for name in fields(cls)}
        )

    def gains(self, last: float, earlier: float) -> NDArray[np.float64]:
        """NDCG@K of every user, (U,), with so much added."""
        return user_metric(self.ranks(last, earlier), f"NDCG@{K}")

    def ranks(self, last: float, earlier: float) -> NDArray[np.int32]:
        """Ranks of the targets, int32 (U,), with so much added; exact down to K."""
        added = np.array([0.0, last, earlier])
        target = added[self.kinds]
        lead = self.lead + added[self.kind] - target[self.row]
        higher, ties = (
            unseen
            + np.bincount(self.row[met], minlength=len(target))
            + compared(self.leads, target[:, None]).sum(axis=1)
            for unseen, met, compared in (
                (self.higher, lead > 0, np.greater),
                (self.ties, lead == 0, np.equal),
            )
        )
        ranks: NDArray[np.int32] = (1 + higher + (ties + 1) // 2).astype(np.int32)
        return ranks

    def best(self) -> tuple[float, float]:
        """The best pair found by changing both together, and then one after the other."""
        choices = np.unique(np.concatenate([[0.0], self._choices(_LAST), self._choices(_EARLIER)]))
        found = self._best_of([(value, value) for value in choices])
        for _ in range(_ROUNDS):
            before = found
            found = self._best_of([found, *((last, found[1]) for last in choices)])
            found = self._best_of([found, *((found[0], earlier) for earlier in choices)])
            if found == before:
                break
        return found

    def _best_of(self, pairs: list[tuple[float, float]]) -> tuple[float, float]:
        values = np.array([self.gains(*pair).sum() for pair in pairs])
        near = [pair for pair, value in zip(pairs, values, strict=True) if value >= values.max() * (1 - _NEAR)]
        return min(near, key=lambda pair: (abs(pair[0]) + abs(pair[1]), pair))

    def _choices(self, kind: int) -> NDArray[np.float64]:
        """What may be added to own items of a kind, by quantile, from below all to above all.

        These are the places where one comes below a target, or is one and passes an unseen item.
        """
        rising = self.leads[self.kinds == kind, :K]
        sinking = -self.lead[(self.kind == kind) & (self.kinds[self.row] == _UNSEEN)]
        places = [
            np.quantile(part, _QUANTILES) if len(part) else np.zeros(len(_QUANTILES))
            for part in (sinking, rising[np.isfinite(rising)])
        ]
        step = 1e-3 * (np.ptp(np.concatenate(places)) or 1.0)
        return np.concatenate([places[0] - step, places[1] + step])
