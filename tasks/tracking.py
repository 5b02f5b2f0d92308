"""Metrics and learning curves for other programs' dashboards: TensorBoard and MLflow.

Both are extras: nothing else of P2Rec needs them.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from p2rec_core.errors import ExtraMissing, P2RecError
from storage.artefacts import Artefact, Store
from storage.snapshots import Snapshot
from tasks.experiments import read_record
from tasks.matrix_run import CellState
from tasks.outputs import new_directory

HISTORIES = ("history", "finetune_history")
"""Tables with a learning curve: epoch, metric, value."""

_EVENTS = "events.out.tfevents."
"""What the names of TensorBoard's files begin with."""
_MARK = "artefact.txt"
"""File beside them that says of which artefact they are."""

CONTENT = "p2rec.content"
"""MLflow tag that says what a run was made of, so that it is not logged twice."""


class TrackingFailed(P2RecError):
    """A tracking server does not take what is to be logged."""


@dataclass(frozen=True)
class TrackedRun:
    """A training and what it led to.

    Attributes:
        name: Its name; ``/`` makes groups of them.
        curves: Metric → (epoch, value), in order of the epochs.
        metrics: Final metrics by ``split/seen/name_at_k``; empty where it was not evaluated.
        parameters: Its settings, dotted names and JSON values.
        facts: Where it comes from.
    """

    name: str
    curves: dict[str, list[tuple[int, float]]]
    metrics: dict[str, float]
    parameters: dict[str, str]
    facts: dict[str, str]


def snapshot_runs(store: Store, snapshot: Snapshot) -> list[TrackedRun]:
    """A run for every slot of a snapshot that has a learning curve.

    Raises:
        ArtefactMissing: An artefact of the snapshot is gone.
        ArtefactDamaged: An artefact is not what its manifest says.
    """
    found = []
    for slot, ref in snapshot.entries.items():
        trained = store.load(ref)
        evaluated = snapshot.entries.get(slot.replace("recommender.", "evaluation.", 1))
        facts = {"dataset": snapshot.dataset, "snapshot": str(snapshot.number), "slot": slot}
        if any(table in trained.files for table in HISTORIES):
            metrics = store.load(evaluated) if evaluated is not None and evaluated != ref else None
            found.append(_run(f"{snapshot.dataset}-{snapshot.number}/{slot}", trained, metrics, facts))
    return found


def experiment_runs(store: Store, name: str) -> list[TrackedRun]:
    """A run for every finished cell of an experiment.

    Raises:
        StoreError: It was never run in this store.
        ArtefactMissing: An artefact of a cell is gone.
        ArtefactDamaged: An artefact is not what its manifest says.
    """
    record = read_record(store, name)
    found = []
    for cell, entry in record.cells.items():
        if entry.state is CellState.DONE:
            place = f"{cell.dataset}/{cell.method}/{cell.arm}/seed-{cell.seed}"
            facts = {"experiment": name, "dataset": cell.dataset, "backbone": cell.method, "arm": cell.arm}
            trained, evaluated = (store.load(entry.slots[slot]) for slot in (entry.trained, entry.evaluated))
            found.append(_run(f"{name}/{place}", trained, evaluated, facts | {"seed": str(cell.seed)}))
    return found


def _run(name: str, trained: Artefact, evaluated: Artefact | None, facts: dict[str, str]) -> TrackedRun:
    table = trained.table(next(table for table in HISTORIES if table in trained.files))
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in table.to_pylist():
        curves.setdefault(_plain(row["metric"]), []).append((row["epoch"], row["value"]))
    metrics = {}
    for row in evaluated.table("metrics").to_pylist() if evaluated is not None else ():
        metrics[f"{row['split']}/{row['seen']}/{_plain(row['metric'])}_at_{row['k']}"] = row["value"]
    manifest = trained.manifest
    return TrackedRun(
        name=name,
        curves=curves,
        metrics=metrics,
        parameters=dict(_flat(manifest.settings)),
        facts=facts
        | {
            "artefact": f"{trained.stage}/{trained.key}",
            "code": manifest.fingerprint,
            "created_utc": manifest.created_utc,
            "wall_s": f"{manifest.wall_s:.1f}",
        },
    )


def _plain(metric: str) -> str:
    """A metric's name without what MLflow refuses."""
    return metric.replace("@", "_at_")


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value, ensure_ascii=False)


def write_tensorboard(runs: Sequence[TrackedRun], directory: Path) -> list[Path]:
    """Write event files, a directory per run, under ``directory``; those that are there already are left as they are.

    A run's directory appears whole or not at all.

    Returns:
        The directories that were written.

    Raises:
        ExtraMissing: TensorBoard is not installed.
        OutputNotWritten: Something else is where a run should be, or the directory cannot be written.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise _missing("TensorBoard", "tensorboard") from error
    written = []
    for run in runs:
        place = directory / run.name
        if not _is_of(place, run):
            # a cell that was computed anew is a run beside the older one
            place = place.with_name(f"{place.name}.{run.facts['artefact'].rpartition('/')[2][:8]}")
        if any(place.glob(f"{_EVENTS}*")):
            continue
        with new_directory(place) as unfinished, SummaryWriter(str(unfinished)) as writer:
            for metric, curve in run.curves.items():
                for epoch, value in curve:
                    writer.add_scalar(f"training/{metric}", value, epoch)
            for metric, value in run.metrics.items():
                writer.add_scalar(metric, value, 0)
            for title, facts in (("settings", run.parameters), ("made of", run.facts)):
                writer.add_text(title, "\n".join(f"    {name} = {value}" for name, value in facts.items()), 0)
            (unfinished / _MARK).write_text(run.facts["artefact"], encoding="utf-8")
        written.append(place)
    return written


def _is_of(place: Path, run: TrackedRun) -> bool:
    """Whether what is in a directory, if anything, was made of the same training; what has no mark is taken for it."""
    mark = place / _MARK
    return not mark.exists() or mark.read_text(encoding="utf-8") == run.facts["artefact"]


def log_to_mlflow(runs: Sequence[TrackedRun], uri: str, experiment: str) -> tuple[int, int]:
    """Log runs to an MLflow server or store; those that are there already are left as they are.

    Args:
        runs: What to log.
        uri: Tracking address, such as ``http://127.0.0.1:5000``, or a place that MLflow keeps runs in.
        experiment: MLflow's experiment, made where there is none.

    Returns:
        How many were logged, and how many were there already.

    Raises:
        ExtraMissing: MLflow is not installed.
        TrackingFailed: The server refused, or cannot be reached.
    """
    mlflow = _mlflow()
    n_logged = 0
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        known = client.get_experiment_by_name(experiment)
        place = known.experiment_id if known is not None else client.create_experiment(experiment)
        for run in runs:
            content = f"{run.name} {run.facts['artefact']}"
            if not client.search_runs([place], filter_string=f"tags.`{CONTENT}` = '{content}'", max_results=1):
                _log(mlflow, client, place, run, content)
                n_logged += 1
    except (mlflow.exceptions.MlflowException, OSError) as error:
        raise TrackingFailed(
            f"MLflow at {uri} did not take the runs: {str(error).splitlines()[0]:.300}",
            remedy="Check the address given with --to, and that the server runs.",
        ) from error
    return n_logged, len(runs) - n_logged


def _log(mlflow: Any, client: Any, place: str, run: TrackedRun, content: str) -> None:
    """One run with all that belongs to it; it is marked as finished last."""
    entities = mlflow.entities
    made = client.create_run(place, run_name=run.name, tags=run.facts).info
    at = made.start_time
    metrics = [
        entities.Metric(f"training/{name}", value, at, epoch)
        for name, curve in run.curves.items()
        for epoch, value in curve
    ] + [entities.Metric(name, value, at, 0) for name, value in run.metrics.items()]
    parameters = [entities.Param(name, value[:6000]) for name, value in run.parameters.items()]
    for start in range(0, len(metrics), 1000):
        client.log_batch(made.run_id, metrics=metrics[start : start + 1000])
    for start in range(0, len(parameters), 100):
        client.log_batch(made.run_id, params=parameters[start : start + 100])
    client.set_tag(made.run_id, CONTENT, content)
    client.set_terminated(made.run_id)


def _mlflow() -> ModuleType:
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ.setdefault(name, "true")
    try:
        import mlflow
        import mlflow.entities
        import mlflow.exceptions
    except ImportError as error:
        raise _missing("MLflow", "mlflow-skinny") from error
    module: ModuleType = mlflow
    return module


def _missing(title: str, package: str) -> ExtraMissing:
    return ExtraMissing(f"{title} is not installed.", remedy=f"Install it: pip install {package}.")
