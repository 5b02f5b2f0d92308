"""The learned bias of a sequence's own items: loss, gradients, what counts as own, and what it learns."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from p2rec_core.backbones.base import make_encoder
from p2rec_core.fusion import IdTable
from p2rec_core.objectives import OwnItemBias, catalogue_cross_entropy, sampled_cross_entropy
from p2rec_core.ranking import rank_metrics, ranks_of_users
from p2rec_core.recommender import OWN_EARLIER, OWN_LAST, NextItemObjective, Recommender, own_items, recommender_scorer
from p2rec_core.sequences import RaggedSequences
from p2rec_core.training.recommender import load_recommender
from tests.core.conftest import SHAPES

N_POSITIONS, N_ITEMS, WIDTH = 13, 29, 7


def case(kinds_of_items=None):
    rng = torch.Generator().manual_seed(8)
    states = torch.randn(N_POSITIONS, WIDTH, generator=rng).requires_grad_()
    table = torch.randn(N_ITEMS, WIDTH, generator=rng).requires_grad_()
    targets = torch.randint(N_ITEMS, (N_POSITIONS,), generator=rng)
    bias = torch.tensor([-4.0, 1.5]).requires_grad_()
    kinds = torch.randint(-1, 2, (N_POSITIONS, N_ITEMS), generator=rng)
    # targets that are own items, of both kinds and of neither
    kinds[torch.arange(N_POSITIONS), targets] = torch.arange(N_POSITIONS) % 3 - 1
    positions, items = (kinds >= 0).nonzero(as_tuple=True)
    own = OwnItemBias(positions, items, kinds[positions, items], bias)
    return states, table, targets, own, kinds


def plain_logits(states, table, bias, kinds):
    left, right, added = (t.detach().double().requires_grad_() for t in (states, table, bias))
    return (left, right, added), left @ right.T + torch.where(kinds >= 0, added[kinds.clamp_min(0)], 0.0)


@pytest.mark.parametrize("chunk", [1, 4, 13, 512])
@pytest.mark.parametrize("tile", [1, 10, 1024])
def test_catalogue_loss_and_gradients_are_those_of_plain_logits(chunk, tile, monkeypatch):
    monkeypatch.setattr("p2rec_core.objectives._CACHED_ITEMS", tile)
    states, table, targets, own, kinds = case()
    loss = catalogue_cross_entropy(states, table, targets, own=own, chunk=chunk)
    (2.5 * loss).backward()
    leaves, logits = plain_logits(states, table, own.bias, kinds)
    value = F.cross_entropy(logits, targets, reduction="sum")
    (2.5 * value).backward()
    assert loss.item() == pytest.approx(value.item(), rel=1e-6)
    for ours, plain in zip((states, table, own.bias), leaves, strict=True):
        torch.testing.assert_close(ours.grad.double(), plain.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tile", [3, 1024])
def test_sampled_loss_and_gradients_are_those_of_plain_logits(tile, monkeypatch):
    monkeypatch.setattr("p2rec_core.objectives._CACHED_ITEMS", tile)
    n_negatives = 11
    states, table, targets, own, kinds = case()
    torch.manual_seed(3)
    loss = sampled_cross_entropy(states, table, targets, n_negatives, own=own, chunk=4)
    loss.backward()
    torch.manual_seed(3)
    sample = torch.randperm(N_ITEMS)[:n_negatives]
    leaves, logits = plain_logits(states, table, own.bias, kinds)
    positive = logits.gather(1, targets[:, None])
    rivals = logits[:, sample] + np.log(N_ITEMS / n_negatives)
    rivals = rivals.masked_fill(sample == targets[:, None], -torch.inf)
    value = (torch.cat([positive, rivals], 1).logsumexp(1) - positive.squeeze(1)).sum()
    value.backward()
    assert loss.item() == pytest.approx(value.item(), rel=1e-6)
    for ours, plain in zip((states, table, own.bias), leaves, strict=True):
        torch.testing.assert_close(ours.grad.double(), plain.grad, rtol=1e-5, atol=1e-5)


def test_no_own_items_change_nothing():
    states, table, targets, own, _ = case()
    none = OwnItemBias(own.positions[:0], own.items[:0], own.kinds[:0], own.bias)
    with_none = catalogue_cross_entropy(states, table, targets, own=none)
    assert with_none.item() == catalogue_cross_entropy(states, table, targets).item()
    with_none.backward()
    assert own.bias.grad.tolist() == [0.0, 0.0]


def test_each_item_up_to_a_position_is_its_own_once():
    rng = np.random.default_rng(5)
    items = torch.zeros(6, 9, dtype=torch.int64)
    for row, length in enumerate([9, 1, 4, 7, 0, 9]):
        items[row, :length] = torch.from_numpy(rng.integers(1, 4, length))
    at = (items > 0) & torch.from_numpy(rng.random((6, 9)) < 0.7)
    found = own_items(items, at, torch.zeros(2))
    expected = []
    for number, (row, position) in enumerate(at.nonzero().tolist()):
        read = items[row, : position + 1].tolist()
        expected += [(number, i - 1, OWN_LAST if i == read[-1] else OWN_EARLIER) for i in set(read)]
    got = list(zip(found.positions.tolist(), found.items.tolist(), found.kinds.tolist(), strict=True))
    assert sorted(got) == sorted(expected)
    assert found.positions.tolist() == sorted(found.positions.tolist())


@pytest.mark.parametrize("backbone", ["sasrec", "gru4rec", "caser", "fmlp_rec"])
def test_the_loss_is_that_of_the_scores_that_rank(backbone):
    torch.manual_seed(2)
    n_items = 12
    model = Recommender(IdTable(n_items, 16), make_encoder(backbone, **SHAPES[backbone]), learn_repeats=True).eval()
    with torch.no_grad():
        model.own_bias.copy_(torch.tensor([-3.0, 2.0]))
        model.item_table.embedding.mul_(20)
    rng = np.random.default_rng(6)
    lengths = np.array([2, 6, 3, 4, 6, 5])
    sequences = RaggedSequences(rng.integers(1, 5, lengths.sum()).astype(np.int32), np.cumsum([0, *lengths]))
    objective = NextItemObjective(
        model, sequences, None, max_length=5, batch_positions=64, seed=1, device=torch.device("cpu")
    )
    with torch.no_grad():
        loss = sum(float(objective.loss(batch)) for step in objective.steps(0) for batch in step)
    prefixes = [
        sequences.items[o : o + k] for o, n in zip(sequences.offsets, lengths, strict=False) for k in range(1, n)
    ]
    following = [sequences.items[o + k] for o, n in zip(sequences.offsets, lengths, strict=False) for k in range(1, n)]
    history = RaggedSequences(np.concatenate(prefixes).astype(np.int32), np.cumsum([0, *map(len, prefixes)]))
    scorer = recommender_scorer(model, history, max_length=5, device=torch.device("cpu"))
    scores = scorer.score(np.arange(len(history)))
    expected = F.cross_entropy(scores, torch.tensor(following).long() - 1, reduction="sum")
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def sequences_of(rule, n_users=60, length=6, n_items=20):
    rng = np.random.default_rng(9)
    rows = [rule(rng, length, n_items) for _ in range(n_users)]
    items = np.concatenate(rows).astype(np.int32)
    return RaggedSequences(items, np.arange(0, len(items) + 1, length)), n_items


def never_again(rng, length, n_items):
    return rng.permutation(np.arange(1, n_items + 1))[:length]


def there_and_back(rng, length, n_items):
    return np.tile(rng.permutation(np.arange(1, n_items + 1))[:2], length // 2)


@pytest.mark.parametrize("backbone", ["sasrec", "fmlp_rec"])
def test_it_learns_whether_people_come_back(backbone, train):
    sequences, n_items = sequences_of(never_again)
    trained = train(sequences, None, n_items, backbone=backbone, learn_repeats=True, patience=None, max_epochs=10)
    last, earlier = trained.tensors["own_bias"]
    assert last < -1
    assert earlier < -1
    sequences, n_items = sequences_of(there_and_back)
    trained = train(sequences, None, n_items, backbone=backbone, learn_repeats=True, patience=None, max_epochs=10)
    last, earlier = trained.tensors["own_bias"]
    assert last < -1
    assert earlier > 1


@pytest.mark.parametrize("backbone", ["sasrec", "fmlp_rec"])
def test_validation_items_say_how_far_own_items_come_up(backbone, train, tiny_shapes):
    """Nobody came back in the training parts, and everybody does to the last item afterwards."""
    sequences, n_items = sequences_of(never_again)
    options = {"backbone": backbone, "learn_repeats": True, "max_epochs": 10}
    learned = train(sequences, None, n_items, patience=None, **options)
    coming_back = sequences.last_items(np.arange(len(sequences))).astype(np.int32)
    settled = train(sequences, coming_back, n_items, patience=10, **options)
    assert learned.tensors["own_bias"][0] < -1
    assert settled.tensors["own_bias"][0] > learned.tensors["own_bias"][0] + 1
    model = load_recommender(settled.tensors, tiny_shapes[backbone], torch.device("cpu"))
    scorer = recommender_scorer(model, sequences, max_length=5, device=torch.device("cpu"))
    ranks = ranks_of_users(scorer, coming_back, seen=("keep",))["keep"]
    metrics = rank_metrics(ranks, (10,))
    assert metrics["NDCG", 10] > 0.9
    # the epoch is chosen by what the stored recommender is worth
    curve = {name: value for epoch, name, value in settled.fit.history if epoch == settled.fit.best_epoch}
    assert curve["NDCG@10"] == pytest.approx(metrics["NDCG", 10], abs=1e-6)
    assert curve["HR@10"] == pytest.approx(metrics["HR", 10], abs=1e-6)


def test_a_reloaded_recommender_has_it(train, tiny_shape):
    sequences, n_items = sequences_of(never_again)
    trained = train(sequences, None, n_items, learn_repeats=True, patience=None)
    model = load_recommender(trained.tensors, tiny_shape, torch.device("cpu"))
    np.testing.assert_array_equal(model.own_bias.detach().numpy(), trained.tensors["own_bias"])
    without = load_recommender(
        {name: t for name, t in trained.tensors.items() if name != "own_bias"}, tiny_shape, torch.device("cpu")
    )
    rows = np.arange(len(sequences))
    scores, plain = (
        recommender_scorer(m, sequences, max_length=5, device=torch.device("cpu")).score(rows) for m in (model, without)
    )
    differs = (scores != plain).numpy()
    expected = np.zeros_like(differs)
    for row in rows:  # five of the six items are read
        expected[row, sequences.items[row * 6 + 1 : row * 6 + 6] - 1] = True
    np.testing.assert_array_equal(differs, expected)
