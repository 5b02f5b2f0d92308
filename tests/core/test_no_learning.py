"""The methods that learn nothing against the same scores written out for every user and item."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from p2rec_core.evaluation import held_out_ranks
from p2rec_core.metrics import SEEN_POLICIES
from p2rec_core.no_learning import NO_LEARNING, no_learning_ranks
from p2rec_core.ranking import NOT_ELIGIBLE, Scorer, rank_metrics
from p2rec_core.repeats import RepeatBias


def popularity_scores(history, rows, n_items):
    counts = np.bincount(history.items, minlength=n_items + 1)[1:].astype(np.float32)
    return np.tile(counts, (len(rows), 1))


def recency_scores(history, rows, n_items):
    scores = np.zeros((len(rows), n_items), np.float32)
    for place, row in enumerate(rows):
        for within, item in enumerate(history.items[history.offsets[row] : history.offsets[row + 1]], 1):
            scores[place, item - 1] = within
    return scores


def successor_scores(history, rows, n_items):
    scores = np.zeros((len(rows), n_items), np.float32)
    for place, last in enumerate(history.last_items(rows)):
        if 0 < last < n_items:
            scores[place, last] = 1.0
    return scores


DENSE = dict(zip(NO_LEARNING, (popularity_scores, recency_scores, successor_scores), strict=True))


def dense_ranks(method, n_items, training, validation, test):
    """What any recommender with these scores would get."""

    def scorer(history):
        return Scorer(history, lambda rows: torch.from_numpy(DENSE[method](history, rows, n_items)), history.lengths)

    return held_out_ranks(scorer, training, validation, test)


def assert_same(found, expected):
    assert found.repeat_bias.last == pytest.approx(expected.repeat_bias.last, abs=1e-4)
    assert found.repeat_bias.earlier == pytest.approx(expected.repeat_bias.earlier, abs=1e-4)
    for split in ("validation", "test"):
        np.testing.assert_array_equal(found.users[split], expected.users[split])
        for policy in SEEN_POLICIES:
            ranks = found.ranks[split][policy]
            assert ranks.dtype == np.int32
            np.testing.assert_array_equal(ranks, expected.ranks[split][policy], f"{split}, {policy}")


@st.composite
def held_out(draw):
    n_items, n_users = draw(st.integers(1, 8)), draw(st.integers(1, 6))
    item = st.integers(1, n_items)
    rows = draw(st.lists(st.lists(item, max_size=6), min_size=n_users, max_size=n_users))
    validation, test = (
        draw(st.lists(st.integers(0, n_items), min_size=n_users, max_size=n_users)) for _ in ("validation", "test")
    )
    return n_items, rows, validation, test


@pytest.mark.parametrize("method", NO_LEARNING)
@settings(max_examples=20)
@given(case=held_out())
def test_ranks_are_those_of_the_scores_written_out(ragged, method, case):
    n_items, rows, validation, test = case
    arguments = n_items, ragged(rows), np.array(validation, np.int32), np.array(test, np.int32)
    assert_same(no_learning_ranks(method, *arguments), dense_ranks(method, *arguments))


@pytest.mark.parametrize("method", NO_LEARNING)
def test_ranks_where_a_few_items_are_far_more_popular(ragged, method):
    """Users who had the most popular items leave almost nothing of the sum over all of them."""
    rng = np.random.default_rng(0)
    n_items, rows = 300, []
    for length in rng.integers(0, 40, 400):
        rows.append(np.minimum(rng.zipf(1.4, length), n_items).tolist())
    validation, test = (np.minimum(rng.zipf(1.4, 400), n_items).astype(np.int32) for _ in "ab")
    arguments = n_items, ragged(rows), validation, test
    assert_same(no_learning_ranks(method, *arguments), dense_ranks(method, *arguments))


def test_ranks_by_hand(ragged):
    history = ragged([[2, 1, 2], [], [4, 3], [5]])
    targets = np.array([3, 0, 4, 5], np.int32)
    nobody = np.zeros(4, np.int32)
    found = {m: no_learning_ranks(m, 5, history, nobody, targets) for m in NO_LEARNING}
    ranks = {m: of_method.ranks["test"] for m, of_method in found.items()}
    # popularity 1 2 1 1 1: below item 2, tied with three others
    assert ranks["popularity"]["keep"].tolist() == [4, 4, 4]
    assert ranks["popularity"]["mask"].tolist() == [2, NOT_ELIGIBLE, NOT_ELIGIBLE]
    assert ranks["recency copy"]["keep"].tolist() == [4, 2, 1]
    assert ranks["recency copy"]["mask"].tolist() == [2, NOT_ELIGIBLE, NOT_ELIGIBLE]
    # the item after the last: 3 after 2, 4 after 3, and 5 is the highest there is
    assert ranks["id + 1"]["keep"].tolist() == [1, 1, 3]
    assert ranks["id + 1"]["mask"].tolist() == [1, NOT_ELIGIBLE, NOT_ELIGIBLE]
    # nobody was validated, so there is nothing to weigh by
    assert found["popularity"].repeat_bias == RepeatBias(0.0, 0.0)
    assert ranks["popularity"]["weigh"].tolist() == ranks["popularity"]["keep"].tolist()
    with pytest.raises(KeyError):
        no_learning_ranks("oracle", 5, history, nobody, targets)


@pytest.mark.data
def test_copying_the_latest_items_on_yelp(datasets_dir, ragged):
    lines = [line.split()[1:] for line in (datasets_dir / "yelp.txt").read_text().splitlines()]
    number = {name: i for i, name in enumerate(sorted({name for line in lines for name in line}), 1)}
    rows = [[number[name] for name in line] for line in lines]
    targets = np.array([row[-1] for row in rows], np.int32)
    history, nobody = ragged([row[:-1] for row in rows]), np.zeros(len(rows), np.int32)
    ranks = no_learning_ranks("recency copy", len(number), history, nobody, targets).ranks["test"]
    keep = {f"{metric}@{k}": round(value, 4) for (metric, k), value in rank_metrics(ranks["keep"], (5, 10)).items()}
    assert keep == {"HR@5": 0.0547, "HR@10": 0.0620, "NDCG@5": 0.0389, "NDCG@10": 0.0414}
    assert set(rank_metrics(ranks["mask"], (5, 10)).values()) == {0.0}
