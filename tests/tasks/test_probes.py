"""The probe of knowledge as a cached stage."""

import numpy as np
import pytest

from p2rec_core.probes import category_probe, copurchase_probe, next_item_probe
from p2rec_core.settings.sequence_model import Fusion, FusionSettings, KnowledgeSource, Whitening
from p2rec_core.whitening import pca_whitened, side_by_side, standardised
from storage.sample import generate_sample, write_sample
from tasks.arrays import ragged, targets, vectors
from tasks.probes import probe_call
from tasks.stage import Outcome, StageCall, StageResult, run_stage
from tasks.text import text_call

FUSION = FusionSettings(n_components=8)


@pytest.fixture
def call(finished):
    """The probe of a source of knowledge."""

    def call(fusion: FusionSettings = FUSION, *, knowledge: str = "knowledge", seed: int = 1, **more) -> StageCall:
        drawn = fusion.source is KnowledgeSource.RANDOM
        given = None if drawn else finished.refs[knowledge]
        return probe_call(fusion, ingest=finished.refs["ingest"], knowledge=given, seed=seed, **more)

    return call


@pytest.fixture
def run(copied):
    """Run a call in a store that may be changed."""

    def run(call: StageCall) -> StageResult:
        return run_stage(call, copied.store, runtime=copied.settings.runtime)

    return run


def changed(**values) -> FusionSettings:
    return FUSION.model_copy(update=values)


def test_it_is_the_probes_of_the_matrix_that_the_item_table_gets(copied, call, run):
    result = run(call())
    assert run(call()).outcome is Outcome.CACHED
    ingest, knowledge = (copied.store.load(copied.refs[slot]) for slot in ("ingest", "knowledge"))
    sequences = ragged(ingest.table("sequences"))
    validation = targets(ingest.table("validation"), len(sequences))
    prepared = pca_whitened(vectors(knowledge.table("item_knowledge"), "knowledge"), 8)
    expected = [
        *next_item_probe(prepared, sequences, validation),
        copurchase_probe(prepared, sequences),
        category_probe(prepared, None),
    ]
    rows = copied.store.load(result.ref).table("probes").to_pylist()
    assert rows == [vars(measure) for measure in expected]
    assert rows[-1] == {
        "probe": "category",
        "metric": "accuracy of 10 nearest",
        "group": "all",
        "value": None,
        "chance": None,
        "n": 0,
    }
    info = result.info
    assert (info["source"], info["width"], info["n_items"]) == ("tuned", 8, len(prepared))
    assert info["metrics"] == [row for row in rows if row["group"] == "all"]


def test_other_preparations_and_sources_are_probed_as_they_are(copied, call, run):
    knowledge = vectors(copied.store.load(copied.refs["backbone"]).table("item_embeddings"), "embedding")
    sequences = ragged(copied.store.load(copied.refs["ingest"]).table("sequences"))
    for whitening, prepared in ((Whitening.STANDARDISE, standardised(knowledge)), (Whitening.NONE, knowledge)):
        fusion = changed(source=KnowledgeSource.BACKBONE, whitening=whitening)
        result = run(call(fusion, knowledge="backbone"))
        [row] = [row for row in result.info["metrics"] if row["probe"] == "copurchase"]
        assert row["value"] == copurchase_probe(prepared, sequences).value
        assert result.info["width"] == knowledge.shape[1]


def test_texts_stand_beside_the_knowledge(tmp_path, copied, call, run):
    ingest = copied.store.load(copied.refs["ingest"])
    item_ids = ingest.table("items", ["item_id"]).column("item_id").to_pylist()
    file = tmp_path / "texts.tsv"
    lines = [f"{item_id}\t{'red' if i % 2 else 'green'} thing {i % 5}" for i, item_id in enumerate(item_ids)]
    file.write_text("\n".join(["item_id\ttitle", *lines]) + "\n", encoding="utf-8")
    text = run(text_call(copied.settings.language_model, file, None, ingest=copied.refs["ingest"], seed=1)).ref
    tuned = vectors(copied.store.load(copied.refs["knowledge"]).table("item_knowledge"), "knowledge")
    said = vectors(copied.store.load(text).table("item_texts"), "embedding")
    result = run(call(text=text))
    assert result.info["source"] == "tuned beside text"
    prepared = pca_whitened(side_by_side(tuned, said), 8)
    [row] = [row for row in result.info["metrics"] if row["probe"] == "copurchase"]
    assert row["value"] == copurchase_probe(prepared, ragged(ingest.table("sequences"))).value
    assert call(text=text).key() != call().key()


def test_the_true_category_comes_from_the_table_of_item_texts(tmp_path, copied, call, run):
    # the fixture's interactions are this sample's
    items = write_sample(tmp_path, generate_sample(n_users=60, n_items=40, n_categories=4, mean_length=8))["items"]
    row = run(call(item_texts=items)).info["metrics"][-1]
    assert row["n"] == copied.store.load(copied.refs["ingest"]).table("items").num_rows
    assert 0 <= row["value"] <= 1
    assert 0.25 <= row["chance"] < 0.5
    assert call(item_texts=items).key() != call().key()
    without = tmp_path / "items.tsv"
    without.write_text("item_id\ttitle\ni0001\ta thing\n", encoding="utf-8")
    assert call(item_texts=without).key() == call().key()


def test_the_key_holds_what_is_read_and_nothing_else(call):
    assert {file for _, file in call().inputs.values()} == {"sequences", "validation", "items", "item_knowledge"}
    same = {"kind": Fusion.GATE, "trainable": True, "smoothing": 0.0, "n_neighbours": 3, "temperature": 1.0}
    for name, value in same.items():
        assert call(changed(**{name: value})).key() == call().key(), name
    assert call(seed=2).key() == call().key()
    assert call(changed(n_components=7)).key() != call().key()
    plain = {"whitening": Whitening.STANDARDISE}
    assert call(changed(**plain)).key() != call().key()
    assert call(changed(n_components=7, **plain)).key() == call(changed(**plain)).key()
    noise = {"source": KnowledgeSource.RANDOM}
    assert call(changed(**noise), seed=2).key() != call(changed(**noise)).key()
    assert call(changed(n_components=7, **noise)).key() != call(changed(**noise)).key()


def test_noise_is_that_of_the_recommender(copied, call, run):
    result = run(call(changed(source=KnowledgeSource.RANDOM, whitening=Whitening.NONE), seed=5))
    ingest = copied.store.load(copied.refs["ingest"])
    sequences = ragged(ingest.table("sequences"))
    shape = (ingest.table("items").num_rows, 8)
    noise = np.random.default_rng((5, 0x6E6F697365)).standard_normal(shape).astype(np.float32)
    [row] = [row for row in result.info["metrics"] if row["probe"] == "copurchase"]
    assert row["value"] == copurchase_probe(noise, sequences).value
