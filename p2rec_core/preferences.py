"""User preferences: the distribution of a user's training items over clusters (paper, section 4.1.1)."""

import numpy as np
from numpy.typing import NDArray

from p2rec_core.errors import DataError
from p2rec_core.sequences import RaggedSequences


def preference_vectors(training: RaggedSequences, clusters: NDArray[np.int32], n_clusters: int) -> NDArray[np.float32]:
    """Normalised interaction counts per cluster, ḡ^u = g^u / Σ g^u.

    Args:
        training: Training parts, items 1 … N.
        clusters: int32 (N,), cluster of each item, 0 … K - 1.
        n_clusters: K.

    Returns:
        float32 (U, K); a row sums to 1, and is zero for a user without training items.

    Raises:
        DataError: A sequence holds an item that has no cluster.
    """
    highest = int(training.items.max(initial=0))
    if highest > len(clusters):
        raise DataError(
            f"A training sequence holds item {highest}; clusters are known for items 1 to {len(clusters)}.",
            remedy="Compute the clusters from the same import as the sequences.",
        )
    lengths = training.lengths
    user = np.repeat(np.arange(len(training)), lengths)
    cell = user * n_clusters + clusters[training.items - 1]
    counts = np.bincount(cell, minlength=len(training) * n_clusters).reshape(len(training), n_clusters)
    return (counts / np.maximum(lengths, 1)[:, None]).astype(np.float32)
