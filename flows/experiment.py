"""The experiment flow: every cell of a matrix as cached stages, in child processes, as many at a time as fit."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from pydantic import PositiveInt

from flows.definitions import find_definition
from flows.forms import BackboneName, DatasetName, ExperimentName
from flows.matrix import failed, prepared_run, report_markdown, report_of, result_rows, threads_each
from flows.reporting import show_comparison
from flows.turns import NotOurTurn, WhenBusy, skipped, turn
from p2rec_core.errors import P2RecError
from p2rec_core.settings.experiment import ExperimentSettings
from storage.artefacts import DEFAULT_STORE, Store
from tasks.experiments import Recorder
from tasks.matrix_run import MatrixRun, drive
from tasks.matrix_task import show_cached, start_in_worker
from tasks.progress import ProgressArtifact, shown_if_possible
from tasks.results import load_results
from tasks.worker import WorkerPool

_SHOWN_EVERY_S = 10.0
"""Seconds between two updates of the flow's progress artifact."""

Watcher = Callable[[MatrixRun], None]
_watchers: list[Watcher] = []


@contextlib.contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Show ``watcher`` the state of every experiment in this process, every second, while the context lasts."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


@flow(name="experiment", flow_run_name="{name}", persist_result=False)
def experiment(
    name: ExperimentName = "sample",
    settings: ExperimentSettings | None = None,
    datasets: list[DatasetName] | None = None,
    backbones: list[BackboneName] | None = None,
    arms: list[str] | None = None,
    seeds: list[int] | None = None,
    parallel: PositiveInt | None = None,
    when_busy: WhenBusy = WhenBusy.WAIT,
    store: Path = DEFAULT_STORE,
) -> dict[str, Any]:
    """Compute every cell of an experiment that is not in the store; interrupted, it goes on where it was.

    Args:
        name: A built-in experiment, the path of a TOML file, the name of one that was run before, or, with
            ``settings``, how to refer to these.
        settings: The experiment itself, instead of looking it up by name.
        datasets: Instead of the experiment's own.
        backbones: Instead of the experiment's own.
        arms: Some of the experiment's own.
        seeds: Instead of the experiment's own.
        parallel: Computations at a time, each in a process of its own; empty takes one for every two cores.
        when_busy: What to do while another run works on one of the datasets.
        store: Directory of the artefact store.

    Returns:
        See ``flows.matrix.report_of``; ``{"skipped": reason}`` where the run was skipped.

    Raises:
        CellsFailed: Some cells could not be computed; all others are in the store.
        P2RecError: The experiment is wrong as a whole.
    """
    whole = settings or find_definition(name, store)
    part = whole.narrowed(datasets=datasets, backbones=backbones, arms=arms, seeds=seeds)
    opened = Store.open(store)
    try:
        with turn(opened, part.datasets, when_busy):
            return _experiment(name, whole, part, opened, parallel)
    except NotOurTurn as reason:
        return skipped(reason)  # type: ignore[return-value]  # Prefect gives its data to who called the flow


def _experiment(
    name: str, whole: ExperimentSettings, part: ExperimentSettings, store: Store, parallel: int | None
) -> dict[str, Any]:
    """Compute what is missing of a part of an experiment, tell of it, and leave the run's artifacts."""
    begun = time.monotonic()
    run = prepared_run(part, store, parallel)
    recorder, shown = Recorder(run, whole, name), ProgressArtifact(part.name, every_s=_SHOWN_EVERY_S)

    def looked(run: MatrixRun, changed: bool) -> None:
        if changed:
            recorder.write()
        done = len(run.results) + len(run.failures)
        shown(100.0 * done / run.n_nodes, f"{done} of {run.n_nodes} computations, {run.left()}")
        for watcher in _watchers:
            watcher(run)

    with WorkerPool(store.root, threads_each(part, run.parallel)) as pool:
        drive(
            run,
            cached=show_cached,
            start=lambda job, running, finished: start_in_worker(job, running, finished, pool),
            looked=looked,
        )
    shown.finish()
    report = report_of(run, recorder.write(), time.monotonic() - begun)
    _leave_artifacts(report, store)
    if run.failures:
        raise failed(run, report)
    return report


def _leave_artifacts(report: dict[str, Any], store: Store) -> None:
    """Summary, metrics of every cell, and, as far as there is enough for it, the report with its figures."""
    name = report["experiment"]
    with shown_if_possible("the experiment's results"):
        create_markdown_artifact(report_markdown(report), key="experiment", description=f"{name}: summary")
        create_table_artifact(
            result_rows(report), key="experiment-results", description=f"{name}: metrics of every cell"
        )
        try:
            show_comparison(load_results(store, name))
        except P2RecError as error:
            get_run_logger().info("no report yet: %s", error)
