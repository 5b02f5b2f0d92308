"""An experiment as one graph: the pipelines of all its cells, with what they have in common computed once.

A cell is a dataset with a backbone, an arm and a seed. Slots of two cells are one node where they are the same
computation on the same inputs, whatever the cells are called.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2rec_core.analysis.results import Cell
from p2rec_core.errors import SettingsError
from p2rec_core.settings.experiment import SELECTED_BY, ExperimentSettings, Value
from p2rec_core.settings.pipeline import PipelineSettings
from p2rec_core.settings.sequence_model import Variant
from storage.artefacts import ArtefactRef, Store
from storage.datasets import Progress
from tasks.dag import NO_LEARNING, PROBE, Slot, cost_slots, e4srec_slots, pipeline_slots, probe_slots, upstream
from tasks.estimate import Kinds, kinds_of
from tasks.sources import Source, TextFile, find_source
from tasks.stage import StageCall, StageResult


@dataclass(frozen=True)
class Recipe:
    """Enough to build a pipeline's slots anew in another process.

    Attributes:
        dataset: The dataset.
        source: Its file of interactions.
        texts: Its items' texts; None where there are none.
        settings: Settings of every stage.
        extras: Names of the further slots (``EXTRAS``).
    """

    dataset: str
    source: Path
    texts: TextFile | None
    settings: PipelineSettings
    extras: tuple[str, ...] = ()

    def pipeline(self) -> list[Slot]:
        """The slots without the further ones."""
        return pipeline_slots(self.settings, self.source, self.texts)

    def slots(self) -> list[Slot]:
        """The slots, each after those that it needs."""
        slots = self.pipeline()
        for extra in self.extras:
            slots.extend(EXTRAS[extra](self.settings, self.texts))
        return slots

    def to_json(self) -> dict[str, Any]:
        """The recipe as JSON values."""
        return {
            "dataset": self.dataset,
            "source": str(self.source),
            "texts": None if self.texts is None else [str(self.texts.path), self.texts.columns],
            "settings": self.settings.model_dump(mode="json"),
            "extras": list(self.extras),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Recipe":
        """The inverse of ``to_json``."""
        settings = PipelineSettings.model_validate(values["settings"])
        texts = None
        if values["texts"] is not None:
            path, columns = values["texts"]
            texts = TextFile(Path(path), None if columns is None else tuple(columns))
        return cls(values["dataset"], Path(values["source"]), texts, settings, tuple(values["extras"]))


EXTRAS: dict[str, Callable[[PipelineSettings, TextFile | None], list[Slot]]] = {
    "e4srec": lambda settings, texts: e4srec_slots(settings),
    "cost": cost_slots,
    "probes": probe_slots,
}
"""Further slots, by the experiment's switch that asks for them (``e4srec``, ``cost``, ``probes``).

Each may need slots of a +P2Rec pipeline by name; ``Recipe.slots`` puts them behind these. A dataset has each of them
once, but for ``probes``, which every +P2Rec arm has of its own knowledge.
"""

_OF_AN_ARM = "probes"


@dataclass(frozen=True)
class Node:
    """A computation of the matrix.

    Attributes:
        name: Unique in the matrix: ``beauty/knowledge``, ``beauty/recommender.gru4rec.p2rec/seed2``.
        slot: The slot that it fills, of the first cell that has it.
        recipe: That cell's pipeline.
        needs: Slot that it reads → node that fills it.
        kinds: What it is like, to tell how long it takes.
        rank: Nodes with a lower rank go first.
    """

    name: str
    slot: Slot
    recipe: Recipe
    needs: dict[str, str]
    kinds: Kinds
    rank: tuple[int, ...]

    def refs(self, results: Mapping[str, StageResult]) -> dict[str, ArtefactRef]:
        """The artefacts that it reads, by slot."""
        return {slot: results[node].ref for slot, node in self.needs.items()}


@dataclass
class Group:
    """The cells of one dataset, backbone and arm, which share the choice that tuning makes.

    Attributes:
        dataset: The dataset.
        backbone: The backbone.
        arm: Name of the arm.
        trials: The points of the grid, each with the node that trains it; empty where nothing is tuned.
        chosen: The best point; None as long as trials are missing. Empty where nothing is tuned.
    """

    dataset: str
    backbone: str
    arm: str
    trials: list[tuple[dict[str, Value], str]] = field(default_factory=list)
    chosen: dict[str, Value] | None = None


@dataclass(frozen=True)
class PlannedCell:
    """One cell's place in the graph.

    Attributes:
        cell: Which one.
        variant: What its recommender knows of an item.
        slots: Slot → node of every slot of its pipeline.
        trained: The slot of its recommender.
        evaluated: The slot of its evaluation.
    """

    cell: Cell
    variant: Variant
    slots: dict[str, str]
    trained: str
    evaluated: str


class Matrix:
    """The graph of an experiment. It grows where tuning has to choose before the cells can be known.

    Args:
        experiment: What to compute.
        store: Where imports are registered and artefacts are.
        threads: CPU threads of a computation; None leaves what the settings say.
        progress: Told about downloads.

    Raises:
        P2RecError: A dataset or language model is unknown, or a setting is wrong in some cell.
    """

    def __init__(
        self,
        experiment: ExperimentSettings,
        store: Store,
        *,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.experiment = experiment
        self.nodes: dict[str, Node] = {}
        self.cells: dict[Cell, PlannedCell] = {}
        self.groups: list[Group] = []
        self.sources: dict[str, Source] = {}
        self.shared: dict[str, dict[str, str]] = {}
        """Dataset → slot → node of what is no cell's own."""
        self._threads = threads
        self._identities: dict[str, str] = {}
        self._symbols: dict[str, ArtefactRef] = {}
        self._origins: dict[str, str] = {}
        for dataset in experiment.datasets:
            self.sources[dataset] = find_source(dataset, store, progress=progress)
            self.shared[dataset] = {}
            self._add_dataset(dataset)

    def all_cells(self) -> list[Cell]:
        """Every cell that is asked for, planned yet or not."""
        experiment = self.experiment
        grid = itertools.product(experiment.datasets, experiment.seeds, experiment.backbones, experiment.arms)
        return [Cell(dataset, backbone, arm, seed) for dataset, seed, backbone, arm in grid]

    def group(self, cell: Cell) -> Group:
        """The group that a cell belongs to."""
        return next(g for g in self.groups if (g.dataset, g.backbone, g.arm) == (cell.dataset, cell.method, cell.arm))

    def cell_settings(self, cell: Cell, chosen: Mapping[str, Value] | None = None) -> PipelineSettings:
        """The settings of a cell's pipeline."""
        return self._settings(cell.dataset, cell.arm, cell.method, cell.seed, chosen or {})

    def grow(self, results: Mapping[str, StageResult]) -> bool:
        """Choose where all trials of a group are done, and plan its cells.

        Args:
            results: What is done, by node.

        Returns:
            Whether there are new cells.

        Raises:
            SettingsError: A trial was not validated, so that nothing can be chosen by it.
        """
        grown = False
        for group in self.groups:
            if group.chosen is None and all(node in results for _, node in group.trials):
                group.chosen = _best(group, results)
                self._add_cells(group, self.experiment.seeds)
                grown = True
        return grown

    def _settings(
        self, dataset: str, arm: str, backbone: str | None, seed: int | None, chosen: Mapping[str, Value]
    ) -> PipelineSettings:
        settings = self.experiment.pipeline(dataset, arm, backbone=backbone, seed=seed, chosen=chosen)
        changed: dict[str, Any] = {"ingest": self.sources[dataset].ingest_settings(settings.ingest)}
        if self._threads is not None:
            changed["runtime"] = settings.runtime.model_copy(update={"threads": self._threads})
        return settings.model_copy(update=changed)

    def _recipe(self, dataset: str, settings: PipelineSettings, extras: tuple[str, ...] = ()) -> Recipe:
        source = self.sources[dataset]
        return Recipe(dataset, source.path, source.texts, settings, extras)

    def _add_dataset(self, dataset: str) -> None:
        experiment = self.experiment
        here = [
            Group(dataset, backbone, arm, chosen=None if experiment.tuning else {})
            for backbone in experiment.backbones
            for arm in experiment.arms
        ]
        self.groups.extend(here)
        if experiment.tuning:
            for group in self._widest_first(here):
                self._add_trials(group)
        else:
            for seed in experiment.seeds:
                for group in self._widest_first(here):
                    self._add_cells(group, [seed])
        self._add_extras(dataset)

    def _widest_first(self, groups: list[Group]) -> list[Group]:
        """Groups whose pipelines have the most stages first, so that what is shared has the name of its stage."""
        order = (Variant.P2REC, Variant.CI, Variant.BASE)
        return sorted(groups, key=lambda group: order.index(self.experiment.arms[group.arm].variant))

    def _add_trials(self, group: Group) -> None:
        experiment = self.experiment
        seed = experiment.trial_seed
        for number, point in enumerate(experiment.trials(), 1):
            settings = self._settings(group.dataset, group.arm, group.backbone, seed, point)
            if settings.recommender.training.patience is None:
                raise SettingsError(
                    f"{experiment.name}: tuning chooses by validation, and recommender.training.patience is null.",
                    remedy="Set recommender.training.patience, or empty the experiment's tuning.",
                )
            recipe = self._recipe(group.dataset, settings)
            trained = f"recommender.{group.backbone}.{experiment.arms[group.arm].variant}"
            slots = upstream(recipe.slots(), {trained})
            rank = (0, self.groups.index(group), number)
            placed = self._place(recipe, slots, group.arm, f"/seed{seed}/trial{number}", rank)
            group.trials.append((point, placed[trained]))

    def _add_cells(self, group: Group, seeds: Iterable[int]) -> None:
        variant = self.experiment.arms[group.arm].variant
        for seed in seeds:
            cell = Cell(group.dataset, group.backbone, group.arm, seed)
            settings = self.cell_settings(cell, group.chosen)
            recipe = self._recipe(group.dataset, settings)
            rank = (1, self.experiment.seeds.index(seed), self.groups.index(group))
            placed = self._place(recipe, recipe.slots(), group.arm, f"/seed{seed}", rank)
            own = f"{group.backbone}.{variant}"
            self.cells[cell] = PlannedCell(cell, variant, placed, f"recommender.{own}", f"evaluation.{own}")
            if variant is Variant.P2REC and seed == self.experiment.seeds[0] and self.experiment.probes:
                self._add_probe(cell, settings, rank)

    def _add_probe(self, cell: Cell, settings: PipelineSettings, rank: tuple[int, ...]) -> None:
        """What a cell's knowledge carries; beside the cell, which is whole without it.

        One seed stands for all, since no knowledge but noise depends on it.
        """
        recipe = self._recipe(cell.dataset, settings, (_OF_AN_ARM,))
        placed = self._place(recipe, upstream(recipe.slots(), {PROBE}), cell.arm, "", rank)
        self.shared[cell.dataset][f"{PROBE}.{cell.method}.{cell.arm}"] = placed[PROBE]

    def _add_extras(self, dataset: str) -> None:
        wanted = tuple(name for name in EXTRAS if name != _OF_AN_ARM and getattr(self.experiment, name))
        arm = self.experiment.role(Variant.P2REC)
        if not wanted or arm is None:
            return
        settings = self._settings(dataset, arm, None, None, {})
        recipe = self._recipe(dataset, settings, wanted)
        pipeline = {slot.name for slot in recipe.pipeline()}
        slots = recipe.slots()
        needed = {need for slot in slots if slot.name not in pipeline for need in slot.needs}
        kept = {slot.name for slot in upstream(slots, needed & pipeline)}
        slots = [slot for slot in slots if slot.name not in pipeline or slot.name in kept]
        placed = self._place(recipe, slots, arm, "", (2,))
        self.shared[dataset].update(placed)

    def _place(self, recipe: Recipe, slots: list[Slot], arm: str, own: str, rank: tuple[int, ...]) -> dict[str, str]:
        """Put a pipeline's slots into the graph; slot → node, which may have been there before.

        Args:
            recipe: The pipeline.
            slots: Those of its slots that are wanted.
            arm: Name of the arm.
            own: End of the names of what is the cell's own.
            rank: When the cell's own nodes are computed, among those of the dataset.
        """
        placed: dict[str, str] = {}
        for slot in slots:
            needs = {need: placed[need] for need in slot.needs}
            call = slot.call({need: self._symbols[node] for need, node in needs.items()})
            identity = call.key()
            if identity not in self._identities:
                name = self._name(recipe.dataset, slot, arm, own)
                self._add_node(name, recipe, slot, needs, call, rank if _is_own(slot) else (-1,))
            placed[slot.name] = self._identities[identity]
            if not _is_own(slot) and slot.name != PROBE:
                self.shared[recipe.dataset].setdefault(slot.name, placed[slot.name])
        return placed

    def _add_node(
        self,
        name: str,
        recipe: Recipe,
        slot: Slot,
        needs: dict[str, str],
        call: StageCall,
        rank: tuple[int, ...],
    ) -> None:
        inputs = call.input_refs()
        origins = [self._origins[node] for node in needs.values()]
        origin = inputs["interactions-file"].sha256 if "interactions-file" in inputs else "".join(origins[:1])
        rank = (list(self.sources).index(recipe.dataset), *rank, len(self.nodes))
        kinds = kinds_of(call.stage, call.settings, origin, inputs)
        self.nodes[name] = Node(name, slot, recipe, needs, kinds, rank)
        identity = call.key()
        self._identities[identity] = name
        self._symbols[name] = ArtefactRef(call.stage, identity, _AnyFile(identity))
        self._origins[name] = origin

    def _name(self, dataset: str, slot: Slot, arm: str, own: str) -> str:
        if _is_own(slot):
            # recommender.sasrec.p2rec of the arm p2rec-k100 is recommender.sasrec.p2rec-k100
            names: Iterator[str] = iter([f"{dataset}/{slot.name.rpartition('.')[0]}.{arm}{own}"])
        else:
            names = iter([f"{dataset}/{slot.name}", f"{dataset}/{slot.name}.{arm}"])
        numbered = (f"{dataset}/{slot.name}.{arm}#{number}" for number in itertools.count(2))
        return next(name for name in itertools.chain(names, numbered) if name not in self.nodes)


class _AnyFile(dict[str, str]):
    """Stands for the files of an artefact that is not there yet: each has a content of its own."""

    def __init__(self, identity: str) -> None:
        super().__init__()
        self._identity = identity

    def __missing__(self, file: str) -> str:
        return hashlib.sha256(f"{self._identity}/{file}".encode()).hexdigest()


def _is_own(slot: Slot) -> bool:
    return slot.stage in ("recommender", "evaluation") and slot.name != NO_LEARNING


def _best(group: Group, results: Mapping[str, StageResult]) -> dict[str, Value]:
    """The point with the best validation; of equal ones the first."""
    values = []
    for point, node in group.trials:
        best = results[node].info.get("best", {})
        if SELECTED_BY not in best:
            raise SettingsError(
                f"{node} has no validation {SELECTED_BY}, so that {point} cannot be compared.",
                remedy="Set recommender.training.patience, so that trainings are validated.",
            )
        values.append(best[SELECTED_BY])
    return group.trials[values.index(max(values))][0]
