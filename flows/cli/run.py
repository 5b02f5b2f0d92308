"""``p2rec run`` and ``p2rec stage``."""

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from flows.cli.options import (
    DEFAULT_STORE,
    ConfigOption,
    DatasetOption,
    JsonOption,
    ProfileOption,
    RecipeOption,
    SetOption,
    StoreOption,
)
from flows.cli.terminal import StageBars, note_no_store, print_plan, print_report
from flows.configured import configured_server
from flows.prepare import cached_report, chosen_slots, looked_at, prepared_slots, settings_note
from flows.report import RunReport
from flows.server import HEARTBEAT_S, server_for_runs
from p2rec_core.errors import P2RecError
from p2rec_core.settings.pipeline import PipelineSettings, Profile, Recipe, pipeline_settings
from storage.artefacts import ArtefactRef, Store
from storage.snapshots import read_snapshot, snapshot_datasets
from tasks.dag import Slot, upstream
from tasks.machine import check_device
from tasks.plan import plan
from tasks.progress import listening

ForceOption = Annotated[bool, Parameter(name="--force", negative="", help="Compute even what is cached.")]
DryRunOption = Annotated[
    bool, Parameter(name="--dry-run", negative="", help="Say what would be computed and why, and stop.")
]


def run(
    *,
    dataset: DatasetOption = "sample",
    profile: ProfileOption = Profile.CPU,
    recipe: RecipeOption = Recipe.DEFAULT,
    config: ConfigOption = None,
    assignments: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    force: ForceOption = False,
    publish: Annotated[
        bool,
        Parameter(
            name="--publish",
            help="Make the result the current snapshot; without, its artefacts are kept for later runs until "
            "p2rec gc finds them old.",
        ),
    ] = True,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run all eight stages on a dataset; what is in the store already is verified and reused.

    Examples:
        p2rec run                                         # the embedded sample
        p2rec run --dataset beauty
        p2rec run -d beauty --no-publish --set recommender.encoder.n_layers=1
        p2rec run -d beauty --dry-run
    """
    begun = time.monotonic()
    settings = pipeline_settings(
        dataset=dataset, profile=profile, recipe=recipe, config=config, assignments=assignments or ()
    )
    if dry_run:
        _dry_run(dataset, settings, store, stage=None, downstream=True, as_json=as_json)
        return
    opened = Store.open(store)
    prepared = _prepared(dataset, settings, opened)
    if config is None and prepared is not None and dataset in snapshot_datasets(opened):
        note = settings_note(prepared[0], opened, dataset, assignments or ())
        if note is not None:
            Console(stderr=True).print(f"note: {note}", highlight=False, soft_wrap=True, markup=False)
    report = None
    if not force and prepared is not None and configured_server() is None:
        slots, synthetic = prepared
        planned = list(plan(slots, opened, {}))
        report = cached_report(dataset, synthetic, planned, opened, begun, settings.runtime, publish=publish)
    if report is None:
        if prepared is not None:
            _check_device(prepared[0], settings, opened, force=force)
        quiet_prefect()
        from flows.pipeline import pipeline
        from flows.turns import WhenBusy

        with server_for_runs(), StageBars(enabled=not as_json) as bars, listening(bars):
            values = pipeline(
                dataset=dataset,
                settings=settings,
                store=store,
                force=force,
                publish=publish,
                when_busy=WhenBusy.OVERLAP,
            )
        report = RunReport.from_json(values)
    _show(report, opened, as_json)


def stage(
    name: Annotated[str, Parameter(help="A stage (clusters) or a slot (recommender.sasrec.p2rec).")],
    /,
    *,
    dataset: DatasetOption = "sample",
    profile: ProfileOption = Profile.CPU,
    recipe: RecipeOption = Recipe.DEFAULT,
    config: ConfigOption = None,
    assignments: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    downstream: Annotated[
        bool, Parameter(name="--downstream", help="Also run what depends on it and publish the snapshot.")
    ] = True,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run one stage ad hoc, with what depends on it (default) or without.

    Examples:
        p2rec stage clusters -d beauty --set clusters.n_clusters=100
        p2rec stage finetune -d beauty --force --no-downstream
        p2rec stage knowledge -d beauty --dry-run
    """
    settings = pipeline_settings(
        dataset=dataset, profile=profile, recipe=recipe, config=config, assignments=assignments or ()
    )
    if dry_run:
        _dry_run(dataset, settings, store, stage=name, downstream=downstream, as_json=as_json)
        return
    opened = Store.open(store)
    _check_device(_slots(dataset, settings, opened, name, downstream), settings, opened, force=force)
    quiet_prefect()
    from flows.pipeline import rerun_stage
    from flows.turns import WhenBusy

    with server_for_runs(), StageBars(enabled=not as_json) as bars, listening(bars):
        values = rerun_stage(
            dataset=dataset,
            stage=name,
            settings=settings,
            store=store,
            with_downstream=downstream,
            force=force,
            when_busy=WhenBusy.OVERLAP,
        )
    _show(RunReport.from_json(values), opened, as_json)


def _show(report: RunReport, store: Store, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(report.to_json(), ensure_ascii=False) + "\n")
    else:
        print_report(report, store)


def _prepared(dataset: str, settings: PipelineSettings, store: Store) -> tuple[list[Slot], bool] | None:
    """The pipeline, and whether its data is synthetic; None where a configured Prefect server is to see it fail."""
    try:
        return prepared_slots(dataset, settings, store)
    except P2RecError:
        if configured_server() is not None:
            return None
        raise


def _dry_run(
    dataset: str, settings: PipelineSettings, store: Path, *, stage: str | None, downstream: bool, as_json: bool
) -> None:
    with looked_at(store) as (opened, exists):
        if not exists:
            note_no_store(store)
        slots = _slots(dataset, settings, opened, stage, downstream)
        planned = list(plan(slots, opened, _present(opened, dataset)))
    print_plan(planned, as_json=as_json)
    if not all(slot.cached for slot in planned):
        check_device(settings.runtime.device)


def _slots(dataset: str, settings: PipelineSettings, store: Store, stage: str | None, downstream: bool) -> list[Slot]:
    """The slots that a command walks.

    Raises:
        SettingsError: There is no such stage.
    """
    slots, _ = prepared_slots(dataset, settings, store)
    if stage is None:
        return slots
    chosen = chosen_slots(slots, stage)
    return slots if downstream else upstream(slots, chosen)


def _check_device(slots: list[Slot], settings: PipelineSettings, store: Store, *, force: bool) -> None:
    """Refuse a GPU that is not there before Prefect is started; what is cached needs none."""
    device = settings.runtime.device
    if device != "cpu" and (force or not all(slot.cached for slot in plan(slots, store, {}))):
        check_device(device)


def _present(store: Store, dataset: str) -> dict[str, ArtefactRef]:
    """Slots of the current snapshot, empty before the first one."""
    try:
        return read_snapshot(store, dataset).entries
    except P2RecError:
        return {}


def quiet_prefect() -> None:
    """Settings for a Prefect inside a command: no telemetry, its log lines to the API and not to the terminal.

    Signs of life come as often as the server's automation expects them, whatever the user's other flows do.
    """
    defaults = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    os.environ["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] = str(HEARTBEAT_S)
    logging.getLogger("httpx").setLevel(logging.WARNING)
