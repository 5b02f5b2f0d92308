"""What ``seen = weigh`` adds to the scores of a user's own items.

A recommender scores items by what they are like, and nothing is more like a user's last item than that item. Whether
people come back to what they had is a property of the domain, and validation items tell it: nobody buys the same
cream twice in Amazon Beauty, many go to the same restaurant again. So a user's own items get one number more: one for
the last item, one for those before (``repeat_fit``).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p2rec_core.sequences import RaggedSequences


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
        return cls(row, item, within == history.lengths_of(rows)[row] - 1, within)

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
