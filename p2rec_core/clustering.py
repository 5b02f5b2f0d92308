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
    bad = int((~np.isfinite(embeddings)).any(axis=1).sum())
    if bad:
        raise DataError(
            f"{bad} of {len(embeddings)} item embeddings are not finite.",
            remedy="Train the backbone again, with a lower learning rate.",
        )
    points = embeddings.astype(np.float32)
    if normalise:
        points = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    fitted = points[trained]
    n_distinct = len(np.unique(fitted, axis=0))
    if n_distinct < n_clusters:
        raise DataError(
            f"{setting} = {n_clusters}, but only {n_distinct} distinct items have training interactions.",
            remedy=f"Set {setting} to {n_distinct} or less.",
        )
    # one thread: scikit-learn adds up per-thread sums in the order in which threads finish
    with threadpool_limits(limits=1):
        kmeans = KMeans(n_clusters, n_init=n_init, max_iter=max_iter, random_state=seed).fit(fitted)
        nearest = kmeans.predict(points)
    size = np.bincount(nearest, minlength=n_clusters)
    order = np.argsort(-size, kind="stable")
    renumbered = np.empty(n_clusters, np.int32)
    renumbered[order] = np.arange(n_clusters, dtype=np.int32)
    distance = np.linalg.norm(points - kmeans.cluster_centers_[nearest], axis=1)
    return Clusters(
        cluster=renumbered[nearest],
        distance=distance.astype(np.float32),
        centroid=kmeans.cluster_centers_[order].astype(np.float32),
        size=size[order].astype(np.int32),
        inertia=float(kmeans.inertia_),
    )
