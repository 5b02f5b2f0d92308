"""Deployments on a real server: what is refused, what overlaps, and what becomes of runs that are ended."""

import json
import os
import re
import signal
import time
from pathlib import Path

import httpx
import pytest

from tests.deployments.served import SMALL, Served, alive, children, long_training, report_every, until

pytestmark = pytest.mark.slow


def begun(served: Served, seed: int) -> str:
    """A run that is in the middle of the backbone's training."""
    number = served.api.start("pipeline", dataset="sample", settings=long_training(seed))
    until(lambda: epoch(served, number) > 10, seconds=90, what="the training's progress")
    return number


def epoch(served: Served, number: str) -> int:
    """The epoch that the progress artifact of a run's training shows; 0 before there is one."""
    shown = [artifact["description"] for artifact in served.api.artifacts(number) if artifact["type"] == "progress"]
    return max((int(found[1]) for text in shown if (found := re.search(r"epoch (\d+)", text))), default=0)


def assert_resumes(served: Served, seed: int, ended: str) -> None:
    """A run with the same settings begins about where the one that was ended had come to."""
    again = served.api.start("pipeline", dataset="sample", settings=long_training(seed))
    first = until(lambda: epoch(served, again), seconds=60, what="progress")
    assert first > epoch(served, ended) / 2 > 1
    served.api.cancel(again)
    assert served.api.ended(again, seconds=60)["state"]["name"] == "Cancelled"


def test_a_wrong_value_is_refused_with_the_name_of_its_field(served: Served) -> None:
    for parameters, said in (
        ({"dataset": "nowhere"}, "field 'dataset'. Failure reason: 'nowhere' is not one of ['beauty', 'ml-1m'"),
        (
            {"settings": {"clusters": {"n_clusters": 1}}},
            "field 'settings.clusters.n_clusters'. Failure reason: 1 is less than the minimum of 2",
        ),
        ({"settings": {"clusters": {"n_cluster": 9}}}, "('n_cluster' was unexpected)"),
        (
            {"when_busy": "never"},
            "field 'when_busy'. Failure reason: 'never' is not one of ['wait',",
        ),
    ):
        with pytest.raises(httpx.HTTPStatusError, match="409") as refused:
            served.api.start("pipeline", **parameters)
        assert said in refused.value.response.json()["detail"]


def test_a_changed_parameter_keeps_the_dataset_s_own_settings(served: Served) -> None:
    number = served.api.start(
        "stage", stage="clusters", settings=SMALL | {"clusters": {"n_init": 1, "seed": 7}}, with_downstream=False
    )
    assert served.api.ended(number)["state"]["name"] == "Completed"
    tasks = served.api.tasks(number)
    assert (tasks["ingest"], tasks["backbone"], tasks["clusters"]) == ("Cached", "Cached", "Computed")
    [made] = [manifest for manifest in served.manifest("clusters") if manifest["settings"]["seed"] == 7]
    assert made["settings"]["n_clusters"] == 12  # what the sample has, not the general default


def test_a_run_leaves_what_a_person_wants_to_see(served: Served) -> None:
    assert served.api.run(served.first)["name"] == "sample"
    left = {artifact["key"]: artifact for artifact in served.api.artifacts(served.first) if artifact["key"] is not None}
    assert {"summary", "metrics", "stages", "lineage"} <= left.keys()
    rows = {row["stage"]: row for row in json.loads(left["lineage"]["data"])}
    assert rows["ingest"]["reads"].startswith("source/")
    assert rows["ingest"]["artefact"] in rows["backbone"]["reads"]
    assert re.search(r"item_clusters\.parquet \([0-9a-f]{12}\)", rows["clusters"]["makes"])
    states = served.api.tasks(served.first)
    assert (states["backbone"], states["recommender.sasrec.base"]) == ("Computed", "Cached")


def test_a_second_run_waits_or_is_skipped_and_a_cancelled_one_is_resumed(served: Served) -> None:
    first = begun(served, 11)
    waiting = served.api.start("pipeline", dataset="sample", settings=SMALL)
    until(lambda: served.api.state(waiting) == "Waiting", seconds=60, what="the state Waiting")
    skipped = served.api.start("stage", stage="clusters", settings=SMALL, when_busy="skip")
    ended = served.api.ended(skipped, seconds=60)
    assert ended["state"]["name"] == "Skipped"
    assert ended["state"]["message"] == "another run works on 'sample', and this one was to be skipped then"
    assert served.api.state(waiting) == "Waiting"

    served.api.cancel(first)
    until(lambda: served.api.state(waiting) != "Waiting", seconds=15, what="the turn of the run that waited")
    assert served.checkpoints()
    assert served.api.ended(first, seconds=60)["state"]["name"] == "Cancelled"
    assert served.api.ended(waiting)["state"]["name"] == "Completed"

    assert_resumes(served, 11, first)


def test_a_run_whose_process_is_killed_has_crashed_and_the_next_one_resumes(served: Served) -> None:
    number = begun(served, 12)
    os.kill(served.run_process(), signal.SIGKILL)
    assert served.api.ended(number, seconds=30)["state"]["name"] == "Crashed"
    assert_resumes(served, 12, number)


def test_nothing_outlives_who_serves_and_the_next_one_puts_it_right(tmp_path: Path) -> None:
    schedules = report_every(5, tmp_path / "schedules.toml")
    served = Served(tmp_path, ["--schedules", str(schedules)])
    try:
        served.start()
        number = begun(served, 13)
        ours = [*children(served.pid), served.pid]
        served.end(signal.SIGKILL)
        until(lambda: not any(map(alive, ours)), seconds=20, what="the end of all processes")
        time.sleep(5)  # runs of the schedule are missed
        schedules.write_text("")
        served.start()
        run = served.api.run(number)
        assert (run["state"]["name"], run["state"]["message"]) == ("Crashed", "the process that ran it is gone")
        ours = [*children(served.pid), served.pid]
        served.end()
        until(lambda: not any(map(alive, ours)), seconds=20, what="the end of all processes")
    finally:
        served.end(signal.SIGKILL)
