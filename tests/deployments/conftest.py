"""One served P2Rec for all tests of deployments, with a store that a small run has filled; and a server alone."""

from collections.abc import Iterator

import pytest
from prefect.testing.utilities import prefect_test_harness

from tests.deployments.served import SMALL, Served


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A temporary server with a database of its own, for tests that serve nothing."""
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("served"))
    try:
        served.start()
        served.first = served.api.start("pipeline", dataset="sample", settings=SMALL)
        run = served.api.ended(served.first, seconds=300)
        assert run["state"]["name"] == "Completed", served.log()
        yield served
    finally:
        served.end()
