"""Running a matrix: what is cached, what can be computed now, what failed and what that keeps from being computed.

Nothing is computed here: a ``MatrixRun`` gives jobs out and hears what became of them.
"""

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from queue import Empty, SimpleQueue
from typing import Self

from p2rec_core.analysis.results import Cell
from p2rec_core.errors import P2RecError
from storage.artefacts import ArtefactRef, Store
from tasks.estimate import TimeLeft, Walls, remaining_s, time_left, whole_wall
from tasks.matrix import Matrix, Node
from tasks.stage import VERIFIED, Outcome, StageResult, used_artefact, whole_artefact

TICK_S = 1.0
"""Seconds between two looks at how far everything is."""


@dataclass(frozen=True)
class Job:
    """A node that can be computed now.

    Attributes:
        node: The node.
        key: Key of its artefact.
        refs: The artefacts that it reads, by slot.
    """

    node: Node
    key: str
    refs: dict[str, ArtefactRef]


@dataclass
class Running:
    """A job that is being computed.

    Attributes:
        job: The job.
        begun: Monotonic time of its beginning, in seconds.
        done: Units of work finished.
        total: Units of work in all.
        message: What it says of itself.
    """

    job: Job
    begun: float
    done: int = 0
    total: int = 1
    message: str = ""

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.begun

    def __call__(self, done: int, total: int, message: str) -> None:
        """Hear of progress."""
        self.done, self.total, self.message = done, total, message


@dataclass(frozen=True)
class Failure:
    """Why a node has no result.

    Attributes:
        node: The node where it went wrong: the node itself, or one that it needs.
        problem: What is wrong.
        remedy: What to do about it.
        exit_status: Of the error.
        trace: Where the error was raised.
    """

    node: str
    problem: str
    remedy: str
    exit_status: int
    trace: str = ""


class CellState(StrEnum):
    """What there is of a cell."""

    DONE = "done"
    MISSING = "missing"
    FAILED = "failed"


class MatrixRun:
    """The state of a matrix while it is run.

    Args:
        matrix: The matrix; it grows as tuning chooses.
        store: Where artefacts are.
        parallel: Jobs at a time.
        walls: How long like computations took.
    """

    def __init__(self, matrix: Matrix, store: Store, *, parallel: int, walls: Walls | None = None) -> None:
        self.matrix = matrix
        self.store = store
        self.parallel = parallel
        self.walls = walls or Walls()
        self.results: dict[str, StageResult] = {}
        self.failures: dict[str, Failure] = {}
        self.running: dict[str, Running] = {}
        self.prepared: dict[str, Job] = {}
        self._by_key: dict[tuple[str, str], str] = {}
        self._twins: dict[str, str] = {}

    def advance(self, *, use: bool = True) -> Iterator[Job]:
        """Look at every node whose needs are met: take what is in the store, prepare the rest.

        Args:
            use: Whether what is found will be read; garbage collection then leaves it alone for the grace period.

        Yields:
            What was found in the store; ``results`` has it.
        """
        grown = True
        while grown:
            progressed = True
            while progressed:
                progressed = False
                for node in sorted(self._open(), key=lambda node: node.rank):
                    if failed := [need for need in node.needs.values() if need in self.failures]:
                        self.failures[node.name] = self.failures[failed[0]]
                        progressed = True
                    elif all(need in self.results for need in node.needs.values()):
                        progressed = True
                        if (job := self._looked_at(node, use)) is not None:
                            yield job
            grown = self._grow()

    def looked_up(self) -> Self:
        """What is there: ``results`` is in the store, ``prepared`` could be computed, the rest waits for it."""
        for _ in self.advance(use=False):
            pass
        return self

    def take(self) -> Job | None:
        """The next job, if there is one and a place for it."""
        if not self.prepared or len(self.running) >= self.parallel:
            return None
        job = self.prepared.pop(min(self.prepared, key=lambda name: self.matrix.nodes[name].rank))
        self.running[job.node.name] = Running(job, time.monotonic())
        return job

    def settle(self, job: Job, outcome: Callable[[], StageResult]) -> None:
        """Hear what became of a job.

        Args:
            job: The job.
            outcome: Gives its result or raises what went wrong.
        """
        self.running.pop(job.node.name, None)
        try:
            result = outcome()
        except Exception as error:
            self._fail(job.node, error)
            return
        self._finish(job.node, result)
        self.walls.learn(job.node.kinds, whole_wall(result.wall_s, result.info))

    def state(self, cell: Cell) -> tuple[CellState, str]:
        """What there is of a cell, and why it is not there."""
        planned = self.matrix.cells.get(cell)
        nodes = list(planned.slots.values()) if planned else [name for _, name in self.matrix.group(cell).trials]
        for name in nodes:
            if name in self.failures:
                return CellState.FAILED, self.reason(name)
        if planned is not None and all(name in self.results for name in nodes):
            return CellState.DONE, ""
        return CellState.MISSING, ""

    def reason(self, name: str) -> str:
        """Why a node has no result, for a person."""
        failure = self.failures[name]
        needed = "" if failure.node == name else f"needs {failure.node}, which failed: "
        return f"{needed}{failure.problem}"

    @property
    def n_nodes(self) -> int:
        """Computations in all; those that tuning has not planned yet are counted too."""
        return len(self.matrix.nodes) + 2 * len(self.unplanned())

    def unplanned(self) -> list[Cell]:
        """Cells that wait for a choice."""
        return [cell for cell in self.matrix.all_cells() if cell not in self.matrix.cells]

    def left(self) -> TimeLeft:
        """How long the rest takes."""
        walls = self.walls
        if any(walls.guess(running.job.node.kinds) is None for running in self.running.values()):
            walls = walls.copy()  # one that runs tells how long its like will take
            for running in self.running.values():
                fraction = running.done / max(running.total, 1)
                if fraction > 0:
                    walls.learn(running.job.node.kinds, running.elapsed_s / fraction)
        seconds: dict[str, float | None] = {}
        for node in sorted(self.unfinished(), key=lambda node: node.rank):
            expected = walls.guess(node.kinds)
            if (now := self.running.get(node.name)) is not None:
                own = self.walls.guess(node.kinds)
                seconds[node.name] = remaining_s(now.elapsed_s, now.done / max(now.total, 1), own)
            else:
                seconds[node.name] = expected
        needs = {name: list(self.matrix.nodes[name].needs.values()) for name in seconds}
        for cell in self.unplanned():
            self._add_unplanned(cell, walls, seconds, needs)
        return time_left(seconds, needs, list(self.running), self.parallel)

    def _add_unplanned(
        self, cell: Cell, walls: Walls, seconds: dict[str, float | None], needs: dict[str, list[str]]
    ) -> None:
        """A cell that waits for a choice takes as long as one of its trials."""
        trials = [name for _, name in self.matrix.group(cell).trials]
        if any(name in self.failures for name in trials):
            return
        seconds[str(cell)] = walls.guess(self.matrix.nodes[trials[0]].kinds)
        needs[str(cell)] = trials

    def unfinished(self) -> list[Node]:
        """What is to be computed or waits for that, each computation once."""
        done = self.results.keys() | self.failures.keys()
        return [node for name, node in self.matrix.nodes.items() if name not in done and name not in self._twins]

    def _open(self) -> list[Node]:
        return [n for n in self.unfinished() if n.name not in self.running and n.name not in self.prepared]

    def _looked_at(self, node: Node, use: bool) -> Job | None:
        """Look a node up in the store; None if it has to be computed, or cannot be."""
        begun = time.monotonic()
        refs = node.refs(self.results)
        try:
            call = node.slot.call(refs)
            key = call.key()
            twin = self._by_key.setdefault((call.stage, key), node.name)
            if twin != node.name:
                self._follow(node, twin)
                return None
            look_up = used_artefact if use else whole_artefact
            artefact, _ = look_up(call.stage, key, self.store)
        except Exception as error:
            self._fail(node, error)
            return None
        job = Job(node, key, refs)
        if artefact is None:
            self.prepared[node.name] = job
            return None
        self.results[node.name] = StageResult.of(artefact, Outcome.CACHED, VERIFIED, time.monotonic() - begun)
        self.walls.learn(node.kinds, whole_wall(artefact.manifest.wall_s, artefact.manifest.info))
        return job

    def _follow(self, node: Node, twin: str) -> None:
        """The node is the same computation as another one: it shares its fate."""
        if twin in self.results:
            self._share(node.name, twin)
        elif twin in self.failures:
            self.failures[node.name] = self.failures[twin]
        else:
            self._twins[node.name] = twin

    def _finish(self, node: Node, result: StageResult) -> None:
        self.results[node.name] = result
        for name in [name for name, twin in self._twins.items() if twin == node.name]:
            del self._twins[name]
            self._share(name, node.name)

    def _share(self, name: str, twin: str) -> None:
        reason = f"the same computation as {twin}"
        self.results[name] = replace(self.results[twin], outcome=Outcome.CACHED, reason=reason, wall_s=0.0)

    def _fail(self, node: Node, error: Exception) -> None:
        trace = "\n".join(getattr(error, "__notes__", None) or traceback.format_exception(error))
        if isinstance(error, P2RecError):
            failure = Failure(node.name, error.problem, error.remedy, error.exit_status, trace)
        else:
            problem = f"{type(error).__name__}: {error}."
            failure = Failure(node.name, problem, "Report it with this message.", P2RecError.exit_status, trace)
        self.failures[node.name] = failure
        for name in [name for name, twin in self._twins.items() if twin == node.name]:
            del self._twins[name]
            self.failures[name] = failure

    def _grow(self) -> bool:
        """Let tuning choose; a trial that cannot be compared fails its group."""
        try:
            return self.matrix.grow(self.results)
        except P2RecError as error:
            for group in self.matrix.groups:
                if group.chosen is None and all(name in self.results for _, name in group.trials):
                    name = group.trials[0][1]
                    self.failures[name] = Failure(name, error.problem, error.remedy, error.exit_status)
                    del self.results[name]
            return True


Finished = tuple[Job, Callable[[], StageResult]]


def drive(
    run: MatrixRun,
    *,
    cached: Callable[[Job, StageResult], None],
    start: Callable[[Job, Running, Callable[[Finished], None]], None],
    looked: Callable[[MatrixRun, bool], None],
) -> None:
    """Run a matrix to its end: start each node as soon as its needs are there.

    Args:
        run: The run.
        cached: Told of each node that is found in the store.
        start: Starts a job; hears of its progress are to go to the second argument, and what gives its outcome to the
            third, from any thread.
        looked: Called at every look, with whether anything has been finished since the last one.
    """
    finished: SimpleQueue[Finished] = SimpleQueue()
    changed = True
    while True:
        for job in run.advance():
            cached(job, run.results[job.node.name])
            changed = True
        while (job_now := run.take()) is not None:
            start(job_now, run.running[job_now.node.name], finished.put)
        looked(run, changed)
        if not run.running:
            return
        try:
            job_done, outcome = finished.get(timeout=TICK_S)
            changed = True
        except Empty:
            changed = False
            continue
        run.settle(job_done, outcome)


def summary_of(results: Mapping[str, StageResult]) -> dict[str, int]:
    """How many results were come by in which way."""
    counts = dict.fromkeys(map(str, Outcome), 0)
    for result in results.values():
        counts[str(result.outcome)] += 1
    return counts
