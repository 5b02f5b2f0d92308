"""Metrics of every user, of the ranks of their targets under the policies for items that they had before."""

import numpy as np
from numpy.typing import NDArray

SEEN_POLICIES = ("keep", "weigh", "mask")
"""What is done with items that a user had already. ``keep``: nothing, the paper's protocol and the headline. ``weigh``:
their scores are raised or lowered by what validation says of repeats (``p2rec_core.repeats``). ``mask``: they are never
recommended."""


def user_metric(ranks: NDArray[np.int32], metric: str) -> NDArray[np.float64]:
    """A metric of every user.

    Args:
        ranks: int32 (n,) from 1; 0 is a miss.
        metric: "HR@k" or "NDCG@k". With one target per user NDCG is 1 / log2(rank + 1).

    Returns:
        float64 (n,) in [0, 1].

    Raises:
        ValueError: There is no such metric.
    """
    name, _, cutoff = metric.partition("@")
    if name not in ("HR", "NDCG") or not cutoff.isdecimal() or int(cutoff) < 1:
        raise ValueError(f"There is no metric '{metric}': expected HR@k or NDCG@k with k >= 1.")
    hit = (ranks >= 1) & (ranks <= int(cutoff))
    if name == "HR":
        return hit.astype(np.float64)
    return np.where(hit, 1 / np.log2(np.maximum(ranks, 1) + 1.0), 0.0)
