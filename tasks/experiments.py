"""What an experiment consists of: a small file per experiment in the store, so that a report can be made of it.

    <root>/experiments/<name>.json

It lists the cells that were asked for, with the artefacts of those that are done. A run replaces it as cells finish;
cells of earlier runs stay if the experiment, as it is now, says the same of them.
"""

import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from p2rec_core.analysis.results import Cell
from p2rec_core.errors import SettingsError, StoreError
from p2rec_core.settings.experiment import SELECTED_BY, ExperimentSettings, Value, experiment_settings
from p2rec_core.settings.sequence_model import Variant
from storage.artefacts import DEFAULT_STORE, ArtefactRef, Store, canonical_json
from storage.disk import make_directory, os_errors, replace_durably
from storage.manifest import FORMAT_VERSION, checked_name, digest_of, parse_digested, render_json
from storage.snapshots import references_lock
from tasks.matrix_run import CellState, MatrixRun

_DIRECTORY = "experiments"


@dataclass(frozen=True)
class CellRecord:
    """What there is of one cell.

    Attributes:
        cell: Which one.
        variant: What its recommender knows of an item.
        digest: Hash of what the experiment says of it; equal if and only if it is the same cell.
        state: Done, missing or failed.
        reason: Why it failed.
        slots: Artefacts of its pipeline by slot, as far as they are there.
        trained: The slot of its recommender.
        evaluated: The slot of its evaluation.
        validation: Best validation NDCG@10; None where there was none.
        wall_s: Seconds that training and evaluation took when they were computed.
        trials: Points of the tuning grid that were tried; 0 where nothing was tuned.
        chosen: What tuning chose.
        tried: Artefacts of what tuning tried, so that garbage collection keeps them.
    """

    cell: Cell
    variant: Variant
    digest: str
    state: CellState
    reason: str
    slots: dict[str, ArtefactRef]
    trained: str
    evaluated: str
    validation: float | None = None
    wall_s: float | None = None
    trials: int = 0
    chosen: dict[str, Value] = field(default_factory=dict)
    tried: tuple[ArtefactRef, ...] = ()


@dataclass(frozen=True)
class DatasetRecord:
    """What the cells of a dataset share.

    Attributes:
        synthetic: Whether its data was drawn by a program.
        slots: Artefacts by slot: ingest, pre-trained backbone, clusters, … as the first arm that has them uses them.
    """

    synthetic: bool
    slots: dict[str, ArtefactRef]


@dataclass(frozen=True)
class ExperimentRecord:
    """An experiment in the store.

    Attributes:
        settings: The experiment as a whole, as it was when it was run last.
        origin: How a command line names it: a built-in experiment or a file, and what was set beside.
        cells: Every cell that was asked for.
        datasets: What is shared, by dataset.
    """

    settings: ExperimentSettings
    origin: str
    cells: dict[Cell, CellRecord]
    datasets: dict[str, DatasetRecord]

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values; each artefact is written once."""
        artefacts: dict[str, ArtefactRef] = {}

        def places(slots: Mapping[str, ArtefactRef]) -> dict[str, str]:
            named = {}
            for slot, ref in slots.items():
                place = f"{ref.stage}/{ref.key}"
                if artefacts.setdefault(place, ref) != ref:  # forced between two runs, with other content
                    place = f"{ref.stage}/{ref.variant}"
                    artefacts[place] = ref
                named[slot] = place
            return named

        cells = [
            asdict(record.cell)
            | {name: getattr(record, name) for name in _PLAIN}
            | {"variant": str(record.variant), "state": str(record.state), "slots": places(record.slots)}
            | {"tried": list(places({str(n): ref for n, ref in enumerate(record.tried)}).values())}
            for _, record in sorted(self.cells.items())
        ]
        datasets = {
            name: {"synthetic": record.synthetic, "slots": places(record.slots)}
            for name, record in self.datasets.items()
        }
        return {
            # as text, since the order of arms and of what is tuned means something
            "settings": self.settings.model_dump_json(),
            "origin": self.origin,
            "cells": cells,
            "datasets": datasets,
            "artefacts": {place: ref.to_json() for place, ref in artefacts.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ExperimentRecord":
        """The inverse of ``to_json``; KeyError, TypeError, ValueError or a P2RecError if it is not that."""
        artefacts = {place: ArtefactRef.from_json(ref) for place, ref in values["artefacts"].items()}
        cells: dict[Cell, CellRecord] = {}
        for entry in values["cells"]:
            cell = Cell(entry["dataset"], entry["method"], entry["arm"], entry["seed"])
            cells[cell] = CellRecord(
                cell=cell,
                variant=Variant(entry["variant"]),
                state=CellState(entry["state"]),
                slots={slot: artefacts[place] for slot, place in entry["slots"].items()},
                tried=tuple(artefacts[place] for place in entry.get("tried", ())),  # older records have none
                **{name: entry[name] for name in _PLAIN},
            )
        datasets = {
            name: DatasetRecord(entry["synthetic"], {slot: artefacts[place] for slot, place in entry["slots"].items()})
            for name, entry in values["datasets"].items()
        }
        settings = experiment_settings(json.loads(values["settings"]), place="the record")
        return cls(settings, values["origin"], cells, datasets)

    def missing(self) -> list[Cell]:
        """Cells that are not done."""
        return [cell for cell, record in self.cells.items() if record.state is not CellState.DONE]


_PLAIN = ("digest", "reason", "trained", "evaluated", "validation", "wall_s", "trials", "chosen")


class Recorder:
    """Writes down what a run has so far, together with what earlier runs left.

    Args:
        run: The run, of the experiment or of a part of it.
        experiment: The experiment as a whole.
        origin: How a command line names it.
    """

    def __init__(self, run: MatrixRun, experiment: ExperimentSettings, origin: str) -> None:
        self.run = run
        self.experiment = experiment
        self.origin = origin
        self._digests: dict[Cell, str] = {}
        self._walls: dict[str, float] = {}
        self._referred_to: set[tuple[str, str]] = set()

    def write(self) -> ExperimentRecord:
        """Replace the file if there is something new, and return what it says; a damaged one is set aside.

        Raises:
            ArtefactMissing: Garbage collection has removed what this run found or made.
            StoreError: The store cannot be read or written, or a newer P2Rec wrote the file.
        """
        store, name = self.run.store, self.experiment.name
        with store.lock(_DIRECTORY, name), references_lock(store):
            for result in self.run.results.values():
                if (result.ref.stage, result.ref.variant) not in self._referred_to:
                    store.load(result.ref)
            record = self._record()
            fields = record.to_json() | {"format_version": FORMAT_VERSION}
            content = render_json(fields | {"digest": digest_of(fields)})
            path = record_path(store, name)
            with os_errors(path, n_bytes=len(content)):
                if not path.exists() or path.read_bytes() != content:
                    make_directory(path.parent)
                    replace_durably(path, content, scratch=store.staging)
            refs = map(ArtefactRef.from_json, fields["artefacts"].values())
            self._referred_to = {(ref.stage, ref.variant) for ref in refs}
        return record

    def _record(self) -> ExperimentRecord:
        """What there is now, with what an earlier run left."""
        matrix, results = self.run.matrix, self.run.results
        cells = {cell: self._cell_record(cell) for cell in matrix.all_cells()}
        datasets = {
            name: DatasetRecord(
                matrix.sources[name].synthetic,
                {slot: results[node].ref for slot, node in slots.items() if node in results},
            )
            for name, slots in matrix.shared.items()
        }
        before = self._before()
        if before is None:
            return ExperimentRecord(self.experiment, self.origin, cells, datasets)
        kept = {cell: r for cell, r in before.cells.items() if cell not in cells and self._still_meant(r)}
        for name in {cell.dataset for cell in kept} & before.datasets.keys():
            shared = before.datasets[name]
            slots = datasets[name].slots if name in datasets else {}
            datasets[name] = DatasetRecord(shared.synthetic, shared.slots | slots)
        return ExperimentRecord(self.experiment, self.origin, kept | cells, datasets)

    def _before(self) -> ExperimentRecord | None:
        """What an earlier run left; None if there is nothing, or what cannot be used, which is set aside then."""
        store, name = self.run.store, self.experiment.name
        path = record_path(store, name)
        with os_errors(path):
            if not path.exists():
                return None
            data = path.read_bytes()
        try:
            return _parsed(data, path)
        except SettingsError as error:  # the cells of settings that are no longer known are not those of today's
            reason = error.problem
        except ValueError as error:
            reason = str(error)
        store.set_aside(path, f"{_DIRECTORY}-{name}", f"It cannot be used: {reason}")
        return None

    def _still_meant(self, record: CellRecord) -> bool:
        """Whether the experiment, as it is now, says the same of a cell that this run leaves out."""
        return record.cell.arm in self.experiment.arms and record.digest == self._digest(record.cell)

    def _digest(self, cell: Cell) -> str:
        """Hash of what the experiment says of a cell: its settings without the runtime, and its tuning."""
        if cell not in self._digests:
            experiment = self.experiment
            settings = experiment.pipeline(cell.dataset, cell.arm, backbone=cell.method, seed=cell.seed)
            content = {
                "settings": settings.model_dump(mode="json", exclude={"runtime"}),
                "tuning": experiment.tuning,
                "tuning_seed": experiment.trial_seed if experiment.tuning else None,
            }
            self._digests[cell] = hashlib.sha256(canonical_json(content).encode()).hexdigest()
        return self._digests[cell]

    def _cell_record(self, cell: Cell) -> CellRecord:
        run, matrix = self.run, self.run.matrix
        variant = matrix.experiment.arms[cell.arm].variant
        state, reason = run.state(cell)
        group, planned = matrix.group(cell), matrix.cells.get(cell)
        trained, evaluated = f"recommender.{cell.method}.{variant}", f"evaluation.{cell.method}.{variant}"
        nodes = planned.slots if planned is not None else {}
        slots = {slot: run.results[node].ref for slot, node in nodes.items() if node in run.results}
        validation = wall_s = None
        if state is CellState.DONE:
            validation = run.results[nodes[trained]].info.get("best", {}).get(SELECTED_BY)
            wall_s = self._wall_s(slots[trained]) + self._wall_s(slots[evaluated])
        return CellRecord(
            cell=cell,
            variant=variant,
            digest=self._digest(cell),
            state=state,
            reason=reason,
            slots=slots,
            trained=trained,
            evaluated=evaluated,
            validation=validation,
            wall_s=wall_s,
            trials=len(group.trials),
            chosen=dict(group.chosen or {}),
            tried=tuple(run.results[node].ref for _, node in group.trials if node in run.results),
        )

    def _wall_s(self, ref: ArtefactRef) -> float:
        if ref.key not in self._walls:
            self._walls[ref.key] = self.run.store.load(ref).manifest.wall_s
        return self._walls[ref.key]


def record_path(store: Store, name: str) -> Path:
    """Where an experiment's record is, whether or not it exists."""
    return store.root / _DIRECTORY / f"{checked_name('an experiment', name)}.json"


def recorded(store: Store) -> list[str]:
    """Names of the experiments that have a record."""
    return sorted(path.stem for path in (store.root / _DIRECTORY).glob("*.json"))


def read_record(store: Store, name: str) -> ExperimentRecord:
    """Read what is known of an experiment.

    Raises:
        StoreError: It was never run in this store, or its record is damaged.
    """
    path = record_path(store, name)
    remedy = f"Run it: `p2rec experiment run {name}`; what was computed before is taken from the store."
    with os_errors(path):
        if not path.exists():
            there = ", ".join(recorded(store)) or "none"
            raise StoreError(
                f"There are no results of an experiment {name!r} in {store.root} (it has: {there}).", remedy=remedy
            )
        data = path.read_bytes()
    try:
        return _parsed(data, path)
    except ValueError as error:
        raise StoreError(f"{path} is damaged: {error}.", remedy=remedy) from error


def _parsed(data: bytes, path: Path) -> ExperimentRecord:
    """A record from its file's content; ValueError if it is damaged, StoreError if a newer P2Rec wrote it."""
    fields = parse_digested(data, str(path))
    try:
        return ExperimentRecord.from_json(fields)
    except (AttributeError, KeyError, TypeError, StoreError) as error:
        raise ValueError(str(error)) from error


def command_for(record: ExperimentRecord, cells: Iterable[Cell], store: Path) -> str:
    """The command line that computes some of an experiment's cells."""
    chosen = list(cells)
    options: dict[str, set[str]] = {
        "--datasets": {cell.dataset for cell in chosen},
        "--backbones": {cell.method for cell in chosen},
        "--arms": {cell.arm for cell in chosen},
    }
    seeds = sorted({cell.seed for cell in chosen})
    words = ["p2rec experiment run", record.origin]
    words += [f"{name} {','.join(sorted(values))}" for name, values in options.items()]
    words.append(f"--seeds {','.join(map(str, seeds))}")
    if store.resolve() != DEFAULT_STORE.resolve():
        words.append(f"--store {shlex.quote(str(store))}")
    return " ".join(words)
