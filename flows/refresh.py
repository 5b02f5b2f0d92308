"""The nightly refresh: today's interactions on top of the current snapshot, and a quality gate before it is replaced.

The slots are ordinary cached stages that read the current snapshot's artefacts, so a night that was killed goes on
where it was, and lineage is in the manifests.
"""

import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.forms import DatasetName, GivenRefreshSettings, settled
from flows.pushing import check_bucket, push_if_asked
from flows.refresh_report import RefreshReport, change_rows, check_rows, conclusion, renewed
from flows.report import RunReport
from flows.summary import markdown_table, metrics_rows, stage_rows
from flows.turns import NotOurTurn, WhenBusy, skipped, turn
from p2rec_core.drift import Drift, TuningDecision, tuning_decision
from p2rec_core.errors import SettingsError, SnapshotOvertaken, StoreError
from p2rec_core.gate import Compared, data_checks, drift_checks, recommender_checks, refusals
from p2rec_core.settings.pipeline import PipelineSettings, Profile, Recipe, RuntimeSettings
from p2rec_core.settings.refresh import RefreshSettings
from storage.artefacts import DEFAULT_STORE, ArtefactRef, Store
from storage.snapshots import Snapshot, current_number, publish_snapshot, read_snapshot
from tasks.dag import Slot
from tasks.machine import check_device
from tasks.prefect_task import run_slot
from tasks.progress import shown_if_possible
from tasks.refresh.slots import CHANGES, check_continues, comparison_slot, nothing_new, refresh_plan
from tasks.sources import Source, find_source
from tasks.stage import VERIFIED, Outcome, StageResult

REFUSED = "Refused"
"""Name of a refresh's state, of type Failed, whose snapshot does not pass the quality gate."""


@flow(name="refresh", flow_run_name="{dataset}", persist_result=False)
def refresh(
    dataset: DatasetName,
    profile: Profile = Profile.CPU,
    recipe: Recipe = Recipe.DEFAULT,
    when_busy: WhenBusy = WhenBusy.WAIT,
    store: Path = DEFAULT_STORE,
    settings: GivenRefreshSettings = {},  # noqa: B006 (never changed)
) -> State[dict[str, Any]]:
    """Bring a dataset's current snapshot up to date with its file of interactions.

    Args:
        dataset: Name of a known or imported dataset.
        profile: Defaults for the machine; without effect on whole settings.
        recipe: Choices that the method leaves; without effect on whole settings.
        when_busy: What to do while another run works on the dataset.
        store: Directory of the artefact store.
        settings: What is to differ from the settings of the dataset. All but ``refresh`` and ``runtime`` have to come
            to those of the current snapshot.

    Returns:
        A state with ``RefreshReport.to_json``: completed, or failed with the name Refused and the reasons as its
        message; completed with the name Skipped where the run was skipped.

    Raises:
        StoreError: There is no snapshot to go on from.
        SettingsError: The current snapshot was made with other settings.
        P2RecError: A stage cannot be computed.
    """
    begun = time.monotonic()
    opened = Store.open(store)
    chosen = settled(dataset, settings, profile, recipe)
    try:
        with turn(opened, [dataset], when_busy):
            source, chosen, current = prepared(dataset, chosen, opened)
            report = unchanged(source, current, opened, begun)
            if report is None:
                check_device(chosen.runtime.device)
                report = _refresh(source, chosen, current, opened, begun)
    except NotOurTurn as reason:
        return skipped(reason)
    _show(report)
    report = pushed(report, opened, chosen.runtime)
    told = [] if report.run.pushed is None else [report.run.pushed]
    message = " ".join([conclusion(report), *told, *(f"{reason}." for reason in report.refused)])
    get_run_logger().log(logging.ERROR if report.refused else logging.INFO, "%s", message)
    if report.refused:
        return Failed(name=REFUSED, message=message, data=report.to_json())
    return Completed(message=message, data=report.to_json())


def prepared(dataset: str, settings: PipelineSettings, store: Store) -> tuple[Source, PipelineSettings, Snapshot]:
    """The dataset's file, the settings with those that belong to the file, and the snapshot to go on from.

    Raises:
        StoreError: There is no snapshot.
        SettingsError: The settings are not those of the snapshot, or the gate's cut-off is not evaluated.
        DataError: There is no such dataset.
    """
    check_bucket(settings.runtime)
    source = find_source(dataset, store)
    settings = settings.model_copy(update={"ingest": source.ingest_settings(settings.ingest)})
    if settings.refresh.gate_k not in settings.evaluation.cutoffs:
        raise SettingsError(
            f"refresh.gate_k = {settings.refresh.gate_k} is none of evaluation.cutoffs = "
            f"{list(settings.evaluation.cutoffs)}.",
            remedy="Choose one of them.",
        )
    try:
        current = read_snapshot(store, dataset)
    except StoreError as error:
        raise StoreError(
            f"There is nothing to refresh: {error.problem}",
            remedy=f"Make the first snapshot with `p2rec run --dataset {dataset}`.",
        ) from error
    check_continues(settings, source.path, source.texts, current, store)
    return source, settings, current


def unchanged(source: Source, current: Snapshot, store: Store, begun: float) -> RefreshReport | None:
    """The report of a refresh that has nothing to do; None where there is something."""
    if not nothing_new(source.path, source.texts, current.entries, store):
        return None
    run = RunReport(source.dataset, source.synthetic, {}, current.number, time.monotonic() - begun)
    return RefreshReport(run, current.number, None, "nothing is new", False, {}, (), ())


def pushed(report: RefreshReport, store: Store, runtime: RuntimeSettings) -> RefreshReport:
    """The report of a refresh, after the current snapshot was copied where the settings say.

    Raises:
        StoreError: It cannot be copied.
    """
    if report.refused:
        return report
    return dataclasses.replace(report, run=push_if_asked(report.run, store, runtime))


def _refresh(
    source: Source, settings: PipelineSettings, current: Snapshot, store: Store, begun: float
) -> RefreshReport:
    plan = refresh_plan(settings, source.path, source.texts, current.entries)
    results: dict[str, StageResult] = {}
    _run(plan.first, results, store, settings)
    changes: dict[str, float] = results[CHANGES].info["changes"]
    checks = [*data_checks(settings.refresh, changes), *drift_checks(settings.refresh, changes)]
    since = _drift_before(current) + Drift(
        preferences=changes["preference_drift"],
        moved_items=1 - changes["clusters_kept"],
        new_items=changes["n_new_items"] / changes["n_known_items"],
    )
    decision = _decision(settings.refresh, since, refusals(checks))
    get_run_logger().info("fine-tuning: %s; %s", "anew" if decision.tune else "not anew", decision.reason)
    if not decision.tune:
        adapter = store.load(current.entries["finetune"])
        store.verify(adapter)
        results["finetune"] = StageResult.of(adapter, Outcome.CACHED, f"used again; {VERIFIED}", 0.0)
    _run(plan.tuned if decision.tune else plan.untuned, results, store, settings)
    checks += recommender_checks(settings.refresh, _compared(settings, results, current, store))
    record = {
        "base": current.number,
        "tuned": decision.tune,
        "tuning": decision.reason,
        "drift_since_tuning": (Drift() if decision.tune else since).to_json(),
        "changes": changes,
        "checks": [check.to_json() for check in checks],
    }
    refused = refusals(checks)
    info = {"synthetic": source.synthetic, "refresh": record}
    refs = {name: result.ref for name, result in results.items()}
    try:
        made = publish_snapshot(store, source.dataset, refs, info, refused=refused, base=current.number)
    except SnapshotOvertaken:
        other = current_number(store, source.dataset)
        refused = [f"snapshot {other} became the current one while snapshot {current.number} was refreshed"]
        made = publish_snapshot(store, source.dataset, refs, info, refused=refused)
    now = current.number if refused else made.number
    run = RunReport(source.dataset, source.synthetic, results, now, time.monotonic() - begun)
    return RefreshReport(
        run, current.number, made.number, decision.reason, decision.tune, changes, tuple(checks), tuple(refused)
    )


def _run(slots: list[Slot], results: dict[str, StageResult], store: Store, settings: PipelineSettings) -> None:
    """Run slots in order, and add their results."""
    refs: dict[str, ArtefactRef] = {name: result.ref for name, result in results.items()}
    for slot in slots:
        results[slot.name] = run_slot(slot, refs, store, settings.runtime, force=False)
        refs[slot.name] = results[slot.name].ref


def _decision(settings: RefreshSettings, since: Drift, refused: list[str]) -> TuningDecision:
    thresholds = Drift(settings.tune_at_preference_drift, settings.tune_at_moved_items, settings.tune_at_new_items)
    return tuning_decision(str(settings.finetune), since, thresholds, data_refused="; ".join(refused))


def _drift_before(current: Snapshot) -> Drift:
    """Drift between the last fine-tuning and the current snapshot; none where that is an ordinary run's."""
    return Drift(**current.info.get("refresh", {}).get("drift_since_tuning", {}))


def _compared(
    settings: PipelineSettings, results: dict[str, StageResult], current: Snapshot, store: Store
) -> list[Compared]:
    """The new recommenders beside the current ones, as the slots of comparison found."""
    backbone = settings.recommender.encoder.backbone
    compared = []
    for variant in settings.variants:
        found = results[comparison_slot(settings, variant)].info["comparison"]
        evaluated = current.entries.get(f"evaluation.{backbone}.{variant}")
        recorded = None if evaluated is None else _recorded(store.load(evaluated).manifest.info, settings.refresh)
        compared.append(
            Compared(
                f"{backbone} {variant}",
                recorded,
                found["current"]["value"],
                found["new"]["value"],
                found["current"]["coverage"],
                found["new"]["coverage"],
                found["finite"],
            )
        )
    return compared


def _recorded(info: dict[str, Any], settings: RefreshSettings) -> float | None:
    """The gate's metric in an evaluation's manifest; None where it was not measured."""
    wanted = ("test", str(settings.gate_seen), str(settings.gate_metric), settings.gate_k)
    for entry in info["metrics"]:
        if (entry["split"], entry["seen"], entry["metric"], entry["k"]) == wanted:
            return float(entry["value"])
    return None


def _show(report: RefreshReport) -> None:
    """Leave the run's artifacts in Prefect."""
    dataset = report.run.dataset
    with shown_if_possible("the refresh's results"):
        create_markdown_artifact(_markdown(report), key="refresh", description=f"{dataset}: refresh")
        create_table_artifact(check_rows(report), key="gate", description=f"{dataset}: quality gate")
        create_table_artifact(change_rows(report), key="changes", description=f"{dataset}: changes")
        create_table_artifact(metrics_rows(report.run), key="metrics", description=f"{dataset}: metrics")
        create_table_artifact(stage_rows(report.run), key="stages", description=f"{dataset}: stages")


def _markdown(report: RefreshReport) -> str:
    columns = ["check", "found", "allowed", "holds", "setting"]
    lines = [f"# Refresh of {report.run.dataset}", "", conclusion(report), ""]
    lines += [f"- {reason}" for reason in report.refused]
    if report.made is not None:
        lines += ["", f"Fine-tuning: {report.tuning}. {renewed(report)}.", ""]
        lines += markdown_table(columns, check_rows(report), lambda column, value: str(value))
        lines += ["", *markdown_table(["measure", "value"], change_rows(report), lambda column, value: str(value))]
    return "\n".join(lines)
