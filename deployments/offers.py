"""Forms offer what has come into the store while they are served: datasets, and experiments with results."""

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

import httpx
from prefect import Flow, get_client
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.exceptions import PrefectException
from prefect.utilities.callables import parameter_schema

from flows.forms import known_datasets, recorded_experiments
from p2rec_core.errors import P2RecError

LOOKED_AT_EVERY_S = 5.0
"""Seconds between two looks at what the store has."""

_AGAIN_S = 60.0
"""Seconds until the next look where one failed."""


class Offers:
    """Keeps the forms of deployments up to date with the store.

    Args:
        flows: Flow by the name of its deployment; the forms that are registered offer what the store has now.
    """

    def __init__(self, flows: Mapping[Any, Flow[Any, Any]]) -> None:
        self._flows = flows
        self._offered = _names()

    def look(self) -> bool:
        """Bring the forms up to date if there is something new; whether there was."""
        names = _names()
        if names == self._offered:
            return False
        with get_client(sync_client=True) as client:
            for name, flow in self._flows.items():
                schema = parameter_schema(flow).model_dump(mode="json", exclude_unset=True)
                there = client.read_deployment_by_name(f"{flow.name}/{name}")
                if there.parameter_openapi_schema != schema:
                    client.update_deployment(there.id, DeploymentUpdate(parameter_openapi_schema=schema))
        self._offered = names
        return True

    def keep_looking(self) -> None:
        """Look now and then, in a thread that ends with the process."""
        threading.Thread(target=self._look_for_ever, daemon=True).start()

    def _look_for_ever(self) -> None:
        while True:
            time.sleep(LOOKED_AT_EVERY_S)
            try:
                self.look()
            except (httpx.HTTPError, PrefectException, P2RecError, OSError, RuntimeError) as error:  # it is tried again
                logging.getLogger(__name__).warning("the forms could not be brought up to date: %s", error)
                time.sleep(_AGAIN_S)


def _names() -> tuple[list[str], list[str]]:
    return known_datasets(), recorded_experiments()
