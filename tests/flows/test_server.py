"""A Prefect server of our own: who may reach it, and that it never outlives its parent."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.server import AUTHENTICATION_VARIABLE, check_address, check_port, free_port, history_alone
from p2rec_core.errors import SettingsError

PARENT = """
import sys, time
from flows.server import LocalServer, free_port
server = LocalServer(port=free_port(), interface=False)
print(server.pid, flush=True)
server.wait_until_it_answers()
print("answers", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_the_server_ends_with_its_parent(tmp_path: Path, number: int) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PREFECT_HOME": str(tmp_path)},
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    if number == signal.SIGTERM:  # once while it starts, once when it is there
        assert parent.stdout.readline() == "answers\n"
    parent.send_signal(number)
    parent.wait(30)
    parent.stdout.close()
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the server was still there after 10 s")


def test_others_reach_it_only_if_that_is_wanted_and_with_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(AUTHENTICATION_VARIABLE, raising=False)
    for host in ("127.0.0.1", "::1", "localhost"):
        check_address(host, expose=False)
    with pytest.raises(SettingsError, match=r"--host 0\.0\.0\.0: everybody who reaches this address could start runs"):
        check_address("0.0.0.0", expose=False)
    with pytest.raises(SettingsError, match="--expose needs a password: PREFECT_SERVER_API_AUTH_STRING"):
        check_address("0.0.0.0", expose=True)
    with pytest.raises(SettingsError, match="--host 'everywhere' is no address"):
        check_address("everywhere", expose=True)
    monkeypatch.setenv(AUTHENTICATION_VARIABLE, "me:secret")
    check_address("0.0.0.0", expose=True)
    with pytest.raises(SettingsError, match="everybody"):
        check_address("0.0.0.0", expose=False)


HOLDER = """
import sys, time
from flows.server import history_alone
with history_alone():
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_history_is_one_server_s_until_its_process_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    with history_alone():
        pass
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(SettingsError, match=r"Another `p2rec serve` works with the history in .*home\."),
            history_alone(),
        ):
            pass
        holder.kill()
    with history_alone():
        pass


def test_a_port_that_is_taken_is_refused() -> None:
    check_port("127.0.0.1", free_port())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            SettingsError, match=rf"--port {port} of 127\.0\.0\.1 cannot be used: Address already in use"
        ):
            check_port("127.0.0.1", port)
