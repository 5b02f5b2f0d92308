"""Texts through the language model, and what it reads of an item."""

import numpy as np
import pytest
import torch

from p2rec_core.errors import ModelError
from p2rec_core.language.text import embed_texts, item_features

TEXTS = ["predict the preferences", "", "the", "preferences 4", "the 4 the 4 the preferences predict"]
CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_text_is_the_mean_of_its_states(tiny, kind):
    lm = tiny(kind)
    vectors = embed_texts(lm, TEXTS, max_tokens=32, device=CPU)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), lm.hidden_size)
    for text, vector in zip(TEXTS, vectors, strict=True):
        if text:
            ids = torch.tensor([lm.tokenizer.encode(text)])
            with torch.no_grad():
                expected = lm.model(input_ids=ids).last_hidden_state[0].mean(0)
            np.testing.assert_allclose(vector, expected.numpy(), rtol=1e-4, atol=1e-5)
        else:
            assert not vector.any()


def test_neighbours_in_a_batch_change_nothing(tiny):
    lm = tiny("bert")
    together = embed_texts(lm, TEXTS, max_tokens=32, device=CPU, batch_size=8)
    alone = embed_texts(lm, TEXTS, max_tokens=32, device=CPU, batch_size=1)
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_long_texts_are_cut(tiny):
    lm = tiny("llama")
    long, longer = embed_texts(lm, ["predict the 4 the", "predict the 4 the preferences"], max_tokens=4, device=CPU)
    np.testing.assert_array_equal(long, longer)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_more_tokens_than_the_model_has_positions_are_named_before_anything_is_read(tiny, kind):
    with pytest.raises(ModelError, match=r"max_text_tokens = 65, and .* has 64 positions. Lower it to 64"):
        embed_texts(tiny(kind), [""], max_tokens=65, device=CPU)
    assert embed_texts(tiny(kind), ["the " * 99], max_tokens=64, device=CPU).any()


def test_features_without_texts_are_the_embeddings():
    embeddings, trained = np.ones((3, 2), np.float32), np.array([True, False, True])
    features, present = item_features(embeddings, trained, None)
    assert features is embeddings
    assert present is trained


def test_features_are_standardised_over_those_who_have_them():
    rng = np.random.default_rng(0)
    embeddings = (100 + 5 * rng.normal(size=(20, 3))).astype(np.float32)
    embeddings[:, 1] = 7.0  # a dead dimension
    text = rng.normal(size=(20, 8)).astype(np.float32)
    text[[0, 19]] = 0
    trained = np.arange(20) < 15
    features, present = item_features(embeddings, trained, text)
    assert features.shape == (20, 6)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(present, np.arange(20) < 19)
    np.testing.assert_allclose(features[trained][:, [0, 2]].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(features[trained][:, [0, 2]].std(0), 1, atol=1e-4)
    assert np.abs(features[:, 1]).max() < 1e-6
    assert not features[~trained, :3].any()
    np.testing.assert_allclose(np.cov(features[1:19, 3:], rowvar=False), np.eye(3), atol=1e-4)
    assert not features[[0, 19], 3:].any()


def test_texts_of_few_directions_give_few_features():
    text = np.outer(np.arange(1, 9), np.ones(6)).astype(np.float32)
    features, _ = item_features(np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32), np.ones(8, bool), text)
    assert features.shape == (8, 5)


def test_a_catalogue_without_a_single_text():
    embeddings, trained = np.ones((3, 2), np.float32), np.array([True, False, True])
    features, present = item_features(embeddings, trained, np.zeros((3, 4), np.float32))
    assert features is embeddings
    assert present is trained


def test_texts_that_are_all_alike_give_no_features():
    text = np.full((9, 5), 0.1, np.float32)
    features, present = item_features(np.eye(9, 4, dtype=np.float32), np.ones(9, bool), text)
    assert features.shape == (9, 4)
    assert present.all()
