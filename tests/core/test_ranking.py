"""Ranks against the plainest reading of their definition, metrics against ir_measures."""

import math

import ir_measures
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import Success, nDCG

from p2rec_core.backbones.base import SequenceEncoder
from p2rec_core.errors import ModelError
from p2rec_core.evaluation import held_out_ranks
from p2rec_core.metrics import SEEN_POLICIES, user_metric
from p2rec_core.ranking import NOT_ELIGIBLE, Scorer, rank_metrics, ranks_of_users, target_counts
from p2rec_core.recommender import Recommender, recommender_scorer
from p2rec_core.repeats import RepeatBias


def brute_force(scores: list[float], target: int, ineligible: set[int]) -> int:
    if target in ineligible:
        return NOT_ELIGIBLE
    others = [s for item, s in enumerate(scores, 1) if item != target and item not in ineligible]
    mine = scores[target - 1]
    return 1 + sum(s > mine for s in others) + math.ceil(sum(s == mine for s in others) / 2)


@st.composite
def rankings(draw):
    n_items, n_rows = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    # few distinct values: ties are common
    scores = draw(
        st.lists(st.lists(st.integers(-2, 2), min_size=n_items, max_size=n_items), min_size=n_rows, max_size=n_rows)
    )
    item = st.integers(1, n_items)
    targets = draw(st.lists(item, min_size=n_rows, max_size=n_rows))
    histories = draw(st.lists(st.lists(item, max_size=6), min_size=n_rows, max_size=n_rows))
    return scores, targets, histories


@given(rankings())
def test_ranks_are_the_definition(ragged, case):
    scores, targets, histories = case
    rows = np.arange(len(scores))[::-1].copy()  # any rows of the histories, in any order
    bias = RepeatBias(last=-1.0, earlier=2.0)
    counts = target_counts(
        torch.tensor([scores[r] for r in rows], dtype=torch.float32),
        np.array([targets[r] for r in rows], np.int32),
        ragged(histories),
        rows,
    )
    ranks = counts.ranks(SEEN_POLICIES, bias)
    assert all(found.dtype == np.int32 for found in ranks.values())
    assert ranks["keep"].tolist() == [brute_force(scores[r], targets[r], set()) for r in rows]
    assert ranks["mask"].tolist() == [brute_force(scores[r], targets[r], set(histories[r])) for r in rows]
    weighed = [list(map(float, row)) for row in scores]
    for row, history in zip(weighed, histories, strict=True):
        for item in set(history):
            row[item - 1] += bias.last if item == history[-1] else bias.earlier
    assert ranks["weigh"].tolist() == [brute_force(weighed[r], targets[r], set()) for r in rows]
    assert counts.is_own.tolist() == [targets[r] in histories[r] for r in rows]
    unseen = ~counts.is_own
    assert counts.weighed_ranks(bias)[unseen].tolist() == ranks["weigh"][unseen].tolist()


def test_weighing_takes_a_bias(ragged):
    with pytest.raises(ValueError, match="without a bias"):
        target_counts(torch.zeros(1, 2), np.array([1]), ragged([[2]]), np.array([0])).ranks(("weigh",))


@pytest.mark.parametrize("n_items", [1, 2, 20, 21, 100])
def test_a_constant_scorer_gets_no_free_hits(ragged, n_items):
    targets = np.arange(1, n_items + 1)
    nobody = ragged([[]] * n_items)
    ranks = target_counts(torch.zeros(n_items, n_items), targets, nobody, np.arange(n_items)).ranks(("keep",))
    assert set(ranks["keep"].tolist()) == {1 + math.ceil((n_items - 1) / 2)}


class _Fixed(torch.nn.Module):
    """A table whose PAD row would outscore every item."""

    def forward(self) -> torch.Tensor:
        return torch.tensor([[100.0], [1.0], [3.0], [2.0]])


class _LastVector(SequenceEncoder):
    """A state of one everywhere."""

    def __init__(self) -> None:
        super().__init__(hidden_size=1, max_length=2)

    def forward(self, vectors: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(vectors)


def test_padding_is_never_eligible(ragged):
    model = Recommender(_Fixed(), _LastVector())
    history = ragged([[1], [2, 1], [3], []])
    targets = np.array([2, 3, 0, 3], np.int32)  # the third user has no target, the fourth no history
    scorer = recommender_scorer(model, history, max_length=2, device=torch.device("cpu"))
    ranks = ranks_of_users(scorer, targets)
    assert ranks["keep"].tolist() == [1, 2, 2]
    assert ranks["mask"].tolist() == [1, 1, 2]


def test_users_are_scored_in_blocks_by_length(ragged, monkeypatch):
    monkeypatch.setattr("p2rec_core.ranking.SCORED_ROWS", 2)
    history = ragged([[1, 2, 3], [2], [3, 1], [], [2, 3]])
    targets = np.array([4, 2, 4, 0, 1], np.int32)  # the fourth user has no target
    blocks, told = [], []

    def score(rows):
        blocks.append(rows.tolist())
        return torch.tensor([[3.0, 2.0, 1.0, 0.0]]).repeat(len(rows), 1)

    def progress(done, total, message):
        told.append((done, total, message))

    ranks = ranks_of_users(Scorer(history, score, history.lengths), targets, progress=progress)
    assert blocks == [[1, 2], [4, 0]]
    assert told == [(2, 4, "2 of 4 users"), (4, 4, "4 of 4 users")]
    assert ranks.keys() == {"keep", "mask"}
    assert ranks["keep"].dtype == ranks["mask"].dtype == np.int32
    assert ranks["keep"].tolist() == [4, 2, 4, 1]
    assert ranks["mask"].tolist() == [1, NOT_ELIGIBLE, 2, 1]


def test_nobody_to_score(ragged):
    history = ragged([[1], [2]])
    ranks = ranks_of_users(Scorer(history, pytest.fail, history.lengths), np.zeros(2, np.int32))
    assert {policy: len(found) for policy, found in ranks.items()} == {"keep": 0, "mask": 0}


def test_the_batch_of_evaluation_changes_nothing(ragged, monkeypatch):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    history = ragged([rng.integers(1, 21, size=n).tolist() for n in rng.integers(0, 9, size=50)])
    targets = rng.integers(0, 21, size=50).astype(np.int32)

    class Table(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = torch.randn(21, 4)

        def forward(self) -> torch.Tensor:
            return self.rows

    model = Recommender(Table(), _LastVector())
    model.encoder.forward = lambda vectors, lengths: vectors.cumsum(1)
    results = []
    for rows in (512, 7, 1):
        monkeypatch.setattr("p2rec_core.ranking.SCORED_ROWS", rows)
        found = held_out_ranks(
            lambda known: recommender_scorer(model, known, max_length=6, device=torch.device("cpu")),
            history,
            targets,
            targets[::-1],
        )
        results.append({s: {p: r.tolist() for p, r in ranks.items()} for s, ranks in found.ranks.items()})
    assert results[0] == results[1] == results[2]


def test_a_model_that_gives_nan_is_refused(ragged):
    class Broken(torch.nn.Module):
        def forward(self) -> torch.Tensor:
            return torch.tensor([[0.0], [1.0], [float("nan")]])

    model = Recommender(Broken(), _LastVector())
    scorer = recommender_scorer(model, ragged([[1]]), max_length=2, device=torch.device("cpu"))
    with pytest.raises(ModelError, match="scores that are not finite"):
        ranks_of_users(scorer, np.array([1], np.int32))


@given(st.lists(st.integers(0, 25), min_size=1, max_size=12))
def test_metrics_are_those_of_ir_measures(ranks):
    cutoffs = (1, 5, 10, 20)
    qrels, run = [], []
    for user, rank in enumerate(ranks):
        qrels.append(ir_measures.Qrel(f"u{user}", "target", 1))
        for place in range(1, 26):
            name = "target" if place == rank else f"other {place}"
            run.append(ir_measures.ScoredDoc(f"u{user}", name, -float(place)))
    wanted = {("HR", k): Success @ k for k in cutoffs} | {("NDCG", k): nDCG @ k for k in cutoffs}
    expected = ir_measures.calc_aggregate(list(wanted.values()), qrels, run)
    found = rank_metrics(np.array(ranks, np.int32), cutoffs)
    assert found.keys() == wanted.keys()
    for name, measure in wanted.items():
        assert found[name] == pytest.approx(expected[measure], abs=1e-12), name


def test_means_of_metrics_by_hand():
    metrics = rank_metrics(np.array([1, 2, 6, NOT_ELIGIBLE], np.int32), (5,))
    assert metrics == {("HR", 5): 0.5, ("NDCG", 5): pytest.approx((1 + 1 / math.log2(3)) / 4)}
    assert all(math.isnan(v) for v in rank_metrics(np.empty(0, np.int32), (5,)).values())


def test_metrics_of_users_by_hand():
    ranks = np.array([0, 1, 3, 5, 6, 10, 11], np.int32)
    assert user_metric(ranks, "HR@5").tolist() == [0, 1, 1, 1, 0, 0, 0]
    assert user_metric(ranks, "HR@10").tolist() == [0, 1, 1, 1, 1, 1, 0]
    ndcg = user_metric(ranks, "NDCG@10")
    assert ndcg.tolist() == pytest.approx([0, 1, 0.5, 1 / math.log2(6), 1 / math.log2(7), 1 / math.log2(11), 0])


@pytest.mark.parametrize("metric", ["MRR@10", "HR", "NDCG@0", "HR@x", ""])
def test_an_unknown_metric_is_named(metric):
    with pytest.raises(ValueError, match=f"There is no metric '{metric}'"):
        user_metric(np.array([1], np.int32), metric)
