"""``p2rec track``."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from flows.cli.options import DEFAULT_STORE, DatasetOption, JsonOption, StoreOption
from p2rec_core.errors import DataError
from storage.artefacts import Store
from storage.snapshots import read_snapshot
from tasks.tracking import experiment_runs, log_to_mlflow, snapshot_runs, write_tensorboard


def track(
    tracker: Annotated[Literal["tensorboard", "mlflow"], Parameter(help="Which.")],
    /,
    *,
    to: Annotated[str, Parameter(name="--to", help="Directory of event files, or MLflow's tracking address.")],
    dataset: DatasetOption = "sample",
    snapshot: Annotated[int | None, Parameter(name="--snapshot", help="Its number; default the current one.")] = None,
    experiment: Annotated[
        str | None, Parameter(name="--experiment", help="The cells of an experiment instead of a snapshot.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Log learning curves, test metrics and settings of every training of a snapshot, or of an experiment's cells.

    TensorBoard and MLflow are extras: `pip install tensorboard`, `pip install mlflow-skinny`. What is there already is
    left as it is.

    Examples:
        p2rec track tensorboard -d beauty --to runs
        p2rec track mlflow -d beauty --to http://127.0.0.1:5000
        p2rec track mlflow --experiment table2 --to sqlite:///mlflow.db
    """
    opened = Store.open(store, create=False)
    if experiment is None:
        chosen = read_snapshot(opened, dataset, snapshot)
        runs, place = snapshot_runs(opened, chosen), f"snapshot {chosen.number} of {dataset}"
    else:
        runs, place = experiment_runs(opened, experiment), f"experiment {experiment}"
    if not runs:
        raise DataError(f"There is no training in {place}.", remedy="Run it first.")
    if tracker == "tensorboard":
        n_logged = len(write_tensorboard(runs, Path(to)))
        n_known = len(runs) - n_logged
    else:
        n_logged, n_known = log_to_mlflow(runs, to, experiment or dataset)
    if as_json:
        values = {"to": to, "logged": n_logged, "there_already": n_known, "runs": [run.name for run in runs]}
        sys.stdout.write(json.dumps(values, ensure_ascii=False) + "\n")
        return
    there = f"; {n_known} were there already" if n_known else ""
    Console().print(f"{n_logged} runs of {place} to {to}{there}.", highlight=False, soft_wrap=True, markup=False)
