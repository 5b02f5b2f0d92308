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
        row, item = history.coordinates(rows)
        last = history.last_items(rows)
        masses = np.full((len(TEMPERATURES), len(rows), 3), -np.inf)
        own = scores[torch.from_numpy(row).to(scores.device), torch.from_numpy(item - 1).to(scores.device)]
        values = own.double().cpu().numpy()
        others = scores.clone()
        others[torch.from_numpy(row).to(scores.device), torch.from_numpy(item - 1).to(scores.device)] = -torch.inf
        is_last = item == last[row]
        # each earlier item once, however often it occurs
        _, first = np.unique(row * (scores.shape[1] + 1) + item, return_index=True)
        earlier = first[~is_last[first]]
        for temperature, mass in zip(TEMPERATURES, masses, strict=True):
            mass[:, _UNSEEN] = (others / temperature).logsumexp(1).double().cpu().numpy()
            mass[row[is_last], _LAST] = values[is_last] / temperature
            np.logaddexp.at(mass[:, _EARLIER], row[earlier], values[earlier] / temperature)
        chosen = np.full(len(rows), _UNSEEN)
        chosen[row[item == targets[row]]] = _EARLIER
        chosen[targets == last] = _LAST
        self._log_masses.append(masses)
        self._chosen.append(chosen)
        column = torch.from_numpy(targets.astype(np.int64) - 1).to(scores.device)[:, None]
        self._scores.append(scores.gather(1, column).squeeze(1).double().cpu().numpy())

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
