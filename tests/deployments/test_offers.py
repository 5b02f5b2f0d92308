"""What comes into the store while forms are served can be chosen in them."""

from pathlib import Path

import pytest
from prefect import get_client

from deployments.offers import Offers
from deployments.serve import check_not_taken, deployments, served_flows
from flows.cli.data import import_file
from flows.forms import STORE_VARIABLE
from flows.schedules import Schedule
from p2rec_core.errors import SettingsError
from p2rec_core.settings.data import SourceFormat
from storage.artefacts import Store


@pytest.mark.usefixtures("prefect_server")
def test_a_dataset_that_is_imported_while_forms_are_served_can_be_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "store"))
    Store.open(tmp_path / "store")
    nightly = Schedule(deployment="refresh", cron="0 3 * * *", parameters={"dataset": "sample"})
    for deployment in deployments([nightly]):
        deployment.apply()
    offers = Offers(served_flows())
    assert not offers.look()
    clicks = tmp_path / "clicks.csv"
    rows = [f"u{user},i{(user + step) % 12},{step}" for user in range(12) for step in range(8)]
    clicks.write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    import_file(clicks, name="clicks", format=SourceFormat.CSV, store=tmp_path / "store")

    assert offers.look()
    assert not offers.look()
    with get_client(sync_client=True) as client:
        for name in ("pipeline/pipeline", "stage/stage", "refresh/refresh"):
            there = client.read_deployment_by_name(name)
            assert "clicks" in there.parameter_openapi_schema["properties"]["dataset"]["enum"]
        run = client.create_flow_run_from_deployment(there.id, parameters={"dataset": "clicks"})
        assert run.parameters["dataset"] == "clicks"
        [kept] = there.schedules
    assert kept.schedule.cron == "0 3 * * *"


@pytest.mark.usefixtures("prefect_server")
def test_deployments_that_are_served_on_another_store_are_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "theirs"))
    check_not_taken()
    for deployment in deployments():
        deployment.apply()
    with get_client(sync_client=True) as client:
        there = client.read_deployment_by_name("stage/stage")
        monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "ours"))
        check_not_taken()  # nobody has looked for runs yet
        client.get_scheduled_flow_runs_for_deployments([there.id])
    with pytest.raises(SettingsError, match=r"The deployment stage of .* on the store \S+/theirs, not on \S+/ours"):
        check_not_taken()
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "theirs"))
    check_not_taken()  # who serves the same store shares its runs
