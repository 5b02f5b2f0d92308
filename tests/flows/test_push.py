"""A run that copies its snapshot into a bucket, and the commands that do: from settings to another machine's store."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.cli import app
from flows.pipeline import pipeline
from flows.report import RunReport
from p2rec_core.errors import SettingsError, StoreError
from p2rec_core.settings.pipeline import pipeline_settings
from storage.artefacts import Store
from storage.doctor import examine
from storage.remote.bucket import Bucket
from storage.remote.layout import read_current
from storage.snapshots import read_snapshot


@pytest.fixture
def store(first_run: tuple[Path, RunReport], tmp_path: Path) -> Path:
    return shutil.copytree(first_run[0], tmp_path / "store")


@pytest.fixture
def p2rec(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """What a command printed as JSON."""

    def p2rec(*words: str | Path) -> dict[str, Any]:
        app([*map(str, words), "--json"], result_action="return_value")
        return json.loads(capsys.readouterr().out)

    return p2rec


def test_what_one_machine_pushes_another_pulls_and_reads(p2rec, store: Path, tmp_path: Path) -> None:
    address, copy = f"file://{tmp_path}/bucket", tmp_path / "copy"
    sent = p2rec("push", address, "--store", store)
    fetched = p2rec("pull", address, "--store", copy)
    assert (sent["snapshot"], sent["before"], sent["artefacts_there"]) == (1, None, 0)
    assert (fetched["artefacts_fetched"], fetched["bytes"]) == (sent["artefacts_sent"], sent["bytes"])
    assert not examine(Store.open(copy)).harm
    question = "SELECT count(*) AS n FROM item_knowledge"
    assert p2rec("query", question, "--store", copy) == p2rec("query", question, "--store", store)
    again = p2rec("push", address, "--store", store, "--keep", "1", "--check")
    assert (again["artefacts_sent"], again["bytes"], again["forgotten"], again["before"]) == (0, 0, [], 1)
    with pytest.raises(SettingsError, match="would keep no snapshot"):
        p2rec("push", address, "--store", store, "--keep", "0")


def test_a_run_pushes_what_became_the_current_snapshot(store: Path, tmp_path: Path, small_assignments) -> None:
    address = f"file://{tmp_path}/bucket"
    asked = [*small_assignments, f"runtime.push_to={address}", "runtime.push_keep=2"]

    def run(*more: str) -> RunReport:
        settings = pipeline_settings(dataset="sample", assignments=[*asked, *more])
        return RunReport.from_json(pipeline(dataset="sample", settings=settings, store=store))

    first = run()
    assert first.pushed is not None
    assert f"is the current one of {address}" in first.pushed
    assert read_current(Bucket.open(address), "sample").number == 1
    for cutoff in (3, 4):
        run(f"evaluation.cutoffs=[{cutoff}]")
    assert read_current(Bucket.open(address), "sample").digest == read_snapshot(Store.open(store), "sample").digest
    assert {entry.name for entry in Bucket.open(address).list("snapshots/sample")} == {
        f"snapshots/sample/{name}.json" for name in ("000002", "000003", "current")
    }


def test_what_could_not_be_pushed_is_the_current_snapshot_all_the_same(
    store: Path, tmp_path: Path, small_assignments, p2rec
) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    (bucket / "holiday.jpg").touch()
    asked = [*small_assignments, "evaluation.cutoffs=[3]", f"runtime.push_to=file://{bucket}"]
    settings = pipeline_settings(dataset="sample", assignments=asked)
    with pytest.raises(StoreError, match="Snapshot 2 of 'sample' is the current one of") as caught:
        pipeline(dataset="sample", settings=settings, store=store)
    assert "but was not pushed" in caught.value.problem
    assert f"p2rec push file://{bucket} -d sample" in caught.value.remedy
    assert read_snapshot(Store.open(store), "sample").number == 2
    (bucket / "holiday.jpg").unlink()
    words = [word for assignment in asked for word in ("--set", assignment)]
    report = p2rec("run", "--store", store, *words)  # all is cached, and what was not pushed is made good
    assert {result["outcome"] for result in report["results"].values()} == {"cached"}
    assert "Snapshot 2 of sample is the current one of" in report["pushed"]


@pytest.mark.parametrize("address", ["s3://key:secret@bucket/x", "https://bucket/x", "bucket"])
def test_an_address_that_is_none_is_refused_before_anything_is_computed(address: str) -> None:
    with pytest.raises(SettingsError, match=r"runtime\.push_to"):
        pipeline_settings(dataset="sample", assignments=[f"runtime.push_to={address}"])
