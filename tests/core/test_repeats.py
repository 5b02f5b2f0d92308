"""What ``seen = weigh`` adds to the scores of a user's own items."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from p2rec_core.evaluation import held_out_ranks
from p2rec_core.ranking import Scorer
from p2rec_core.repeats import PRIOR_STD, RepeatBias, RepeatObservations, add_repeat_bias

N_ITEMS = 30


def weighed(scores: np.ndarray, rows: list[list[int]], bias: RepeatBias) -> np.ndarray:
    """The definition, item by item."""
    result = scores.copy()
    for row, history in zip(result, rows, strict=True):
        for item in set(history):
            row[item - 1] += bias.last if item == history[-1] else bias.earlier
    return result


def people(n: int, bias: RepeatBias, seed: int = 0) -> tuple[list[list[int]], np.ndarray, np.ndarray]:
    """Histories, scores float64 (n, N) and items drawn from the softmax of the weighed scores."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(1, N_ITEMS + 1, size=length).tolist() for length in rng.integers(0, 9, size=n)]
    scores = rng.normal(size=(n, N_ITEMS))
    probabilities = np.exp(log_softmax(weighed(scores, rows, bias), axis=1))
    drawn = [rng.choice(N_ITEMS, p=p) + 1 for p in probabilities]
    return rows, scores, np.array(drawn, np.int32)


def fitted(ragged, rows: list[list[int]], scores: np.ndarray, targets: np.ndarray, block: int = 100) -> RepeatBias:
    observed = RepeatObservations()
    for start in range(0, len(rows), block):
        part = np.arange(start, min(start + block, len(rows)))
        observed.add(torch.from_numpy(scores[part]), targets[part], ragged(rows), part)
    return observed.fit()


@given(st.lists(st.lists(st.integers(1, 6), max_size=5), min_size=1, max_size=4), st.floats(-9, 9), st.floats(-9, 9))
def test_each_own_item_gets_its_part_once(ragged, rows, last, earlier):
    bias = RepeatBias(last, earlier)
    scores = torch.arange(6, dtype=torch.float64).repeat(len(rows), 1)
    expected = weighed(scores.numpy(), rows, bias)
    add_repeat_bias(scores, ragged(rows), np.arange(len(rows)), bias)
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("bias", [RepeatBias(0.0, 0.0), RepeatBias(2.5, 1.0), RepeatBias(-1.5, 0.5)])
def test_what_generated_the_choices_is_found(ragged, bias):
    found = fitted(ragged, *people(6000, bias))
    assert found.last == pytest.approx(bias.last, abs=0.15)
    assert found.earlier == pytest.approx(bias.earlier, abs=0.15)


def test_a_method_that_is_too_sure_of_itself_does_not_cost_own_items_their_place(ragged):
    bias = RepeatBias(2.0, 1.0)
    rows, scores, targets = people(6000, bias)
    found = fitted(ragged, rows, 3 * scores, targets)
    assert found.last == pytest.approx(3 * bias.last, abs=0.5)
    assert found.earlier == pytest.approx(3 * bias.earlier, abs=0.5)


def test_no_other_bias_is_more_probable(ragged):
    rows, scores, targets = people(300, RepeatBias(1.0, -1.0))
    found = fitted(ragged, rows, scores, targets)

    def log_posterior(last: float, earlier: float) -> float:
        told = log_softmax(weighed(scores, rows, RepeatBias(last, earlier)), axis=1)
        prior = (last**2 + earlier**2) / (2 * PRIOR_STD**2)
        return float(told[np.arange(len(rows)), targets - 1].sum() - prior)

    best = log_posterior(found.last, found.earlier)
    for step in (0.01, -0.01, 0.3, -0.3):
        assert log_posterior(found.last + step, found.earlier) < best
        assert log_posterior(found.last, found.earlier + step) < best


def test_the_cut_into_blocks_changes_nothing(ragged):
    case = people(200, RepeatBias(1.0, 0.0))
    whole, parts = fitted(ragged, *case, block=200), fitted(ragged, *case, block=7)
    assert parts.last == pytest.approx(whole.last, abs=1e-6)
    assert parts.earlier == pytest.approx(whole.earlier, abs=1e-6)


def test_where_nobody_comes_back_own_items_sink_but_stay_finite(ragged):
    rng = np.random.default_rng(1)
    rows = [rng.integers(1, 16, size=4).tolist() for _ in range(2000)]
    targets = rng.integers(16, N_ITEMS + 1, size=2000).astype(np.int32)
    found = fitted(ragged, rows, np.zeros((2000, N_ITEMS)), targets)
    assert -20 < found.last < -4
    assert -20 < found.earlier < -4


def test_without_observations_nothing_is_added(ragged):
    assert RepeatObservations().fit() == RepeatBias(0.0, 0.0)
    strangers = fitted(ragged, [[], []], np.zeros((2, N_ITEMS)), np.array([1, 2], np.int32))
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
    assert found.repeat_bias.last > 4
    for split in ("validation", "test"):
        assert found.users[split].tolist() == list(range(400))
        assert (found.ranks[split]["keep"] == 16).all()
        assert (found.ranks[split]["weigh"] == 1).all()
        assert (found.ranks[split]["mask"] == 0).all()
    assert told[0] == (400, 800, "validation: 400 of 400 users")
    assert told[-1] == (800, 800, "test: 400 of 400 users")
