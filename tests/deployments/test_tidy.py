"""Whose runs are judged by their signs of life, and what becomes of an automation that is there already."""

import os
from uuid import uuid4

import pytest
from prefect import get_client
from prefect.automations import Automation
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.types import DateTime

from deployments.tidy import AUTOMATION, SILENCE_S, silence, watch_for_crashes
from flows.cli.run import quiet_prefect
from flows.server import HEARTBEAT_S, TAG


def heartbeat(*tags: str) -> ReceivedEvent:
    """A run's sign of life, as a server receives it."""
    related = [{"prefect.resource.id": f"prefect.flow.{uuid4()}", "prefect.resource.role": "flow"}]
    related += [{"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in tags]
    return ReceivedEvent.model_validate(
        {
            "occurred": DateTime.now("UTC"),
            "event": "prefect.flow-run.heartbeat",
            "resource": {"prefect.resource.id": f"prefect.flow-run.{uuid4()}"},
            "related": related,
            "id": uuid4(),
        }
    )


def test_only_runs_of_p2rec_are_judged_by_their_signs_of_life() -> None:
    trigger = EventTrigger.model_validate(silence().model_dump(mode="json"))
    assert trigger.covers(heartbeat(TAG))
    assert trigger.covers(heartbeat("nightly", TAG))
    assert not trigger.covers(heartbeat())
    assert not trigger.covers(heartbeat("nightly", "p2rec-like"))


def test_runs_of_commands_give_signs_of_life_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "180"})
    quiet_prefect()
    assert float(os.environ["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) == HEARTBEAT_S <= SILENCE_S / 3


@pytest.mark.usefixtures("prefect_server")
def test_an_automation_that_is_there_is_brought_up_to_date_and_keeps_its_number_and_whether_it_is_enabled() -> None:
    watch_for_crashes()
    with get_client(sync_client=True) as client:
        [made] = client.read_automations_by_name(AUTOMATION)
        watch_for_crashes()
        [again] = client.read_automations_by_name(AUTOMATION)
        assert again == made

        trigger = silence().model_copy(update={"match_related": {}})  # as it once was: the runs of everybody
        Automation(name=AUTOMATION, trigger=trigger, actions=made.actions, id=made.id, enabled=False).update()
        watch_for_crashes()
        [mended] = client.read_automations_by_name(AUTOMATION)
    assert (mended.id, mended.enabled) == (made.id, False)
    assert mended.trigger == made.trigger
