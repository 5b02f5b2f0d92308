"""E4SRec, the cost comparison and the language model that was never tuned, as cached stages."""

from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from p2rec_core.errors import ModelError
from p2rec_core.language.cost import CostResult, measure_cost
from p2rec_core.language.finetune import UserObjective
from p2rec_core.settings.language import CostSettings, E4SRecSettings, LanguageModelSettings
from tasks.arrays import vectors
from tasks.cost import cost_call
from tasks.e4srec import e4srec_call
from tasks.e4srec_evaluation import e4srec_evaluation_call
from tasks.finetune import finetune_call
from tasks.knowledge import knowledge_call
from tasks.matrix import EXTRAS, Recipe
from tasks.sources import TextFile
from tasks.stage import Outcome, StageCall, StageResult, run_stage
from tasks.text import text_call

SETTINGS = E4SRecSettings(
    instruction="Predict the next item.", lora_rank=2, epochs=1, batch_instances=32, max_history=8, warmup_steps=2
)


@pytest.fixture
def train(finished):
    """The call of the training, settings changed by name."""

    def train(**changes: Any) -> StageCall:
        return e4srec_call(
            finished.settings.language_model,
            SETTINGS.model_copy(update=changes),
            ingest=finished.refs["ingest"],
            backbone=finished.refs["backbone"],
        )

    return train


@pytest.fixture
def run(copied):
    """Run a call in a store that may be changed."""

    def run(call: StageCall) -> StageResult:
        return run_stage(call, copied.store, runtime=copied.settings.runtime)

    return run


def test_training_and_evaluation_are_cached(copied, train, run):
    trained = run(train())
    info = trained.info
    assert set(trained.ref.files) == {"adapter", "finetune_history"}
    lengths = pc.list_value_length(copied.store.load(copied.refs["ingest"]).table("sequences").column("items"))
    lengths = lengths.to_numpy()
    targets = np.maximum(lengths - 1, 0)
    items = sum(min(i, 8) for m in lengths for i in range(1, m))
    assert info["language_model"] == "random-llama-tiny (random-init)"
    assert info["random_init"] is True
    assert info["n_instances"] == info["n_instances_trained"] == targets.sum()
    assert info["n_empty_histories"] == len(lengths)
    assert info["n_tokens_per_epoch"] == items + targets.sum() * info["n_prompt_tokens"]
    assert info["n_steps"] == info["n_steps_per_epoch"] == -(-targets.sum() // 32)
    assert info["train_s"] > 0
    assert set(info["best"]) == {"train_loss"}
    assert run(train()).outcome is Outcome.CACHED

    call = e4srec_evaluation_call(
        copied.settings.evaluation,
        copied.settings.language_model,
        SETTINGS,
        ingest=copied.refs["ingest"],
        backbone=copied.refs["backbone"],
        model=trained.ref,
    )
    evaluated = run(call)
    assert run(call).outcome is Outcome.CACHED
    artefact = copied.store.load(evaluated.ref)
    metrics, ranks = artefact.table("metrics"), artefact.table("user_ranks")
    base = copied.store.load(copied.refs["evaluation.sasrec.base"])
    assert metrics.schema == base.table("metrics").schema
    assert ranks.schema == base.table("user_ranks").schema
    for table in (metrics, ranks):
        assert pc.unique(table.column("method")).to_pylist() == ["e4srec"]
        assert pc.unique(table.column("variant")).to_pylist() == ["llm"]
    keys = ["split", "seen", "metric", "k", "n_users"]
    assert metrics.select(keys) == base.table("metrics").select(keys)
    assert ranks.select(["user_idx", "split", "seen"]) == base.table("user_ranks").select(["user_idx", "split", "seen"])


def test_a_budget_and_validation(train, run):
    result = run(train(max_steps=5, patience=3, epochs=2))
    assert result.info["n_steps"] == result.info["max_steps"] == 5
    assert result.info["n_instances_trained"] == 160
    assert set(result.info["best"]) == {"train_loss", "NDCG@10", "HR@10"}
    assert "The budget of 5 steps" in result.info["notes"][0]


def test_a_killed_training_goes_on(copied, train, run):
    class Killed(Exception):
        pass

    def kill(done: int, total: int, message: str) -> None:
        if done == 4:
            raise Killed

    with pytest.raises(Killed):
        run_stage(train(max_steps=8), copied.store, runtime=copied.settings.runtime, progress=kill)
    resumed = run(train(max_steps=8))
    assert resumed.info["resumed_at_step"] == 4
    undisturbed = run_stage(train(max_steps=8), copied.store, runtime=copied.settings.runtime, force=True)
    assert undisturbed.outcome is Outcome.COMPUTED
    assert undisturbed.ref == resumed.ref


def test_what_the_key_is_made_of(copied, train):
    key = train().key()
    for changed in ({"max_steps": 3}, {"max_history": None}, {"response": "Next:"}, {"seed": 2}):
        assert train(**changed).key() != key
    plain = copied.settings.language_model
    other = plain.model_copy(update={"instruction": "Something else.", "pooling": "last"})
    refs = {"ingest": copied.refs["ingest"], "backbone": copied.refs["backbone"]}
    assert e4srec_call(other, SETTINGS, **refs).key() == key  # P2Rec's prompt is not E4SRec's
    assert set(train().inputs) == {"sequences", "embeddings"}  # no held-out item
    assert set(train(patience=2).inputs) == {"sequences", "embeddings", "validation"}
    with pytest.raises(ModelError, match="There is no language model '/no/such/model'"):
        e4srec_call(LanguageModelSettings(name_or_path="/no/such/model"), SETTINGS, **refs)


def test_cost(copied, run):
    call = cost_call(
        copied.settings.language_model,
        copied.settings.finetune,
        SETTINGS,
        CostSettings(sample_tokens=400, rounds=2),
        ingest=copied.refs["ingest"],
        backbone=copied.refs["backbone"],
        clusters=copied.refs["clusters"],
        preferences=copied.refs["preferences"],
    )
    result = run(call)
    assert run(call).outcome is Outcome.CACHED
    rows = copied.store.load(result.ref).table("language_model_cost").to_pylist()
    assert [(row["method"], row["phase"], row["level"]) for row in rows] == [
        ("p2rec", "training", "user"),
        ("e4srec", "training", "instance"),
        ("p2rec", "inference", "item"),
        ("e4srec", "inference", "user"),
    ]
    assert rows[0]["n_instances"] == rows[3]["n_instances"] == 60
    for row in rows:
        assert row["n_tokens_measured"] <= row["n_tokens"]
        whole = row["seconds_measured"] * row["n_tokens"] / row["n_tokens_measured"]
        assert row["seconds_per_epoch"] == pytest.approx(whole)
        assert row["seconds_measured"] > 0
    ratios = result.info["ratios"]
    assert ratios["training_tokens"] == pytest.approx(rows[1]["n_tokens"] / rows[0]["n_tokens"])
    assert ratios["inference_seconds"] > 0
    assert result.info["machine"]["device"] == "cpu"
    assert result.info["machine"]["threads"] == 1


def test_the_cost_is_that_of_the_model_that_is_trained(copied, run, tmp_path, monkeypatch):
    settings = copied.settings
    item_ids = copied.store.load(copied.refs["ingest"]).table("items", ["item_id"]).column("item_id").to_pylist()
    texts = tmp_path / "texts.tsv"
    texts.write_text("".join(f"{item_id}\ta thing\n" for item_id in ("id", *item_ids)), encoding="utf-8")
    text = run(text_call(settings.language_model, texts, None, ingest=copied.refs["ingest"], seed=1))
    refs = {name: copied.refs[name] for name in ("ingest", "backbone", "clusters", "preferences")} | {"text": text.ref}
    trained = run(finetune_call(settings.language_model, settings.finetune, **refs))
    measured: list[UserObjective] = []

    def measuring(users: UserObjective, *others: Any, **options: Any) -> CostResult:
        measured.append(users)
        return measure_cost(users, *others, **options)

    monkeypatch.setattr("p2rec_core.language.cost.measure_cost", measuring)
    cost = CostSettings(sample_tokens=100, rounds=1)
    run(cost_call(settings.language_model, settings.finetune, SETTINGS, cost, **refs))
    parameters = {name: p.shape for name, p in measured[0].model.named_parameters() if p.requires_grad}
    adapter = copied.store.load(trained.ref).tensors("adapter")
    assert {name: tuple(shape) for name, shape in parameters.items()} == {name: t.shape for name, t in adapter.items()}
    assert measured[0].preferences.shape[1] == 4
    assert [grouping.n_clusters for grouping in measured[0].finer] == [8]


@pytest.mark.parametrize("item_text", [True, False])
def test_extras_read_slots_of_their_pipeline(finished, item_text, tmp_path):
    settings = finished.settings
    lm = settings.language_model.model_copy(update={"item_text": item_text})
    texts = TextFile(tmp_path / "texts.tsv")
    recipe = Recipe("small", finished.source, texts, settings.model_copy(update={"language_model": lm}), tuple(EXTRAS))
    slots = {slot.name: slot for slot in recipe.slots()}
    assert {need for slot in slots.values() for need in slot.needs} <= slots.keys()
    assert [slot.name for slot in recipe.slots()[-4:]] == ["e4srec", "e4srec.evaluation", "cost", "probe"]
    assert slots["cost"].needs == slots["finetune"].needs
    assert ("text" in slots["cost"].needs) is item_text


def test_knowledge_of_a_model_that_was_not_tuned(copied, run):
    settings = copied.settings
    refs = {"backbone": copied.refs["backbone"], "clusters": copied.refs["clusters"]}

    def call(adapter: Any, **changes: Any) -> StageCall:
        finetune = settings.finetune.model_copy(update=changes)
        return knowledge_call(settings.language_model, finetune, **refs, adapter=adapter)

    tuned, plain = run(call(copied.refs["finetune"])), run(call(None))
    assert tuned.outcome is Outcome.CACHED
    assert (plain.info["fine_tuned"], tuned.info["fine_tuned"]) == (False, True)
    tables = [copied.store.load(result.ref).table("item_knowledge") for result in (tuned, plain)]
    knowledge = [vectors(table, "knowledge") for table in tables]
    assert knowledge[0].shape == knowledge[1].shape
    assert not np.allclose(*knowledge)
    assert call(None, lora_rank=7).key() == plain.ref.key  # an adapter that changes nothing
    assert call(None, seed=7).key() != plain.ref.key
