"""A Prefect server of our own on this machine, as a child process that never outlives its parent.

``p2rec run`` and its like use one where no server is configured; ``p2rec serve`` uses one with the interface. Both keep
their history in ``PREFECT_HOME``. Prefect is loaded when it is needed, and not before.
"""

import atexit
import contextlib
import ipaddress
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import filelock

from flows.configured import prefect_home
from p2rec_core.errors import P2RecError, SettingsError
from tasks.process import die_with

AUTHENTICATION_VARIABLE = "PREFECT_SERVER_API_AUTH_STRING"
"""``user:password`` that the server asks for."""

HEARTBEAT_S = 30
"""Seconds between two signs of life of a run; Prefect allows no less."""

LOOPBACK = "127.0.0.1"
ANSWER_S = 10.0
"""Seconds that a configured server has to answer."""

STARTUP_S = 180.0
"""Seconds that a server has to answer: the first start on a slow machine migrates its database."""

TAG = "p2rec"
"""Tag of every deployment and of every run: by it a run without signs of life is found out."""

_GRACE_S = 5.0
_LOOKED_AT_EVERY_S = 0.1
_REMEDY = "Run the same again, or start a server with `prefect server start` and set PREFECT_API_URL."


class LocalServer:
    """A Prefect server as a child process.

    To be started from a thread that lives as long as the server is needed: on Linux the child is killed when the
    thread that started it ends.

    Args:
        host: Address to listen on.
        port: Port to listen on.
        interface: Whether to serve the interface, schedules and automations too, and not only the API.
    """

    def __init__(self, *, host: str = LOOPBACK, port: int, interface: bool) -> None:
        self.address = server_address(host, port)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        code = f"from flows.server import main; main({os.getpid()}, {host!r}, {port})"
        paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = _environment(self.address, host, port, interface)
        self._process = subprocess.Popen(  # noqa: S603 (our own interpreter and code)
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            start_new_session=True,  # Ctrl-C is for the parent, which still needs the server to say how it ended
        )

    @property
    def api_url(self) -> str:
        """Address of the API."""
        return f"{self.address}/api"

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def wait_until_it_answers(self) -> None:
        """Block until it does.

        Raises:
            P2RecError: It ended, or does not answer within ``STARTUP_S``.
        """
        until = time.monotonic() + STARTUP_S
        while time.monotonic() < until:
            if (status := self._process.poll()) is not None:
                raise P2RecError(f"The Prefect server ended with status {status}.{self._last_words()}", remedy=_REMEDY)
            health = f"{self.api_url}/health"
            with contextlib.suppress(OSError), urllib.request.urlopen(health, timeout=5) as answer:  # noqa: S310 (http)
                if answer.status == 200:
                    return
            time.sleep(_LOOKED_AT_EVERY_S)
        self.stop()
        raise P2RecError(f"The Prefect server did not answer within {STARTUP_S:.0f} s.", remedy=_REMEDY)

    def stop(self) -> None:
        """End the process; more than once does no harm."""
        self._process.terminate()
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _last_words(self) -> str:
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        return f" Its last words: {last[0]:.200}" if last else ""


def server_address(host: str, port: int) -> str:
    """Address of the interface of a server that listens there; that of its API is ``/api`` below it."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


_started: LocalServer | None = None


@contextlib.contextmanager
def server_for_runs() -> Iterator[None]:
    """Flow runs within the context carry ``TAG`` and go to the configured server, or to one of this process's own.

    The latter is started once and ends with the process: what is still to be told in the end is told before.

    Raises:
        P2RecError: It cannot be started, or the configured one does not answer.
    """
    import httpx
    from prefect import tags
    from prefect.settings import PREFECT_API_URL, temporary_settings

    global _started
    if PREFECT_API_URL.value():
        check_configured()
        try:
            with tags(TAG):
                yield
        except httpx.TransportError as error:
            raise P2RecError(
                f"The Prefect server at {_configured_address()} went away before the run could end: {_why(error)}.",
                remedy="Run the same again when it is back; what was computed is kept.",
            ) from error
        return
    if _started is None:
        server = LocalServer(port=free_port(), interface=False)
        atexit.register(server.stop)
        server.wait_until_it_answers()
        _started = server
    with temporary_settings({PREFECT_API_URL: _started.api_url}), tags(TAG):
        yield


def check_configured() -> None:
    """Make sure that the configured server answers; what it answers is not looked at.

    Raises:
        P2RecError: It does not within ``ANSWER_S``, or its address is none.
    """
    import httpx
    from prefect import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        error = get_client(httpx_settings={"timeout": ANSWER_S}, sync_client=True).api_healthcheck()
    if error is not None and not isinstance(error, httpx.HTTPStatusError):
        raise P2RecError(
            f"The Prefect server at {_configured_address()}, which PREFECT_API_URL names, does not answer: "
            f"{_why(error)}.",
            remedy="Start it, or set PREFECT_API_URL= (empty) to go without: then a server is started for the command.",
        ) from error


def _configured_address() -> str:
    """Address of the configured server's API, without a password."""
    from prefect.settings import PREFECT_API_URL

    url = urlsplit(str(PREFECT_API_URL.value()))
    return url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()


def _why(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__


def check_address(host: str, *, expose: bool) -> None:
    """Refuse to listen where others can connect, unless that is wanted and they need a password.

    Args:
        host: Address to listen on.
        expose: Whether the user says that others may connect.

    Raises:
        SettingsError: The address is none, or others could connect who shall not.
    """
    if host == "localhost":
        return
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError as error:
        raise SettingsError(
            f"--host {host!r} is no address.", remedy="Give an IP address, e.g. --host 127.0.0.1."
        ) from error
    if loopback:
        return
    if not expose:
        raise SettingsError(
            f"--host {host}: everybody who reaches this address could start runs on this machine.",
            remedy=f"Leave --host away, or add --expose and set {AUTHENTICATION_VARIABLE}=user:password.",
        )
    if ":" not in os.environ.get(AUTHENTICATION_VARIABLE, ""):
        raise SettingsError(
            f"--expose needs a password: {AUTHENTICATION_VARIABLE} is not set to user:password.",
            remedy=f"Set {AUTHENTICATION_VARIABLE}=user:password.",
        )


@contextlib.contextmanager
def history_alone() -> Iterator[None]:
    """Have Prefect's history on this machine for one server with its runs while the context lasts.

    A second one would take the runs of the first for crashed, and their deployments for its own store. The kernel holds
    the lock and frees it when the process ends, however it ends.

    Raises:
        SettingsError: Another process has it, or ``PREFECT_HOME`` cannot be used.
    """
    home = prefect_home()
    lock = filelock.FileLock(home / "p2rec-serve.lock", mode=0o600, fallback_to_soft=False)
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise SettingsError(
            f"Another `p2rec serve` works with the history in {home}.",
            remedy="Use that one, or give this one a PREFECT_HOME and a --port of its own.",
        ) from error
    except OSError as error:
        raise SettingsError(
            f"PREFECT_HOME = {home} cannot be used: {error.strerror or error}.",
            remedy="Set PREFECT_HOME to a directory that can be written.",
        ) from error
    try:
        yield
    finally:
        lock.release()


def check_port(host: str, port: int) -> None:
    """Make sure that nobody listens there.

    Raises:
        SettingsError: Somebody does, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise SettingsError(
                f"--port {port} of {host} cannot be used: {error.strerror}.",
                remedy="Choose another with --port, or set PREFECT_API_URL to the server that listens there.",
            ) from error


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])


def main(parent: int, host: str, port: int) -> NoReturn:
    """Be the server, until told to stop or until the parent ends.

    Args:
        parent: Process number of the parent.
        host: Address to listen on.
        port: Port to listen on.
    """
    die_with(parent)
    import uvicorn

    uvicorn.run(
        "prefect.server.api.server:create_app", factory=True, host=host, port=port, log_level="error", lifespan="on"
    )
    sys.exit(0)


def _environment(address: str, host: str, port: int, interface: bool) -> dict[str, str]:
    """What the server is told; the user's own Prefect settings come with the environment and the profile."""
    told = os.environ | {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_API_HOST": host,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_UI_ENABLED": str(int(interface)),
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "1",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": address,
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
        "PREFECT__SERVER_FINAL": "1",
    }
    if not interface:
        told["PREFECT__SERVER_EPHEMERAL"] = "1"
    told.pop("PREFECT_API_URL", None)
    return told
