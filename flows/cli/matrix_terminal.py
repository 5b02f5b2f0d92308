"""What the command line shows of an experiment: one refreshing table, and what there is in the end."""

import time
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flows.cli.tables import print_table
from flows.matrix import result_rows
from tasks.estimate import duration
from tasks.matrix_run import CellState, MatrixRun

_LINE_EVERY_S = 30.0
"""Seconds between two lines where there is no terminal and nothing has happened."""

_STYLES = {"done": "green", "cached": "green", "computed": "yellow", "rebuilt": "red", "failed": "red", "missing": ""}
_MOST_REASONS = 10


class MatrixView:
    """The state of a running experiment: a table on a terminal, a line now and then elsewhere.

    Args:
        enabled: Whether to show anything.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.console = Console(stderr=True)
        self.enabled = enabled
        self._live = Live(console=self.console, auto_refresh=False, transient=True)
        self._told: set[str] = set()
        self._told_at = 0.0

    def __enter__(self) -> Self:
        if self.enabled and self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, run: MatrixRun) -> None:
        """Show how far a run is."""
        if not self.enabled:
            return
        if self.console.is_terminal:
            self._live.update(_view(run), refresh=True)
            return
        news = [name for name in (*run.results, *run.failures) if name not in self._told]
        if not news and time.monotonic() - self._told_at < _LINE_EVERY_S:
            return
        self._told.update(news)
        self._told_at = time.monotonic()
        lines = [f"{name}: failed: {run.reason(name)}" for name in news if name in run.failures]
        lines += [
            f"{name}: {run.results[name].outcome}, {duration(run.results[name].wall_s)}"
            for name in news
            if name in run.results and run.results[name].outcome != "cached"
        ]
        now = "; ".join(f"{name} {_percent(r.done, r.total)} {r.message}" for name, r in run.running.items())
        for line in [*lines, f"{_counts(run)}{'; now ' + now if now else ''}"]:
            self.console.print(line, highlight=False, soft_wrap=True, markup=False)


def _counts(run: MatrixRun) -> str:
    failed = f", {len(run.failures)} failed" if run.failures else ""
    return f"{len(run.results)} of {run.n_nodes} computations done{failed}, {run.left()}"


def _percent(done: int, total: int) -> str:
    return f"{100 * done / max(total, 1):.0f} %"


def _view(run: MatrixRun) -> Group:
    table = Table("computing", "", "since", "", box=None, title_justify="left")
    for name, running in run.running.items():
        table.add_row(name, _percent(running.done, running.total), duration(running.elapsed_s), Text(running.message))
    return Group(Text(_counts(run), style="bold"), table)


def print_cells(run: MatrixRun) -> None:
    """What there is of every cell, and how long the rest would take."""
    console, table = Console(), Table("dataset", "backbone", "arm", "seed", "state", "why")
    counts = dict.fromkeys(CellState, 0)
    for cell in run.matrix.all_cells():
        state, reason = run.state(cell)
        counts[state] += 1
        why = reason or ("" if state is CellState.DONE else _open(run, cell))
        label = "cached" if state is CellState.DONE else str(state)
        shown = Text(label, style=_STYLES[label])
        table.add_row(cell.dataset, cell.method, cell.arm, str(cell.seed), shown, Text(why))
    print_table(table, markup=True)
    console.print(
        f"{counts[CellState.DONE]} of {sum(counts.values())} cells are cached, "
        f"{len(run.results)} of {run.n_nodes} computations."
        + (f" With {run.parallel} at a time: {run.left()}." if len(run.results) < run.n_nodes else ""),
        highlight=False,
    )


def _open(run: MatrixRun, cell: Any) -> str:
    planned = run.matrix.cells.get(cell)
    if planned is None:
        trials = run.matrix.group(cell).trials
        return f"waits for {sum(name not in run.results for _, name in trials)} of {len(trials)} trials"
    there = sum(node in run.results for node in planned.slots.values())
    return f"{there} of {len(planned.slots)} stages are cached"


def print_outcome(report: dict[str, Any], store: Any) -> None:
    """The end of a run: metrics of every cell, what failed, and what to do next."""
    console = Console()
    rows = result_rows(report)
    title = f"Test metrics of {report['experiment']}, full ranking over all items"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in rows[0]:
        table.add_column(column, justify="left" if column in ("dataset", "backbone", "arm") else "right")
    for row in rows:
        table.add_row(*("" if v is None else f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()))
    print_table(table, markup=True)
    wrong = [cell for cell in report["cells"] if cell["state"] != "done"]
    for cell in wrong[:_MOST_REASONS]:
        name = f"{cell['dataset']}/{cell['backbone']}/{cell['arm']}/seed {cell['seed']}"
        console.print(f"{name}: {cell['state']}: {cell['reason']}", highlight=False, soft_wrap=True, markup=False)
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in report["outcomes"].items() if count)
    console.print(
        f"\n{report['n_done']} of {report['n_cells']} cells are there; computations: {outcomes}; "
        f"{duration(report['wall_s'])}.",
        highlight=False,
    )
    if synthetic := [name for name, shared in report["datasets"].items() if shared["synthetic"]]:
        console.print(f"Synthetic data: {', '.join(synthetic)}.", highlight=False)
    console.print(
        f"\nTry:\n  p2rec report {report['experiment']} --store {store}", highlight=False, soft_wrap=True, markup=False
    )
