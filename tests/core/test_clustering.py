"""Clusters of items whose groups are known."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from p2rec_core.clustering import cluster_items
from p2rec_core.errors import DataError

SETTINGS = {"n_clusters": 4, "n_init": 3, "max_iter": 100, "normalise": False, "seed": 1}
SIZES = (40, 25, 15, 10)


def planted(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat(np.arange(4), SIZES))
    centres = 10 * np.eye(4, 6)
    return (centres[truth] + rng.normal(size=(len(truth), 6))).astype(np.float32), truth


@pytest.mark.parametrize("normalise", [False, True])
def test_planted_groups_are_found(normalise):
    points, truth = planted()
    found = cluster_items(points, np.ones(len(points), bool), **SETTINGS | {"normalise": normalise})
    assert adjusted_rand_score(truth, found.cluster) == 1.0
    # numbered by falling size
    assert found.size.tolist() == list(SIZES)
    assert np.bincount(found.cluster).tolist() == list(SIZES)
    assert (found.cluster.dtype, found.size.dtype) == (np.int32, np.int32)
    assert (found.distance.dtype, found.centroid.dtype) == (np.float32, np.float32)


def test_centroids_distances_and_inertia_belong_together():
    points, _ = planted()
    found = cluster_items(points, np.ones(len(points), bool), **SETTINGS)
    for cluster in range(4):
        np.testing.assert_allclose(found.centroid[cluster], points[found.cluster == cluster].mean(0), rtol=1e-4)
    to_own = np.linalg.norm(points - found.centroid[found.cluster], axis=1)
    np.testing.assert_allclose(found.distance, to_own, rtol=1e-4)
    assert found.inertia == pytest.approx(float((to_own.astype(np.float64) ** 2).sum()), rel=1e-4)


def test_direction_counts_where_lengths_are_normalised():
    rng = np.random.default_rng(0)
    angle = np.repeat([0.0, 2.0], 30)
    points = np.stack([np.cos(angle), np.sin(angle)], 1) * rng.uniform(0.1, 30, size=(60, 1))
    points = (points + 1e-3 * rng.normal(size=points.shape)).astype(np.float32)
    settings = SETTINGS | {"n_clusters": 2}
    everything = np.ones(60, bool)
    by_direction = cluster_items(points, everything, **settings | {"normalise": True}).cluster
    by_place = cluster_items(points, everything, **settings).cluster
    assert adjusted_rand_score(angle, by_direction) == 1.0
    assert adjusted_rand_score(angle, by_place) < 0.9


def test_the_same_seed_gives_the_same_clusters_on_any_number_of_threads():
    points = np.random.default_rng(0).normal(size=(600, 16)).astype(np.float32)
    trained = np.ones(600, bool)
    results = []
    for threads in (1, 2, 2):
        with threadpool_limits(threads):
            results.append(cluster_items(points, trained, **SETTINGS | {"n_clusters": 20, "n_init": 2}))
    for other in results[1:]:
        for field in ("cluster", "distance", "centroid", "size"):
            assert np.array_equal(getattr(other, field), getattr(results[0], field)), field
    assert not np.array_equal(
        cluster_items(points, trained, **SETTINGS | {"n_clusters": 20, "seed": 2}).cluster, results[0].cluster
    )


def test_untrained_items_are_placed_but_not_fitted_to():
    points, _ = planted()
    trained = np.ones(len(points) + 2, bool)
    trained[-2:] = False
    outlying = np.vstack([points, np.full((1, 6), 500.0), 9 * np.eye(1, 6)]).astype(np.float32)
    found = cluster_items(outlying, trained, **SETTINGS)
    alone = cluster_items(points, trained[:-2], **SETTINGS)
    assert found.inertia == alone.inertia
    assert adjusted_rand_score(found.cluster[:-2], alone.cluster) == 1.0
    assert found.size.sum() == len(outlying)
    nearest = np.linalg.norm(found.centroid - outlying[-1], axis=1).argmin()
    assert found.cluster[-1] == nearest


def test_more_clusters_than_distinct_trained_items():
    points = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    trained = np.ones(15, bool)
    trained[:5] = False
    with pytest.raises(DataError) as caught:
        cluster_items(points, trained, **SETTINGS)
    assert caught.value.problem == ("clusters.n_clusters = 4, but only 2 distinct items have training interactions.")
    assert caught.value.remedy == "Set clusters.n_clusters to 2 or less, and compute with `p2rec run`."


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_embeddings_that_are_not_finite(bad):
    points, _ = planted()
    points[3, 2] = points[7, 0] = points[7, 1] = bad
    with pytest.raises(DataError, match=r"2 of 90 item embeddings are not finite.*lower learning rate"):
        cluster_items(points, np.ones(90, bool), **SETTINGS)
