"""Each setting invalidates the stages that read it, and those only."""

import pytest

from p2rec_core.errors import P2RecError
from storage.artefacts import Store
from tasks.dag import STAGES, downstream
from tasks.plan import plan

VARIANTS = ("base", "ci", "p2rec")
RECOMMENDERS = {f"recommender.sasrec.{v}" for v in VARIANTS}
EVALUATIONS = {f"evaluation.sasrec.{v}" for v in VARIANTS}
BELOW_KNOWLEDGE = {"recommender.sasrec.p2rec", "evaluation.sasrec.p2rec"}
BELOW_CLUSTERS = {"preferences", "finetune", "knowledge", "recommender.sasrec.ci", "evaluation.sasrec.ci"}
BELOW_CLUSTERS |= BELOW_KNOWLEDGE


def by_state(finished, settings) -> tuple[set[str], set[str], set[str]]:
    """Slots that would be computed, that wait for one of these, and that are cached."""
    planned = list(plan(finished.slots(settings), finished.store, finished.refs))
    computed = {p.slot.name for p in planned if p.key is not None and not p.cached}
    waiting = {p.slot.name for p in planned if p.key is None}
    return computed, waiting, {p.slot.name for p in planned if p.cached}


@pytest.mark.parametrize(
    ("change", "computed", "waiting"),
    [
        ({}, set(), set()),
        ({"ingest.seed": 2}, {"ingest"}, None),
        ({"ingest.min_user_interactions": 6}, {"ingest"}, None),
        ({"backbone.training.seed": 2}, {"backbone"}, {"clusters"} | BELOW_CLUSTERS),
        ({"backbone.encoder.dropout": 0.1}, {"backbone"}, {"clusters"} | BELOW_CLUSTERS),
        ({"clusters.n_clusters": 5}, {"clusters"}, BELOW_CLUSTERS),
        ({"finetune.learning_rate": 0.01}, {"finetune"}, {"knowledge"} | BELOW_KNOWLEDGE),
        ({"language_model.pooling": "last"}, {"finetune"}, {"knowledge"} | BELOW_KNOWLEDGE),
        ({"language_model.name_or_path": "random-llama-small"}, {"finetune"}, {"knowledge"} | BELOW_KNOWLEDGE),
        ({"fusion.n_components": 7}, {"recommender.sasrec.p2rec"}, {"evaluation.sasrec.p2rec"}),
        ({"recommender.encoder.n_layers": 3}, RECOMMENDERS, EVALUATIONS),
        ({"recommender.training.learning_rate": 0.01}, RECOMMENDERS, EVALUATIONS),
        ({"evaluation.cutoffs": [5, 20]}, EVALUATIONS | {"evaluation.no-learning"}, set()),
        ({"runtime.threads": 2, "runtime.checkpoint_every_s": 9.0, "runtime.knowledge_batch_size": 3}, set(), set()),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_setting_invalidates_what_reads_it(finished, quick, change, computed, waiting):
    everything = set(finished.results)
    if waiting is None:
        waiting = everything - computed
    assert by_state(finished, quick(change)) == (computed, waiting, everything - computed - waiting)


def test_without_early_stopping_nobody_reads_the_validation_items(finished, quick):
    calls = {
        slot.name: slot.call(finished.refs) for slot in finished.slots(quick({"recommender.training.patience": None}))
    }
    assert "validation" not in calls["recommender.sasrec.p2rec"].inputs
    assert "validation" in calls["backbone"].inputs
    # and the test items are read by evaluations only
    for name, call in calls.items():
        files = {file for _, file in call.inputs.values()}
        assert ("test" in files) == name.startswith("evaluation"), name
        assert "interactions" not in files, name


@pytest.mark.parametrize(
    ("change", "slot", "reason"),
    [
        ({"clusters.n_clusters": 5}, "clusters", "changed: n_clusters 4 → 5"),
        ({"backbone.training.max_epochs": 3}, "backbone", "changed: training.max_epochs 2 → 3"),
        ({"backbone.training.patience": None}, "backbone", "changed: training.patience 10 → None; it no longer reads"),
        (
            {"language_model.name_or_path": "random-llama-small"},
            "finetune",
            "changed: language-model has other content",
        ),
    ],
)
def test_the_plan_says_what_has_changed(finished, quick, change, slot, reason):
    planned = {p.slot.name: p for p in plan(finished.slots(quick(change)), finished.store, finished.refs)}
    assert planned[slot].reason.startswith(reason)


def test_the_plan_tells_of_damage_and_of_what_was_never_there(copied, tmp_path):
    ref = copied.refs["clusters"]
    (copied.store.place(ref.stage, ref.key) / "centroids.parquet").write_bytes(b"x")
    planned = {p.slot.name: p for p in plan(copied.slots(), copied.store, copied.refs)}
    assert planned["clusters"].reason.startswith("it is damaged: ")
    assert planned["preferences"].reason == "waits for clusters"
    nothing = list(plan(copied.slots(), Store.open(tmp_path / "empty"), {}))
    assert nothing[0].reason == "it was never computed"
    assert all(p.key is None for p in nothing[1:-1])


def test_the_plan_writes_nothing(copied, photograph):
    before = photograph(copied.store)
    everything = sorted(str(p) for p in copied.store.root.rglob("*"))
    list(plan(copied.slots(), copied.store, copied.refs))
    assert photograph(copied.store) == before
    assert sorted(str(p) for p in copied.store.root.rglob("*")) == everything


def test_slots_come_after_what_they_need(finished):
    seen: set[str] = set()
    for slot in finished.slots():
        assert set(slot.needs) <= seen
        assert slot.stage in STAGES
        assert slot.title
        seen.add(slot.name)
    assert downstream(finished.slots(), "finetune") == [
        "knowledge",
        "recommender.sasrec.p2rec",
        "evaluation.sasrec.p2rec",
    ]


def test_a_model_that_is_not_there_is_an_error_of_the_plan(finished, quick, tmp_path):
    settings = quick({"language_model.name_or_path": str(tmp_path / "none")})
    with pytest.raises(P2RecError, match="There is no language model"):
        list(plan(finished.slots(settings), finished.store, finished.refs))
