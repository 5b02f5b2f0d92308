"""Progress and results in Prefect while its server is away: nothing that is computed depends on them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import prefect.artifacts
import pytest
from prefect import flow, task

import flows.pipeline
import tasks.progress
from flows.server import server_for_runs
from p2rec_core.errors import P2RecError
from p2rec_core.settings.pipeline import PipelineSettings
from tasks.progress import StageProgress, listening

pytestmark = pytest.mark.usefixtures("prefect_server")


class Away:
    """Prefect's functions for artifacts, of a server that cannot be reached for a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.away = True
        self.n_tries = 0
        self.shown: list[float] = []
        for name in names:
            monkeypatch.setattr(prefect.artifacts, name, self.instead_of(getattr(prefect.artifacts, name)))

    def instead_of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            self.n_tries += 1
            if self.away:
                raise httpx.ConnectError("All connection attempts failed")
            self.shown.append(options["progress"])
            return function(*arguments, **options)

        return called


def in_a_task(told: Callable[[StageProgress], None]) -> None:
    """Have progress told within a task run."""

    @task(name="told", persist_result=False)
    def stage() -> None:
        told(StageProgress("backbone"))

    @flow(name="told", persist_result=False)
    def run() -> None:
        stage()

    run()


def test_a_stage_goes_on_while_the_server_is_away_and_tries_again_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    away = Away(monkeypatch, "create_progress_artifact", "update_progress_artifact")
    heard: list[int] = []

    def told(progress: StageProgress) -> None:
        for done in range(50):
            progress(done, 100, "epoch")
        assert away.n_tries == 1  # the others would have blocked the epochs
        monkeypatch.setattr(tasks.progress, "AGAIN_S", 0.0)
        progress._artifact._next_at = time.monotonic()
        progress(50, 100, "epoch")
        assert away.n_tries == 2
        away.away = False
        time.sleep(0.1)
        progress(60, 100, "epoch")
        progress.finish()

    with listening(lambda stage, done, total, message: heard.append(done)):
        in_a_task(told)
    assert heard == [*range(51), 60]
    assert away.shown == [60.0, 100.0]
    said = [record.message for record in caplog.records if "could not be shown" in record.message]
    assert said == ["progress could not be shown: ConnectError: All connection attempts failed"]


def test_a_command_whose_server_went_away_says_so_without_a_traceback() -> None:
    with (
        pytest.raises(
            P2RecError, match=r"The Prefect server at http://.*/api went away before the run could end: gone"
        ),
        server_for_runs(),
    ):
        raise httpx.ConnectError("gone")


def test_a_snapshot_is_pushed_though_its_artifacts_cannot_be_shown(
    first_run: tuple[Path, Any], small_settings: PipelineSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unreachable(*arguments: Any, **options: Any) -> None:
        raise httpx.ConnectError("All connection attempts failed")

    monkeypatch.setattr(flows.pipeline, "create_markdown_artifact", unreachable)
    runtime = small_settings.runtime.model_copy(update={"push_to": (tmp_path / "bucket").as_uri()})
    values = flows.pipeline.pipeline(
        dataset="sample", settings=small_settings.model_copy(update={"runtime": runtime}), store=first_run[0]
    )
    assert "bucket" in values["pushed"]
    assert any((tmp_path / "bucket").rglob("*.parquet"))
