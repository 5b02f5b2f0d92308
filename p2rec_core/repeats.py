"""How likely a user comes back to an item: what ``seen = weigh`` adds to the scores of a user's own items.

A recommender scores items by what they are like, and nothing is more like a user's last item than that item. Whether
people come back to what they had is a property of the domain, and validation items tell it: nobody buys the same
cream twice in Amazon Beauty, many go to the same restaurant again. So a user's own items get one number more, fitted by
maximum likelihood with the scores as the logits of a softmax: one for the last item, one for those before.

A recommender that has learned its training parts by heart is surer of itself than it should be, and by likelihood alone
an own item would pay for that. So the softmax has a temperature, chosen with the two numbers.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from p2rec_core.sequences import RaggedSequences

PRIOR_STD = 5.0
"""Standard deviation of the normal prior of both numbers, in nats. It leaves nothing to choose where there are no
repeats at all, or few users."""

TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0)
"""What scores are divided by, before they are logits."""

_SQUARED = ((4.0, (2.0, 1.0)), (3.0, (1.5,)))
"""Each temperature with those that are its halves, its quarters and so on; all of ``TEMPERATURES``."""

_UNSEEN, _LAST, _EARLIER = range(3)


@dataclass(frozen=True)
class RepeatBias:
    """What is added to the scores of a user's own items.

    Attributes:
        last: To the user's last item.
        earlier: To every other item of the history; an item that is the last too counts as the last.
    """

    last: float = 0.0
    earlier: float = 0.0


@dataclass(frozen=True)
class OwnItems:
    """The different items that some users had, user after user.

    Attributes:
        row: int64 (M,) place of the user in the batch.
        item: int64 (M,) item, 1 … N.
        is_last: bool (M,) whether it is the user's last item.
        within: int64 (M,) the last place, from 0, that it has in the user's sequence.
    """

    row: NDArray[np.int64]
    item: NDArray[np.int64]
    is_last: NDArray[np.bool_]
    within: NDArray[np.int64]

    @classmethod
    def of(cls, history: RaggedSequences, rows: NDArray[np.int64]) -> "OwnItems":
        """Those of the rows ``rows``, int64 (B,), of the histories."""
        row, item, within = history.distinct(rows)
        return cls(row, item, within == history.lengths[rows][row] - 1, within)

    def weighed(self, scores: NDArray[np.floating], bias: RepeatBias) -> NDArray[np.floating]:
        """Scores of these items, float (M,), with the bias, in the format of the scores."""
        raised: NDArray[np.floating] = scores + np.where(self.is_last, bias.last, bias.earlier).astype(scores.dtype)
        return raised


def add_repeat_bias(scores: Tensor, history: RaggedSequences, rows: NDArray[np.int64], bias: RepeatBias) -> None:
    """Add the bias to float scores (B, N) of the rows ``rows`` of the histories, in place; once for an item."""
    row, item = history.coordinates(rows)
    is_last = item == history.last_items(rows)[row]
    at_row, column = torch.from_numpy(row).to(scores.device), torch.from_numpy(item - 1).to(scores.device)
    added = torch.from_numpy(np.where(is_last, bias.last, bias.earlier)).to(scores)
    # an item that occurs twice is written twice, with the same value
    scores[at_row, column] = scores[at_row, column] + added


class RepeatObservations:
    """How a recommender's probabilities and the users' next items share out among unseen, last and earlier items."""

    def __init__(self) -> None:
        self._log_masses: list[NDArray[np.float64]] = []
        self._chosen: list[NDArray[np.int64]] = []
        self._scores: list[NDArray[np.float64]] = []

    def add(
        self, scores: Tensor, targets: NDArray[np.int32], history: RaggedSequences, rows: NDArray[np.int64]
    ) -> None:
        """Take note of some users.

        Args:
            scores: float (B, N) finite score of every item.
            targets: int32 (B,) the items that they turned to, 1 … N.
            history: What was known of the users.
            rows: int64 (B,) rows of ``history`` that the scores are of.
        """
        own = OwnItems.of(history, rows)
        place = [torch.from_numpy(index).to(scores.device) for index in (own.row, own.item - 1)]
        values = scores[place[0], place[1]].double().cpu().numpy()
        others = scores.clone()
        others[place[0], place[1]] = -torch.inf
        column = torch.from_numpy(targets.astype(np.int64) - 1).to(scores.device)[:, None]
        reached = scores.gather(1, column).squeeze(1).double().cpu().numpy()
        self.note(_log_masses(others), own, values, targets, reached)

    def note(
        self,
        unseen: NDArray[np.float64],
        own: OwnItems,
        own_scores: NDArray[np.float64],
        targets: NDArray[np.int32],
        target_scores: NDArray[np.float64],
    ) -> None:
        """Take note of some users by sums that were taken elsewhere.

        Args:
            unseen: float64 (temperatures, B), logarithm of the sum of exp(score / temperature) over all items that a
                user never had; -inf where there are none.
            own: The users' own items.
            own_scores: float64 (M,) their scores.
            targets: int32 (B,) the items that the users turned to, 1 … N.
            target_scores: float64 (B,) their scores.
        """
        if not len(targets):
            return
        masses = np.full((*unseen.shape, 3), -np.inf)
        masses[..., _UNSEEN] = unseen
        earlier = ~own.is_last
        for temperature, mass in zip(TEMPERATURES, masses, strict=True):
            mass[own.row[own.is_last], _LAST] = own_scores[own.is_last] / temperature
            np.logaddexp.at(mass[:, _EARLIER], own.row[earlier], own_scores[earlier] / temperature)
        chosen = np.full(len(targets), _UNSEEN)
        found = own.item == targets[own.row]
        chosen[own.row[found]] = np.where(own.is_last[found], _LAST, _EARLIER)
        self._log_masses.append(masses)
        self._chosen.append(chosen)
        self._scores.append(target_scores)

    def fit(self) -> RepeatBias:
        """The most probable bias given what was noted; without any observation the prior's, zero."""
        if not self._chosen:
            return RepeatBias()
        masses, chosen = np.concatenate(self._log_masses, axis=1), np.concatenate(self._chosen)
        scores = np.concatenate(self._scores)
        counts = np.bincount(chosen, minlength=3)[_LAST:]

        def cost(bias: NDArray[np.float64], place: int) -> tuple[float, NDArray[np.float64]]:
            logits = masses[place] + np.concatenate([[0.0], bias])
            total = np.logaddexp.reduce(logits, axis=1)
            expected = np.exp(logits[:, _LAST:] - total[:, None]).sum(axis=0)
            prior = bias / PRIOR_STD**2
            value = (total - scores / TEMPERATURES[place]).sum() - counts @ bias + bias @ prior / 2
            return float(value) / len(chosen), (expected - counts + prior) / len(chosen)

        options = {"ftol": 1e-15, "gtol": 1e-9}
        found = [
            minimize(cost, np.zeros(2), args=(place,), jac=True, method="L-BFGS-B", options=options)
            for place in range(len(TEMPERATURES))
        ]
        best = min(range(len(found)), key=lambda place: float(found[place].fun))
        return RepeatBias(*(float(value) * TEMPERATURES[best] for value in found[best].x))


def _log_masses(scores: Tensor) -> NDArray[np.float64]:
    """Logarithm of the sum of exp(score / t) over the items, for every temperature t, float64 (temperatures, B).

    Two exponentials do for five temperatures: exp(x / 2) is the square of exp(x / 4), and so on.

    Args:
        scores: float (B, N); -inf leaves an item out. Changed in place.
    """
    top = scores.amax(1, keepdim=True)
    scores.sub_(top.clamp_min(torch.finfo(scores.dtype).min))  # a row without any item keeps its -inf
    sums: dict[float, Tensor] = {}
    for coarsest, temperatures in _SQUARED:
        power = scores.div(coarsest).exp_()
        sums[coarsest] = power.sum(1)
        for temperature in temperatures:
            sums[temperature] = power.square_().sum(1)
    levels = top.squeeze(1).double()
    masses = [sums[temperature].double().log() + levels / temperature for temperature in TEMPERATURES]
    return torch.stack(masses).cpu().numpy()
