"""The nightly refresh: what is kept, what is computed, and what may not become the current snapshot."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.artifacts import Artifact

from flows.cli.refresh import refresh as refresh_command
from flows.pipeline import pipeline
from flows.refresh import REFUSED, refresh
from flows.refresh_report import RefreshReport
from flows.summary import language_model_note
from p2rec_core.errors import DataError, RefreshRefused, SettingsError, StoreError
from p2rec_core.settings.data import IngestSettings
from p2rec_core.settings.pipeline import PipelineSettings, describe_settings, pipeline_settings
from storage.artefacts import Artefact, Store
from storage.ingest.nights import nights
from storage.ingest.pipeline import ingest
from storage.remote.bucket import Bucket
from storage.remote.layout import read_current
from storage.sample import generate_sample
from storage.snapshots import Snapshot, list_snapshots, publish_snapshot, read_snapshot, refusal_of, rollback
from tasks.arrays import vectors
from tasks.other_settings import language_model_name, settings_of
from tasks.progress import listening
from tasks.refresh.knowledge import READ
from tasks.sources import register

SETTINGS = [
    "backbone.encoder.hidden_size=16",
    "backbone.encoder.inner_size=32",
    "backbone.training.max_epochs=3",
    "backbone.training.batch_positions=1024",
    "recommender.encoder.hidden_size=16",
    "recommender.encoder.inner_size=32",
    "recommender.training.max_epochs=3",
    "recommender.training.batch_positions=1024",
    "clusters.n_clusters=6",
    "clusters.finer=[12]",
    "clusters.n_init=1",
    "language_model.name_or_path=random-llama-tiny",
    "finetune.epochs=1",
    "fusion.n_components=8",
    "fusion.item_text=true",
    'variants=["base", "p2rec"]',
    "runtime.threads=1",
    # nothing is learned in so few epochs that a metric could stand for
    "refresh.epochs=2",
    "refresh.max_metric_drop=1.0",
    "refresh.max_hold_out_drop=1.0",
    "refresh.min_coverage=0.0",
    "refresh.min_cluster_agreement=0.0",
    "refresh.max_vanished=0.0",
    "refresh.finetune=never",
]
CUT = {"per_user": 1, "late_users": 0.05, "late_items": 0.05, "min_rows": 5, "seed": 1}


@dataclass(frozen=True)
class House:
    """A store, and the file of interactions of the dataset ``clicks`` in it."""

    store: Path
    file: Path

    def put(self, table: pa.Table) -> None:
        """Replace today's interactions."""
        pq.write_table(table, self.file)

    def slots(self, number: int | None = None) -> dict[str, Artefact]:
        """The artefacts of a snapshot."""
        store = Store.open(self.store)
        return {slot: store.load(ref) for slot, ref in read_snapshot(store, "clicks", number).entries.items()}

    def current(self) -> int:
        return read_snapshot(Store.open(self.store), "clicks").number


def refreshed(house: House, *assignments: str) -> tuple[RefreshReport, str]:
    settings = pipeline_settings(dataset="clicks", assignments=[*SETTINGS, *assignments])
    state = refresh(dataset="clicks", settings=settings, store=house.store, return_state=True)
    return RefreshReport.from_json(state.result(raise_on_failure=state.name != REFUSED)), state.name


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[pa.Table]:
    """Three nights."""
    path = tmp_path_factory.mktemp("whole") / "whole.txt"
    path.write_text(generate_sample(n_users=160, n_items=60, n_categories=6, mean_length=12).text(), encoding="utf-8")
    result = ingest(path, **IngestSettings(timestamp_column=None).model_dump(mode="json"))
    return nights(result, 3, **CUT)


@pytest.fixture(scope="module")
def begun(prefect_server: None, tables: list[pa.Table], tmp_path_factory: pytest.TempPathFactory) -> House:
    """The beginning, computed by an ordinary run; not to be changed."""
    directory = tmp_path_factory.mktemp("begun")
    house = House(directory / "store", directory / "clicks.parquet")
    house.put(tables[0])
    texts = directory / "texts.tsv"
    item_ids = sorted(set(tables[-1].column("item_id").to_pylist()))
    words = ("red", "green", "small", "large", "old", "new", "round")
    lines = [f"{name}\t{words[i % 7]} {words[i % 5]} thing {i % 3}" for i, name in enumerate(item_ids)]
    texts.write_text("\n".join(["item_id\ttitle", *lines]) + "\n", encoding="utf-8")
    store = Store.open(house.store)
    register(store, "clicks", house.file, IngestSettings(format="parquet"), item_texts=texts)
    pipeline(dataset="clicks", settings=pipeline_settings(dataset="clicks", assignments=SETTINGS), store=house.store)
    return house


@pytest.fixture(scope="module")
def first_night(begun: House, tables: list[pa.Table]) -> tuple[House, RefreshReport]:
    """The first night; not to be changed."""
    begun.put(tables[1])
    report, name = refreshed(begun)
    assert name == "Completed"
    return begun, report


@pytest.fixture
def copied(first_night: tuple[House, RefreshReport], tmp_path: Path, tables: list[pa.Table]) -> House:
    """The house after the first night, to change at will."""
    house = House(Path(shutil.copytree(first_night[0].store, tmp_path / "store")), tmp_path / "clicks.parquet")
    registered = house.store / "datasets" / "clicks.json"
    entry = json.loads(registered.read_text(encoding="utf-8"))
    del entry["digest"]
    registered.write_text(json.dumps(entry | {"path": str(house.file)}), encoding="utf-8")
    house.put(tables[1])
    return house


def test_the_first_night_goes_on_from_the_ordinary_run(first_night: tuple[House, RefreshReport]) -> None:
    house, report = first_night
    assert (report.base, report.made, report.run.snapshot, report.refused) == (1, 2, 2, ())
    outcomes = {name: str(result.outcome) for name, result in report.run.results.items()}
    assert [name for name, outcome in outcomes.items() if outcome == "cached"] == [
        "finetune",
        "recommender.sasrec.base",
    ]
    assert set(house.slots(1)) <= set(house.slots(2))
    inputs = house.slots()["backbone"].manifest.inputs
    assert inputs["previous_model"].key == house.slots(1)["backbone"].manifest.key


def test_indices_are_kept_and_new_ones_appended(first_night: tuple[House, RefreshReport]) -> None:
    house, report = first_night
    for table, name in (("users", "user_id"), ("items", "item_id")):
        before, after = (house.slots(n)["ingest"].table(table, [name]).column(name).to_pylist() for n in (1, 2))
        assert after[: len(before)] == before
        assert len(after) - len(before) == report.changes[f"n_new_{table}"]
    assert report.changes["n_new_items"] > 0
    assert report.changes["n_rows_lost"] == report.changes["n_rewritten_users"] == 0
    told = house.slots()["changes"].table("changes")
    assert dict(zip(told["measure"].to_pylist(), told["value"].to_pylist(), strict=True)) == report.changes


def test_knowledge_of_items_that_stayed_is_copied_bit_by_bit(first_night: tuple[House, RefreshReport]) -> None:
    house, _ = first_night
    before, after = (vectors(house.slots(n)["knowledge"].table("item_knowledge"), "knowledge") for n in (1, 2))
    info = house.slots()["knowledge"].manifest.info
    same = (before == after[: len(before)]).all(axis=1)
    assert info["n_copied"] == same.sum() > 0
    assert info["n_embedded"] == len(after) - same.sum() > 0
    read = house.slots()["knowledge"].tensors(READ)
    assert read["embedded"].shape == read["features"].shape == (len(after), 32)


def test_texts_that_are_the_same_are_copied(first_night: tuple[House, RefreshReport]) -> None:
    house, report = first_night
    before, after = (vectors(house.slots(n)["text"].table("item_texts"), "embedding") for n in (1, 2))
    np.testing.assert_array_equal(after[: len(before)], before)
    assert report.run.results["text"].info["n_embedded"] == report.changes["n_new_items"]


def test_the_summary_tells_where_texts_are_read(first_night: tuple[House, RefreshReport]) -> None:
    note = language_model_note(first_night[1].run)
    assert "reading the items' embeddings and texts; the texts stand beside its states; its category against" in note


def test_the_gate_is_in_the_record_and_in_prefect(first_night: tuple[House, RefreshReport]) -> None:
    house, report = first_night
    info = read_snapshot(Store.open(house.store), "clicks").info
    assert info["refresh"]["base"] == 1
    assert [check["name"] for check in info["refresh"]["checks"]] == [check.name for check in report.checks]
    assert len(report.checks) == 6 + 2 * 3
    assert info["refresh"]["drift_since_tuning"]["preferences"] == report.changes["preference_drift"]
    shown = Artifact.get("refresh").data
    assert "Snapshot 2 is the current one now; before it was 1." in shown
    assert "items were embedded by the language model" in shown


def test_no_held_out_item_reaches_a_training_stage(first_night: tuple[House, RefreshReport]) -> None:
    house, _ = first_night
    read: dict[str, set[str]] = {}
    for slot, artefact in house.slots().items():
        files = {ref.file for ref in artefact.manifest.inputs.values() if ref.stage == "ingest"}
        read.setdefault(slot.split(".")[0], set()).update(files)
    held_out = {stage for stage, files in read.items() if files & {"test", "interactions"}}
    assert held_out == {"changes", "comparison", "evaluation"}
    assert {stage for stage, files in read.items() if "validation" in files} == {
        *("backbone", "recommender", "comparison", "evaluation"),
    }


def test_a_night_without_anything_new_does_nothing(copied: House) -> None:
    report, name = refreshed(copied)
    assert (name, report.made, report.run.results, copied.current()) == ("Completed", None, {}, 2)


def test_a_night_without_anything_new_pushes_what_the_bucket_lacks_and_a_refused_one_nothing(
    copied: House, tmp_path: Path
) -> None:
    bucket = Bucket.open(f"file://{tmp_path}/bucket", create=True)
    asked = f"runtime.push_to={bucket.address}"
    assert f"Snapshot 2 of clicks is the current one of {bucket.address}" in str(refreshed(copied, asked)[0].run.pushed)
    rollback(Store.open(copied.store), "clicks")
    report, name = refreshed(copied, asked, "refresh.max_preference_drift=0.0")
    assert (name, report.run.pushed) == (REFUSED, None)
    assert read_current(bucket, "clicks").number == 2


def test_a_refused_night_is_kept_told_and_rolled_past(
    copied: House, capsys: pytest.CaptureFixture[str], tables: list[pa.Table]
) -> None:
    store = Store.open(copied.store)
    rollback(store, "clicks")
    strict = "refresh.max_preference_drift=0.0"
    arguments = {"dataset": "clicks", "store": copied.store, "assignments": [*SETTINGS, strict]}
    with pytest.raises(RefreshRefused, match="Snapshot 3 was made and refused; snapshot 1 stays") as refused:
        refresh_command(**arguments, as_json=True)
    assert refused.value.exit_status == 6
    assert "drift of the users' preferences is 0." in refused.value.problem
    assert "`p2rec promote 3 -d clicks`" in refused.value.remedy
    report = RefreshReport.from_json(json.loads(capsys.readouterr().out))
    assert {str(result.outcome) for result in report.run.results.values()} == {"cached"}
    assert copied.current() == 1
    assert refusal_of(read_snapshot(store, "clicks", 3)) == report.refused
    assert "is refused" not in Artifact.get("refresh").data
    assert "Snapshot 3 was made and refused" in Artifact.get("refresh").data
    # once more is the same snapshot; with the bound lifted it passes
    assert refreshed(copied, strict)[0].made == 3
    report, _ = refreshed(copied)
    assert (report.made, copied.current()) == (4, 4)
    assert rollback(store, "clicks").number == 2


def test_a_night_that_was_overtaken_at_the_last_moment_does_not_replace_the_other(
    copied: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(copied.store)
    rollback(store, "clicks")

    def overtaken(*args: Any, **kwargs: Any) -> Snapshot:
        monkeypatch.undo()
        publish_snapshot(store, "clicks", {"ingest": read_snapshot(store, "clicks").entries["ingest"]}, {})
        return publish_snapshot(*args, **kwargs)

    monkeypatch.setattr("flows.refresh.publish_snapshot", overtaken)
    report, name = refreshed(copied)
    reason = "snapshot 3 became the current one while snapshot 1 was refreshed"
    assert (name, report.made, report.refused) == (REFUSED, 4, (reason,))
    assert copied.current() == 3
    assert refusal_of(read_snapshot(store, "clicks", 4)) == (reason,)


@pytest.mark.parametrize("number", [1, 2])
def test_the_settings_of_a_snapshot_are_those_that_it_was_made_with(
    first_night: tuple[House, RefreshReport], number: int
) -> None:
    store = Store.open(first_night[0].store)
    snapshot = read_snapshot(store, "clicks", number)
    found = settings_of(snapshot, store)
    made = pipeline_settings(dataset="clicks", assignments=[*SETTINGS, "ingest.format=parquet"])
    of_the_run = {name: json.loads(value) for name, value, _ in describe_settings(made)}
    assert {name: of_the_run[name] for name in found} == found
    assert found["clusters.n_clusters"] == 6
    assert found["language_model.item_text"] is True
    unread = {name.split(".")[0] for name in of_the_run.keys() - found.keys()}
    assert unread <= {"runtime", "refresh", "e4srec", "cost", "ingest", "language_model", "backbone", "recommender"}
    assert language_model_name(snapshot, store, ["/no/such/directory"]) == "random-llama-tiny"


def test_what_cannot_be_refreshed_is_named(copied: House, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"other settings than these: clusters\.max_iter 300 → 7\. .*--set") as e:
        refreshed(copied, "clusters.max_iter=7")
    assert "`p2rec settings -d clicks --snapshot 2 --toml` prints, or by --set clusters.max_iter=300;" in e.value.remedy
    with pytest.raises(SettingsError, match=r"than these: fusion\.item_text true → false"):
        refreshed(copied, "fusion.item_text=false")
    with pytest.raises(SettingsError, match=r"refresh\.gate_k = 7 is none of evaluation\.cutoffs = \[5, 10\]"):
        refreshed(copied, "refresh.gate_k=7")
    with pytest.raises(SettingsError, match=r"it has no knowledge\.untuned"):
        refreshed(copied, "fusion.source=untuned")
    shutil.rmtree(copied.store / "snapshots" / "clicks")
    with pytest.raises(StoreError, match=r"There is nothing to refresh: .* Make the first snapshot with `p2rec run"):
        refreshed(copied)


@pytest.mark.slow
def test_a_killed_night_goes_on_to_the_same_bytes(copied: House, tables: list[pa.Table], tmp_path: Path) -> None:
    other = replace(copied, store=Path(shutil.copytree(copied.store, tmp_path / "other")))
    copied.put(tables[2])
    undisturbed, _ = refreshed(other)

    def killed(stage: str, done: int, total: int, message: str) -> None:
        if stage == "train sasrec +P2Rec" and done:
            raise KeyboardInterrupt

    with listening(killed), pytest.raises(KeyboardInterrupt):
        refreshed(copied)
    assert copied.current() == 2
    report, _ = refreshed(copied)
    assert str(report.run.results["knowledge"].outcome) == "cached"
    assert str(report.run.results["recommender.sasrec.p2rec"].outcome) == "computed"
    assert {n: r.ref for n, r in report.run.results.items()} == {n: r.ref for n, r in undisturbed.run.results.items()}


@pytest.mark.slow
def test_nights_follow_each_other_and_drift_calls_for_a_fine_tuning(copied: House, tables: list[pa.Table]) -> None:
    copied.put(tables[2])
    second, _ = refreshed(copied, "refresh.finetune=on_drift", "refresh.tune_at_preference_drift=0.0")
    assert (second.made, second.tuned) == (3, True)
    assert "preferences 0." in second.tuning
    assert str(second.run.results["finetune"].outcome) == "computed"
    store = Store.open(copied.store)
    assert read_snapshot(store, "clicks").info["refresh"]["drift_since_tuning"]["preferences"] == 0.0
    copied.put(tables[3])
    third, _ = refreshed(copied)
    assert (third.made, third.tuned) == (4, False)
    assert read_snapshot(store, "clicks").entries["finetune"] == read_snapshot(store, "clicks", 3).entries["finetune"]
    assert copied.slots()["ingest"].table("interactions").num_rows <= tables[3].num_rows


def shuffled(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    order = pa.array(rng.permutation(table.num_rows))
    return table.set_column(1, "item_id", table.column("item_id").take(order))


def thinned(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    return table.filter(pa.array(rng.random(table.num_rows) >= 0.3))


@pytest.mark.slow
@pytest.mark.parametrize("poison", [shuffled, thinned])
def test_a_poisoned_night_is_not_promoted_and_a_good_one_follows(
    copied: House, tables: list[pa.Table], poison: Callable[[pa.Table, np.random.Generator], pa.Table]
) -> None:
    copied.put(poison(tables[2], np.random.default_rng(0)))
    report, name = refreshed(copied, "refresh.finetune=always")
    assert (name, report.tuned, copied.current()) == (REFUSED, False, 2)
    assert any("share of the interactions that are lost" in reason for reason in report.refused)
    assert report.tuning.startswith("the interactions are refused")
    copied.put(tables[2])
    report, name = refreshed(copied)
    assert (name, report.base, copied.current()) == ("Completed", 2, 4)
    assert rollback(Store.open(copied.store), "clicks").number == 2


def renamed(table: pa.Table) -> pa.Table:
    return table.rename_columns(["user_id", "product", "timestamp"])


def lost(table: pa.Table) -> pa.Table:
    return table.drop_columns(["user_id"])


def nested(table: pa.Table) -> pa.Table:
    return table.set_column(1, "item_id", pa.array([[item] for item in table.column("item_id").to_pylist()]))


def dated_as_text(table: pa.Table) -> pa.Table:
    return table.set_column(2, "timestamp", pa.array(["yesterday"] * table.num_rows))


def in_milliseconds(table: pa.Table) -> pa.Table:
    times = 1.7e9 + np.arange(table.num_rows)
    times[-40:] *= 1e3
    return table.set_column(2, "timestamp", pa.array(times))


def with_points(table: pa.Table) -> pa.Table:
    """Ids as a table library writes them once a column had a gap."""
    items = pa.array([f"{item}.0" for item in table.column("item_id").to_pylist()])
    return table.set_column(1, "item_id", items)


@pytest.mark.parametrize(
    ("drift", "told"),
    [
        (renamed, r"no column 'item_id'; there are 'user_id', 'product', 'timestamp'"),
        (lost, r"no column 'user_id'; there are 'item_id', 'timestamp'"),
        (nested, r"'item_id'.*list"),
        (dated_as_text, "1260 of 1260 rows cannot be read.*text_timestamp"),
        (in_milliseconds, "milliseconds"),
        (with_points, "No item of the current snapshot occurs in today's interactions"),
    ],
)
def test_a_file_whose_columns_drift_is_refused_by_name_and_nothing_is_published(
    copied: House, tables: list[pa.Table], drift: Callable[[pa.Table], pa.Table], told: str
) -> None:
    copied.put(drift(tables[2]))
    with pytest.raises(DataError, match=f"(?s){told}"):
        refreshed(copied)
    assert copied.current() == 2
    assert len(list_snapshots(Store.open(copied.store), "clicks")) == 2


def reordered(table: pa.Table) -> pa.Table:
    return table.select(["timestamp", "item_id", "user_id"])


def widened(table: pa.Table) -> pa.Table:
    categories = pa.DictionaryArray.from_arrays(pa.array([0] * table.num_rows, pa.int8()), pa.array(["x"]))
    return table.append_column("channel", categories)


def encoded(table: pa.Table) -> pa.Table:
    return table.set_column(1, "item_id", table.column("item_id").dictionary_encode())


@pytest.mark.slow
@pytest.mark.parametrize("drift", [reordered, widened, encoded])
def test_a_file_whose_columns_drift_without_harm_gives_the_same_bytes(
    copied: House, tables: list[pa.Table], drift: Callable[[pa.Table], pa.Table], tmp_path: Path
) -> None:
    other = replace(copied, store=Path(shutil.copytree(copied.store, tmp_path / "other")))
    copied.put(tables[2])
    plain, _ = refreshed(copied)
    copied.put(drift(tables[2]))
    drifted, name = refreshed(other)
    assert (name, drifted.made) == ("Completed", 3)
    assert {n: r.ref.files for n, r in drifted.run.results.items()} == {
        n: r.ref.files for n, r in plain.run.results.items()
    }


def test_settings_of_the_refresh_have_defaults_that_an_ordinary_run_ignores() -> None:
    assert PipelineSettings().refresh == pipeline_settings(dataset="beauty").refresh
