"""One served P2Rec for all tests of deployments, with a store that a small run has filled."""

from collections.abc import Iterator

import pytest

from tests.deployments.served import SMALL, Served


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
