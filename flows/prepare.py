"""What comes before a run and needs no Prefect: the graph of a dataset, parts of it, and a fully cached answer."""

import contextlib
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from flows.pushing import check_bucket, push_if_asked
from flows.report import RunReport
from p2rec_core.errors import P2RecError, SettingsError, StoreError
from p2rec_core.settings.pipeline import PipelineSettings, RuntimeSettings
from storage.artefacts import Store, is_store
from storage.snapshots import current_number, publish_snapshot, read_snapshot
from tasks.dag import Slot, pipeline_slots
from tasks.other_settings import other_settings
from tasks.plan import PlannedSlot
from tasks.precheck import check_language_model
from tasks.sources import find_source
from tasks.stage import VERIFIED, Outcome, StageResult

_SHOWN = 8


@contextlib.contextmanager
def looked_at(root: Path) -> Iterator[tuple[Store, bool]]:
    """A store for somebody who only asks what would be done, and whether there is one: none counts as empty, and none
    is made, so that a wrong path leaves nothing behind."""
    if is_store(root):
        yield Store.open(root, create=False), True
        return
    with tempfile.TemporaryDirectory(prefix="p2rec-dry-run-") as folder:
        yield Store(Path(folder).resolve()), False


def prepared_slots(dataset: str, settings: PipelineSettings, store: Store) -> tuple[list[Slot], bool]:
    """The dataset's pipeline, and whether its data is synthetic.

    Raises:
        DataError: There is no such dataset.
        ModelError: A stage reads a language model that is not on this machine.
    """
    check_bucket(settings.runtime)
    source = find_source(dataset, store)
    settings = settings.model_copy(update={"ingest": source.ingest_settings(settings.ingest)})
    slots = pipeline_slots(settings, source.path, source.texts)
    check_language_model(settings.language_model, {slot.stage for slot in slots})
    return slots, source.synthetic


def settings_note(slots: list[Slot], store: Store, dataset: str, assignments: Iterable[str] = ()) -> str | None:
    """What a run without a configuration does otherwise than the current snapshot's; None where there is nothing.

    Args:
        slots: The run's pipeline.
        store: Where the snapshot is.
        dataset: The dataset.
        assignments: Settings that were given one by one, which nobody has to be told.
    """
    given = {assignment.partition("=")[0].strip() for assignment in assignments}
    try:
        current = read_snapshot(store, dataset)
        others = [str(other) for other in other_settings(slots, current, store) if other.name not in given]
    except P2RecError:
        return None  # there is no snapshot, or none that could be compared: the run is not about it
    if not others:
        return None
    shown = "; ".join(others[:_SHOWN]) + (f"; and {len(others) - _SHOWN} more" if len(others) > _SHOWN else "")
    return f"other settings than snapshot {current.number}: {shown} (no --config is given)"


def chosen_slots(slots: list[Slot], stage: str) -> set[str]:
    """Names of the slots that ``stage`` means.

    Raises:
        SettingsError: There is no such stage or slot.
    """
    chosen = {slot.name for slot in slots if stage in (slot.name, slot.stage)}
    if not chosen:
        names = list(dict.fromkeys(name for slot in slots for name in (slot.stage, slot.name)))
        raise SettingsError(f"There is no stage {stage!r}.", remedy=f"Choose one of: {', '.join(names)}.")
    return chosen


def cached_report(
    dataset: str,
    synthetic: bool,
    planned: list[PlannedSlot],
    store: Store,
    begun: float,
    runtime: RuntimeSettings,
    *,
    publish: bool = True,
) -> RunReport | None:
    """The report of a run that has nothing to compute, or None where there is something.

    Args:
        dataset: The dataset.
        synthetic: Whether its data was drawn by a program.
        planned: What ``tasks.plan.plan`` found; its cached artefacts are verified.
        store: The store, whose current snapshot becomes these artefacts.
        begun: Monotonic time of the beginning, in seconds.
        runtime: Where the snapshot is to be copied to.
        publish: Whether to make a snapshot at all.
    """
    results: dict[str, StageResult] = {}
    for slot in planned:
        if slot.artefact is None or not slot.cached:
            return None
        results[slot.slot.name] = StageResult.of(slot.artefact, Outcome.CACHED, VERIFIED, slot.wall_s)
    report = reported(dataset, synthetic, results, store, begun, publish=publish)
    return push_if_asked(report, store, runtime) if publish else report


def reported(
    dataset: str, synthetic: bool, results: dict[str, StageResult], store: Store, begun: float, *, publish: bool
) -> RunReport:
    """The report of a whole run, whose artefacts become the current snapshot if ``publish``."""
    number = before = None
    if publish:
        with contextlib.suppress(StoreError):  # there was none, or none that can be read
            before = current_number(store, dataset)
        refs = {name: result.ref for name, result in results.items()}
        number = publish_snapshot(store, dataset, refs, {"synthetic": synthetic}).number
    wall_s = time.monotonic() - begun
    return RunReport(dataset, synthetic, results, number, wall_s, before=None if before == number else before)
