"""No run stays Running whose process is gone."""

from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import get_client
from prefect.automations import Automation
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.states import Cancelled, Crashed

from flows.server import HEARTBEAT_S, TAG

AUTOMATION = "p2rec: a run without signs of life has crashed"
"""Name of the automation that ``watch_for_crashes`` sets up."""

SILENCE_S = 3 * HEARTBEAT_S
"""Seconds without a sign of life after which a run counts as crashed."""

_CRASHED = ChangeFlowRunState(state=StateType.CRASHED, message=f"no sign of life for {SILENCE_S} s")
_LATE_S = 60.0
_AT_WORK = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
_ENDS = ("Completed", "Failed", "Cancelled", "Crashed")


def after_a_crash() -> None:
    """Put right what a server of our own remembers of runs that ended with it.

    To be called before anything is served: no run of its deployments can be at work then. Runs that were to start
    while nobody served are cancelled, so that a night off is not followed by all its runs at once.
    """
    now = datetime.now(UTC)
    with get_client(sync_client=True) as client:
        for run in _runs(_AT_WORK):
            client.set_flow_run_state(run.id, Crashed(message="the process that ran it is gone"), force=True)
        for run in _runs([StateType.SCHEDULED]):
            due = run.next_scheduled_start_time
            if due is not None and run.auto_scheduled and now - due > timedelta(seconds=_LATE_S):
                client.set_flow_run_state(run.id, Cancelled(message="nobody served at that time"), force=True)


def _runs(states: list[StateType]) -> list[FlowRun]:
    found: list[FlowRun] = []
    with get_client(sync_client=True) as client:
        while True:
            page = client.read_flow_runs(
                flow_run_filter=FlowRunFilter(
                    state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)),
                ),
                deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG])),
                offset=len(found),
            )
            if not page:
                return found
            found += page


def watch_for_crashes() -> None:
    """Have the server set P2Rec's runs to Crashed that have given no sign of life for ``SILENCE_S``.

    Runs of others are left alone. An automation that an earlier P2Rec has left is brought up to date, and stays
    disabled where somebody has disabled it.
    """
    wanted = Automation(name=AUTOMATION, trigger=silence(), actions=[_CRASHED])
    with get_client(sync_client=True) as client:
        there = client.read_automations_by_name(AUTOMATION)
    if not there:
        wanted.create()
    for automation in there:
        if _what(automation) != _what(wanted):  # an update makes the server forget whom it waits for
            wanted.model_copy(update={"id": automation.id, "enabled": automation.enabled}).update()


def silence() -> EventTrigger:
    """A run with the tag ``TAG`` has given a sign of life, and then none for ``SILENCE_S``."""
    return EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{end}" for end in _ENDS)},
        match={"prefect.resource.id": ["prefect.flow-run.*"]},
        match_related={"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=SILENCE_S),
    )


def _what(automation: AutomationCore) -> dict[str, Any]:
    """What an automation does, and not which it is."""
    return automation.model_dump(include={"trigger", "actions"})
