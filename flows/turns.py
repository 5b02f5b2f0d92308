"""Whose turn it is: runs on the same dataset one after the other, whichever deployment they are of.

The kernel holds the lock of a dataset and frees it when the run's process ends, however it ends.
"""

import contextlib
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any

from prefect import get_client, get_run_logger
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Completed, Running

from storage.artefacts import Store

SKIPPED = "Skipped"
"""Name of the state, of type Completed, of a run that was not its turn."""

WAITING = "Waiting"
"""Name of the state, of type Running, of a run that waits for its turn."""

_LOCK = "dataset"


class WhenBusy(StrEnum):
    """What a run does while another one works on its dataset."""

    WAIT = "wait"
    SKIP = "skip"
    OVERLAP = "overlap"
    """Take no turns; each stage is still computed by one process while others wait for it."""


class NotOurTurn(Exception):
    """Another run works on the dataset; carries the reason."""


@contextlib.contextmanager
def turn(store: Store, datasets: Iterable[str], when_busy: WhenBusy) -> Iterator[None]:
    """Have datasets for this flow run alone while the context lasts.

    Args:
        store: Whose datasets.
        datasets: Their names.
        when_busy: What to do while another run has one of them.

    Raises:
        NotOurTurn: Another run has one, and this one is to be skipped.
    """
    with contextlib.ExitStack() as held:
        for dataset in sorted(set(datasets)) if when_busy is not WhenBusy.OVERLAP else ():  # in one order for all
            said = _Waiting(dataset, when_busy)
            held.enter_context(store.lock(_LOCK, dataset, on_wait=said))
            said.over()
        yield


def skipped(reason: NotOurTurn) -> State[dict[str, Any]]:
    """The end of a flow run that is skipped: a state named Skipped, whose data is ``{"skipped": reason}``."""
    get_run_logger().info("%s", reason)
    return Completed(name=SKIPPED, message=str(reason), data={"skipped": str(reason)})


class _Waiting:
    """Tells of a lock that others hold."""

    def __init__(self, dataset: str, when_busy: WhenBusy) -> None:
        self._dataset = dataset
        self._when_busy = when_busy
        self._waited = False

    def __call__(self) -> None:
        reason = f"another run works on {self._dataset!r}"
        if self._when_busy is WhenBusy.SKIP:
            raise NotOurTurn(f"{reason}, and this one was to be skipped then")
        self._waited = True
        get_run_logger().info("%s; waiting for it to end", reason)
        _show(WAITING, f"{reason}; it is waited for")

    def over(self) -> None:
        if self._waited:
            _show(None, f"it is this run's turn on {self._dataset!r}")


def _show(name: str | None, message: str) -> None:
    """Show in Prefect what a run does that is Running."""
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(context.flow_run.id, Running(name=name, message=message), force=True)
