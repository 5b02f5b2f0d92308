"""What ``seen = weigh`` adds to the scores of a user's own items."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p2rec_core.evaluation import held_out_ranks
from p2rec_core.ranking import Scorer, rank_metrics, target_counts
from p2rec_core.repeat_fit import RepeatFit, _Stands, highest_unseen
from p2rec_core.repeats import RepeatBias, add_repeat_bias

N_ITEMS = 30


def weighed(scores: np.ndarray, rows: list[list[int]], bias: RepeatBias) -> np.ndarray:
    """The definition, item by item."""
    result = scores.copy()
    for row, history in zip(result, rows, strict=True):
        for item in set(history):
            row[item - 1] += bias.last if item == history[-1] else bias.earlier
    return result


def people(n: int, coming_back: float, seed: int = 0) -> tuple[list[list[int]], np.ndarray, np.ndarray]:
    """Histories, scores float64 (n, N) and items: the last one of the history by chance, otherwise one of the best."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(1, N_ITEMS + 1, size=length).tolist() for length in rng.integers(1, 9, size=n)]
    scores = rng.normal(size=(n, N_ITEMS))
    best = np.argsort(-scores, axis=1)[np.arange(n), rng.integers(0, 8, size=n)] + 1
    last = np.array([row[-1] for row in rows])
    return rows, scores, np.where(rng.random(n) < coming_back, last, best).astype(np.int32)


def noted(ragged, rows: list[list[int]], scores: np.ndarray, targets: np.ndarray, block: int = 100) -> RepeatFit:
    observed = RepeatFit()
    for start in range(0, len(rows), block):
        part = np.arange(start, min(start + block, len(rows)))
        of_part = torch.from_numpy(scores[part])
        counts = target_counts(of_part, targets[part], ragged(rows), part)
        observed.add(counts, highest_unseen(of_part, counts))
    return observed


def ndcg(scores: np.ndarray, rows: list[list[int]], targets: np.ndarray, bias: RepeatBias) -> float:
    """The definition: all items ranked by their scores with the bias."""
    at = weighed(scores, rows, bias)
    reached = at[np.arange(len(rows)), targets - 1][:, None]
    ranks = 1 + (at > reached).sum(1) + ((at == reached).sum(1) - 1 + 1) // 2
    return float(np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0).mean())


@given(st.lists(st.lists(st.integers(1, 6), max_size=5), min_size=1, max_size=4), st.floats(-9, 9), st.floats(-9, 9))
def test_each_own_item_gets_its_part_once(ragged, rows, last, earlier):
    bias = RepeatBias(last, earlier)
    scores = torch.arange(6, dtype=torch.float64).repeat(len(rows), 1)
    expected = weighed(scores.numpy(), rows, bias)
    add_repeat_bias(scores, ragged(rows), np.arange(len(rows)), bias)
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-12)


@st.composite
def cases(draw):
    n_items, n_users = draw(st.integers(1, 14) | st.integers(25, 60)), draw(st.integers(1, 5))
    item = st.integers(1, n_items)
    rows = draw(st.lists(st.lists(item, max_size=6), min_size=n_users, max_size=n_users))
    targets = draw(st.lists(item, min_size=n_users, max_size=n_users))
    highest, rng = draw(st.integers(0, 3)), np.random.default_rng(draw(st.integers(0, 99)))
    scores = rng.integers(-highest, highest + 1, size=(n_users, n_items)).astype(np.float64)
    return rows, scores, np.array(targets, np.int32)


@given(cases(), st.integers(-4, 4), st.integers(-4, 4))
def test_what_is_maximised_is_the_ndcg_of_all_items_ranked(ragged, case, last, earlier):
    """Whole numbers, so that there are ties of every kind, more of them than places that count among them."""
    rows, scores, targets = case
    observed, bias = noted(ragged, rows, scores, targets, block=2), RepeatBias(last, earlier)
    found = _Stands.joined(observed._blocks).gains(last, earlier).sum() / len(rows)
    assert found == pytest.approx(ndcg(scores, rows, targets, bias), abs=1e-12)
    assert rank_metrics(observed.ranks(bias), (10,))["NDCG", 10] == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize("coming_back", [0.0, 0.02, 0.1, 0.5])
def test_no_other_bias_ranks_much_better(ragged, coming_back):
    rows, scores, targets = people(2000, coming_back)
    found = ndcg(scores, rows, targets, noted(ragged, rows, scores, targets).fit())
    for last in (-9, -3, -1, 0, 0.5, 1, 2, 3, 9):
        for earlier in (-9, -3, -1, 0, 1, 3, 9):
            assert ndcg(scores, rows, targets, RepeatBias(last, earlier)) < 1.005 * found


def test_people_who_come_back_lift_the_last_item_and_others_sink_it(ragged):
    assert noted(ragged, *people(2000, 0.6)).fit().last > 1
    rng = np.random.default_rng(1)
    rows = [rng.integers(1, 16, size=4).tolist() for _ in range(2000)]
    targets = rng.integers(16, N_ITEMS + 1, size=2000).astype(np.int32)
    scores = rng.normal(size=(2000, N_ITEMS))
    sunk = noted(ragged, rows, scores, targets).fit()
    assert np.isfinite([sunk.last, sunk.earlier]).all()
    first = weighed(scores, rows, sunk).argmax(1) + 1
    assert np.mean([item in row for item, row in zip(first, rows, strict=True)]) < 0.01


def test_a_method_that_is_too_sure_of_its_first_places_does_not_cost_own_items_theirs(ragged):
    """One in ten comes back. The method's first places are nobody's choice, and it is sure of them all the same."""
    rows, scores, targets = people(3000, 0.1)
    rng = np.random.default_rng(5)
    scores[np.arange(3000)[:, None], rng.integers(0, N_ITEMS, size=(3000, 6))] += 6
    found = noted(ragged, rows, scores, targets).fit()
    assert found.last > 4
    assert ndcg(scores, rows, targets, found) > 1.1 * ndcg(scores, rows, targets, RepeatBias())


def test_what_could_be_chance_is_not_added(ragged):
    rows, scores, targets = people(60, 0.0, seed=3)
    assert ndcg(scores, rows, targets, RepeatBias(-0.5, 0)) != ndcg(scores, rows, targets, RepeatBias())
    assert noted(ragged, rows, scores, targets).fit() == RepeatBias()


def test_the_cut_into_blocks_changes_nothing(ragged):
    case = people(500, 0.3)
    assert noted(ragged, *case, block=500).fit() == noted(ragged, *case, block=7).fit() != RepeatBias()


def test_without_observations_nothing_is_added(ragged):
    assert RepeatFit().fit() == RepeatBias(0.0, 0.0)
    strangers = noted(ragged, [[], []], np.zeros((2, N_ITEMS)), np.array([1, 2], np.int32)).fit()
    assert strangers == RepeatBias(0.0, 0.0)


def test_the_bias_is_fitted_on_validation_and_holds_for_the_test(ragged):
    """Everybody goes back to the last item, which the method scores no higher than any other."""
    rng = np.random.default_rng(2)
    rows = [rng.integers(1, N_ITEMS + 1, size=3).tolist() for _ in range(400)]
    last = np.array([row[-1] for row in rows], np.int32)
    told = []
    found = held_out_ranks(
        lambda known: Scorer(known, lambda users: torch.zeros(len(users), N_ITEMS), known.lengths),
        ragged(rows),
        last,
        last,
        progress=lambda done, total, message: told.append((done, total, message)),
    )
    assert found.repeat_bias.last > 0
    for split in ("validation", "test"):
        assert found.users[split].tolist() == list(range(400))
        assert (found.ranks[split]["keep"] == 16).all()
        assert (found.ranks[split]["weigh"] == 1).all()
        assert (found.ranks[split]["mask"] == 0).all()
    assert told[0] == (400, 800, "validation: 400 of 400 users")
    assert told[-1] == (800, 800, "test: 400 of 400 users")
