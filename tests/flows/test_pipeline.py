"""The flows on a real Prefect server: what runs, what is reused, and what a person sees."""

import contextlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

from deployments.serve import deployments
from flows.forms import settled
from flows.pipeline import pipeline, rerun_stage
from flows.prepare import cached_report, prepared_slots
from flows.report import RunReport
from flows.schedules import Schedule, read_schedules
from flows.tidying import gc
from flows.turns import SKIPPED, WhenBusy, turn
from p2rec_core.errors import DataError, ModelError, SettingsError
from p2rec_core.settings.data import IngestSettings
from p2rec_core.settings.pipeline import PipelineSettings, pipeline_settings
from p2rec_core.settings.sequence_model import Variant
from storage.artefacts import Store
from storage.sample import generate_sample
from storage.snapshots import list_snapshots, read_snapshot
from tasks.plan import plan
from tasks.sources import register

First = tuple[Path, RunReport]

EVERY_SLOT = [
    "ingest",
    "text",
    "backbone",
    "clusters",
    "preferences",
    "finetune",
    "knowledge",
    "recommender.sasrec.base",
    "evaluation.sasrec.base",
    "recommender.sasrec.ci",
    "evaluation.sasrec.ci",
    "recommender.sasrec.p2rec",
    "evaluation.sasrec.p2rec",
    "evaluation.no-learning",
]


@pytest.fixture
def filled(first_run: First, tmp_path: Path) -> Path:
    """A copy of the filled store, to change at will."""
    return Path(shutil.copytree(first_run[0], tmp_path / "store"))


def outcomes(report: RunReport) -> dict[str, str]:
    return {name: str(result.outcome) for name, result in report.results.items()}


def files_of(store: Path) -> dict[str, tuple[int, bytes]]:
    paths = (path for path in (store / "artefacts").rglob("*") if path.is_file())
    return {str(path.relative_to(store)): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def test_first_run_computes_every_slot_and_trains_base_once(first_run: First) -> None:
    _, report = first_run
    assert list(report.results) == EVERY_SLOT
    assert {name for name, outcome in outcomes(report).items() if outcome == "cached"} == {"recommender.sasrec.base"}
    assert report.results["recommender.sasrec.base"].ref == report.results["backbone"].ref
    assert report.synthetic


def test_second_run_computes_nothing_and_rewrites_no_file(filled: Path, small_settings: PipelineSettings) -> None:
    before = files_of(filled)
    report = RunReport.from_json(pipeline(dataset="sample", settings=small_settings, store=filled))
    assert set(outcomes(report).values()) == {"cached"}
    assert files_of(filled) == before
    assert report.snapshot == 1


def test_the_answer_without_prefect_equals_the_flows(filled: Path, small_settings: PipelineSettings) -> None:
    flow = RunReport.from_json(pipeline(dataset="sample", settings=small_settings, store=filled))
    store = Store.open(filled)
    slots, synthetic = prepared_slots("sample", small_settings, store)
    answer = cached_report("sample", synthetic, list(plan(slots, store, {})), store, 0.0, small_settings.runtime)
    assert answer is not None
    assert answer.snapshot == flow.snapshot
    assert {n: (r.ref, r.outcome, r.info) for n, r in answer.results.items()} == {
        n: (r.ref, r.outcome, r.info) for n, r in flow.results.items()
    }


def test_a_language_model_that_is_not_there_is_missed_before_anything_is_computed(
    tmp_path: Path, small_settings: PipelineSettings
) -> None:
    language_model = small_settings.language_model.model_copy(update={"name_or_path": "no-such-model"})
    settings = small_settings.model_copy(update={"language_model": language_model})
    store = Store.open(tmp_path / "store")
    with pytest.raises(ModelError, match="There is no language model 'no-such-model'"):
        prepared_slots("sample", settings, store)
    base = settings.model_copy(update={"variants": (Variant.BASE,)})
    slots, _ = prepared_slots("sample", base, store)  # which reads none
    assert [slot.stage for slot in slots] == ["ingest", "recommender", "evaluation", "evaluation"]


def test_a_run_that_publishes_nothing_leaves_the_snapshot_and_its_artefacts_are_reused(
    filled: Path, small_settings: PipelineSettings
) -> None:
    evaluation = small_settings.evaluation.model_copy(update={"cutoffs": (3,)})
    changed = small_settings.model_copy(update={"evaluation": evaluation})
    report = RunReport.from_json(pipeline(dataset="sample", settings=changed, store=filled, publish=False))
    assert report.snapshot is None
    assert report.results["evaluation.no-learning"].outcome == "computed"
    assert [snapshot.number for snapshot in list_snapshots(Store.open(filled), "sample")] == [1]
    published = RunReport.from_json(pipeline(dataset="sample", settings=changed, store=filled))
    assert set(outcomes(published).values()) == {"cached"}
    assert (published.snapshot, published.before) == (2, 1)


def test_another_recommender_leaves_the_stages_before_alone(filled: Path, small_settings: PipelineSettings) -> None:
    encoder = small_settings.recommender.encoder.model_copy(update={"n_layers": 1})
    recommender = small_settings.recommender.model_copy(update={"encoder": encoder})
    changed = small_settings.model_copy(update={"recommender": recommender})
    report = RunReport.from_json(pipeline(dataset="sample", settings=changed, store=filled))
    computed = {name for name, outcome in outcomes(report).items() if outcome == "computed"}
    assert computed == {name for name in EVERY_SLOT if name.startswith(("recommender.", "evaluation.sasrec."))}
    assert report.snapshot == 2
    assert [snapshot.number for snapshot in list_snapshots(Store.open(filled), "sample")] == [1, 2]


def test_a_stage_without_downstream_leaves_the_snapshot(filled: Path, small_settings: PipelineSettings) -> None:
    clusters = small_settings.clusters.model_copy(update={"n_clusters": 7})
    changed = small_settings.model_copy(update={"clusters": clusters})
    before = read_snapshot(Store.open(filled), "sample")
    report = RunReport.from_json(
        rerun_stage(dataset="sample", stage="clusters", settings=changed, store=filled, with_downstream=False)
    )
    assert outcomes(report) == {"ingest": "cached", "backbone": "cached", "clusters": "computed"}
    assert report.snapshot is None
    assert read_snapshot(Store.open(filled), "sample") == before


def test_a_stage_with_downstream_runs_what_depends_on_it(filled: Path, small_settings: PipelineSettings) -> None:
    clusters = small_settings.clusters.model_copy(update={"n_clusters": 7})
    changed = small_settings.model_copy(update={"clusters": clusters})
    report = RunReport.from_json(rerun_stage(dataset="sample", stage="clusters", settings=changed, store=filled))
    unaffected = {
        "ingest",
        "text",
        "backbone",
        "recommender.sasrec.base",
        "evaluation.sasrec.base",
        "evaluation.no-learning",
    }
    assert {name for name, outcome in outcomes(report).items() if outcome == "cached"} == unaffected
    assert report.snapshot == 2


def test_a_forced_stage_is_computed_again_to_the_same_content(filled: Path, small_settings: PipelineSettings) -> None:
    report = RunReport.from_json(
        rerun_stage(dataset="sample", stage="knowledge", settings=small_settings, store=filled, force=True)
    )
    assert [name for name, outcome in outcomes(report).items() if outcome == "computed"] == ["knowledge"]
    assert report.snapshot == 1


def test_a_damaged_artefact_is_rebuilt_and_said_so(filled: Path, small_settings: PipelineSettings) -> None:
    store = Store.open(filled)
    ref = read_snapshot(store, "sample").entries["clusters"]
    path = store.place(ref.stage, ref.key) / "item_clusters.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    report = RunReport.from_json(pipeline(dataset="sample", settings=small_settings, store=filled))
    result = report.results["clusters"]
    assert (str(result.outcome), result.ref) == ("rebuilt", ref)
    assert "item_clusters.parquet" in result.reason
    assert sum(outcome != "cached" for outcome in outcomes(report).values()) == 1


def test_unknown_names_are_refused_with_the_known_ones(first_run: First, small_settings: PipelineSettings) -> None:
    store, _ = first_run
    with pytest.raises(DataError, match=r"There is no dataset 'nowhere'.*beauty, ml-1m, sample, yelp"):
        pipeline(dataset="nowhere", settings=small_settings, store=store)
    with pytest.raises(SettingsError, match=r"There is no stage 'cluster'.*clusters"):
        rerun_stage(dataset="sample", stage="cluster", settings=small_settings, store=store)


def test_states_and_artifacts_tell_what_happened(filled: Path, small_settings: PipelineSettings) -> None:
    pipeline.with_options(flow_run_name="seen by a person")(dataset="sample", settings=small_settings, store=filled)
    ours = FlowRunFilter(name=FlowRunFilterName(any_=["seen by a person"]))
    with get_client(sync_client=True) as client:
        [run] = client.read_flow_runs(flow_run_filter=ours)
        # the server hears of task runs through events, a little later
        for _ in range(100):
            tasks = {task.name: task.state_name for task in client.read_task_runs(flow_run_filter=ours)}
            if tasks == dict.fromkeys(EVERY_SLOT, "Cached"):
                break
            time.sleep(0.2)
    assert run.state_name == "Completed"
    assert tasks == dict.fromkeys(EVERY_SLOT, "Cached")
    summary = Artifact.get("summary")
    assert summary is not None
    text = str(summary.data)
    assert "# P2Rec on sample (synthetic)" in text
    assert "14 of 14 stages cached" in text
    assert "sasrec +P2Rec" in text
    assert "random-llama-tiny (random-init)" in text
    assert Artifact.get("metrics") is not None
    assert Artifact.get("stages") is not None


def test_deployments_have_typed_forms_and_the_schedules_that_were_set(prefect_server: None) -> None:
    nightly = Schedule(
        deployment="pipeline", cron="0 3 * * *", timezone="Europe/Berlin", parameters={"dataset": "yelp"}
    )
    made = {deployment.name: deployment for deployment in deployments([nightly])}
    assert made.keys() == {"pipeline", "stage", "refresh", "experiment", "report", "gc"}
    [schedule] = made["pipeline"].schedules
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("0 3 * * *", "Europe/Berlin")
    assert schedule.parameters == {"dataset": "yelp"}
    schema = made["pipeline"]._parameter_openapi_schema.model_dump()
    assert schema["properties"]["dataset"]["enum"] == ["beauty", "ml-1m", "sample", "yelp"]
    assert schema["properties"]["when_busy"]["default"] == "wait"
    definitions = schema["definitions"]
    assert definitions["ClusterSettings"]["properties"]["n_clusters"]["minimum"] == 2
    assert definitions["Whitening"]["enum"] == ["none", "standardise", "pca"]
    assert definitions["EncoderSettings"]["properties"]["backbone"]["enum"] == [
        "sasrec",
        "gru4rec",
        "caser",
        "fmlp_rec",
    ]
    assert {"e4srec", "cost", "refresh"}.isdisjoint(definitions["PipelineSettings"]["properties"])
    of_refresh = made["refresh"]._parameter_openapi_schema.model_dump()["definitions"]
    assert "refresh" in of_refresh["PipelineSettings"]["properties"]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (
            {"settings": {"clusters": {"n_clusters": 1}}},
            "clusters.n_clusters: Input should be greater than or equal",
        ),
        ({"datasett": "yelp"}, "datasett"),
        ({"when_busy": "never"}, "when_busy"),
    ],
)
def test_a_schedule_with_wrong_parameters_is_refused(parameters: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=rf"A schedule of pipeline has wrong parameters: .*{said}"):
        deployments([Schedule(deployment="pipeline", interval_s=60, parameters=parameters)])


def test_schedules_are_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "clicks.toml").write_text("[clusters]\nn_clusters = 9\n")
    path = tmp_path / "schedules.toml"
    path.write_text('[[schedule]]\ndeployment = "refresh"\ncron = "0 3 * * *"\nconfig = "clicks.toml"\n')
    assert read_schedules(path)[0].parameters == {"settings": {"clusters": {"n_clusters": 9}}}
    for text, said in (
        ('deployment = "refresh"', "give either cron or interval_s"),
        ('deployment = "backup"\ncron = "0 3 * * *"', "schedule.0.deployment: Input should be"),
        (
            'deployment = "report"\ncron = "0 3 * * *"\ntimezone = "Middle/Earth"',
            "no time zone 'Middle/Earth'",
        ),
        (
            'deployment = "report"\ncron = "0 3 * * *"\ntimezone = "Europe"',  # a folder of time zones
            "schedule.0.timezone: Value error, there is no time zone 'Europe'",
        ),
        (
            'deployment = "report"\ncron = "0 25 * * *"',
            "schedule.0.cron: Value error, '0 25 * * *' is not minute, hour, day, month and day of the week",
        ),
        ('deployment = "report"\ncron = "every night"', "'every night' is not minute, hour"),
        ("deployment = refresh", "is not valid TOML"),
    ):
        path.write_text(f"[[schedule]]\n{text}\n")
        with pytest.raises(SettingsError, match=re.escape(said)):
            read_schedules(path)


def test_changes_are_put_onto_the_settings_of_the_dataset(small_settings: PipelineSettings) -> None:
    assert settled("beauty", small_settings) is small_settings
    changed = settled("sample", {"recommender": {"encoder": {"backbone": "caser"}}, "clusters": {"n_init": 1}})
    assert changed == pipeline_settings(
        dataset="sample", assignments=["recommender.encoder.backbone=caser", "clusters.n_init=1"]
    )
    with pytest.raises(SettingsError, match="n_heads = 7 does not divide hidden_size = 48"):
        settled("sample", {"recommender": {"encoder": {"n_heads": 7}}})


def test_garbage_is_collected_by_a_flow_and_told_as_an_artifact(filled: Path) -> None:
    opened = Store.open(filled)
    (opened.workspace("backbone", "0" * 32) / "checkpoint").write_bytes(b"1234")
    kept = files_of(filled)
    assert gc(store=filled) == {"dry_run": False, "n_removed": 0, "n_bytes_freed": 0}  # it is young
    assert gc(store=filled, grace_days=0, dry_run=True) == {"dry_run": True, "n_removed": 1, "n_bytes_freed": 4}
    assert gc(store=filled, grace_days=0, keep_last=1) == {"dry_run": False, "n_removed": 1, "n_bytes_freed": 4}
    assert files_of(filled) == kept
    artifact = Artifact.get("garbage")
    assert artifact is not None
    assert json.loads(str(artifact.data)) == [
        {"what": "work", "name": f"work/backbone/{'0' * 32}", "why": "its computation did not go on", "MiB": 0.0}
    ]
    assert str(artifact.description).startswith("1 removed, 0.0 MiB; ")


def test_a_schedule_of_the_collection_keeps_a_snapshot_at_least() -> None:
    with pytest.raises(SettingsError, match="keep_last"):
        deployments([Schedule(deployment="gc", interval_s=60, parameters={"keep_last": 0})])


def test_a_run_that_waited_for_its_turn_reads_the_files_as_they_are_then(
    filled: Path, tmp_path: Path, small_settings: PipelineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had looked before it waited, and computed of what was no longer the newest."""
    days = tmp_path / "days"
    days.mkdir()
    lines = generate_sample(n_users=120, n_items=40, n_categories=4).text().splitlines(keepends=True)
    (days / "1.csv").write_text("user_id,item_id\n" + _rows(lines[:60]))
    settings = small_settings.model_copy(update={"ingest": IngestSettings(format="csv", timestamp_column=None)})
    register(Store.open(filled), "days", days, settings.ingest)
    arriving = {"2.csv": "user_id,item_id\n" + _rows(lines[60:]), "3.csv": "user,item\na,x\n"}

    @contextlib.contextmanager
    def waited(*args: Any) -> Iterator[None]:
        name, content = arriving.popitem()
        (days / name).write_text(content)
        with turn(*args):
            yield

    monkeypatch.setattr("flows.pipeline.turn", waited)
    with pytest.raises(DataError, match=r"3\.csv has the columns user, item"):
        pipeline(dataset="days", settings=settings, store=filled)
    (days / "3.csv").unlink()
    report = rerun_stage(dataset="days", stage="ingest", settings=settings, store=filled, with_downstream=False)
    ingest = Store.open(filled).load(RunReport.from_json(report).results["ingest"].ref)
    assert ingest.files["users"].rows == 120


def _rows(lines: list[str]) -> str:
    """Lines of a user and its items as rows of a user and an item."""
    return "".join(f"{user},{item}\n" for user, *items in map(str.split, lines) for item in items)


def test_a_run_is_skipped_while_another_works_on_its_dataset(filled: Path, small_settings: PipelineSettings) -> None:
    with Store.open(filled).lock("dataset", "sample"):
        state = pipeline(
            dataset="sample", settings=small_settings, store=filled, when_busy=WhenBusy.SKIP, return_state=True
        )
        assert (state.name, state.message) == (
            SKIPPED,
            "another run works on 'sample', and this one was to be skipped then",
        )
        report = pipeline(dataset="sample", settings=small_settings, store=filled, when_busy=WhenBusy.OVERLAP)
    assert set(outcomes(RunReport.from_json(report)).values()) == {"cached"}
