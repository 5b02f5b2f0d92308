"""Curves and metrics where other programs look for them, read back by these programs; a faiss index, asked."""

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from p2rec_core.errors import ExtraMissing
from storage.artefacts import Artefact, Store
from storage.snapshots import Snapshot, publish_snapshot, read_snapshot
from tasks.arrays import learning_curve
from tasks.export import ItemVectors, export_faiss
from tasks.outputs import OutputNotWritten
from tasks.tracking import TrackingFailed, log_to_mlflow, snapshot_runs, write_tensorboard

CURVE = [(1, "loss", 3.5), (1, "NDCG@10", 0.125), (2, "loss", 2.5), (2, "NDCG@10", 0.25)]
SETTINGS: dict[str, Any] = {"encoder": {"backbone": "sasrec", "n_layers": 2}, "seed": 1}


def metrics() -> pa.Table:
    row = {"method": "sasrec", "variant": "base", "split": "test", "seen": "keep", "metric": "NDCG", "k": 10}
    table = pa.Table.from_pylist([row | {"value": 0.375, "n_users": 5}])
    return table.cast(pa.schema([f.with_type(pa.int32()) if f.name in ("k", "n_users") else f for f in table.schema]))


def make(store: Store, stage: str, table: str, rows: pa.Table) -> Artefact:
    with store.write(stage, "k1", settings=SETTINGS, inputs={}, fingerprint="f" * 32) as writer:
        writer.table(table, rows)
        return writer.publish({}, 1.0)


@pytest.fixture
def snapshot(tmp_path: Path) -> "tuple[Store, Snapshot]":
    store = Store.open(tmp_path / "store")
    entries = {
        "recommender.sasrec.base": make(store, "recommender", "history", learning_curve(CURVE)).ref(),
        "evaluation.sasrec.base": make(store, "evaluation", "metrics", metrics()).ref(),
        "finetune": make(store, "finetune", "finetune_history", learning_curve(CURVE[:1])).ref(),
    }
    publish_snapshot(store, "tiny", entries, {})
    return store, read_snapshot(store, "tiny")


def test_a_snapshots_trainings_with_what_they_led_to(snapshot):
    runs = {run.name: run for run in snapshot_runs(*snapshot)}
    assert set(runs) == {"tiny-1/recommender.sasrec.base", "tiny-1/finetune"}
    base = runs["tiny-1/recommender.sasrec.base"]
    assert base.curves == {"loss": [(1, 3.5), (2, 2.5)], "NDCG_at_10": [(1, 0.125), (2, 0.25)]}
    assert base.metrics == {"test/keep/NDCG_at_10": 0.375}
    assert base.parameters == {"encoder.backbone": '"sasrec"', "encoder.n_layers": "2", "seed": "1"}
    assert base.facts["artefact"] == "recommender/k1"
    assert runs["tiny-1/finetune"].metrics == {}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_what_was_written(snapshot, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    places = write_tensorboard(snapshot_runs(*snapshot), tmp_path / "runs")
    place = tmp_path / "runs" / "tiny-1" / "recommender.sasrec.base"
    assert place in places
    read = EventAccumulator(str(place))
    read.Reload()
    assert [(e.step, e.value) for e in read.Scalars("training/NDCG_at_10")] == [(1, 0.125), (2, 0.25)]
    assert [e.value for e in read.Scalars("test/keep/NDCG_at_10")] == [0.375]
    assert not list((tmp_path / "runs").rglob(".*"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_what_is_new_and_keeps_what_is_there(snapshot, tmp_path):
    pytest.importorskip("tensorboard")
    runs = snapshot_runs(*snapshot)
    assert len(write_tensorboard(runs[:1], tmp_path / "runs")) == 1
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("events*")}
    assert write_tensorboard(runs, tmp_path / "runs") == [tmp_path / "runs" / runs[1].name]
    assert write_tensorboard(runs, tmp_path / "runs") == []
    assert {path: path.read_bytes() for path in before} == before
    anew = dataclasses.replace(runs[0], facts=runs[0].facts | {"artefact": "recommender/0123456789"})
    assert write_tensorboard([anew], tmp_path / "runs") == [tmp_path / "runs" / f"{anew.name}.01234567"]
    assert write_tensorboard([anew, *runs], tmp_path / "runs") == []
    place = tmp_path / "other" / runs[0].name
    place.mkdir(parents=True)
    (place / "mine.txt").write_text("mine")
    with pytest.raises(OutputNotWritten, match="is there already"):
        write_tensorboard(runs, tmp_path / "other")


@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_every_run_once(snapshot, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    runs = snapshot_runs(*snapshot)
    assert log_to_mlflow(runs, uri, "tiny") == (2, 0)
    assert log_to_mlflow(runs, uri, "tiny") == (0, 2)
    client = mlflow.MlflowClient(tracking_uri=uri)
    [place] = [e.experiment_id for e in client.search_experiments() if e.name == "tiny"]
    found = {run.info.run_name: run for run in client.search_runs([place])}
    base = found["tiny-1/recommender.sasrec.base"]
    assert base.info.status == "FINISHED"
    assert base.data.metrics["test/keep/NDCG_at_10"] == 0.375
    assert base.data.params["encoder.n_layers"] == "2"
    curve = client.get_metric_history(base.info.run_id, "training/loss")
    assert [(point.step, point.value) for point in curve] == [(1, 3.5), (2, 2.5)]
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingFailed, match=r"MLflow at http://127\.0\.0\.1:9 did not take the runs"):
        log_to_mlflow(runs, "http://127.0.0.1:9", "tiny")


def vectors() -> ItemVectors:
    drawn = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)
    drawn[7] = 0
    return ItemVectors(pa.array([f"i{n}" for n in range(50)]), drawn, {})


def test_a_faiss_index_gives_the_nearest_by_cosine(tmp_path):
    faiss = pytest.importorskip("faiss")
    found = vectors()
    before = found.vectors.copy()
    assert export_faiss(found, tmp_path / "index") == 50
    np.testing.assert_array_equal(found.vectors, before)
    index = faiss.read_index(str(tmp_path / "index" / "index.faiss"))
    assert (tmp_path / "index" / "ids.txt").read_text().split() == found.item_ids.to_pylist()
    unit = before / np.maximum(np.linalg.norm(before, axis=1, keepdims=True), 1e-12)
    cosine, nearest = index.search(unit[3:4], 5)
    expected = unit @ unit[3]
    np.testing.assert_array_equal(nearest[0], np.argsort(-expected)[:5])
    np.testing.assert_allclose(cosine[0], np.sort(expected)[::-1][:5], rtol=1e-5)


@pytest.mark.parametrize(
    ("package", "call", "remedy"),
    [
        ("faiss", lambda snapshot, path: export_faiss(vectors(), path), "pip install faiss-cpu"),
        ("mlflow", lambda snapshot, path: log_to_mlflow([], "sqlite://", "x"), "pip install mlflow-skinny"),
        ("tensorboard", lambda snapshot, path: write_tensorboard([], path), "pip install tensorboard"),
    ],
)
def test_an_extra_that_is_not_installed_is_named(snapshot, tmp_path, monkeypatch, package, call, remedy):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    importlib.invalidate_caches()
    with pytest.raises(ExtraMissing, match="is not installed") as caught:
        call(snapshot, tmp_path / "out")
    assert remedy in caught.value.remedy
    assert not (tmp_path / "out").exists()
