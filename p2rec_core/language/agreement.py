"""How far the language model's category of an item agrees with its cluster (paper, RQ3, Fig. 5)."""

import numpy as np
from numpy.typing import NDArray


def category_agreement(distribution: NDArray[np.float32], clusters: NDArray[np.int32]) -> dict[str, float]:
    """Shares of items in the paper's three cases.

    As wherever something is ranked, half of those that are as likely count as more likely, rounded up.

    Args:
        distribution: float32 (N, K), ĝ_v of every item.
        clusters: int32 (N,), c(v) of every item.

    Returns:
        ``C1``: the most likely category is the cluster; ``C2``: not so, but the cluster is among the three most
        likely; ``C3``: neither. They sum to 1.
    """
    own = np.take_along_axis(distribution, clusters[:, None].astype(np.int64), axis=1)
    n_above = (distribution > own).sum(axis=1) + (distribution == own).sum(axis=1) // 2
    c1, c2 = float((n_above == 0).mean()), float(((n_above > 0) & (n_above < 3)).mean())
    return {"C1": c1, "C2": c2, "C3": max(0.0, 1.0 - c1 - c2)}
