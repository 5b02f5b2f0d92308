"""What the experiment flow and the command line share, without Prefect: preparing a matrix and telling of it."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from flows.summary import markdown_table, pivoted_metrics
from p2rec_core.errors import P2RecError
from p2rec_core.metrics import SEEN_POLICIES
from p2rec_core.settings.experiment import ExperimentSettings
from storage.artefacts import Store
from tasks.dag import NO_LEARNING
from tasks.estimate import Walls, duration
from tasks.experiments import ExperimentRecord
from tasks.matrix import Matrix
from tasks.matrix_run import Failure, MatrixRun, summary_of

_MOST_REASONS = 5
_HEADLINE = (("HR", 10), ("NDCG", 10))
"""What the tables of the interface show; the report has everything."""


class CellsFailed(P2RecError):
    """Some cells of an experiment could not be computed; the others are there.

    Attributes:
        report: The report of the run.
    """

    report: dict[str, Any]


def n_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def places(parallel: int | None) -> int:
    """Computations at a time: what is asked for, or one for every two cores."""
    return max(1, n_cores() // 2) if parallel is None else parallel


def threads_each(experiment: ExperimentSettings, parallel: int) -> int:
    """CPU threads of a computation: what the experiment says, or its share of the cores."""
    said = experiment.settings.get("runtime.threads")
    return said if isinstance(said, int) else max(1, n_cores() // parallel)


def prepared_run(experiment: ExperimentSettings, store: Store, parallel: int | None) -> MatrixRun:
    """The matrix of an experiment, ready to be run.

    Raises:
        P2RecError: A dataset, language model or setting is wrong.
    """
    at_a_time = places(parallel)
    matrix = Matrix(experiment, store, threads=threads_each(experiment, at_a_time))
    return MatrixRun(matrix, store, parallel=at_a_time, walls=Walls.of(store))


def report_of(run: MatrixRun, record: ExperimentRecord, wall_s: float) -> dict[str, Any]:
    """What a run did, as JSON values.

    Returns:
        ``experiment``, ``n_cells``, ``n_done``, ``outcomes`` (counts), ``wall_s``; ``cells``: a row for each of this
        run's cells with its outcome, artefacts, validation, seconds and test metrics; ``datasets``: artefacts that are
        shared, and the metrics of the rows that learn nothing; ``nodes``: outcome and seconds of every computation.
    """
    cells = [_cell_row(run, record, cell) for cell in run.matrix.all_cells()]
    return {
        "experiment": record.settings.name,
        "n_cells": len(cells),
        "n_done": sum(row["state"] == "done" for row in cells),
        "outcomes": summary_of(run.results) | {"failed": len(run.failures)},
        "wall_s": wall_s,
        "cells": cells,
        "datasets": {
            name: {
                "synthetic": shared.synthetic,
                "artefacts": {slot: f"{ref.stage}/{ref.key}" for slot, ref in shared.slots.items()},
                "no_learning": _no_learning(run, name),
            }
            for name, shared in record.datasets.items()
            if name in run.matrix.shared
        },
        "nodes": {
            name: {"outcome": str(result.outcome), "wall_s": result.wall_s} for name, result in run.results.items()
        }
        | {name: {"outcome": "failed", "reason": run.reason(name)} for name in run.failures},
    }


def _no_learning(run: MatrixRun, dataset: str) -> list[dict[str, Any]]:
    result = run.results.get(run.matrix.shared[dataset].get(NO_LEARNING, ""))
    return pivoted_metrics(result.info["metrics"]) if result is not None else []


def _cell_row(run: MatrixRun, record: ExperimentRecord, cell: Any) -> dict[str, Any]:
    entry = record.cells[cell]
    planned = run.matrix.cells.get(cell)
    nodes = [planned.slots[slot] for slot in (planned.trained, planned.evaluated)] if planned else []
    results = [run.results[node] for node in nodes if node in run.results]
    outcomes = [str(result.outcome) for result in results]
    fresh = next((outcome for outcome in outcomes if outcome != "cached"), "cached")
    refs = {slot: f"{ref.stage}/{ref.key}" for slot, ref in entry.slots.items()}
    return {
        **{("backbone" if name == "method" else name): value for name, value in asdict(cell).items()},
        "variant": str(entry.variant),
        "state": str(entry.state),
        "outcome": fresh if entry.state == "done" else str(entry.state),
        "reason": entry.reason,
        "recommender": refs.get(entry.trained),
        "evaluation": refs.get(entry.evaluated),
        "validation": entry.validation,
        "wall_s": entry.wall_s,
        "trials": entry.trials,
        "chosen": entry.chosen,
        "metrics": pivoted_metrics(results[-1].info["metrics"]) if entry.state == "done" else [],
    }


def failed(run: MatrixRun, report: dict[str, Any]) -> CellsFailed:
    """The error that a run with failures ends with."""
    roots: dict[str, Failure] = {failure.node: failure for failure in run.failures.values()}
    named = [f"{node}: {failure.problem}" for node, failure in list(roots.items())[:_MOST_REASONS]]
    more = f" (and {len(roots) - len(named)} more)" if len(roots) > len(named) else ""
    statuses = {failure.exit_status for failure in roots.values()}
    remedies = {failure.remedy for failure in roots.values()}
    error = CellsFailed(
        f"{report['n_cells'] - report['n_done']} of {report['n_cells']} cells of {report['experiment']!r} could not be "
        f"computed; the others are there. {' '.join(named)}{more}",
        remedy=remedies.pop() if len(remedies) == 1 else "Mend what they name and run the same again.",
    )
    error.exit_status = statuses.pop() if len(statuses) == 1 else P2RecError.exit_status
    error.report = report
    for node, failure in roots.items():
        error.add_note(f"{node}: {failure.trace}")
    return error


def result_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The headline metrics: a row per cell, then the rows that learn nothing, with a column per metric and policy."""
    rows = []
    for cell in report["cells"]:
        names = {name: cell[name] for name in ("dataset", "backbone", "arm", "seed")}
        rows.append(names | {"valid.": cell["validation"]} | _headline(cell["metrics"]))
    for dataset, shared in report["datasets"].items():
        for method in dict.fromkeys(row["method"] for row in shared["no_learning"]):
            of_method = [row for row in shared["no_learning"] if row["method"] == method]
            names = {"dataset": dataset, "backbone": method, "arm": "", "seed": "", "valid.": None}
            rows.append(names | _headline(of_method))
    return rows


def _headline(metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    by_policy = {row["seen"]: row for row in metrics}
    return {
        f"{metric}@{k} {seen}": by_policy.get(seen, {}).get(f"{metric}@{k}")
        for seen in SEEN_POLICIES
        for metric, k in _HEADLINE
    }


def report_markdown(report: dict[str, Any]) -> str:
    """The run as Markdown: what became of it, the metrics, and what failed."""
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in report["outcomes"].items() if count)
    synthetic = [name for name, shared in report["datasets"].items() if shared["synthetic"]]
    rows = result_rows(report)
    lines = [
        f"# Experiment {report['experiment']}",
        "",
        f"{report['n_done']} of {report['n_cells']} cells are there; computations: {outcomes}; "
        f"{duration(report['wall_s'])}. Test split, full ranking over all items.",
        *([f"Synthetic data: {', '.join(synthetic)}."] if synthetic else []),
        "",
        *markdown_table(list(rows[0]) if rows else [], rows, _cell),
    ]
    wrong = [cell for cell in report["cells"] if cell["reason"]]
    if wrong:
        lines += ["", "## Not there", ""]
        lines += [f"- {c['dataset']}/{c['backbone']}/{c['arm']}/seed {c['seed']}: {c['reason']}" for c in wrong]
    return "\n".join(lines)


def _cell(column: str, value: Any) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
