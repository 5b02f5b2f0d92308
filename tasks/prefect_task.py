"""A stage as a Prefect task: what the store decides, shown as a task run.

The task's state is named Cached, Computed or Rebuilt and carries a small JSON reference to the artefact; nothing of a
stage's data goes through Prefect.
"""

from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from p2rec_core.settings.pipeline import RuntimeSettings
from storage.artefacts import ArtefactRef, Store
from tasks.dag import Slot
from tasks.progress import StageProgress
from tasks.stage import StageResult, run_stage


@task(name="stage", persist_result=False, cache_policy=NO_CACHE)
def stage_task(
    slot: Slot, refs: dict[str, ArtefactRef], store: Store, runtime: RuntimeSettings, force: bool
) -> State[dict[str, Any]]:
    """Return the slot's artefact, computing it only if it must be.

    Args:
        slot: The slot.
        refs: Artefacts of the slots that it needs.
        store: Where artefacts are.
        runtime: Device, threads and the like.
        force: Compute even if it is cached.

    Returns:
        A state named Cached, Computed or Rebuilt whose data is ``StageResult.to_json``.
    """
    log = get_run_logger().info
    progress = StageProgress(slot.title)
    result = run_stage(slot.call(refs), store, runtime=runtime, force=force, progress=progress, log=log)
    return completed(result, progress)


def completed(result: StageResult, progress: StageProgress) -> State[dict[str, Any]]:
    """The end of the present task run, logged: a state named as the outcome, whose data is ``StageResult.to_json``."""
    progress.finish()
    message = f"{result.outcome}: {result.reason}; {result.ref.stage}/{result.ref.key}, {result.wall_s:.1f} s"
    get_run_logger().info(message)
    return Completed(name=str(result.outcome).capitalize(), message=message, data=result.to_json())


def run_slot(
    slot: Slot, refs: dict[str, ArtefactRef], store: Store, runtime: RuntimeSettings, *, force: bool
) -> StageResult:
    """Run a slot as a task run named after it, inside a flow run.

    Raises:
        P2RecError: The stage cannot be computed.
    """
    needed = {name: refs[name] for name in slot.needs}
    run = stage_task.with_options(name=slot.stage, task_run_name=slot.name)
    state = run(slot, needed, store, runtime, force, return_state=True)
    values: Any = state.result()
    return StageResult.from_json(values)
