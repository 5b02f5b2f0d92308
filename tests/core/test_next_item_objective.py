"""What is predicted from what, in causal training and in training on prefixes."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from p2rec_core.backbones.base import SequenceEncoder
from p2rec_core.backbones.sasrec import SASRec
from p2rec_core.fusion import IdTable
from p2rec_core.recommender import NextItemObjective, Recommender

ROWS = [[1, 2, 3, 4, 5, 6, 7, 8], [9, 10], [11], [], [12, 13, 12, 13, 14]]
N_ITEMS, D, MAX_LENGTH = 14, 6, 3


class Causal(SequenceEncoder):
    """Remembers what it was asked; a state is the sum so far."""

    def __init__(self) -> None:
        super().__init__(hidden_size=D, max_length=MAX_LENGTH)
        self.asked = []

    def forward(self, vectors, lengths):
        self.asked.append((vectors.detach(), lengths))
        return vectors.cumsum(1)


class Whole(Causal):
    """The same, for a whole row only."""

    causal = False

    def forward(self, vectors, lengths):
        raise AssertionError("training on prefixes asks for final states only")

    def final(self, vectors, lengths):
        self.asked.append((vectors.detach(), lengths))
        return vectors.sum(1)


@pytest.fixture
def make(ragged):
    def make(kind: type[SequenceEncoder], batch_positions: int = 4) -> NextItemObjective:
        torch.manual_seed(0)
        model = Recommender(IdTable(N_ITEMS, D), kind())
        with torch.no_grad():
            model.item_table.embedding.mul_(30)
        return NextItemObjective(
            model,
            ragged(ROWS),
            None,
            max_length=MAX_LENGTH,
            batch_positions=batch_positions,
            seed=1,
            device=torch.device("cpu"),
        )

    return make


def read_by(objective: NextItemObjective) -> list[list[int]]:
    """The items of every row that the encoder was given, by looking the vectors up."""
    table = objective.model.item_table().detach()
    rows = []
    for vectors, lengths in objective.model.encoder.asked:
        items = torch.cdist(vectors, table).argmin(-1)
        for row, n in zip(items.tolist(), lengths.tolist(), strict=True):
            assert not any(row[n:]), "what is to be predicted is not read"
            rows.append(row[:n])
    return rows


def epoch(objective: NextItemObjective, number: int = 0) -> tuple[float, float]:
    pieces = [piece for step in objective.steps(number) for piece in step]
    loss = sum(objective.loss(piece).item() for piece in pieces)
    return loss, sum(objective.weight(piece) for piece in pieces)


def test_prefixes_are_read_once_each_with_their_last_items(make):
    objective = make(Whole)
    _, weight = epoch(objective)
    expected = [row[max(0, n - MAX_LENGTH) : n] for row in ROWS for n in range(1, len(row))]
    assert Counter(map(tuple, read_by(objective))) == Counter(map(tuple, expected))
    assert weight == len(expected) == sum(max(len(row) - 1, 0) for row in ROWS)


def test_windows_are_read_in_one_pass(make):
    objective = make(Causal)
    _, weight = epoch(objective)
    rows = read_by(objective)
    assert sorted(rows) == sorted([[5, 6, 7], [2, 3, 4], [1], [9], [13, 12, 13], [12]])
    assert weight == sum(map(len, rows)) == sum(max(len(row) - 1, 0) for row in ROWS)


@pytest.mark.parametrize("kind", [Causal, Whole])
def test_the_loss_is_that_of_every_example(make, kind):
    objective = make(kind)
    table = objective.model.item_table().detach().double()
    expected = 0.0
    if kind is Whole:
        examples = [(row[max(0, n - MAX_LENGTH) : n], row[n]) for row in ROWS for n in range(1, len(row))]
    else:
        cut = [[5, 6, 7, 8], [2, 3, 4, 5], [1, 2], [9, 10], [13, 12, 13, 14], [12, 13]]
        examples = [(window[:n], window[n]) for window in cut for n in range(1, len(window))]
    for prefix, following in examples:
        logits = table[prefix].sum(0) @ table[1:].T
        expected += float(F.cross_entropy(logits[None], torch.tensor([following - 1])))
    assert epoch(objective)[0] == pytest.approx(expected, rel=1e-5)


def test_a_step_of_prefixes_has_as_many_as_positions_and_goes_through_in_pieces(make, monkeypatch):
    monkeypatch.setattr("p2rec_core.recommender.PIECE_POSITIONS", 2 * MAX_LENGTH)
    objective = make(Whole, batch_positions=5)
    steps = objective.steps(0)
    assert [sum(map(len, step)) for step in steps] == [5, 5, 2]
    assert all(1 <= len(piece) <= 2 for step in steps for piece in step)
    assert sorted(np.concatenate([piece for step in steps for piece in step]).tolist()) == list(range(12))
    monkeypatch.setattr("p2rec_core.recommender.PIECE_POSITIONS", 1)
    assert {len(piece) for step in objective.steps(0) for piece in step} == {1}
    one, same, other = ([piece.tolist() for step in objective.steps(number) for piece in step] for number in (0, 0, 1))
    assert one == same != other


def test_pieces_sum_to_the_gradient_of_the_whole(make, monkeypatch):
    gradients = []
    for places in (100, MAX_LENGTH):
        monkeypatch.setattr("p2rec_core.recommender.PIECE_POSITIONS", places)
        objective = make(Whole, batch_positions=100)
        (step,) = objective.steps(0)
        assert len(step) == (1 if places == 100 else 12)
        for piece in step:
            objective.loss(piece).backward()
        gradients.append(objective.model.item_table.embedding.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)


def test_a_large_step_of_a_causal_encoder_goes_through_in_pieces(make, monkeypatch):
    gradients = []
    for values in (1 << 23, 1):
        monkeypatch.setattr("p2rec_core.recommender.PIECE_VALUES", values)
        objective = make(Causal, batch_positions=100)
        steps = objective.steps(0)
        assert len(steps) == 1
        assert len(steps[0]) == (1 if values > 1 else len(objective.windows))
        for piece in steps[0]:
            objective.loss(piece).backward()
        gradients.append(objective.model.item_table.embedding.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("length", "heads", "repeats"), [(8, 1, False), (64, 4, False), (64, 1, True)])
def test_pieces_are_cut_by_what_is_widest(ragged, monkeypatch, length, heads, repeats):
    """States (d), or pairs of places: attention weights of every head, and own items."""
    monkeypatch.setattr("p2rec_core.recommender.PIECE_VALUES", 1 << 13)
    encoder = SASRec(hidden_size=16, n_layers=1, n_heads=heads, inner_size=16, dropout=0.0, max_length=length)
    rows = ragged([[1 + place % N_ITEMS for place in range(length + 1)]] * 100)
    how = {"max_length": length, "batch_positions": 100 * length, "seed": 1, "device": torch.device("cpu")}
    model = Recommender(IdTable(N_ITEMS, 16), encoder, learn_repeats=repeats)
    (step,) = NextItemObjective(model, rows, None, **how).steps(0)
    width = {(8, 1): 16, (64, 4): 256, (64, 1): 64}[length, heads]
    assert {len(piece) for piece in step[:-1]} == {max(1, (1 << 13) // (length * width))}
    assert sum(map(len, step)) == 100


def test_both_kinds_take_about_as_many_steps(ragged):
    rng = np.random.default_rng(0)
    rows = ragged([rng.integers(1, N_ITEMS + 1, size=n).tolist() for n in rng.integers(3, 20, size=300)])
    counts = [
        len(
            NextItemObjective(
                Recommender(IdTable(N_ITEMS, D), kind()),
                rows,
                None,
                max_length=10,
                batch_positions=64,
                seed=1,
                device=torch.device("cpu"),
            ).steps(0)
        )
        for kind in (Causal, Whole)
    ]
    assert counts[0] == pytest.approx(counts[1], rel=0.15)
