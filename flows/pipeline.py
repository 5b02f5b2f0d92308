"""The flows: the whole pipeline, and one stage ad hoc.

Both walk the same graph of slots; each slot is a task run whose artefact the store caches.
"""

import time
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.prepare import chosen_slots, prepared_slots
from flows.report import RunReport
from flows.summary import metrics_rows, stage_rows, summary_markdown
from p2rec_core.settings.pipeline import PipelineSettings
from storage.artefacts import DEFAULT_STORE, ArtefactRef, Store
from storage.snapshots import publish_snapshot
from tasks.dag import Slot, downstream, upstream
from tasks.prefect_task import run_slot
from tasks.stage import StageResult


@flow(name="pipeline", flow_run_name="{dataset}", persist_result=False)
def pipeline(
    dataset: str,
    settings: PipelineSettings = PipelineSettings(),  # noqa: B008 (frozen)
    store: Path = DEFAULT_STORE,
    force: bool = False,
) -> dict[str, Any]:
    """Run all eight stages; what is in the store already is verified and reused.

    Args:
        dataset: Name of a known or imported dataset.
        settings: Settings of every stage.
        store: Directory of the artefact store.
        force: Compute every stage anew.

    Returns:
        ``RunReport.to_json``.
    """
    begun = time.monotonic()
    opened = Store.open(store)
    slots, synthetic = prepared_slots(dataset, settings, opened)
    results = _run(slots, opened, settings, forced={slot.name for slot in slots} if force else set())
    return _finish(dataset, synthetic, results, opened, begun)


@flow(name="stage", flow_run_name="{dataset}: {stage}", persist_result=False)
def rerun_stage(
    dataset: str,
    stage: str,
    settings: PipelineSettings = PipelineSettings(),  # noqa: B008 (frozen)
    store: Path = DEFAULT_STORE,
    with_downstream: bool = True,
    force: bool = False,
) -> dict[str, Any]:
    """Run one stage; what it needs comes from the store, or is computed where it is not there.

    Args:
        dataset: Name of a known or imported dataset.
        stage: A stage (``clusters``) or a slot (``recommender.sasrec.p2rec``).
        settings: Settings of every stage.
        store: Directory of the artefact store.
        with_downstream: Also run what depends on it, and make the result the current snapshot.
        force: Compute the stage anew even if it is cached.

    Returns:
        ``RunReport.to_json``.
    """
    begun = time.monotonic()
    opened = Store.open(store)
    slots, synthetic = prepared_slots(dataset, settings, opened)
    chosen = chosen_slots(slots, stage)
    forced = chosen if force else set()
    if with_downstream:
        results = _run(slots, opened, settings, forced=forced)
        return _finish(dataset, synthetic, results, opened, begun)
    results = _run(upstream(slots, chosen), opened, settings, forced=forced)
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
    dataset: str, synthetic: bool, results: dict[str, StageResult], store: Store, begun: float
) -> dict[str, Any]:
    """Publish the snapshot and leave the run's artifacts in Prefect."""
    snapshot = publish_snapshot(
        store, dataset, {name: result.ref for name, result in results.items()}, {"synthetic": synthetic}
    )
    report = RunReport(dataset, synthetic, results, snapshot.number, time.monotonic() - begun)
    create_markdown_artifact(summary_markdown(report), key="summary", description=f"{dataset}: summary")
    create_table_artifact(metrics_rows(report), key="metrics", description=f"{dataset}: metrics")
    create_table_artifact(stage_rows(report), key="stages", description=f"{dataset}: stages")
    return report.to_json()
