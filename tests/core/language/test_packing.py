"""Sequences end to end in one row against the same sequences padded."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import RobertaConfig, RobertaModel

from p2rec_core.language.batching import cut_packed
from p2rec_core.language.loading import LanguageModel
from p2rec_core.language.packing import PACKED_ATTENTION, Packing
from p2rec_core.language.preference_model import PreferenceLanguageModel
from p2rec_core.language.prompt import Prompt

EMBEDDINGS = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
ITEMS = torch.tensor([[3, 1, 7, 2, 9, 4], [5, 0, 0, 0, 0, 0], [8, 8, 6, 0, 0, 0], [1, 2, 3, 0, 0, 0]])
LENGTHS = torch.tensor([6, 1, 3, 3])


@pytest.fixture(params=["bert", "roberta"])
def encoder(request: pytest.FixtureRequest, tiny: Callable[[str], LanguageModel]) -> LanguageModel:
    bert = tiny("bert")
    if request.param == "bert":
        return bert
    config = RobertaConfig(**bert.model.config.to_dict() | {"pad_token_id": 1, "max_position_embeddings": 40})
    torch.manual_seed(0)
    model = RobertaModel(config, add_pooling_layer=False).eval().requires_grad_(False)
    return dataclasses.replace(bert, model=model)


def made(encoder: LanguageModel, prompt: Prompt, *, packed: bool, pooling: str = "mean") -> PreferenceLanguageModel:
    """A model whose LoRA matrices are not zero."""
    model = PreferenceLanguageModel(encoder, prompt, EMBEDDINGS, np.ones(20, bool), 4, packed=packed, pooling=pooling)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2, generator=generator)
    return model.eval()


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_states_and_gradients_are_those_of_padded_sequences(
    encoder: LanguageModel, prompt: Prompt, pooling: str
) -> None:
    packed, padded = (made(encoder, prompt, packed=packed, pooling=pooling) for packed in (True, False))
    assert packed.packs
    assert not padded.packs
    outputs = []
    for model in (packed, padded):
        logits, h = model(ITEMS, LENGTHS)
        (logits.softmax(-1)[:, 0].square().sum() + h.sin().sum()).backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        outputs.append([logits.detach(), h.detach(), *gradients])
    for ours, expected in zip(*outputs, strict=True):
        assert expected is not None
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_the_shared_language_model_keeps_its_own_attention(encoder: LanguageModel, prompt: Prompt) -> None:
    model = made(encoder, prompt, packed=True)
    assert model.backbone.config._attn_implementation == PACKED_ATTENTION
    assert encoder.model.config._attn_implementation != PACKED_ATTENTION


def test_a_causal_model_is_not_packed(tiny: Callable[[str], LanguageModel], prompt: Prompt) -> None:
    assert not made(tiny("llama"), prompt, packed=True).packs


def test_packing_by_hand() -> None:
    packing = Packing(torch.tensor([3, 1, 3]), torch.tensor([2, 1, 2]))
    assert packing.groups == [(1, 1, 1), (2, 3, 2)]
    assert packing.positions.tolist() == [0, 0, 1, 2, 0, 1, 2]
    assert packing.index.tolist() == [3, 0, 1, 2, 6, 7, 8]
    assert packing.read.tolist() == [0, 2, 3, 5, 6]
    tokens = torch.arange(9.0).reshape(3, 3, 1)
    assert packing.pack(tokens).squeeze().tolist() == [3, 0, 1, 2, 6, 7, 8]
    assert packing.mean(packing.pack(tokens)[:, packing.read]).squeeze().tolist() == [1.5, 3, 7.5]


def test_the_last_layer_is_computed_for_what_is_read_alone(encoder: LanguageModel, prompt: Prompt) -> None:
    model = made(encoder, prompt, packed=True)
    rows = []
    for layer in model.backbone.encoder.layer:
        layer.intermediate.register_forward_hook(lambda _, __, out: rows.append(out.shape[1]))
    model(ITEMS, LENGTHS)
    read = int(LENGTHS.sum()) + len(LENGTHS) * len(prompt.response)
    assert rows == [*[read + len(LENGTHS) * len(prompt.instruction)] * (len(rows) - 1), read]
    assert type(encoder.model.encoder.layer[-1]) is type(encoder.model.encoder.layer[0])  # the shared one is as it was


def test_cut_packed_by_hand() -> None:
    users, lengths = np.array([5, 6, 7, 8]), np.array([9, 1, 3, 1])
    cut = cut_packed(users, lengths, n_extra=2, max_tokens=12)
    assert [batch.tolist() for batch in cut] == [[6, 8, 7], [5]]
    assert [batch.tolist() for batch in cut_packed(users, lengths, n_extra=2, max_tokens=4)] == [[6], [8], [7], [5]]
    assert [batch.tolist() for batch in cut_packed(users, lengths, n_extra=2, max_tokens=99)] == [[6, 8, 7, 5]]
