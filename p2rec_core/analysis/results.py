"""The results of an experiment, as the analysis and the report read them.

A *cell* is one trained and evaluated model. An *arm* is what was done to a backbone: nothing (Base), the cluster index
as a feature (+CI), knowledge (+P2Rec), or an ablation. Seeds of one arm differ in nothing but the seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2rec_core.errors import DataError

METHOD_ORDER = ("gru4rec", "caser", "sasrec", "fmlp-rec", "e4srec")
"""Methods in the order of the paper's Table 2; others follow alphabetically."""


class ResultsInvalid(DataError):
    """Results contradict each other, so that no comparison of them would mean anything."""


class ResultsIncomplete(DataError):
    """Cells that a report cannot do without are not there."""


@dataclass(frozen=True, order=True)
class Cell:
    """One trained and evaluated model.

    Attributes:
        dataset: Name of the dataset.
        method: Name of the backbone ("sasrec"), or of a method that stands alone ("e4srec").
        arm: What was done to it: "base", "ci", "p2rec" or any other arm of the experiment.
        seed: Seed of the training.
    """

    dataset: str
    method: str
    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.dataset}/{self.method}/{self.arm}/seed {self.seed}"


@dataclass(frozen=True, eq=False)
class CellResult:
    """What became of one cell.

    Attributes:
        cell: Which one.
        users: int32 (n,) user_idx of the users with a test target, ascending.
        ranks: Seen policy → int32 (n,) rank of the test target, from 1; 0 = it may not be recommended, a miss.
        validation: Best validation NDCG@10 under ``keep``; NaN where there was no validation.
        curve: (epoch, "loss" | "NDCG@10" | "HR@10", value), in order of the epochs.
        facts: wall_s, best_epoch, n_epochs, n_parameters, trials (tuning budget), chosen (settings that tuning chose),
            machine, versions, key (of the artefact), code (fingerprint); each optional.
    """

    cell: Cell
    users: NDArray[np.int32]
    ranks: Mapping[str, NDArray[np.int32]]
    validation: float = float("nan")
    curve: Sequence[tuple[int, str, float]] = ()
    facts: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class ProbedKnowledge:
    """What knowledge embeddings carry by themselves, before any recommender is trained on them.

    Attributes:
        arms: Arms whose item tables are given just this matrix.
        methods: Backbones that it holds for.
        source: Where the knowledge comes from: "tuned", "text", …
        width: Its columns.
        key: Of the artefact.
        rows: probe, metric, group, value, chance, n; see ``p2rec_core.probes.Measure``.
    """

    arms: tuple[str, ...]
    methods: tuple[str, ...]
    source: str
    width: int
    key: str
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class DatasetFacts:
    """What is known of a dataset apart from the trained models.

    Attributes:
        dataset: Its name.
        synthetic: Whether its data was drawn by a program.
        n_users: Users.
        n_items: Items.
        n_interactions: Interactions.
        n_train: int32 (n_users,) training interactions per user; row i belongs to user_idx i + 1.
        target_n_train: int32 (n_users,) training interactions of the user's test item; 0 = cold, -1 = no test item.
        target_seen: int32 (n_users,) 1 where the user had the test item before, 0 where not, -1 = no test item; None
            where that is not known.
        no_learning: Method → seen policy → int32 ranks, aligned with ``users`` of the cells.
        agreement: Arm → {"C1", "C2", "C3"} → share of items (paper, Fig. 5).
        cost: Rows of the language model's cost: method, phase ("training" | "inference"), level, n_instances,
            n_tokens, seconds_measured, n_tokens_measured, seconds_per_epoch.
        probes: What the knowledge of the +P2Rec arms carries, one entry per distinct knowledge.
        language_model: Its label, which says random-init where the weights are random.
    """

    dataset: str
    synthetic: bool
    n_users: int
    n_items: int
    n_interactions: int
    n_train: NDArray[np.int32]
    target_n_train: NDArray[np.int32]
    target_seen: NDArray[np.int32] | None = None
    no_learning: Mapping[str, Mapping[str, NDArray[np.int32]]] = field(default_factory=lambda: MappingProxyType({}))
    agreement: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: MappingProxyType({}))
    cost: Sequence[Mapping[str, Any]] = ()
    probes: Sequence[ProbedKnowledge] = ()
    language_model: str = ""


@dataclass(frozen=True)
class Roles:
    """Which arm plays which part.

    Attributes:
        base: The backbone alone.
        ci: The backbone with the cluster index.
        p2rec: The backbone with knowledge.
        ablations: Further arms, in the order in which they are shown.
        standalone: Methods that are no backbone: one arm each, compared with nothing.
    """

    base: str = "base"
    ci: str = "ci"
    p2rec: str = "p2rec"
    ablations: tuple[str, ...] = ()
    standalone: tuple[str, ...] = ("e4srec",)

    @property
    def main(self) -> tuple[str, str, str]:
        """The three arms of the paper's Table 2, in its order."""
        return (self.base, self.ci, self.p2rec)


@dataclass(frozen=True, eq=False)
class ExperimentResults:
    """Everything that a report is made from.

    Attributes:
        name: Name of the experiment.
        cells: What was trained, in any order.
        datasets: Name → facts; one entry per dataset that a cell names.
        missing: Cells of the experiment's plan that are not there.
        command: The command line that makes what is missing.
        arms: Arm → what it is, in one line.
        roles: Which arm is Base, +CI, +P2Rec, and which are ablations.

    Raises:
        ResultsInvalid: Two results of one cell; a cell of an unknown dataset; users that are not ascending or differ
            between the cells of a dataset; ranks of another length, or negative ones.
    """

    name: str
    cells: Sequence[CellResult]
    datasets: Mapping[str, DatasetFacts]
    missing: Sequence[Cell] = ()
    command: str = ""
    arms: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    roles: Roles = field(default_factory=Roles)

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.cells, key=lambda result: cell_order(result.cell, self.roles)))
        object.__setattr__(self, "cells", ordered)
        object.__setattr__(self, "missing", tuple(sorted(self.missing, key=lambda cell: cell_order(cell, self.roles))))
        first: dict[str, CellResult] = {}
        seen: set[Cell] = set()
        for result in ordered:
            if result.cell in seen:
                raise _invalid(f"Two results are there for {result.cell}.")
            seen.add(result.cell)
            _check_result(result, self.datasets)
            reference = first.setdefault(result.cell.dataset, result)
            if not np.array_equal(reference.users, result.users):
                raise _invalid(f"{result.cell} was evaluated on other users than {reference.cell}.")
        for name, result in first.items():
            _check_facts(self.datasets[name], result)

    def dataset_names(self) -> list[str]:
        """Datasets that have a cell, alphabetically."""
        return sorted({result.cell.dataset for result in self.cells})

    def methods(self, dataset: str) -> list[str]:
        """Methods that have a cell on a dataset, in the order of Table 2."""
        found = {result.cell.method for result in self.cells if result.cell.dataset == dataset}
        return sorted(found, key=method_order)

    def backbones(self, dataset: str) -> list[str]:
        """Like ``methods``, without those that stand alone."""
        return [method for method in self.methods(dataset) if method not in self.roles.standalone]

    def arms_of(self, dataset: str, method: str) -> list[str]:
        """Arms that have a cell: Base, +CI, +P2Rec, then the ablations."""
        found = {r.cell.arm for r in self.cells if (r.cell.dataset, r.cell.method) == (dataset, method)}
        return sorted(found, key=lambda arm: arm_order(arm, self.roles))

    def of(self, dataset: str, method: str, arm: str) -> list[CellResult]:
        """Results of one arm, by ascending seed; empty where there is none."""
        return [r for r in self.cells if (r.cell.dataset, r.cell.method, r.cell.arm) == (dataset, method, arm)]

    def users(self, dataset: str) -> NDArray[np.int32]:
        """int32 (n,) user_idx of the users with a test target, ascending."""
        return next(result.users for result in self.cells if result.cell.dataset == dataset)


def canonical_method(method: str) -> str:
    """A method's name as ``METHOD_ORDER`` and the paper's table write it: "fmlp_rec" is "fmlp-rec"."""
    return method.lower().replace("_", "-")


def method_order(method: str) -> tuple[int, str]:
    """Sort key of a method: the paper's order, then the alphabet."""
    known = canonical_method(method)
    return (METHOD_ORDER.index(known) if known in METHOD_ORDER else len(METHOD_ORDER), method)


def arm_order(arm: str, roles: Roles) -> tuple[int, str]:
    """Sort key of an arm: Base, +CI, +P2Rec, the ablations in their order, then the alphabet."""
    known = (*roles.main, *roles.ablations)
    return (known.index(arm) if arm in known else len(known), arm)


def cell_order(cell: Cell, roles: Roles) -> tuple[str, tuple[int, str], tuple[int, str], int]:
    """Sort key of a cell."""
    return (cell.dataset, method_order(cell.method), arm_order(cell.arm, roles), cell.seed)


def _check_result(result: CellResult, datasets: Mapping[str, DatasetFacts]) -> None:
    if result.cell.dataset not in datasets:
        raise _invalid(f"{result.cell} is of a dataset that nothing is known of; known: {', '.join(sorted(datasets))}.")
    if len(result.users) and not (np.diff(result.users) > 0).all():
        raise _invalid(f"The users of {result.cell} are not ascending.")
    if "keep" not in result.ranks:
        raise _invalid(f"{result.cell} has no ranks under the seen policy 'keep'.")
    for seen, ranks in result.ranks.items():
        if ranks.shape != result.users.shape:
            raise _invalid(f"{result.cell} has {len(ranks)} ranks under '{seen}' for {len(result.users)} users.")
        if len(ranks) and int(ranks.min()) < 0:
            raise _invalid(f"{result.cell} has a negative rank under '{seen}'.")


def _check_facts(facts: DatasetFacts, result: CellResult) -> None:
    for name in ("n_train", "target_n_train", "target_seen"):
        values = getattr(facts, name)
        if values is not None and values.shape != (facts.n_users,):
            raise _invalid(f"{name} of '{facts.dataset}' has {len(values)} rows for {facts.n_users} users.")
    if len(result.users) and not 1 <= int(result.users[0]) <= int(result.users[-1]) <= facts.n_users:
        raise _invalid(f"{result.cell} has users outside 1…{facts.n_users}.")
    for method, policies in facts.no_learning.items():
        for seen, ranks in policies.items():
            if ranks.shape != result.users.shape:
                raise _invalid(
                    f"'{method}' on '{facts.dataset}' has {len(ranks)} ranks under '{seen}' for "
                    f"{len(result.users)} users."
                )


def _invalid(problem: str) -> ResultsInvalid:
    return ResultsInvalid(problem, remedy="Run the experiment again from the same ingest for every cell.")
