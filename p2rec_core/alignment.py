"""Keeping meanings from one night to the next: clusters keep their numbers, embeddings keep their axes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from p2rec_core.clustering import Clusters, check_distinct, clustered_space, fitted_groups, numbered
from p2rec_core.errors import DataError


@dataclass(frozen=True)
class Agreement:
    """How much two groupings of the same items agree.

    Attributes:
        adjusted_rand: Adjusted Rand index; 1 for the same groups, about 0 for unrelated ones, whatever their numbers.
        kept: Share of items whose group has the number that it had, 0…1.
        n_items: Items that are compared.
    """

    adjusted_rand: float
    kept: float
    n_items: int


def aligned_numbers(before: NDArray[np.int32], after: NDArray[np.int32], n_clusters: int) -> NDArray[np.int32]:
    """Numbers for new groups such that as many items as possible keep theirs (Hungarian method on the overlap).

    Args:
        before: int32 (n,) old group of each item, 0 … K - 1.
        after: int32 (n,) new group of the same items, 0 … K - 1.
        n_clusters: K.

    Returns:
        int32 (K,): the number that new group k gets; a permutation. Among equally good ones, groups that share no
        item with any old one keep rising order.
    """
    overlap = np.bincount(after.astype(np.int64) * n_clusters + before, minlength=n_clusters * n_clusters).reshape(
        n_clusters, n_clusters
    )
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    numbers = np.empty(n_clusters, np.int32)
    numbers[rows] = columns
    return numbers


def agreement(before: NDArray[np.int32], after: NDArray[np.int32]) -> Agreement:
    """Agreement of two groupings of the same items, int32 (n,) both.

    Raises:
        DataError: There is no item.
    """
    if not len(before):
        raise DataError(
            "No item has a cluster in both snapshots.", remedy="Compute the snapshot anew with `p2rec run`."
        )
    return Agreement(float(adjusted_rand_score(before, after)), float((before == after).mean()), len(before))


def continued_clusters(
    embeddings: NDArray[np.float32],
    trained: NDArray[np.bool_],
    previous: NDArray[np.int32],
    *,
    n_clusters: int,
    max_iter: int,
    normalise: bool,
    setting: str = "clusters.n_clusters",
) -> Clusters:
    """Group items by k-means that starts from the groups there were, and keep the groups' numbers.

    The start of a group is the mean, among the new embeddings, of the trained items that were in it: the old
    centroids would lie in a space that training has moved on from. A group without such items starts at the trained
    item that is farthest from its own group's start.

    Args:
        embeddings: float32 (N, d), e_v of every item.
        trained: bool (N,), whether an item has training interactions; k-means is fitted to these.
        previous: int32 (M,), M <= N, the group of the items known before, 0 … K - 1.
        n_clusters: K.
        max_iter: Lloyd iterations at the most.
        normalise: Whether to scale embeddings to unit length first.
        setting: Where n_clusters comes from, for messages.

    Returns:
        The groups; unlike those of ``cluster_items`` they are not numbered by size.

    Raises:
        DataError: Embeddings are not finite, there are fewer distinct trained ones than groups, or the groups before
            were others in number.
    """
    highest = int(previous.max(initial=-1))
    if highest >= n_clusters:
        raise DataError(
            f"{setting} = {n_clusters}, but the current snapshot has a cluster numbered {highest}.",
            remedy="Compute a snapshot with these settings with `p2rec run`.",
        )
    points = clustered_space(embeddings, normalise=normalise)
    fitted = points[trained]
    check_distinct(fitted, n_clusters, setting)
    known = trained[: len(previous)]
    start = _starts(points[: len(previous)][known], previous[known], fitted, n_clusters)
    kmeans = KMeans(n_clusters, init=start, n_init=1, max_iter=max_iter)
    nearest = fitted_groups(kmeans, fitted, points)
    return numbered(kmeans, points, nearest, aligned_numbers(previous, nearest[: len(previous)], n_clusters))


def _starts(
    points: NDArray[np.float32], cluster: NDArray[np.int32], candidates: NDArray[np.float32], n_clusters: int
) -> NDArray[np.float32]:
    """Means of the groups, float32 (K, d); empty groups start at candidates far from all other starts."""
    size = np.bincount(cluster, minlength=n_clusters)
    sums = np.zeros((n_clusters, points.shape[1]))
    np.add.at(sums, cluster, points)
    starts = (sums / np.maximum(size, 1)[:, None]).astype(np.float32)
    there: list[int] = np.flatnonzero(size > 0).tolist()
    if not there:
        starts[0] = candidates[0]
        there = [0]
    distance = np.min([np.linalg.norm(candidates - starts[k], axis=1) for k in there], axis=0)
    for k in sorted(set(range(n_clusters)) - set(there)):
        farthest = int(distance.argmax())
        starts[k] = candidates[farthest]
        distance = np.minimum(distance, np.linalg.norm(candidates - starts[k], axis=1))
    return starts


def turned_like(vectors: NDArray[np.float32], previous: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn vectors so that those of known items lie as near as can be to where they lay (orthogonal Procrustes).

    Whitened principal components of two nights differ by a rotation and by signs; weights that were trained on the
    axes of the one cannot read the other's. A turn changes no cosine.

    Args:
        vectors: float32 (N, D).
        previous: float32 (M, D), M <= N, of the first M items.

    Returns:
        float32 (N, D).

    Raises:
        DataError: The widths differ.

    Source: Schönemann (1966), "A generalized solution of the orthogonal Procrustes problem".
    """
    if vectors.shape[1] != previous.shape[1]:
        raise DataError(
            f"Vectors of width {vectors.shape[1]} cannot be turned like ones of width {previous.shape[1]}.",
            remedy="Compute a snapshot with these settings with `p2rec run`.",
        )
    left, _, right = np.linalg.svd(vectors[: len(previous)].astype(np.float64).T @ previous.astype(np.float64))
    turned: NDArray[np.float32] = (vectors.astype(np.float64) @ (left @ right)).astype(np.float32)
    return turned
