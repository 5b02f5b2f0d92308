"""Preference vectors against counting by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2rec_core import preferences
from p2rec_core.errors import DataError
from p2rec_core.preferences import Grouping, preference_vectors


def test_by_hand(ragged):
    training = ragged([[1, 2, 2, 4], [], [3]])
    found = preference_vectors(training, np.array([0, 2, 1, 0], np.int32), 4)
    assert found.dtype == np.float32
    assert found.tolist() == [[0.5, 0, 0.5, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


@given(st.data())
def test_rows_are_shares_of_the_users_items(ragged, data):
    n_items, n_clusters = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 6))
    clusters = data.draw(st.lists(st.integers(0, n_clusters - 1), min_size=n_items, max_size=n_items))
    rows = data.draw(st.lists(st.lists(st.integers(1, n_items), max_size=15), min_size=1, max_size=8))
    found = preference_vectors(ragged(rows), np.array(clusters, np.int32), n_clusters)
    assert found.shape == (len(rows), n_clusters)
    for row, preference in zip(rows, found, strict=True):
        expected = [sum(clusters[i - 1] == k for i in row) / max(len(row), 1) for k in range(n_clusters)]
        np.testing.assert_allclose(preference, expected, rtol=1e-6)
        assert preference.sum() == pytest.approx(1.0 if row else 0.0, abs=1e-6)


@pytest.mark.parametrize("block", [1, 3, 100])
def test_some_users_have_the_rows_that_all_users_together_have(ragged, block, monkeypatch):
    rng = np.random.default_rng(0)
    training = ragged([rng.integers(1, 21, size=n).tolist() for n in rng.integers(0, 9, size=40)])
    clusters = rng.integers(0, 7, size=20).astype(np.int32)
    monkeypatch.setattr(preferences, "_BLOCK", block)
    every = preference_vectors(training, clusters, 7)
    for users in (np.array([39, 0, 17, 17]), np.empty(0, np.int64), np.arange(40)):
        np.testing.assert_array_equal(Grouping(training, clusters, 7).preferences(users), every[users])


def test_an_item_without_a_cluster(ragged):
    with pytest.raises(DataError, match=r"holds item 5; clusters are known for items 1 to 4.*the same import"):
        preference_vectors(ragged([[1, 5]]), np.zeros(4, np.int32), 2)
