"""Tiny language models, their files, and synthetic preferences."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from p2rec_core.language.loading import LanguageModel
from p2rec_core.language.prompt import Prompt

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "predict", "the", "preferences", "4", "Response", ":")
PROMPT = Prompt(np.array([2, 4, 5, 7, 6]), np.array([8, 9]))


def tiny_tokenizer() -> Any:
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def tiny_backbone(kind: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 16,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "attn_implementation": "sdpa",
    }
    if kind == "llama":
        return LlamaModel(LlamaConfig(num_key_value_heads=2, **sizes))
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertModel(BertConfig(**sizes, **no_dropout), add_pooling_layer=False)


def tiny_language_model(kind: str) -> LanguageModel:
    model = tiny_backbone(kind).eval().requires_grad_(False)
    causal = kind == "llama"
    return LanguageModel(model, tiny_tokenizer(), causal, 32, f"tiny-{kind}", True, "0" * 64)


@pytest.fixture(params=["llama", "bert"])
def language_model(request: pytest.FixtureRequest) -> LanguageModel:
    return tiny_language_model(request.param)


@pytest.fixture
def save_model(tmp_path: Path) -> Callable[..., Path]:
    """Write a tiny model and its tokenizer as a directory."""

    def save(kind: str = "llama", seed: int = 0, name: str = "model") -> Path:
        tiny_backbone(kind, seed).save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


@dataclasses.dataclass(frozen=True)
class Users:
    """Sequences whose preferences are the counts of their items' clusters."""

    embeddings: np.ndarray
    clusters: np.ndarray
    items: np.ndarray
    offsets: np.ndarray
    preferences: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        trained = np.ones(len(self.embeddings), bool)
        return self.embeddings, trained, self.items, self.offsets, self.preferences


def make_users(n_users: int, *, n_items: int = 60, k: int = 4, d: int = 8, seed: int = 0) -> Users:
    """Items lie around the centre of their cluster; every user has two favourite clusters."""
    rng = np.random.default_rng(seed)
    clusters = rng.integers(k, size=n_items)
    centres = rng.normal(size=(k, d)) * 3
    embeddings = (0.01 * (centres[clusters] + 0.3 * rng.normal(size=(n_items, d)))).astype(np.float32)
    lengths = rng.integers(1, 9, size=n_users)
    items, preferences = [], np.zeros((n_users, k), np.float32)
    for user, length in enumerate(lengths):
        favourites = rng.choice(k, 2, replace=False)
        own = rng.choice(np.flatnonzero(np.isin(clusters, favourites)), length)
        np.add.at(preferences[user], clusters[own], 1 / length)
        items.append(own + 1)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Users(embeddings, clusters, np.concatenate(items).astype(np.int32), offsets, preferences)


SETTINGS: dict[str, Any] = {
    "lora_rank": 4,
    "lora_alpha": 8.0,
    "lora_dropout": 0.05,
    "lora_targets": None,
    "learning_rate": 5e-3,
    "warmup_fraction": 0.05,
    "max_grad_norm": 1.0,
    "batch_users": 16,
    "micro_batch_tokens": 256,
    "epochs": 1,
    "max_length": 6,
    "holdout_fraction": 0.1,
    "gradient_checkpointing": False,
    "seed": 3,
    "pooling": "mean",
}


@pytest.fixture
def settings() -> dict[str, Any]:
    return dict(SETTINGS)


@pytest.fixture
def prompt() -> Prompt:
    return PROMPT


@pytest.fixture
def users() -> Callable[..., Users]:
    return make_users


@pytest.fixture
def tiny() -> Callable[[str], LanguageModel]:
    return tiny_language_model
