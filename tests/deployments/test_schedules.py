"""Schedules on a real server: they fire, and what they started ends with who serves."""

import signal
import subprocess
from pathlib import Path

from flows.server import free_port
from tests.deployments.served import Served, alive, children, report_every, until


def test_a_schedule_fires_and_its_runs_do_not_outlive_who_serves(tmp_path: Path) -> None:
    schedules = report_every(2, tmp_path / "schedules.toml")
    with schedules.open("a") as file:
        file.write(
            '[[schedule]]\ndeployment = "refresh"\ncron = "0 3 * * *"\ntimezone = "Europe/Berlin"\n'
            'parameters.dataset = "sample"\nparameters.when_busy = "skip"\n'
        )
    served = Served(tmp_path, ["--schedules", str(schedules)])
    try:
        served.start()
        second = Served(tmp_path, [], port=free_port()).command()
        refused = subprocess.run(second, env=served.environment(), capture_output=True, text=True, timeout=60)
        assert refused.returncode == 2
        assert "Another `p2rec serve` works with the history in" in refused.stderr

        [nightly] = served.api.deployment("refresh")["schedules"]
        assert (nightly["schedule"]["cron"], nightly["schedule"]["timezone"]) == ("0 3 * * *", "Europe/Berlin")
        by_schedule = {"flow_runs": {"state": {"type": {"any_": ["FAILED"]}}}}
        failed = until(lambda: served.api("POST", "/flow_runs/filter", by_schedule), seconds=120, what="a run")[0]
        assert failed["auto_scheduled"]
        assert "There is no store" in failed["state"]["message"]  # nothing has been computed yet

        until(served.run_processes, seconds=60, what="a run at work")
        ours = [*children(served.pid), served.pid]
        served.end(signal.SIGKILL)
        until(lambda: not any(map(alive, ours)), seconds=20, what="the end of all processes")
    finally:
        served.end(signal.SIGKILL)
