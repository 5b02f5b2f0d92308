"""Recommenders that go on from earlier ones: weights, knowledge, and where the earlier one stands."""

import numpy as np
import pytest
import torch

from p2rec_core.errors import ModelError
from p2rec_core.fusion import ClusterTable, IdTable
from p2rec_core.language.renewal import outdated_items, with_renewed_rows
from p2rec_core.recommender import Recommender
from p2rec_core.sequences import RaggedSequences
from p2rec_core.standing import earlier_scorer, only_known, standing
from p2rec_core.training.continued import continue_recommender, copy_weights
from p2rec_core.training.recommender import EncoderShape, Knowledge, NextItemTraining, train_recommender

SHAPE = EncoderShape("gru4rec", {"hidden_size": 8, "inner_size": 8, "dropout": 0.0, "max_length": 6})
TRAINING = NextItemTraining(1e-2, 0.0, 64, None, 2, None, 0, False, 1)
CPU = torch.device("cpu")


def cycles(n_users: int, n_items: int) -> RaggedSequences:
    """User u walks round the items from item u."""
    rows = [[(u + t) % n_items + 1 for t in range(6)] for u in range(n_users)]
    return RaggedSequences(np.concatenate(rows).astype(np.int32), np.arange(n_users + 1) * 6)


def trained(n_items: int, **more):
    return train_recommender(
        cycles(24, n_items), None, n_items=n_items, encoder=SHAPE, training=TRAINING, device=CPU, **more
    ).tensors


def model(n_items: int, *, clusters: bool = False) -> Recommender:
    torch.manual_seed(5)
    table = ClusterTable(np.zeros(n_items, np.int32), 2, 8) if clusters else IdTable(n_items, 8)
    return Recommender(table, SHAPE.build())


def test_known_rows_and_all_other_weights_are_copied_bit_by_bit():
    previous, grown = trained(10), model(13)
    learned = np.arange(10) != 4
    fresh = grown.item_table.embedding.detach().clone().numpy()
    copy_weights(grown, previous, learned)
    now = grown.item_table.embedding.detach().numpy()
    np.testing.assert_array_equal(now[:10][learned], previous["item_table.embedding"][learned])
    np.testing.assert_array_equal(now[4], fresh[4])
    np.testing.assert_array_equal(now[10:], fresh[10:])
    for name, parameter in grown.encoder.named_parameters():
        np.testing.assert_array_equal(parameter.detach().numpy(), previous[f"encoder.{name}"])


def test_another_kind_of_recommender_cannot_be_continued():
    with pytest.raises(ModelError, match=r"only one of the two has item_table\.cluster_embedding"):
        copy_weights(model(10, clusters=True), trained(10), np.ones(10, bool))
    with pytest.raises(ModelError, match=r"item_table\.embedding was 10 x 8 and is 9 x 8"):
        copy_weights(model(9), trained(10), np.ones(10, bool))


@pytest.mark.parametrize("kind", ["base", "ci", "init", "gate", "smoothed"])
def test_every_kind_of_recommender_goes_on_where_it_was(kind):
    def given(n_items):
        if kind == "base":
            return {}
        if kind == "ci":
            return {"clusters": np.arange(n_items, dtype=np.int32) % 3, "n_clusters": 3}
        vectors = np.random.default_rng(0).standard_normal((n_items, 6)).astype(np.float32)
        fusion = "gate" if kind == "gate" else "init"
        return {"knowledge": Knowledge(vectors, fusion, smoothing=0.5 if kind == "smoothed" else 0.0)}

    previous = trained(10, **given(10))
    still = NextItemTraining(1e-12, 0.0, 64, None, 1, None, 0, False, 1)
    result = continue_recommender(
        cycles(26, 12),
        None,
        previous,
        np.ones(10, bool),
        n_items=12,
        encoder=SHAPE,
        training=still,
        device=CPU,
        **given(12),
    )
    assert result.tensors["item_vectors"].shape == (12, 8)
    if kind != "smoothed":  # neighbours may be new items there
        np.testing.assert_allclose(result.tensors["item_vectors"][:10], previous["item_vectors"], atol=1e-5)
    assert result.fit.n_epochs == 1


def test_only_new_and_moved_items_are_outdated():
    embedded = np.array([[1, 0], [0, 2], [0, 0], [0, 0], [1, 1]], np.float32)
    read = np.array([[1.1, 0], [0, 2.3], [0, 0], [0, 0.1], [0, 0], [3, 3]], np.float32)
    np.testing.assert_array_equal(outdated_items(read, embedded, 0.12), [2, 4, 5, 6])
    np.testing.assert_array_equal(outdated_items(embedded, embedded, 0.0), [])


def test_copied_rows_are_bit_identical():
    rng = np.random.default_rng(1)
    previous, rows = rng.standard_normal((5, 3)).astype(np.float32), rng.standard_normal((3, 3)).astype(np.float32)
    previous[0, 0] = -0.0
    table = with_renewed_rows(previous, np.array([2, 6, 7]), rows, 7)
    copied = [0, 2, 3, 4]
    assert table[copied].tobytes() == previous[copied].tobytes()
    assert table[[1, 5, 6]].tobytes() == rows.tobytes()
    assert with_renewed_rows(previous, np.array([], np.int64), rows[:0], 5).tobytes() == previous.tobytes()
    with pytest.raises(ValueError, match="Item 6 has no row"):
        with_renewed_rows(previous, np.array([7]), rows[:1], 7)


def test_histories_lose_the_items_that_a_recommender_does_not_know():
    history = RaggedSequences(np.array([1, 5, 2, 6, 6, 3], np.int32), np.array([0, 3, 5, 5, 6]))
    known = only_known(history, 4)
    np.testing.assert_array_equal(known.items, [1, 2, 3])
    np.testing.assert_array_equal(known.offsets, [0, 2, 2, 2, 3])


def test_an_earlier_recommender_ranks_what_it_does_not_know_last():
    earlier = model(10).eval()
    history = cycles(12, 12)
    options = {"n_items": 12, "max_length": 6, "device": CPU}
    stands = standing(
        earlier_scorer(earlier, history, n_known=10, **options),
        np.array([11, 12] + [3] * 10, np.int32),
        seen=("keep",),
        k=4,
    )
    # eleven and twelve share the last two places, and half of the ties count
    np.testing.assert_array_equal(stands.ranks["keep"][:2], [12, 12])
    assert stands.ranks["keep"][2:].max() <= 10
    assert 4 <= stands.coverage <= 10
    same = earlier_scorer(earlier, cycles(5, 10), n_known=10, **(options | {"n_items": 10}))
    assert same.score(np.arange(5)).shape == (5, 10)
