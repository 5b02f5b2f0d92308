"""NDCG of one held-out item per user by P2Rec's definition, from scores, for either side of a comparison."""

import torch
from torch import Tensor

CUTOFF = 10


def gains(scores: Tensor, targets: Tensor) -> Tensor:
    """NDCG@10 of every row, (B,).

    Args:
        scores: (B, N), of all that is eligible; -inf of what is not.
        targets: int64 (B,) column of each row's target.
    """
    target = scores.gather(1, targets[:, None])
    # the target ties with itself, so halving all ties rounds those with others up
    rank = 1 + (scores > target).sum(1) + (scores == target).sum(1) // 2
    return torch.where(rank <= CUTOFF, 1 / torch.log2(rank + 1.0), 0.0)
