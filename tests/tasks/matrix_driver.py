"""Runs a matrix without Prefect, in this process or as a program whose process can be killed.

    python matrix_driver.py STORE EXPERIMENT PARALLEL

EXPERIMENT is JSON. Every stage is computed in a child process. The program prints a JSON line with the numbers of the
child processes whenever one is started, and the outcomes in the end.
"""

import json
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from p2rec_core.progress import silent
from p2rec_core.settings.experiment import ExperimentSettings, experiment_settings
from storage.artefacts import Store
from tasks.estimate import Walls
from tasks.experiments import Recorder
from tasks.matrix import Matrix
from tasks.matrix_run import Finished, Job, MatrixRun, Running, drive
from tasks.stage import run_stage
from tasks.worker import Order, WorkerPool


def prepared(experiment: ExperimentSettings, store: Store, parallel: int = 1) -> MatrixRun:
    return MatrixRun(Matrix(experiment, store), store, parallel=parallel, walls=Walls.of(store))


def run_here(experiment: ExperimentSettings, store: Store) -> MatrixRun:
    """Run a matrix in this process, one node after the other, and record it."""
    run = prepared(experiment, store)

    def start(job: Job, running: Running, finished: Callable[[Finished], None]) -> None:
        call = job.node.slot.call(job.refs)
        runtime = job.node.recipe.settings.runtime
        finished((job, lambda: run_stage(call, store, runtime=runtime, progress=running)))

    recorder = Recorder(run, experiment, experiment.name)
    drive(run, cached=lambda job, result: None, start=start, looked=lambda run, changed: None)
    recorder.write()
    return run


def run_in_workers(experiment: ExperimentSettings, store: Store, parallel: int, tell: Callable[[object], None]) -> None:
    run = prepared(experiment, store, parallel)
    recorder = Recorder(run, experiment, experiment.name)

    def start(job: Job, running: Running, finished: Callable[[Finished], None]) -> None:
        worker = pool.take()
        tell([worker.pid for worker in pool.started])
        order = Order(job.node.recipe, job.node.slot.name, job.refs, job.key, store.root)

        def compute() -> None:
            try:
                result = worker.compute(order, progress=running, log=silent_log)
                outcome = lambda: result  # noqa: E731
            except Exception as error:
                raised = error

                def outcome():
                    raise raised

            pool.give_back(worker)
            finished((job, outcome))

        threading.Thread(target=compute).start()

    with WorkerPool(store.root, 1) as pool:
        drive(
            run,
            cached=lambda job, result: None,
            start=start,
            looked=lambda run, changed: recorder.write() and None if changed else None,
        )
    recorder.write()
    tell({"outcomes": {name: result.outcome for name, result in run.results.items()}, "failures": list(run.failures)})


def silent_log(message: str) -> None:
    """Tell nobody."""


def _main(store: str, experiment: str, parallel: str) -> None:
    settings = experiment_settings(json.loads(experiment), place="the test")
    run_in_workers(settings, Store.open(Path(store)), int(parallel), lambda value: print(json.dumps(value), flush=True))


__all__ = ["prepared", "run_here", "silent"]

if __name__ == "__main__":
    # a shell starts what it runs in the background with Ctrl-C switched off, and this is inherited
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _main(*sys.argv[1:])
