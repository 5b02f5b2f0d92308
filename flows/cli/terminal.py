"""What the command line shows on a terminal: bars, tables, and where to go next."""

import json
import shlex
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from flows.cli.tables import print_table
from flows.report import RunReport
from flows.summary import cold_note, label, language_model_note, metrics_rows
from storage.artefacts import DEFAULT_STORE, Store
from tasks.plan import PlannedSlot

_LINE_EVERY_S = 15.0
"""Seconds between two lines of progress where there is no terminal."""

_CLUSTERS_QUERY = (
    "SELECT item_id, cluster, n_train FROM item_clusters JOIN items USING (item_id) ORDER BY n_train DESC LIMIT 5"
)
_METRICS_QUERY = "SELECT method, variant, seen, metric, k, value FROM metrics WHERE split = 'test'"

_STYLES = {"cached": "green", "computed": "yellow", "rebuilt": "red"}


class StageBars:
    """A progress bar per stage on a terminal, and a line now and then elsewhere.

    Args:
        enabled: Whether to show anything.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.console = Console(stderr=True)
        self.enabled = enabled
        self._bars = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[message]}"),
            console=self.console,
            disable=not (enabled and self.console.is_terminal),
        )
        self._tasks: dict[str, TaskID] = {}
        self._told_at = 0.0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, stage: str, done: int, total: int, message: str) -> None:
        """Show how far a stage is."""
        if not self.enabled:
            return
        first = stage not in self._tasks
        if first:
            for task in self._tasks.values():
                self._bars.update(task, completed=self._bars.tasks[task].total)
            self._tasks[stage] = self._bars.add_task(stage, total=total, message=message)
        self._bars.update(self._tasks[stage], completed=done, total=total, message=message)
        if not self.console.is_terminal and (first or time.monotonic() - self._told_at > _LINE_EVERY_S):
            self._told_at = time.monotonic()
            self.console.print(
                f"{stage}: {100 * done / max(total, 1):.0f} %, {message}", highlight=False, soft_wrap=True
            )


def print_report(report: RunReport, store: Store) -> None:
    """The end of a run: stages, metrics, where things are and what to try."""
    console = Console()
    print_table(_stage_table(report), markup=True)
    rows = metrics_rows(report)
    if rows:
        print_table(_metrics_table(report, rows), markup=True)
        for note in (cold_note(report), language_model_note(report)):
            if note:
                console.print(f"  {note}", highlight=False)
    n_cached = sum(result.outcome == "cached" for result in report.results.values())
    console.print(f"\n{n_cached} of {len(report.results)} stages cached, {report.wall_s:.1f} s.", highlight=False)
    if report.snapshot is None:
        console.print(
            "The current snapshot was left as it was; what was computed is kept for later runs.",
            highlight=False,
            soft_wrap=True,
        )
        return
    console.print(f"Snapshot {report.snapshot} of {label(report)} in {store.root}", highlight=False, soft_wrap=True)
    of = f"-d {report.dataset}"
    if store.root != DEFAULT_STORE.resolve():
        of += f" --store {shlex.quote(str(store.root))}"
    if report.before is not None:
        console.print(
            f"It is now the current one (before: {report.before}); back with `p2rec promote {report.before} {of}`.",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
    if report.pushed is not None:
        console.print(report.pushed, highlight=False, soft_wrap=True, markup=False)
    console.print("\nTry:", highlight=False)
    query = _CLUSTERS_QUERY if "clusters" in report.results else _METRICS_QUERY
    console.print(
        f'  p2rec query {of} "{query}"\n  p2rec show {of}',
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _stage_table(report: RunReport) -> Table:
    table = Table("stage", "outcome", title=f"Stages on {label(report)}", title_justify="left")
    for column in ("seconds", "MiB"):
        table.add_column(column, justify="right")
    table.add_column("artefact", no_wrap=True)
    for slot, result in report.results.items():
        style = _STYLES[str(result.outcome)]
        table.add_row(
            slot,
            f"[{style}]{result.outcome}[/]",
            f"{result.wall_s:.1f}",
            f"{result.n_bytes / 2**20:.1f}",
            f"{result.ref.stage}/{result.ref.key[:12]}",
        )
    return table


def _metrics_table(report: RunReport, rows: list[dict[str, object]]) -> Table:
    title = f"Test metrics on {label(report)}, full ranking over all items"
    columns = [c for c in rows[0] if c not in ("method", "seen")]
    table = Table("method", "seen", title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    previous = rows[0]["seen"]
    for row in rows:
        if row["seen"] != previous:
            table.add_section()
            previous = row["seen"]
        table.add_row(str(row["method"]), str(row["seen"]), *(f"{row[c]:.4f}" for c in columns))
    return table


def print_plan(planned: list[PlannedSlot], *, as_json: bool) -> None:
    """What a run would do."""
    if as_json:
        rows = [{"slot": p.slot.name, "key": p.key, "cached": p.cached, "reason": p.reason} for p in planned]
        sys.stdout.write(json.dumps(rows, ensure_ascii=False) + "\n")
        return
    table = Table("slot", "would be", "why", "artefact")
    for entry in planned:
        what = "[green]reused[/]" if entry.cached else "[yellow]computed[/]"
        place = f"{entry.slot.stage}/{entry.key[:12]}" if entry.key else "not known yet"
        table.add_row(entry.slot.name, what, entry.reason or "cached and whole", place)
    print_table(table, markup=True)
    n_cached = sum(entry.cached for entry in planned)
    Console().print(f"{n_cached} of {len(planned)} slots are cached.", highlight=False)


def note_no_store(root: Path) -> None:
    """Say that what was looked at is not there yet."""
    Console(stderr=True).print(
        f"note: there is no store in {root.absolute()}; a run makes it", highlight=False, soft_wrap=True, markup=False
    )
