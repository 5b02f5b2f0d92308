"""Latent item categories: k-means over the pre-trained backbone's item embeddings (paper, Eq. 1)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from p2rec_core.errors import DataError


@dataclass(frozen=True)
class Clusters:
    """Groups of items.

    Attributes:
        cluster: int32 (N,), group c(v) of every item, 0 … K - 1; groups are numbered by falling size.
        distance: float32 (N,), distance of the item's vector to its centroid, in the clustered space.
        centroid: float32 (K, d).
        size: int32 (K,), items per group.
        inertia: Sum of squared distances of the items that k-means was fitted to.
    """

    cluster: NDArray[np.int32]
    distance: NDArray[np.float32]
    centroid: NDArray[np.float32]
    size: NDArray[np.int32]
    inertia: float


def cluster_items(
    embeddings: NDArray[np.float32],
    trained: NDArray[np.bool_],
    *,
    n_clusters: int,
    n_init: int,
    max_iter: int,
    normalise: bool,
    seed: int,
    setting: str = "clusters.n_clusters",
) -> Clusters:
    """Group items by k-means.

    Args:
        embeddings: float32 (N, d), e_v of every item.
        trained: bool (N,), whether an item has training interactions. k-means is fitted to these; the others, whose
            e_v says nothing, are put into the nearest group afterwards.
        n_clusters: K.
        n_init: Random starts.
        max_iter: Iterations per start.
        normalise: Whether to scale embeddings to unit length first.
        seed: Seed of the starts.
        setting: Where n_clusters comes from, for messages.

    Raises:
        DataError: Embeddings are not finite, or there are fewer distinct trained ones than groups.
    """
    points = clustered_space(embeddings, normalise=normalise)
    fitted = points[trained]
    check_distinct(fitted, n_clusters, setting)
    kmeans = KMeans(n_clusters, n_init=n_init, max_iter=max_iter, random_state=seed)
    nearest = fitted_groups(kmeans, fitted, points)
    order = np.argsort(-np.bincount(nearest, minlength=n_clusters), kind="stable")
    numbers = np.empty(n_clusters, np.int32)
    numbers[order] = np.arange(n_clusters, dtype=np.int32)
    return numbered(kmeans, points, nearest, numbers)


def clustered_space(embeddings: NDArray[np.float32], *, normalise: bool) -> NDArray[np.float32]:
    """The vectors that k-means sees, float32 (N, d).

    Args:
        embeddings: float32 (N, d), e_v of every item.
        normalise: Whether to scale them to unit length.

    Raises:
        DataError: Embeddings are not finite.
    """
    bad = int((~np.isfinite(embeddings)).any(axis=1).sum())
    if bad:
        raise DataError(
            f"{bad} of {len(embeddings)} item embeddings are not finite.",
            remedy="Train the backbone again with `p2rec run`, with a lower learning rate.",
        )
    points = embeddings.astype(np.float32)
    if normalise:
        points = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    return points


def check_distinct(points: NDArray[np.float32], n_clusters: int, setting: str) -> None:
    """Make sure that there can be so many groups.

    Args:
        points: float32 (n, d), what k-means is to be fitted to.
        n_clusters: K.
        setting: Where it comes from.

    Raises:
        DataError: There are fewer distinct points.
    """
    n_distinct = len(np.unique(points, axis=0))
    if n_distinct < n_clusters:
        raise DataError(
            f"{setting} = {n_clusters}, but only {n_distinct} distinct items have training interactions.",
            remedy=f"Set {setting} to {n_distinct} or less, and compute with `p2rec run`."
            if n_distinct > 1
            else "Train the backbone on more interactions: items that are all alike cannot be grouped.",
        )


def fitted_groups(kmeans: KMeans, fitted: NDArray[np.float32], points: NDArray[np.float32]) -> NDArray[np.int32]:
    """Fit k-means to some points and put all into the nearest group, int32 (N,); the same bits whenever it is run."""
    # one thread: scikit-learn adds up per-thread sums in the order in which threads finish
    with threadpool_limits(limits=1):
        nearest: NDArray[np.int32] = kmeans.fit(fitted).predict(points).astype(np.int32)
    return nearest


def numbered(
    kmeans: KMeans, points: NDArray[np.float32], nearest: NDArray[np.int32], numbers: NDArray[np.int32]
) -> Clusters:
    """The groups under other numbers.

    Args:
        kmeans: Fitted.
        points: float32 (N, d).
        nearest: int32 (N,), the group of each point.
        numbers: int32 (K,), the number that each group gets; a permutation.
    """
    cluster = numbers[nearest]
    return Clusters(
        cluster=cluster,
        distance=np.linalg.norm(points - kmeans.cluster_centers_[nearest], axis=1).astype(np.float32),
        centroid=kmeans.cluster_centers_[np.argsort(numbers)].astype(np.float32),
        size=np.bincount(cluster, minlength=len(numbers)).astype(np.int32),
        inertia=float(kmeans.inertia_),
    )
