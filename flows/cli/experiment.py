"""``p2rec experiment`` and ``p2rec report``."""

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from flows.cli.matrix_terminal import MatrixView, print_cells, print_outcome
from flows.cli.options import DEFAULT_STORE, ConfigOption, JsonOption, SetOption, StoreOption
from flows.cli.run import DryRunOption, quiet_prefect
from flows.cli.tables import print_table
from flows.cli.terminal import note_no_store
from flows.configured import configured_server
from flows.definitions import built_in, find_definition
from flows.matrix import CellsFailed, prepared_run, report_of
from flows.prepare import looked_at
from flows.server import server_for_runs
from p2rec_core.errors import SettingsError, StoreError
from p2rec_core.settings.experiment import ExperimentSettings, experiment_settings, flattened
from p2rec_core.settings.pipeline import Profile, assigned, read_toml
from storage.artefacts import Store, is_store
from tasks.experiments import Recorder, read_record, recorded
from tasks.machine import check_device
from tasks.matrix_run import MatrixRun

ExperimentName = Annotated[
    str, Parameter(help="A built-in experiment, one that was run before, or a TOML file; `p2rec experiment list`.")
]
ListOption = str | None
DatasetsOption = Annotated[ListOption, Parameter(name="--datasets", help="Instead of its own, e.g. beauty,yelp.")]
BackbonesOption = Annotated[ListOption, Parameter(name="--backbones", help="Instead of its own, e.g. sasrec,caser.")]
ArmsOption = Annotated[ListOption, Parameter(name="--arms", help="Some of its own, e.g. base,p2rec.")]
SeedsOption = Annotated[ListOption, Parameter(name="--seeds", help="Instead of its own, e.g. 1,2,3.")]
ParallelOption = Annotated[
    int | None, Parameter(name="--parallel", help="Computations at a time; default one for every two cores.")
]
OtherProfileOption = Annotated[
    Profile | None, Parameter(name="--profile", help="Instead of its own: cpu, cpu-bf16 or gpu.")
]
AsOption = Annotated[str | None, Parameter(name="--as", help="Another name to keep the results under.")]


def run(
    name: ExperimentName,
    /,
    *,
    datasets: DatasetsOption = None,
    backbones: BackbonesOption = None,
    arms: ArmsOption = None,
    seeds: SeedsOption = None,
    profile: OtherProfileOption = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    keep_as: AsOption = None,
    store: StoreOption = DEFAULT_STORE,
    parallel: ParallelOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compute every cell of an experiment that is not in the store; interrupted, the same command goes on.

    What --config sets, all cells share; what the experiment itself sets goes before it, and --set before both.

    Examples:
        p2rec experiment run sample
        p2rec experiment run table2 --datasets beauty --seeds 1
        p2rec experiment run table2 --seeds 1,2,3,4,5         # two more seeds; the others are reused
        p2rec experiment run beauty --profile gpu
        p2rec experiment run sample --set clusters.n_clusters=20 --as coarse
        p2rec experiment run compare.toml --config clicks.toml --parallel 4 --dry-run
    """
    begun = time.monotonic()
    whole = _definition(name, store, profile=profile, config=config, assignments=assignments, keep_as=keep_as)
    parts = _parts(datasets, backbones, arms, seeds)
    part = whole.narrowed(**parts)
    if dry_run:
        _check_devices(_look_and_show(part, store, parallel, as_json))
        return
    opened = Store.open(store)
    found = _look(part, opened, parallel)
    _check_devices(found)
    words = _words(name, profile, config, assignments, keep_as)
    if not found.prepared and not found.failures and configured_server() is None:
        report = report_of(found, Recorder(found, whole, words).write(), time.monotonic() - begun)
    else:
        report = _in_prefect(whole, words, parts, store, parallel, as_json, opened)
    _tell(report, opened, as_json)


def show(
    name: ExperimentName,
    /,
    *,
    datasets: DatasetsOption = None,
    backbones: BackbonesOption = None,
    arms: ArmsOption = None,
    seeds: SeedsOption = None,
    profile: OtherProfileOption = None,
    config: ConfigOption = None,
    assignments: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    parallel: ParallelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which cells of an experiment are there, and how long the others would take.

    Examples:
        p2rec experiment show table2 --datasets beauty
        p2rec experiment show coarse                          # run before with --as coarse
    """
    whole = _definition(name, store, profile=profile, config=config, assignments=assignments)
    part = whole.narrowed(**_parts(datasets, backbones, arms, seeds))
    _look_and_show(part, store, parallel, as_json)


def list_experiments(*, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List the built-in experiments and those that have results in the store.

    Example:
        p2rec experiment list --json
    """
    known = [
        {
            "name": name,
            "n_cells": len(defined.datasets) * len(defined.backbones) * len(defined.arms) * len(defined.seeds),
            "title": defined.title,
        }
        for name, defined in built_in().items()
    ]
    done = []
    if is_store(store):
        opened = Store.open(store, create=False)
        for name in recorded(opened):
            record = read_record(opened, name)
            n_cells = len(record.cells)
            done.append({"name": name, "n_cells": n_cells, "n_done": n_cells - len(record.missing())})
    if as_json:
        sys.stdout.write(json.dumps({"built_in": known, "recorded": done}, ensure_ascii=False) + "\n")
        return
    table = Table("experiment", "cells", "what it is for")
    for row in known:
        table.add_row(*map(str, row.values()))
    print_table(table)
    for entry in done:
        Console().print(
            f"{entry['name']}: results of {entry['n_done']} of {entry['n_cells']} cells in {store.absolute()}; "
            f"p2rec report {entry['name']}",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )


def report(
    name: Annotated[str | None, Parameter(help="An experiment that was run; may be left out if there is one.")] = None,
    /,
    *,
    store: StoreOption = DEFAULT_STORE,
    out: Annotated[Path | None, Parameter(name="--out", help="Directory to write to; default report-NAME.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make the report of an experiment: tables, significance tests and figures, of what there is.

    Examples:
        p2rec report
        p2rec report table2 --out results/table2
    """
    opened = Store.open(store, create=False)
    chosen = name or _only_one(opened)
    from tasks.results import load_results

    results = load_results(opened, chosen)
    from tasks.report import write_report

    directory = out or Path(f"report-{chosen}")
    write_report(results, directory)
    if as_json:
        values = {"experiment": chosen, "path": str(directory), "n_missing": len(results.missing)}
        sys.stdout.write(json.dumps(values, ensure_ascii=False) + "\n")
        return
    console = Console()
    console.print(f"The report of {chosen} is in {directory}.", highlight=False, soft_wrap=True)
    if results.missing:
        n = len(results.missing)
        console.print(
            f"{n} of its cells {'is' if n == 1 else 'are'} missing; to compute what is missing:\n  {results.command}",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )


def _definition(
    name: str,
    store: Path,
    *,
    profile: Profile | None,
    config: Path | None,
    assignments: Sequence[str] | None,
    keep_as: str | None = None,
) -> ExperimentSettings:
    """The experiment with what the command line sets for all its cells."""
    definition = find_definition(name, store)
    below = {} if config is None else flattened(read_toml(config))
    settings = below | definition.settings | dict(map(assigned, assignments or ()))
    named = {field: value for field, value in (("name", keep_as), ("profile", profile)) if value is not None}
    return experiment_settings(definition.model_dump(mode="json") | {"settings": settings} | named, place=name)


def _words(
    name: str, profile: Profile | None, config: Path | None, assignments: Sequence[str] | None, keep_as: str | None
) -> str:
    """The same as words of a command line."""
    settings = [("--set", assignment) for assignment in assignments or ()]
    given = [("--profile", profile), ("--config", config), *settings, ("--as", keep_as)]
    return shlex.join([name, *(word for option, value in given if value is not None for word in (option, str(value)))])


def _parts(
    datasets: ListOption, backbones: ListOption, arms: ListOption, seeds: ListOption
) -> dict[str, list[Any] | None]:
    def parted(text: ListOption) -> list[str] | None:
        return None if text is None else [part.strip() for part in text.split(",") if part.strip()]

    numbers = parted(seeds)
    for number in numbers or ():
        if not number.isdecimal():
            raise SettingsError(f"--seeds: {number!r} is not a seed.", remedy="Write numbers, e.g. --seeds 1,2,3.")
    return {
        "datasets": parted(datasets),
        "backbones": parted(backbones),
        "arms": parted(arms),
        "seeds": None if numbers is None else [int(number) for number in numbers],
    }


def _look(part: ExperimentSettings, store: Store, parallel: int | None) -> MatrixRun:
    if parallel is not None and parallel < 1:
        raise SettingsError(f"--parallel is {parallel}.", remedy="Give 1 or more.")
    return prepared_run(part, store, parallel).looked_up()


def _look_and_show(part: ExperimentSettings, store: Path, parallel: int | None, as_json: bool) -> MatrixRun:
    with looked_at(store) as (opened, exists):
        if not exists:
            note_no_store(store)
        found = _look(part, opened, parallel)
        _show(found, as_json)
    return found


def _check_devices(found: MatrixRun) -> None:
    """Refuse a device that is not there and that something is to be computed on."""
    for device in {node.recipe.settings.runtime.device for node in found.unfinished()}:
        check_device(device)


def _show(found: MatrixRun, as_json: bool) -> None:
    if not as_json:
        print_cells(found)
        return
    left = found.left()
    cells = []
    for cell in found.matrix.all_cells():
        state, reason = found.state(cell)
        names = {"dataset": cell.dataset, "backbone": cell.method, "arm": cell.arm, "seed": cell.seed}
        cells.append(names | {"state": str(state), "reason": reason})
    nodes = {name: name in found.results for name in found.matrix.nodes}
    values = {"cells": cells, "nodes": nodes, "seconds_left": left.seconds, "n_unknown": left.n_unknown}
    sys.stdout.write(json.dumps(values) + "\n")


def _in_prefect(
    whole: ExperimentSettings,
    words: str,
    parts: dict[str, list[Any] | None],
    store: Path,
    parallel: int | None,
    as_json: bool,
    opened: Store,
) -> dict[str, Any]:
    quiet_prefect()
    from flows.experiment import experiment, watching
    from flows.turns import WhenBusy

    with server_for_runs(), MatrixView(enabled=not as_json) as view, watching(view):
        try:
            values: dict[str, Any] = experiment(
                name=words, settings=whole, store=store, parallel=parallel, when_busy=WhenBusy.OVERLAP, **parts
            )
        except CellsFailed as error:
            _tell(error.report, opened, as_json)
            raise
    return values


def _tell(values: dict[str, Any], store: Store, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(values, ensure_ascii=False) + "\n")
    else:
        print_outcome(values, store.root)


def _only_one(store: Store) -> str:
    names = recorded(store)
    if len(names) != 1:
        raise StoreError(
            f"There are results of {len(names)} experiments in {store.root}: {', '.join(names) or 'none'}.",
            remedy="Name one: `p2rec report NAME`." if names else "Run one: `p2rec experiment run sample`.",
        )
    return names[0]
