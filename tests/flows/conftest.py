"""One Prefect server for all flow tests, and one small pipeline that ran through it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.testing.utilities import prefect_test_harness

from flows.pipeline import pipeline
from flows.report import RunReport
from p2rec_core.settings.pipeline import PipelineSettings, pipeline_settings

SMALL = [
    "backbone.encoder.hidden_size=16",
    "backbone.encoder.inner_size=32",
    "backbone.training.max_epochs=2",
    "backbone.training.batch_positions=4096",
    "recommender.encoder.hidden_size=16",
    "recommender.encoder.inner_size=32",
    "recommender.training.max_epochs=2",
    "recommender.training.batch_positions=4096",
    "clusters.n_init=1",
    "language_model.name_or_path=random-llama-tiny",
    "finetune.epochs=1",
    "fusion.n_components=8",
    "runtime.threads=1",
]


@pytest.fixture(scope="session")
def small_assignments() -> list[str]:
    """Settings with which the embedded sample takes seconds, as assignments."""
    return SMALL


@pytest.fixture(scope="session")
def small_settings() -> PipelineSettings:
    """The same, put together."""
    return pipeline_settings(dataset="sample", assignments=SMALL)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A temporary server with a database of its own."""
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(scope="session")
def first_run(
    prefect_server: None, small_settings: PipelineSettings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RunReport]:
    """A store and the report of the run that filled it."""
    store = tmp_path_factory.mktemp("flows") / "store"
    return store, RunReport.from_json(pipeline(dataset="sample", settings=small_settings, store=store))
