"""Dropout whose coins come from a generator's whole words.

On a CPU torch draws a float for every value, which takes longer than the layers around it: a quarter of FMLP-Rec's
training. Sixteen bits are as good a coin, and one draw has four of them.
"""

import torch
from torch import Tensor, nn

_COINS = 1 << 16


def dropout(x: Tensor, p: float) -> Tensor:
    """Set values to zero at random and scale the others, so that the mean stays.

    Args:
        x: float, any shape.
        p: Probability of zero, 0 <= p < 1; on a CPU rounded to a multiple of 2 ** -16.

    Returns:
        Of the shape of ``x``; ``x`` itself where ``p`` is 0. The coins depend on torch's seed alone.

    Source: Srivastava et al. (2014), in the inverted form.
    """
    if p == 0:
        return x
    if x.device.type != "cpu":
        return nn.functional.dropout(x, p)
    n_dropped = min(round(p * _COINS), _COINS - 1)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)
    coins = words.view(torch.int16)[: x.numel()].view(x.shape)
    kept = torch.empty_like(coins, dtype=x.dtype)
    torch.ge(coins, n_dropped - _COINS // 2, out=kept)
    return x * kept.mul_(_COINS / (_COINS - n_dropped))


class Dropout(nn.Module):
    """``dropout`` while training.

    Args:
        p: Probability of zero.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """``x``, thinned out while training."""
        return dropout(x, self.p) if self.training else x
