"""What cannot be computed says why, and leaves the store as it was."""

from pathlib import Path

import pytest

from p2rec_core.errors import ArtefactMissing, DataError, ModelError, P2RecError, ResourceError, SettingsError
from storage.artefacts import ArtefactRef, Store
from tasks.clusters import clusters_call
from tasks.dag import pipeline_slots
from tasks.ingest import ingest_call
from tasks.stage import StageCall, run_stage


def assert_fails(copied, driver, photograph, settings, kind: type[P2RecError], words: str, source: Path | None = None):
    """The run fails with the error; no artefact is added or changed, and nothing is left being written."""
    before = photograph(copied.store)
    with pytest.raises(kind, match=words) as caught:
        driver.run(settings, source or copied.source, copied.store)
    assert caught.value.remedy.endswith(".")
    assert photograph(copied.store) == before
    assert not list(copied.store.staging.iterdir())
    # and the store is as good as before
    results = driver.run(copied.settings, copied.source, copied.store)
    assert {str(r.outcome) for r in results.values()} == {"cached"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"\x00\x01\x02\xff" * 50, "bad.txt"),
        (b"u1 a b c\nu2 a\n", "min_user_interactions = 5"),
        (None, "does not exist"),
    ],
    ids=["empty", "binary", "too little", "missing"],
)
def test_a_file_that_cannot_be_used(copied, driver, quick, photograph, tmp_path, content, words):
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    assert_fails(copied, driver, photograph, quick(), DataError, words, path)


def test_a_directory_instead_of_a_file(copied, driver, quick, photograph, tmp_path):
    assert_fails(copied, driver, photograph, quick(), DataError, "is a directory", tmp_path)


def test_more_clusters_than_items(copied, driver, quick, photograph):
    settings = quick({"clusters.n_clusters": 41})
    assert_fails(copied, driver, photograph, settings, DataError, "clusters.n_clusters = 41, but only 40 distinct")


def test_more_components_than_rank(copied, driver, quick, photograph):
    settings = quick({"fusion.n_components": 64})
    assert_fails(copied, driver, photograph, settings, DataError, "64 principal components are asked for")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clusters.n_clusters": 41}, "clusters.n_clusters = 41, but only 40 items have training interactions"),
        ({"clusters.finer": [20, 41]}, "clusters.finer = 41, but only 40 items"),
        ({"fusion.n_components": 40}, "fusion.n_components = 40, but 40 items span 39 components at most"),
    ],
)
def test_items_are_counted_before_a_backbone_is_trained(copied, driver, quick, photograph, monkeypatch, changes, words):
    trained = []
    monkeypatch.setattr("p2rec_core.training.recommender.train_recommender", lambda *_, **__: trained.append(1))
    settings = quick({"backbone.encoder.n_layers": 3} | changes)
    before = photograph(copied.store)
    with pytest.raises(DataError, match=words):
        driver.run(settings, copied.source, copied.store)
    assert not trained
    assert photograph(copied.store) == before


def test_what_is_asked_of_items_later_leaves_a_backbones_key(copied, quick):
    calls = [
        next(slot for slot in pipeline_slots(settings, copied.source) if slot.name == "backbone").call(
            {"ingest": copied.refs["ingest"]}
        )
        for settings in (quick(), quick({"clusters.n_clusters": 41}), quick({"fusion.n_components": 40}))
    ]
    assert len({call.key() for call in calls}) == 1


def test_without_groups_items_need_not_be_many(copied, driver, quick):
    settings = quick({"backbone.encoder.n_layers": 3, "clusters.n_clusters": 41, "variants": ["base"]})
    assert "clusters" not in driver.run(settings, copied.source, copied.store)


@pytest.mark.parametrize("name", ["/no/such/directory", "no-such-model", "../escape"])
def test_a_language_model_that_is_not_there(copied, driver, quick, photograph, name):
    settings = quick({"language_model.name_or_path": name})
    assert_fails(copied, driver, photograph, settings, ModelError, "There is no language model")


def test_a_directory_without_a_language_model(copied, driver, quick, photograph, tmp_path):
    settings = quick({"language_model.name_or_path": str(tmp_path)})
    assert_fails(copied, driver, photograph, settings, ModelError, str(tmp_path))


def test_an_unknown_backbone(quick):
    said = r"recommender.encoder.backbone = 'gru': there is no backbone 'gru' \(did you mean gru4rec\?\)"
    with pytest.raises(SettingsError, match=said):
        quick({"recommender.encoder.backbone": "gru"})


def test_no_gpu(copied, driver, quick, photograph, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    settings = quick({"runtime.device": "cuda", "recommender.encoder.n_layers": 3})
    assert_fails(copied, driver, photograph, settings, SettingsError, "runtime.device = 'cuda', but torch")


def test_an_input_that_is_gone(copied, quick):
    ref = copied.refs["backbone"]
    gone = ArtefactRef(ref.stage, "0" * 32, ref.files)
    call = clusters_call(quick({"clusters.n_clusters": 5}).clusters, backbone=gone)
    with pytest.raises(ArtefactMissing, match="There is no artefact backbone/0000"):
        run_stage(call, copied.store, runtime=quick().runtime)
    assert not list(copied.store.staging.iterdir())


def test_early_stopping_without_a_single_validation_item(copied, driver, quick, photograph, tmp_path, write):
    # users of two items are all training
    path = write(tmp_path / "short.txt", [[f"u{n}", f"i{n % 5}", f"i{(n + 1) % 5}"] for n in range(20)])
    settings = quick({"ingest.min_user_interactions": 1, "variants": ["base"]})
    with pytest.raises(DataError, match="No user has a validation item"):
        driver.run(settings, path, copied.store)


@pytest.mark.parametrize("change", ["other content", "gone"])
def test_a_file_that_is_not_the_one_that_the_key_was_made_of_any_more(copied, quick, tmp_path, write, change):
    """What it holds now would be found under the key of what it held before."""
    path = write(tmp_path / "rows.txt", [[f"u{n}", "a", "b", "c"] for n in range(9)])
    call = ingest_call(path, quick({"ingest.min_user_interactions": 1}).ingest)
    before = {a.key for a in copied.store.artefacts()}
    if change == "gone":
        path.unlink()
    else:
        write(path, [[f"u{n}", "a", "b", "d"] for n in range(9)])
    with pytest.raises(DataError, match=r"changed while the stage ingest read it|rows\.txt does not exist"):
        run_stage(call, copied.store, runtime=quick().runtime)
    assert {a.key for a in copied.store.artefacts()} == before
    assert not list(copied.store.staging.iterdir())


class PanicException(BaseException):
    """Has the name and the base of what tokenizers raises."""


class OutOfMemoryException(Exception):
    """Has the name of what DuckDB raises."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 8 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
        OutOfMemoryException("failed to allocate data of size 8.0 MiB"),
        PanicException("The global thread pool has not been initialized.: ThreadPoolBuildError { kind: IOError(...) }"),
        ImportError("_ufuncs_cxx.so: failed to map segment from shared object"),
    ],
    ids=lambda error: str(error)[:20] or "no text",
)
def test_too_little_memory_is_one_error_and_nothing_is_published(quick, tmp_path, error):
    store = Store.open(tmp_path / "store")

    def compute(context):
        context.writer.json("half", {"done": "half"})
        raise error

    call = StageCall("ingest", "tasks.ingest", {"n": 1}, {}, compute)
    with pytest.raises(ResourceError, match="The stage ingest ran out of memory") as caught:
        run_stage(call, store, runtime=quick().runtime)
    assert caught.value.__cause__ is error
    assert "nothing was published" in caught.value.remedy
    assert not list(store.artefacts())
    assert not list(store.staging.iterdir())


@pytest.mark.parametrize(
    ("free", "expected"), [(10 << 20, ResourceError), (8 << 30, RuntimeError), (None, RuntimeError)]
)
def test_what_may_be_lack_of_memory_is_it_where_memory_is_scarce(quick, tmp_path, monkeypatch, free, expected):
    monkeypatch.setattr("p2rec_core.memory.free_bytes", lambda device: free)

    def compute(context):
        raise RuntimeError("could not create a primitive")

    call = StageCall("ingest", "tasks.ingest", {"n": 1}, {}, compute)
    with pytest.raises(expected, match="could not create a primitive"):
        run_stage(call, Store.open(tmp_path / "store"), runtime=quick().runtime)


def test_another_error_of_a_library_stays_what_it_is(quick, tmp_path):
    def compute(context):
        raise RuntimeError("size mismatch")

    call = StageCall("ingest", "tasks.ingest", {"n": 1}, {}, compute)
    with pytest.raises(RuntimeError, match="size mismatch"):
        run_stage(call, Store.open(tmp_path / "store"), runtime=quick().runtime)
