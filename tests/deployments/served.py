"""A served P2Rec: ``p2rec serve`` as a process with a Prefect server, a history and a store of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from flows.server import free_port

SMALL: dict[str, Any] = {
    "backbone": {
        "encoder": {"hidden_size": 16, "inner_size": 32},
        "training": {"max_epochs": 2, "batch_positions": 4096},
    },
    "recommender": {
        "encoder": {"hidden_size": 16, "inner_size": 32},
        "training": {"max_epochs": 2, "batch_positions": 4096},
    },
    "clusters": {"n_init": 1},
    "language_model": {"name_or_path": "random-llama-tiny"},
    "finetune": {"epochs": 1},
    "fusion": {"n_components": 8},
    "runtime": {"threads": 1},
}
ENDS = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}


def long_training(seed: int) -> dict[str, Any]:
    """Settings whose backbone trains for minutes and leaves a checkpoint every half second."""
    training = SMALL["backbone"]["training"] | {"max_epochs": 3000, "patience": 3000, "seed": seed}
    return SMALL | {
        "backbone": SMALL["backbone"] | {"training": training},
        "runtime": {"threads": 1, "checkpoint_every_s": 0.5},
    }


def report_every(seconds: int, schedules: Path) -> Path:
    """Write a schedule of reports, which fail where nothing was computed, and give its place."""
    schedules.write_text(f'[[schedule]]\ndeployment = "report"\ninterval_s = {seconds}\nparameters.name = "none"\n')
    return schedules


def until(found: Callable[[], Any], *, seconds: float, what: str) -> Any:
    """The first true value of ``found``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.2)
    pytest.fail(f"{what} was not there after {seconds:.0f} s")


def children(pid: int) -> dict[int, str]:
    """Processes whose parent is ``pid``, by number, with their command lines."""
    found = {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
                command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == pid:
                found[int(directory.name)] = command
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@dataclass
class Api:
    """What a person does by the API of a server.

    Attributes:
        url: Address of the API.
    """

    url: str

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        for pause in (1, 2, 4, 8, None):
            answer = httpx.request(method, f"{self.url}{path}", json=body, headers=self._token(), timeout=60)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or pause is None:
                break
            time.sleep(pause)  # its database is busy; Prefect's own clients try again, too
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def _token(self) -> dict[str, str]:
        answer = httpx.get(f"{self.url}/csrf-token", params={"client": "test"}, timeout=60)
        return {"Prefect-Csrf-Client": "test", "Prefect-Csrf-Token": answer.json().get("token", "")}

    def deployment(self, name: str) -> Any:
        """A deployment by ``flow/name``, or by the name that both have."""
        return self("GET", f"/deployments/name/{name if '/' in name else f'{name}/{name}'}")

    def start(self, name: str, **parameters: Any) -> str:
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return str(self("POST", f"/deployments/{self.deployment(name)['id']}/create_flow_run", body)["id"])

    def run(self, number: str) -> Any:
        return self("GET", f"/flow_runs/{UUID(number)}")

    def state(self, number: str) -> str:
        return str(self.run(number)["state"]["name"])

    def cancel(self, number: str) -> None:
        self("POST", f"/flow_runs/{number}/set_state", {"state": {"type": "CANCELLING"}})

    def ended(self, number: str, *, seconds: float = 180) -> Any:
        """A run when it has ended."""
        return until(
            lambda: run if (run := self.run(number))["state_type"] in ENDS else None,
            seconds=seconds,
            what=f"the end of run {number}",
        )

    def tasks(self, number: str) -> dict[str, str]:
        """Names of a run's tasks, with the names of their states."""
        found = self("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [number]}}})
        return {task["name"]: task["state"]["name"] for task in found}

    def artifacts(self, number: str) -> list[Any]:
        return list(self("POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [number]}}}))


@dataclass
class Served:
    """``p2rec serve``, which may be ended and started again.

    Attributes:
        directory: Its history, store and log.
        options: More options of the command.
        port: Port of its server.
        first: The run that filled the store.
        process: The process, while it runs.
    """

    directory: Path
    options: list[str] = field(default_factory=list)
    port: int = field(default_factory=free_port)
    first: str = ""
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def store(self) -> Path:
        return self.directory / "store"

    @property
    def api(self) -> Api:
        return Api(f"http://127.0.0.1:{self.port}/api")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def command(self) -> list[str]:
        command = [sys.executable, "-c", "from flows.cli import main; main()", "serve", "--port", str(self.port)]
        return [*command, "--store", str(self.store), *self.options]

    def environment(self) -> dict[str, str]:
        others = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
        return others | {"PREFECT_HOME": str(self.directory / "prefect")}

    def start(self) -> "Served":
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, env=self.environment())
        process = self.process
        until(
            lambda: "Deployments: " in self.log() or process.poll() is not None,
            seconds=180,
            what="what is served",
        )
        assert process.poll() is None, self.log()
        return self

    def end(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(60)
            self.process = None

    def run_processes(self) -> list[int]:
        """Numbers of the processes of runs at work."""
        return [pid for pid, command in children(self.pid).items() if "prefect.engine" in command]

    def run_process(self) -> int:
        """Number of the process of the one run at work."""

        def only() -> list[int]:
            pids = self.run_processes()
            return pids if len(pids) == 1 else []

        return int(until(only, seconds=30, what="the process of the run")[0])

    def checkpoints(self) -> list[Path]:
        """Checkpoints of trainings that have not ended."""
        return list((self.store / "work").rglob("checkpoint.safetensors"))

    def manifest(self, stage: str) -> list[Any]:
        """Manifests of a stage's artefacts."""
        return [json.loads(path.read_text()) for path in (self.store / "artefacts" / stage).glob("*/manifest.json")]
