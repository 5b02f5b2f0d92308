"""From an experiment's artefacts to the arrays that the analysis and the report read."""

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from p2rec_core.analysis.results import (
    Cell,
    CellResult,
    DatasetFacts,
    ExperimentResults,
    ProbedKnowledge,
    Roles,
    arm_order,
    method_order,
)
from p2rec_core.errors import ArtefactMissing
from p2rec_core.metrics import SEEN_POLICIES
from p2rec_core.sequences import RaggedSequences
from p2rec_core.settings.sequence_model import Variant
from storage.artefacts import Artefact, ArtefactRef, Store
from tasks.arrays import ragged, targets
from tasks.dag import E4SREC_EVALUATION, NO_LEARNING, PROBE
from tasks.e4srec_evaluation import METHOD, VARIANT
from tasks.experiments import CellRecord, ExperimentRecord, command_for, read_record
from tasks.matrix_run import CellState

if TYPE_CHECKING:
    from numpy.typing import NDArray


def load_results(store: Store, name: str) -> ExperimentResults:
    """Everything that is there of an experiment; what is not there is named in ``missing``.

    Args:
        store: Where the experiment was run.
        name: Its name.

    Raises:
        StoreError: It was never run in this store.
        ArtefactDamaged: An artefact is not what its manifest says.
        ResultsInvalid: Its cells contradict each other.
    """
    record = read_record(store, name)
    results: list[CellResult] = []
    missing = record.missing()
    for cell, entry in record.cells.items():
        if entry.state is CellState.DONE:
            try:
                results.append(_cell_result(store, entry))
            except ArtefactMissing:  # deleted since
                missing.append(cell)
    for dataset, shared in record.datasets.items():
        if (e4srec := _e4srec(store, dataset, shared.slots)) is not None:
            results.append(e4srec)
    datasets = {result.cell.dataset for result in results}
    return ExperimentResults(
        name=record.settings.name,
        cells=results,
        datasets={dataset: _facts(store, record, dataset) for dataset in sorted(datasets)},
        missing=missing,
        command=command_for(record, missing, store.root) if missing else "",
        arms={arm: chosen.title for arm, chosen in record.settings.arms.items()},
        roles=_roles(record),
    )


def _roles(record: ExperimentRecord) -> Roles:
    settings = record.settings
    base, ci, p2rec = (settings.role(variant) or str(variant) for variant in Variant)
    ablations = tuple(arm for arm in settings.arms if arm not in (base, ci, p2rec))
    return Roles(base=base, ci=ci, p2rec=p2rec, ablations=ablations)


def _cell_result(store: Store, entry: CellRecord) -> CellResult:
    trained = store.load(entry.slots[entry.trained])
    evaluated = store.load(entry.slots[entry.evaluated])
    info = trained.manifest.info
    facts = {
        "wall_s": entry.wall_s,
        **{name: info.get(name) for name in ("best_epoch", "n_epochs", "n_parameters")},
        "trials": entry.trials,
        "chosen": entry.chosen,
    }
    return _result(entry.cell, trained, evaluated, "history", validation=entry.validation, facts=facts)


def _e4srec(store: Store, dataset: str, slots: Mapping[str, ArtefactRef]) -> CellResult | None:
    """The instance-level baseline as a cell of its own, where it was trained and evaluated."""
    trained, evaluated = _there(store, slots, "e4srec"), _there(store, slots, E4SREC_EVALUATION)
    if trained is None or evaluated is None:
        return None
    manifest = trained.manifest
    validation = [
        entry["value"]
        for entry in evaluated.manifest.info["metrics"]
        if (entry["split"], entry["seen"], entry["metric"], entry["k"]) == ("validation", "keep", "NDCG", 10)
    ]
    facts = {
        "wall_s": manifest.wall_s,
        **{name: manifest.info.get(name) for name in ("best_epoch", "n_epochs", "n_steps")},
    }
    cell = Cell(dataset, METHOD, VARIANT, int(manifest.settings["seed"]))
    best = validation[0] if validation else None
    return _result(cell, trained, evaluated, "finetune_history", validation=best, facts=facts)


def _result(
    cell: Cell,
    trained: Artefact,
    evaluated: Artefact,
    history: str,
    *,
    validation: float | None,
    facts: dict[str, Any],
) -> CellResult:
    """A cell from its training, whose learning curve is in the table ``history``, and its evaluation."""
    table = evaluated.table("user_ranks", ["user_idx", "split", "seen", "rank"])
    ranks = {seen: _ranks(table, seen) for seen in SEEN_POLICIES}
    curve = trained.table(history)
    manifest = trained.manifest
    made = {
        "machine": manifest.info.get("machine"),
        "versions": manifest.versions,
        "key": f"{trained.stage}/{trained.key}",
        "code": manifest.fingerprint,
    }
    return CellResult(
        cell=cell,
        users=ranks["keep"][0],
        ranks={seen: values for seen, (_, values) in ranks.items()},
        validation=float("nan") if validation is None else validation,
        curve=list(zip(*(curve.column(name).to_pylist() for name in ("epoch", "metric", "value")), strict=True)),
        facts=facts | made,
    )


def _ranks(table: pa.Table, seen: str) -> "tuple[NDArray[np.int32], NDArray[np.int32]]":
    """Users with a test target, ascending, and the ranks of these; 0 where it could not be ranked."""
    rows = table.filter(pc.and_(pc.equal(table["split"], "test"), pc.equal(table["seen"], seen)))
    users = rows["user_idx"].to_numpy()
    order = np.argsort(users, kind="stable")
    ranks = pc.fill_null(rows["rank"], 0).to_numpy()
    return users[order].astype(np.int32), ranks[order].astype(np.int32)


def _facts(store: Store, record: ExperimentRecord, dataset: str) -> DatasetFacts:
    shared = record.datasets[dataset]
    ingest = store.load(shared.slots["ingest"])
    counts = ingest.manifest.info["counts"]
    n_train = ingest.table("users", ["n_train"])["n_train"].to_numpy().astype(np.int32)
    items = ingest.table("items", ["n_train"])["n_train"].to_numpy().astype(np.int32)
    test = ingest.table("test")
    target_n_train = np.full(len(n_train), -1, np.int32)
    target_n_train[test["user_idx"].to_numpy() - 1] = items[test["item_idx"].to_numpy() - 1]
    sequences, last = ragged(ingest.table("sequences")), targets(ingest.table("validation"), len(n_train))
    agreement, labels = _knowledge(store, record, dataset)
    return DatasetFacts(
        dataset=dataset,
        synthetic=shared.synthetic,
        n_users=len(n_train),
        n_items=len(items),
        n_interactions=counts["n_interactions"],
        n_train=n_train,
        target_n_train=target_n_train,
        target_seen=_target_seen(sequences, last, targets(test, len(n_train))),
        no_learning=_no_learning(store, shared.slots),
        agreement=agreement,
        cost=_cost(store, shared.slots),
        probes=_probes(store, record, dataset),
        language_model=", ".join(labels),
    )


def _target_seen(
    training: RaggedSequences, validation: "NDArray[np.int32]", test: "NDArray[np.int32]"
) -> "NDArray[np.int32]":
    """1 where a user's test item is in the training part or the validation item, 0 where not, -1 without a test item.

    Args:
        training: Training parts by user.
        validation: int32 (users,) validation items; 0 = none.
        test: int32 (users,) test items; 0 = none.
    """
    users = np.repeat(np.arange(len(training)), training.lengths)
    seen = validation == test
    seen[users[training.items == test[users]]] = True
    return np.where(test == 0, -1, seen).astype(np.int32)


def _no_learning(store: Store, slots: Mapping[str, ArtefactRef]) -> "dict[str, dict[str, NDArray[np.int32]]]":
    if (artefact := _there(store, slots, NO_LEARNING)) is None:
        return {}
    table = artefact.table("user_ranks", ["user_idx", "method", "split", "seen", "rank"])
    methods = dict.fromkeys(table["method"].to_pylist())
    return {
        method: {seen: _ranks(of_method, seen)[1] for seen in SEEN_POLICIES}
        for method in methods
        for of_method in [table.filter(pc.equal(table["method"], method))]
    }


def _knowledge(store: Store, record: ExperimentRecord, dataset: str) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Category agreement by arm, and the labels of the language models."""
    agreement: dict[str, dict[str, float]] = {}
    labels: dict[str, None] = {}
    for cell, entry in record.cells.items():
        if cell.dataset != dataset or cell.arm in agreement:
            continue
        if (artefact := _there(store, entry.slots, "knowledge")) is not None:
            agreement[cell.arm] = artefact.manifest.info["category_agreement"]
            labels[artefact.manifest.info["language_model"]] = None
    return agreement, list(labels)


def _cost(store: Store, slots: Mapping[str, ArtefactRef]) -> list[dict[str, Any]]:
    """Rows of the language model's cost, where it was measured."""
    artefact = _there(store, slots, "cost")
    rows: list[dict[str, Any]] = [] if artefact is None else artefact.table("language_model_cost").to_pylist()
    return rows


def _probes(store: Store, record: ExperimentRecord, dataset: str) -> list[ProbedKnowledge]:
    """What each distinct knowledge carries, in the order of the arms, where it was probed."""
    roles = _roles(record)
    found: dict[str, tuple[Artefact, set[str], set[str]]] = {}
    slots = record.datasets[dataset].slots
    for slot in slots:
        stage, _, cell = slot.partition(".")
        method, _, arm = cell.partition(".")
        if stage == PROBE and arm in record.settings.arms and (artefact := _there(store, slots, slot)) is not None:
            _, arms, methods = found.setdefault(artefact.key, (artefact, set(), set()))
            arms.add(arm)
            methods.add(method)
    probed = [
        ProbedKnowledge(
            arms=tuple(sorted(arms, key=lambda arm: arm_order(arm, roles))),
            methods=tuple(sorted(methods, key=method_order)),
            source=artefact.manifest.info["source"],
            width=artefact.manifest.info["width"],
            key=key,
            rows=artefact.table("probes").to_pylist(),
        )
        for key, (artefact, arms, methods) in found.items()
    ]
    return sorted(probed, key=lambda knowledge: arm_order(knowledge.arms[0], roles))


def _there(store: Store, slots: Mapping[str, ArtefactRef], slot: str) -> Artefact | None:
    if slot in slots:
        with contextlib.suppress(ArtefactMissing):
            return store.load(slots[slot])
    return None
