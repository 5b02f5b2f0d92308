"""``prefect.yaml`` against a real server, and a run by a real worker that is killed."""

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from deployments.tidy import AUTOMATION
from flows.server import HEARTBEAT_S
from tests.deployments.served import SMALL, Api, Served, alive, children, long_training, until

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def house(served: Served) -> tuple[Api, dict[str, str]]:
    """The server with the three work pools and every deployment of ``prefect.yaml``, and how commands reach it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")} | {
        "PREFECT_HOME": str(served.directory / "worker"),
        "PREFECT_API_URL": served.api.url,
        "P2REC_STORE": str(served.store),
        "P2REC_IMAGE": "p2rec:test",
    }
    templates = served.api("GET", "/collections/views/aggregate-worker-metadata")
    known = {kind: worker for workers in templates.values() for kind, worker in workers.items()}
    for kind in ("process", "docker", "kubernetes"):
        template = known[kind]["default_base_job_configuration"]
        served.api("POST", "/work_pools/", {"name": f"p2rec-{kind}", "type": kind, "base_job_template": template})
    done = prefect(environment, "--no-prompt", "deploy", "--all")
    assert done.returncode == 0, done.stdout + done.stderr
    return served.api, environment


def prefect(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "prefect", *arguments],
        cwd=REPOSITORY,
        env=environment | {"COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def a_foreign_run(api: Api) -> str:
    """A run of somebody else's flow that is at work and has given one sign of life."""
    flow = api("POST", "/flows/", {"name": "foreign"})["id"]
    number = str(api("POST", "/flow_runs/", {"flow_id": flow, "state": {"type": "RUNNING"}})["id"])
    resource = {"prefect.resource.id": f"prefect.flow-run.{number}"}
    related = [{"prefect.resource.id": f"prefect.flow.{flow}", "prefect.resource.role": "flow"}]
    event = {"event": "prefect.flow-run.heartbeat", "resource": resource, "related": related, "id": str(uuid4())}
    api("POST", "/events", [event | {"occurred": datetime.now(UTC).isoformat()}])
    return number


def test_every_deployment_has_its_form_and_only_variables_that_its_pool_knows(
    house: tuple[Api, dict[str, str]],
) -> None:
    api, environment = house
    found: dict[str, list[Any]] = {}
    for deployment in api("POST", "/deployments/filter", {}):
        if deployment["work_pool_name"] is not None:
            found.setdefault(deployment["work_pool_name"], []).append(deployment)
    assert {pool: len(deployments) for pool, deployments in found.items()} == {
        "p2rec-process": 6,
        "p2rec-docker": 2,
        "p2rec-kubernetes": 2,
    }
    for pool, deployments in found.items():
        variables = api("GET", f"/work_pools/{pool}")["base_job_template"]["variables"]["properties"]
        for deployment in deployments:
            assert deployment["job_variables"].keys() <= variables.keys(), deployment["name"]
            assert deployment["job_variables"]["env"] == {
                "P2REC_STORE": environment["P2REC_STORE"],
                "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
            }
            assert deployment["enforce_parameter_schema"]
    [pipeline] = [d for d in found["p2rec-process"] if d["entrypoint"] == "flows.pipeline.pipeline"]
    schema = pipeline["parameter_openapi_schema"]
    assert schema["definitions"]["ClusterSettings"]["properties"]["n_clusters"]["minimum"] == 2
    assert "sample" in schema["properties"]["dataset"]["enum"]


def test_a_worker_runs_a_flow_and_a_silent_one_is_found_out(
    house: tuple[Api, dict[str, str]], tmp_path: Path, served: Served
) -> None:
    api, environment = house
    assert AUTOMATION in [automation["name"] for automation in api("POST", "/automations/filter", {})]
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", "p2rec-process"],
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        number = api.start("pipeline/process", settings=SMALL)
        assert api.ended(number)["state"]["name"] == "Completed", (tmp_path / "log").read_text()
        assert set(api.tasks(number).values()) == {"Cached"}

        foreign = a_foreign_run(api)
        number = api.start("pipeline/process", settings=long_training(21))
        until(lambda: "backbone" in api.tasks(number), seconds=90, what="the training")
        processes = [pid for pid, command in children(worker.pid).items() if "prefect" in command]
        worker.kill()
        worker.wait()
        for pid in processes:
            os.kill(pid, signal.SIGKILL)
        until(lambda: not any(map(alive, processes)), seconds=10, what="the end of the run's process")
        assert api.state(number) == "Running"  # nobody is left who could tell
        run = api.ended(number, seconds=240)
        assert (run["state"]["name"], run["state"]["message"]) == ("Crashed", "no sign of life for 90 s")
        assert api.state(foreign) == "Running"  # its flow gives signs of life as rarely as Prefect's default has it
    finally:
        worker.kill()
        worker.wait()
