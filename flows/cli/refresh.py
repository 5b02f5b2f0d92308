"""``p2rec refresh`` and ``p2rec nights``."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

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
from flows.cli.run import quiet_prefect
from flows.cli.tables import print_table
from flows.cli.terminal import StageBars, print_report
from flows.configured import configured_server
from flows.refresh_report import RefreshReport, check_rows, conclusion, renewed
from flows.server import server_for_runs
from p2rec_core.errors import RefreshRefused
from p2rec_core.settings.pipeline import PipelineSettings, Profile, Recipe, pipeline_settings
from storage.artefacts import Store
from storage.disk import make_directory, os_errors
from tasks.machine import check_device
from tasks.nights import cut_into_nights
from tasks.progress import listening


def refresh(
    *,
    dataset: DatasetOption = "sample",
    profile: ProfileOption = Profile.CPU,
    recipe: RecipeOption = Recipe.DEFAULT,
    config: ConfigOption = None,
    assignments: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Bring the current snapshot up to date with the dataset's file, which has grown since.

    The settings have to be those of the current snapshot; refresh.* are this command's own. The exit status is 6 where
    the new snapshot does not pass the quality gate and the current one stays.

    Examples:
        p2rec refresh -d clicks
        p2rec refresh -d clicks --set refresh.finetune=never
        p2rec refresh -d clicks --set refresh.max_metric_drop=0.1 --json
    """
    begun = time.monotonic()
    settings = pipeline_settings(
        dataset=dataset, profile=profile, recipe=recipe, config=config, assignments=assignments or ()
    )
    opened = Store.open(store, create=False)
    report = None if configured_server() is not None else _nothing_new(dataset, settings, opened, begun)
    if report is None:
        if configured_server() is None:
            check_device(settings.runtime.device)
        report = _run(dataset, settings, store, quiet=as_json)
    if as_json:
        sys.stdout.write(json.dumps(report.to_json(), ensure_ascii=False) + "\n")
    else:
        _print(report, opened)
    if report.refused:
        raise RefreshRefused(
            f"{conclusion(report)} {' '.join(f'{reason}.' for reason in report.refused)}",
            remedy=f"Compare the two with `p2rec diff {report.base} {report.made} -d {dataset}`; if the new one is "
            f"right all the same, `p2rec promote {report.made} -d {dataset}` makes it the current one.",
        )


def _nothing_new(dataset: str, settings: PipelineSettings, store: Store, begun: float) -> RefreshReport | None:
    """Answer at once where nothing is new; a configured Prefect server sees every run, though."""
    quiet_prefect()
    from flows.refresh import prepared, pushed, unchanged

    source, settings, current = prepared(dataset, settings, store)
    report = unchanged(source, current, store, begun)
    return None if report is None else pushed(report, store, settings.runtime)


def _run(dataset: str, settings: PipelineSettings, store: Path, *, quiet: bool) -> RefreshReport:
    quiet_prefect()
    from flows.refresh import REFUSED
    from flows.refresh import refresh as refresh_flow
    from flows.turns import WhenBusy

    with server_for_runs(), StageBars(enabled=not quiet) as bars, listening(bars):
        state = refresh_flow(
            dataset=dataset, settings=settings, store=store, when_busy=WhenBusy.OVERLAP, return_state=True
        )
    values: Any = state.result(raise_on_failure=state.name != REFUSED)
    return RefreshReport.from_json(values)


def _print(report: RefreshReport, store: Store) -> None:
    console = Console()
    if report.made is None:
        console.print(conclusion(report), highlight=False)
        if report.run.pushed is not None:
            console.print(report.run.pushed, highlight=False, soft_wrap=True, markup=False)
        return
    print_report(report.run, store)
    table = Table("check", title="\nQuality gate", title_justify="left")
    for column in ("found", "allowed", "holds"):
        table.add_column(column, justify="right")
    for row in check_rows(report):
        table.add_row(row["check"], str(row["found"]), row["allowed"], row["holds"])
    print_table(table)
    changes = report.changes
    console.print(
        f"{changes['n_rows_added']:.0f} new interactions, {changes['n_new_users']:.0f} new users, "
        f"{changes['n_touched_users']:.0f} known users with other histories, {changes['n_new_items']:.0f} new items.\n"
        f"{renewed(report)}.\nFine-tuned anew: {'yes' if report.tuned else 'no'}; {report.tuning}.\n"
        f"{conclusion(report)}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def nights(
    *,
    to: Annotated[Path, Parameter(name="--to", help="Directory of the files.")],
    dataset: DatasetOption = "sample",
    n_nights: Annotated[int, Parameter(name=("--nights", "-n"), help="Nights after the beginning.")] = 4,
    per_user: Annotated[int, Parameter(name="--per-user", help="Interactions of a user in a night.")] = 1,
    share: Annotated[
        float | None, Parameter(name="--share", help="Part of all interactions in a night, instead of --per-user.")
    ] = None,
    late_users: Annotated[float, Parameter(name="--late-users", help="Part of the users who come late.")] = 0.05,
    late_items: Annotated[float, Parameter(name="--late-items", help="Part of the items that come late.")] = 0.05,
    seed: Annotated[int, Parameter(name="--seed", help="Of who comes late, and when.")] = 1,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Cut a dataset into nights to try `p2rec refresh` with: night-0.parquet, night-1.parquet and so on.

    Each file holds all interactions up to its night, as a file does that is appended to.

    Examples:
        p2rec nights -d sample --to nights
        p2rec nights -d beauty --nights 14 --share 0.01 --to nights
    """
    tables = cut_into_nights(
        dataset,
        Store.open(store),
        n_nights,
        per_user=per_user,
        share=share,
        late_users=late_users,
        late_items=late_items,
        seed=seed,
    )
    with os_errors(to):
        make_directory(to)
    paths: list[str] = []
    for night, data in enumerate(tables):
        path = to / f"night-{night}.parquet"
        with os_errors(path):
            path.write_bytes(data)
        paths.append(str(path))
        if not as_json:
            Console().print(str(path), highlight=False, soft_wrap=True, markup=False)
    if as_json:
        sys.stdout.write(json.dumps({"dataset": dataset, "files": paths}, ensure_ascii=False) + "\n")
