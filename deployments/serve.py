"""Serve the flows: ``p2rec serve``, ``make serve``.

The process registers the deployments with a Prefect server and runs what is triggered in the interface, by the API or
by a schedule, each in a process of its own. Without a configured server it starts one on this machine, which ends with
it; the history stays in ``PREFECT_HOME``.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from flows import SERVED_BY_VARIABLE
from flows.cli.options import DEFAULT_STORE, StoreOption
from flows.configured import API_URL_VARIABLE, configured_server
from flows.forms import STORE_VARIABLE
from flows.schedules import Schedule, Scheduled, check_parameters, read_schedules
from flows.server import (
    AUTHENTICATION_VARIABLE,
    HEARTBEAT_S,
    LOOPBACK,
    TAG,
    LocalServer,
    check_address,
    check_configured,
    check_port,
    history_alone,
    server_address,
)
from p2rec_core.errors import SettingsError

PORT = 4200
"""Port of a server of our own; Prefect's usual one."""

LOOKED_AT_EVERY_S = 3.0
"""Seconds between two looks for runs that are to start."""

_DESCRIPTIONS: dict[Scheduled, str] = {
    "pipeline": "All eight stages on a dataset; what is in the store is verified and reused.",
    "stage": "One stage ad hoc, with or without what depends on it.",
    "refresh": "Bring a dataset's current snapshot up to date; a quality gate decides whether it is replaced.",
    "experiment": "Every cell of a matrix of datasets, backbones, arms and seeds that is not in the store.",
    "report": "The report of an experiment that was run: one page, figures and tables.",
    "gc": "Remove what no snapshot and no experiment needs, and older snapshots.",
}
_FILLED_IN: dict[Scheduled, dict[str, Any]] = {
    "pipeline": {"dataset": "sample"},
    "stage": {"dataset": "sample", "stage": "clusters"},
    "experiment": {"name": "sample"},
}


def serve(
    *,
    store: StoreOption = DEFAULT_STORE,
    schedules: Annotated[
        Path | None,
        Parameter(name="--schedules", env_var="P2REC_SCHEDULES", help="TOML file of [[schedule]] tables."),
    ] = None,
    host: Annotated[str, Parameter(name="--host", help="Address of a server of our own.")] = LOOPBACK,
    port: Annotated[int, Parameter(name="--port", help="Its port.")] = PORT,
    expose: Annotated[
        bool, Parameter(name="--expose", negative="", help="Allow an address that others can reach; needs a password.")
    ] = False,
    parallel: Annotated[int, Parameter(name="--parallel", help="Runs at a time; others wait.")] = 4,
) -> None:
    """Serve every flow, with a Prefect server of our own where none is configured, until interrupted.

    Examples:
        p2rec serve
        p2rec serve --schedules schedules.toml
        PREFECT_SERVER_API_AUTH_STRING=me:secret p2rec serve --host 0.0.0.0 --expose
    """
    os.environ[STORE_VARIABLE] = str(store.absolute())
    os.environ[SERVED_BY_VARIABLE] = str(os.getpid())
    os.environ.setdefault("DO_NOT_TRACK", "1")
    configured = configured_server()
    with _place(host, port, expose=expose) if configured is None else contextlib.nullcontext():
        # before Prefect is imported; runs work in directories of their own, so they find it nowhere else
        os.environ[API_URL_VARIABLE] = configured or f"{server_address(host, port)}/api"
        if configured is None and (password := os.environ.get(AUTHENTICATION_VARIABLE)):
            os.environ["PREFECT_API_AUTH_STRING"] = password
        made = deployments(read_schedules(schedules) if schedules is not None else ())
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # until Prefect has a handler of its own
        with _server(configured, host, port) as address:
            _serve(made, address, parallel)


def _serve(made: list[Any], address: str, parallel: int) -> None:
    """Register deployments and start their runs until interrupted."""
    from prefect.runner import Runner

    from deployments.offers import Offers
    from deployments.tidy import watch_for_crashes

    offers = Offers(served_flows())
    runner = Runner(limit=parallel, query_seconds=LOOKED_AT_EVERY_S, heartbeat_seconds=HEARTBEAT_S)
    for deployment in made:
        runner.add_deployment(deployment)
    watch_for_crashes()
    offers.keep_looking()
    names = ", ".join(deployment.name for deployment in made)
    print(f"Deployments: {names}. Interface: {address}. Ctrl-C ends it.", flush=True)  # noqa: T201
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(runner.start())


@contextlib.contextmanager
def _place(host: str, port: int, *, expose: bool) -> Iterator[None]:
    """An address and a history for a server of our own, which nobody else has."""
    check_address(host, expose=expose)
    with history_alone():
        check_port(host, port)
        yield


@contextlib.contextmanager
def _server(configured: str | None, host: str, port: int) -> Iterator[str]:
    """The configured server, or one of our own while the context lasts; gives the address of the interface."""
    if configured is not None:
        from prefect.settings import PREFECT_UI_URL

        check_configured()
        check_not_taken()
        yield str(PREFECT_UI_URL.value())
        return
    server = LocalServer(host=host, port=port, interface=True)
    try:
        server.wait_until_it_answers()
        from deployments.tidy import after_a_crash

        after_a_crash()
        yield server.address
    finally:
        server.stop()


def check_not_taken() -> None:
    """Make sure that nobody serves the configured server's deployments on another store: they would be taken over, and
    each process would start the other's runs.

    Raises:
        SettingsError: Somebody does.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import DeploymentStatus
    from prefect.exceptions import ObjectNotFound

    store = os.environ.get(STORE_VARIABLE)
    with get_client(sync_client=True) as client:
        for name, flow in served_flows().items():
            try:
                there = client.read_deployment_by_name(f"{flow.name}/{name}")
            except ObjectNotFound:
                continue
            other = there.parameters.get("store", store)
            if other != store and there.status == DeploymentStatus.READY:
                raise SettingsError(
                    f"The deployment {name} of this Prefect server is served on the store {other}, not on {store}.",
                    remedy="Serve that one, or another Prefect server (PREFECT_API_URL); a minute after its process has"
                    " ended the deployments are free.",
                )


def served_flows() -> Mapping[Scheduled, Any]:
    """The flows, by the names of their deployments."""
    from flows.experiment import experiment
    from flows.pipeline import pipeline, rerun_stage
    from flows.refresh import refresh
    from flows.reporting import report
    from flows.tidying import gc

    return {
        "pipeline": pipeline,
        "stage": rerun_stage,
        "refresh": refresh,
        "experiment": experiment,
        "report": report,
        "gc": gc,
    }


def deployments(schedules: Iterable[Schedule] = ()) -> list[Any]:
    """The deployments, as Prefect's runner takes them.

    Args:
        schedules: When to run which; the same deployment may have several.

    Raises:
        SettingsError: A schedule's parameters are wrong.
    """
    from prefect.schedules import Cron, Interval

    flows = served_flows()
    store = os.environ.get(STORE_VARIABLE)
    common = {} if store is None else {"store": store}
    timed: dict[str, list[Any]] = {name: [] for name in flows}
    for number, schedule in enumerate(schedules, 1):
        check_parameters(schedule, flows[schedule.deployment], _FILLED_IN.get(schedule.deployment, {}) | common)
        options: dict[str, Any] = {"parameters": schedule.parameters, "slug": f"schedule-{number}"}
        if schedule.cron is not None:
            rhythm = Cron(schedule.cron, timezone=schedule.timezone, **options)
        else:
            rhythm = Interval(timedelta(seconds=schedule.interval_s or 0), **options)
        timed[schedule.deployment].append(rhythm)
    return [
        flow.to_deployment(
            name,
            schedules=timed[name],
            paused=False,
            parameters=_FILLED_IN.get(name, {}) | common,
            description=_DESCRIPTIONS[name],
            tags=[TAG],
        )
        for name, flow in flows.items()
    ]
