"""A node of a matrix as a Prefect task: what a worker or the store answers, shown as a task run."""

from collections.abc import Callable
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture

from p2rec_core.progress import Progress
from tasks.matrix_run import Finished, Job, Running
from tasks.prefect_task import completed
from tasks.progress import StageProgress
from tasks.stage import StageResult
from tasks.worker import Order, WorkerPool

Answer = Callable[[Progress, Callable[[str], None]], StageResult]
"""Gives a node's result; is handed whom to tell of progress, and of what happens."""


@task(name="node", persist_result=False, cache_policy=NO_CACHE)
def node_task(name: str, answer: Answer) -> State[dict[str, Any]]:
    """Have a node's artefact computed, or take it from the store.

    Args:
        name: The node.
        answer: Gives the result.

    Returns:
        A state named Cached, Computed or Rebuilt whose data is ``StageResult.to_json``.
    """
    progress = StageProgress(name)
    result = answer(progress, get_run_logger().info)
    return completed(result, progress)


def show_cached(job: Job, result: StageResult) -> None:
    """Leave a task run for a node that was found in the store."""
    run = node_task.with_options(name=job.node.slot.stage, task_run_name=job.node.name)
    run(job.node.name, lambda progress, log: result, return_state=True)


def start_in_worker(job: Job, running: Running, finished: Callable[[Finished], None], pool: WorkerPool) -> None:
    """Compute a node in a child process, as a task run in a thread of its own.

    Args:
        job: The node and what it reads.
        running: Told of progress.
        finished: Told of the end.
        pool: The child processes.
    """
    recipe = job.node.recipe
    order = Order(recipe, job.node.slot.name, job.refs, job.key, pool.store)
    worker = pool.take()

    def answer(progress: Progress, log: Callable[[str], None]) -> StageResult:
        def both(done: int, total: int, message: str) -> None:
            running(done, total, message)
            progress(done, total, message)

        try:
            return worker.compute(order, progress=both, log=log)
        finally:
            pool.give_back(worker)

    run = node_task.with_options(name=job.node.slot.stage, task_run_name=job.node.name)
    future: PrefectFuture[Any] = run.submit(job.node.name, answer)

    def outcome() -> StageResult:
        return StageResult.from_json(future.result())

    future.add_done_callback(lambda done: finished((job, outcome)))
