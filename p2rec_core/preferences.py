"""User preferences: the distribution of a user's training items over clusters (paper, section 4.1.1)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2rec_core.errors import DataError
from p2rec_core.sequences import RaggedSequences

_BLOCK = 65_536
"""Users whose preferences are counted at a time; changes memory, not results."""


@dataclass(frozen=True)
class Grouping:
    """A grouping of items, and what it makes of users' training items; it holds no users x clusters.

    Attributes:
        training: Training parts, items 1 … N.
        clusters: int32 (N,), cluster of each item, 0 … K - 1.
        n_clusters: K.

    Raises:
        DataError: A sequence holds an item that has no cluster.
    """

    training: RaggedSequences
    clusters: NDArray[np.int32]
    n_clusters: int

    def __post_init__(self) -> None:
        highest = int(self.training.items.max(initial=0))
        if highest > len(self.clusters):
            raise DataError(
                f"A training sequence holds item {highest}; clusters are known for items 1 to {len(self.clusters)}.",
                remedy="Compute the clusters from the same import as the sequences.",
            )

    def preferences(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Normalised interaction counts per cluster, ḡ^u = g^u / Σ g^u.

        Args:
            users: int64 (B,) rows of the users.

        Returns:
            float32 (B, K); a row sums to 1, and is zero for a user without training items.
        """
        user, item = self.training.coordinates(users)
        cell = user * self.n_clusters + self.clusters[item - 1]
        counts = np.bincount(cell, minlength=len(users) * self.n_clusters).reshape(len(users), self.n_clusters)
        return (counts / np.maximum(self.training.lengths_of(users), 1)[:, None]).astype(np.float32)


def preference_vectors(training: RaggedSequences, clusters: NDArray[np.int32], n_clusters: int) -> NDArray[np.float32]:
    """The preferences of all users.

    Args:
        training: Training parts, items 1 … N.
        clusters: int32 (N,), cluster of each item, 0 … K - 1.
        n_clusters: K.

    Returns:
        float32 (U, K), see ``Grouping.preferences``.

    Raises:
        DataError: A sequence holds an item that has no cluster.
    """
    grouping = Grouping(training, clusters, n_clusters)
    found = np.empty((len(training), n_clusters), np.float32)
    for start in range(0, len(training), _BLOCK):
        users = np.arange(start, min(start + _BLOCK, len(training)))
        found[users] = grouping.preferences(users)
    return found
