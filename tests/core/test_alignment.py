"""Clusters keep their numbers, and embeddings their axes."""

import numpy as np
import pytest

from p2rec_core.alignment import agreement, aligned_numbers, continued_clusters, turned_like
from p2rec_core.clustering import cluster_items
from p2rec_core.errors import DataError

OPTIONS = {"n_clusters": 4, "max_iter": 100, "normalise": False}


def blobs(rng: np.random.Generator, n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    centres = np.array([[0, 0], [10, 0], [0, 10], [10, 10]], np.float32)
    group = np.arange(n, dtype=np.int32) % 4
    return (centres[group] + rng.normal(scale=0.3, size=(n, 2))).astype(np.float32), group


def test_numbers_go_to_the_largest_overlap():
    before = np.array([0, 0, 0, 1, 1, 2], np.int32)
    after = np.array([2, 2, 2, 0, 0, 1], np.int32)
    np.testing.assert_array_equal(aligned_numbers(before, after, 3), [1, 2, 0])


def test_the_best_assignment_is_not_the_greedy_one():
    # new group 0 shares three items with old 0 and two with old 1; new group 1 shares two with old 0 only
    before = np.array([0, 0, 0, 1, 1, 0, 0], np.int32)
    after = np.array([0, 0, 0, 0, 0, 1, 1], np.int32)
    np.testing.assert_array_equal(aligned_numbers(before, after, 2), [1, 0])


def test_agreement_sees_through_numbers_where_kept_does_not():
    before = np.array([0, 0, 1, 1], np.int32)
    swapped = agreement(before, 1 - before)
    assert (swapped.adjusted_rand, swapped.kept, swapped.n_items) == (1.0, 0.0, 4)
    with pytest.raises(DataError, match="No item has a cluster in both snapshots"):
        agreement(before[:0], before[:0])


def test_groups_keep_their_numbers_in_a_space_that_was_turned_and_grew():
    rng = np.random.default_rng(0)
    points, group = blobs(rng)
    more, more_group = blobs(rng, 52)
    turn = np.array([[0, -1], [1, 0]], np.float32)
    numbers = np.array([2, 0, 3, 1], np.int32)
    trained = np.ones(52, bool)
    result = continued_clusters(np.concatenate([points, more[40:]]) @ turn, trained, numbers[group], **OPTIONS)
    np.testing.assert_array_equal(result.cluster, numbers[more_group])
    np.testing.assert_array_equal(result.size, [13, 13, 13, 13])
    for k in range(4):
        members = (np.concatenate([points, more[40:]]) @ turn)[result.cluster == k]
        np.testing.assert_allclose(result.centroid[k], members.mean(axis=0), atol=1e-4)


def test_an_equal_night_changes_nothing():
    points, _ = blobs(np.random.default_rng(1))
    trained = np.ones(40, bool)
    before = cluster_items(points, trained, n_init=2, seed=1, **OPTIONS)
    after = continued_clusters(points, trained, before.cluster, **OPTIONS)
    np.testing.assert_array_equal(after.cluster, before.cluster)
    np.testing.assert_allclose(after.centroid, before.centroid, atol=1e-5)


def test_a_group_that_lost_its_items_starts_far_from_the_others():
    points, group = blobs(np.random.default_rng(2))
    known = np.where(group == 3, 2, group).astype(np.int32)
    result = continued_clusters(points, np.ones(40, bool), known, **OPTIONS)
    assert [len(set(result.cluster[group == g])) for g in range(4)] == [1, 1, 1, 1]
    assert set(result.cluster) == {0, 1, 2, 3}


def test_what_cannot_be_continued_is_named():
    points, group = blobs(np.random.default_rng(3))
    with pytest.raises(DataError, match="n_clusters = 3, but the current snapshot has a cluster numbered 3"):
        continued_clusters(points, np.ones(40, bool), group, **(OPTIONS | {"n_clusters": 3}))
    with pytest.raises(DataError, match="only 2 distinct items have training interactions"):
        continued_clusters(points, np.arange(40) < 2, group, **OPTIONS)
    points[5] = np.nan
    with pytest.raises(DataError, match="1 of 40 item embeddings are not finite"):
        continued_clusters(points, np.ones(40, bool), group, **OPTIONS)


def test_vectors_are_turned_back_and_cosines_stay():
    rng = np.random.default_rng(4)
    previous = rng.normal(size=(30, 5)).astype(np.float32)
    turn, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    now = np.concatenate([previous, rng.normal(size=(4, 5))]).astype(np.float32) @ turn.astype(np.float32)
    turned = turned_like(now, previous)
    np.testing.assert_allclose(turned[:30], previous, atol=1e-5)
    np.testing.assert_allclose(turned @ turned.T, now @ now.T, atol=1e-4)
    with pytest.raises(DataError, match="width 5 cannot be turned like ones of width 4"):
        turned_like(now, previous[:, :4])
