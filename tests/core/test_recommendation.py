"""Lists of items against the plainest reading of their definition."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2rec_core import recommendation
from p2rec_core.errors import ModelError, SettingsError
from p2rec_core.metrics import SEEN_POLICIES
from p2rec_core.ranking import Scorer, ranks_of_users
from p2rec_core.recommendation import nearest_items, recommendations, top_items
from p2rec_core.repeats import RepeatBias

BIAS = RepeatBias(last=-1.0, earlier=2.0)


def scorer_of(scores: np.ndarray, history) -> Scorer:
    return Scorer(history, lambda rows: torch.from_numpy(scores[rows].copy()), history.lengths)


def brute_force(scores, history, n, *, seen, allowed):
    """Sort everything that may be recommended by falling score, then by rising item."""
    scores = {item: float(score) for item, score in enumerate(scores, start=1)}
    if seen == "weigh":
        for item in set(history):
            scores[item] += BIAS.last if item == history[-1] else BIAS.earlier
    if seen == "mask":
        scores = {item: score for item, score in scores.items() if item not in history}
    if allowed is not None:
        scores = {item: score for item, score in scores.items() if allowed[item - 1]}
    best = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:n]
    missing = n - len(best)
    return [item for item, _ in best] + [0] * missing, [score for _, score in best] + [-np.inf] * missing


@st.composite
def cases(draw):
    n_items, n_users = draw(st.integers(1, 9)), draw(st.integers(0, 5))
    # few distinct values: ties are common
    row = st.lists(st.integers(-2, 2), min_size=n_items, max_size=n_items)
    scores = np.array(draw(st.lists(row, min_size=n_users, max_size=n_users)), np.float32).reshape(n_users, n_items)
    item = st.integers(1, n_items)
    histories = draw(st.lists(st.lists(item, max_size=6), min_size=n_users, max_size=n_users))
    allowed = draw(st.none() | st.lists(st.booleans(), min_size=n_items, max_size=n_items).map(np.array))
    rows = draw(st.lists(st.integers(0, n_users - 1), max_size=7)) if n_users else []
    return scores, histories, allowed, np.array(rows, np.int64)


@given(cases(), st.integers(1, 11), st.sampled_from(SEEN_POLICIES), st.integers(1, 3))
def test_a_list_is_the_definition_whatever_the_block(ragged, case, n, seen, block):
    scores, histories, allowed, rows = case
    scorer = scorer_of(scores, ragged(histories))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recommendation, "SCORED_ROWS", block)
        items, best = top_items(scorer, n, rows=rows, seen=seen, bias=BIAS, allowed=allowed)
    assert (items.dtype, best.dtype, items.shape) == (np.int32, np.float32, (len(rows), n))
    expected = [brute_force(scores[row], histories[row], n, seen=seen, allowed=allowed) for row in rows]
    assert items.tolist() == [of_user for of_user, _ in expected]
    assert best.tolist() == [values for _, values in expected]


def test_ties_at_the_end_of_a_long_list_go_to_the_lower_items(ragged):
    # torch's topk takes any of them
    scores = np.zeros((3, 5000), np.float32)
    scores[1, 4000:] = 1
    scores[2, [17, 4999]] = 1
    items, _ = top_items(scorer_of(scores, ragged([[], [], []])), 4, rows=np.arange(3))
    assert items.tolist() == [[1, 2, 3, 4], [4001, 4002, 4003, 4004], [18, 5000, 1, 2]]


def test_a_target_stands_where_its_rank_says(ragged):
    rng = np.random.default_rng(0)
    scores = rng.permuted(np.tile(np.arange(60, dtype=np.float32), (1300, 1)), axis=1)  # no ties, three blocks
    histories = [rng.choice(60, size=rng.integers(0, 9)) + 1 for _ in range(1300)]
    targets = rng.integers(1, 61, size=1300).astype(np.int32)
    scorer = scorer_of(scores, ragged([row.tolist() for row in histories]))
    bias = RepeatBias(last=0.25, earlier=7.5)  # no ties between what gets the one, the other and nothing
    ranks = ranks_of_users(scorer, targets, seen=("keep", "mask", "weigh"), bias=bias)
    for seen, of_policy in ranks.items():
        items, _ = top_items(scorer, 60, rows=np.arange(1300), seen=seen, bias=bias)
        place = np.where((items == targets[:, None]).any(1), (items == targets[:, None]).argmax(1) + 1, 0)
        assert np.array_equal(place, of_policy), seen


def test_users_of_whom_nothing_is_known_get_what_is_popular(ragged):
    scores = np.array([[3, 2, 1, 0], [0, 1, 2, 3], [9, 9, 9, 9]], np.float32)
    scorer = scorer_of(scores, ragged([[1], [], [2, 3]]))
    popularity = np.array([5, 7, 5, 0], np.float32)
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recommendation, "SCORED_ROWS", 1)
        patch.setattr(recommendation, "GROUP_ENTRIES", 2)
        groups = list(
            recommendations(
                scorer, popularity, 2, rows=np.array([2, 1, 0]), progress=lambda done, total, _: told.append(done)
            )
        )
    assert [group.rows.tolist() for group in groups] == [[2], [1], [0]]
    assert [group.by_model.tolist() for group in groups] == [[True], [False], [True]]
    assert [group.items.tolist() for group in groups] == [[[1, 4]], [[2, 1]], [[2, 3]]]
    assert groups[1].scores.tolist() == [[7, 5]]
    assert told == [1, 3]
    [group] = recommendations(
        scorer, popularity, 3, rows=np.arange(3), allowed=np.array([False, False, True, True]), seen="keep"
    )
    assert group.items.tolist() == [[3, 4, 0], [3, 4, 0], [3, 4, 0]]


def test_popularity_is_not_changed(ragged):
    popularity = np.array([1, 2], np.float32)
    scorer = scorer_of(np.zeros((1, 2), np.float32), ragged([[]]))
    list(recommendations(scorer, popularity, 1, rows=np.arange(1), allowed=np.array([True, False])))
    assert popularity.tolist() == [1, 2]


def test_what_cannot_be_asked_for(ragged):
    scorer = scorer_of(np.array([[1, np.nan]], np.float32), ragged([[1]]))
    with pytest.raises(ModelError, match="not finite"):
        top_items(scorer, 1, rows=np.arange(1))
    for arguments in ({"n": 0}, {"n": 1, "seen": "hide"}, {"n": 1, "seen": "weigh"}):
        with pytest.raises(SettingsError):
            top_items(scorer, **arguments, rows=np.arange(1))
    with pytest.raises(SettingsError, match="n = 0"):
        nearest_items(np.ones((2, 2), np.float32), np.arange(2), 0)


@pytest.mark.parametrize("block", [1, 4, 100])
def test_neighbours_are_those_of_brute_force(block):
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((23, 5)).astype(np.float32)
    vectors[7] = 0
    rows = np.array([3, 7, 22, 0, 3])
    items, cosine = nearest_items(vectors, rows, 25, block=block)
    for of_row, values, row in zip(items, cosine, rows, strict=True):
        if row == 7:
            assert not of_row.any()
            assert np.isneginf(values).all()
            continue
        exact = {
            other + 1: float(vectors[row] @ vectors[other])
            / float(np.linalg.norm(vectors[row]) * np.linalg.norm(vectors[other]))
            for other in range(23)
            if other not in (row, 7)
        }
        assert of_row[:21].tolist() == sorted(exact, key=lambda item: -exact[item])
        assert values[:21] == pytest.approx(sorted(exact.values(), reverse=True), abs=1e-6)
        assert of_row[21:].tolist() == [0, 0, 0, 0]


def test_like_neighbours_come_in_the_order_of_items():
    vectors = np.tile(np.array([[1.0, 0.0]], np.float32), (40, 1))
    items, cosine = nearest_items(vectors, np.array([0, 5]), 3)
    assert items.tolist() == [[2, 3, 4], [1, 2, 3]]
    assert (cosine == 1).all()
