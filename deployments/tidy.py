"""No run stays Running whose process is gone."""

from datetime import UTC, datetime, timedelta

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
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.states import Cancelled, Crashed

AUTOMATION = "p2rec: a run without signs of life has crashed"
"""Name of the automation that ``watch_for_crashes`` sets up."""

SILENCE_S = 90
"""Seconds without a sign of life after which a run counts as crashed: three heartbeats."""

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
                deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=["p2rec"])),
                offset=len(found),
            )
            if not page:
                return found
            found += page


def watch_for_crashes() -> None:
    """Have the server set runs to Crashed that have given no sign of life for ``SILENCE_S``; more than once is once."""
    trigger = EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{end}" for end in _ENDS)},
        match={"prefect.resource.id": ["prefect.flow-run.*"]},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=SILENCE_S),
    )
    action = ChangeFlowRunState(state=StateType.CRASHED, message=f"no sign of life for {SILENCE_S} s")
    with get_client(sync_client=True) as client:
        if not client.read_automations_by_name(AUTOMATION):
            Automation(name=AUTOMATION, trigger=trigger, actions=[action]).create()
