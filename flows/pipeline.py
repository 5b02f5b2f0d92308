"""The flows: the whole pipeline, and one stage ad hoc.

Both walk the same graph of slots; each slot is a task run whose artefact the store caches.
"""

import time
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.forms import DatasetName, GivenSettings, StageName, settled
from flows.lineage import lineage_rows
from flows.prepare import chosen_slots, prepared_slots, reported
from flows.pushing import push_if_asked
from flows.report import RunReport
from flows.summary import metrics_rows, stage_rows, summary_markdown
from flows.turns import NotOurTurn, WhenBusy, skipped, turn
from p2rec_core.settings.pipeline import PipelineSettings, Profile, Recipe, RuntimeSettings
from storage.artefacts import DEFAULT_STORE, ArtefactRef, Store
from tasks.dag import Slot, downstream, upstream
from tasks.prefect_task import run_slot
from tasks.progress import shown_if_possible
from tasks.stage import StageResult


@flow(name="pipeline", flow_run_name="{dataset}", persist_result=False)
def pipeline(
    dataset: DatasetName,
    profile: Profile = Profile.CPU,
    recipe: Recipe = Recipe.DEFAULT,
    force: bool = False,
    publish: bool = True,
    when_busy: WhenBusy = WhenBusy.WAIT,
    store: Path = DEFAULT_STORE,
    settings: GivenSettings = {},  # noqa: B006 (never changed)
) -> dict[str, Any]:
    """Run all eight stages; what is in the store already is verified and reused.

    Args:
        dataset: Name of a known or imported dataset.
        profile: Defaults for the machine; without effect on whole settings.
        recipe: Choices that the method leaves: what was best on validation, or the paper's; without effect on whole
            settings.
        force: Compute every stage anew.
        publish: Make the result the current snapshot; without, the artefacts are kept for later runs.
        when_busy: What to do while another run works on the dataset.
        store: Directory of the artefact store.
        settings: What is to differ from the settings of the dataset; what is left empty stays as it is.

    Returns:
        ``RunReport.to_json``; ``{"skipped": reason}`` where the run was skipped.
    """
    begun = time.monotonic()
    opened = Store.open(store)
    chosen = settled(dataset, settings, profile, recipe)
    try:
        with turn(opened, [dataset], when_busy):
            slots, synthetic = prepared_slots(dataset, chosen, opened)  # with the files as they are now, after a wait
            results = _run(slots, opened, chosen, forced={slot.name for slot in slots} if force else set())
            return _finish(dataset, synthetic, results, opened, chosen.runtime, begun, publish=publish)
    except NotOurTurn as reason:
        return skipped(reason)  # type: ignore[return-value]  # Prefect gives its data to who called the flow


@flow(name="stage", flow_run_name="{dataset}: {stage}", persist_result=False)
def rerun_stage(
    dataset: DatasetName,
    stage: StageName,
    profile: Profile = Profile.CPU,
    recipe: Recipe = Recipe.DEFAULT,
    with_downstream: bool = True,
    force: bool = False,
    when_busy: WhenBusy = WhenBusy.WAIT,
    store: Path = DEFAULT_STORE,
    settings: GivenSettings = {},  # noqa: B006 (never changed)
) -> dict[str, Any]:
    """Run one stage; what it needs comes from the store, or is computed where it is not there.

    Args:
        dataset: Name of a known or imported dataset.
        stage: A stage (``clusters``) or a slot (``recommender.sasrec.p2rec``).
        profile: Defaults for the machine; without effect on whole settings.
        recipe: Choices that the method leaves: what was best on validation, or the paper's; without effect on whole
            settings.
        with_downstream: Also run what depends on it, and make the result the current snapshot.
        force: Compute the stage anew even if it is cached.
        when_busy: What to do while another run works on the dataset.
        store: Directory of the artefact store.
        settings: What is to differ from the settings of the dataset; what is left empty stays as it is.

    Returns:
        ``RunReport.to_json``; ``{"skipped": reason}`` where the run was skipped.
    """
    begun = time.monotonic()
    opened = Store.open(store)
    whole = settled(dataset, settings, profile, recipe)
    try:
        with turn(opened, [dataset], when_busy):
            slots, synthetic = prepared_slots(dataset, whole, opened)
            chosen = chosen_slots(slots, stage)
            forced = chosen if force else set()
            if with_downstream:
                results = _run(slots, opened, whole, forced=forced)
                return _finish(dataset, synthetic, results, opened, whole.runtime, begun, publish=True)
            results = _run(upstream(slots, chosen), opened, whole, forced=forced)
    except NotOurTurn as reason:
        return skipped(reason)  # type: ignore[return-value]  # Prefect gives its data to who called the flow
    affected = sorted({name for slot in chosen for name in downstream(slots, slot)} - chosen)
    if affected:
        get_run_logger().info("not run, as asked: %s; the snapshot stays as it was", ", ".join(affected))
    return RunReport(dataset, synthetic, results, None, time.monotonic() - begun).to_json()


def _run(slots: list[Slot], store: Store, settings: PipelineSettings, *, forced: set[str]) -> dict[str, StageResult]:
    """Run the slots in order; an artefact is forced once, however many slots share it."""
    refs: dict[str, ArtefactRef] = {}
    results: dict[str, StageResult] = {}
    anew: set[tuple[str, str]] = set()
    for slot in slots:
        force = slot.name in forced
        if force:
            call = slot.call({name: refs[name] for name in slot.needs})
            identity = (call.stage, call.key())
            force = identity not in anew
            anew.add(identity)
        results[slot.name] = run_slot(slot, refs, store, settings.runtime, force=force)
        refs[slot.name] = results[slot.name].ref
    return results


def _finish(
    dataset: str,
    synthetic: bool,
    results: dict[str, StageResult],
    store: Store,
    runtime: RuntimeSettings,
    begun: float,
    *,
    publish: bool,
) -> dict[str, Any]:
    """Publish the snapshot, leave the run's artifacts in Prefect, and copy the snapshot where the settings say."""
    report = reported(dataset, synthetic, results, store, begun, publish=publish)
    read_and_made = lineage_rows(report, store)
    with shown_if_possible("the run's results"):
        create_markdown_artifact(summary_markdown(report), key="summary", description=f"{dataset}: summary")
        create_table_artifact(metrics_rows(report), key="metrics", description=f"{dataset}: metrics")
        create_table_artifact(stage_rows(report), key="stages", description=f"{dataset}: stages")
        create_table_artifact(read_and_made, key="lineage", description=f"{dataset}: what was read and made")
    pushed = push_if_asked(report, store, runtime) if publish else report
    if pushed.pushed is not None:
        get_run_logger().info(pushed.pushed)
    return pushed.to_json()
