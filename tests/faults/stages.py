"""Whole stages of a pipeline, killed at every step that touches the disk and at random times, and killed again while
they recover."""

import itertools
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from p2rec_core.errors import P2RecError
from p2rec_core.settings.pipeline import validated
from storage.artefacts import ArtefactRef, Store
from storage.doctor import examine
from storage.sample import generate_sample
from storage.snapshots import publish_snapshot, read_snapshot
from tasks.dag import pipeline_slots
from tasks.stage import StageCall, run_stage
from tests.faults.house import DATASET, copy_without, left_behind
from tests.faults.rows import Fate, Row, Timed
from tests.storage.crash_driver import KILLED, kill_at
from tests.tasks.pipeline_driver import QUICK, run_slots

PART = "h stages"
N_RANDOM = 200
QUICK_SLOTS = ("ingest", "finetune")
RUNTIME = validated(QUICK).runtime


@dataclass(frozen=True)
class Case:
    """A stage to be killed.

    Attributes:
        name: Its slot.
        call: What is computed.
        expected: What an undisturbed run published.
        template: A store with everything that it reads, its own artefact too.
        place: Where copies of the store go.
    """

    name: str
    call: StageCall
    expected: ArtefactRef
    template: Path
    place: Path

    def fresh(self) -> Store:
        """A copy of the store in which the stage has not been computed."""
        return copy_without(self.template, self.place, self.expected)

    def run(self, store: Store) -> ArtefactRef:
        """Compute it, or find it."""
        return run_stage(self.call, store, runtime=RUNTIME).ref

    def child(self, store: Store, before: Callable[[], None] = lambda: None) -> int:
        """Compute it in a process of its own; its number."""
        child = os.fork()
        if child == 0:
            status = 1
            try:
                before()
                self.run(store)
                status = 0
            except BaseException as error:
                os.write(2, f"{self.name}: {type(error).__name__}: {error!s:.300}\n".encode())
            os._exit(status)
        return child


def stage_rows(directory: Path, *, quick: bool) -> list[Row]:
    """Every stage; the quick form kills two of them, a few times."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked process has none but its own
    try:
        cases = [case for case in _cases(directory) if not quick or case.name in QUICK_SLOTS]
        rows = [_at_steps(case, quick=quick) for case in cases]
        return rows + [_at_times(case, 4 if quick else N_RANDOM) for case in cases]
    finally:
        torch.set_num_threads(threads)


def _cases(directory: Path) -> list[Case]:
    """A store with all stages of a pipeline, and the snapshot of another one, which is what readers must see."""
    source = directory / "rows.txt"
    source.write_text(generate_sample(n_users=60, n_items=40, n_categories=4).text())
    store = Store.open(directory / "store")
    other = validated(QUICK | {"ingest": QUICK["ingest"] | {"seed": 2}})
    before = run_slots(pipeline_slots(other, source), store, RUNTIME)
    publish_snapshot(store, DATASET, {name: result.ref for name, result in before.items()}, {})
    slots = pipeline_slots(validated(QUICK), source)
    refs = {name: result.ref for name, result in run_slots(slots, store, RUNTIME).items()}
    shared = {ref.key for ref in refs.values()} & {result.ref.key for result in before.values()}
    if shared:
        raise RuntimeError(f"The two pipelines share the artefacts {sorted(shared)}, which readers would miss.")
    return [Case(slot.name, slot.call(refs), refs[slot.name], store.root, directory / "copy") for slot in slots]


def _at_steps(case: Case, *, quick: bool) -> Row:
    """Killed at every step; the quick form at every 40th."""
    with Timed(Row(PART, f"{case.name} killed at a step")) as row:
        for step in itertools.count(1, 40 if quick else 1):
            store = case.fresh()
            status = os.waitstatus_to_exitcode(os.waitpid(case.child(store, lambda at=step: kill_at(at)), 0)[1])
            if status == 0:
                break
            if status != KILLED:
                raise RuntimeError(f"{case.name}, step {step}: the child ended with status {status}.")
            _judge(case, store, row, f"step {step}")
        row.facts["steps"] = step - 1
    return row


def _at_times(case: Case, n: int) -> Row:
    """Killed n times at random instants, every other time while it recovers from the kill before."""
    draw = random.Random(case.name)
    with Timed(Row(PART, f"{case.name} killed at a time")) as row:
        begun = time.monotonic()
        os.waitpid(case.child(case.fresh()), 0)
        longest_s = time.monotonic() - begun
        missed = 0
        while row.n < n:
            store = case.fresh()
            if not _killed_after(case, store, draw.uniform(0, longest_s)):
                missed += 1
                continue
            _judge(case, store, row, f"kill {row.n}", settle=False)
            if _killed_after(case, store, draw.uniform(0, longest_s)):
                _judge(case, store, row, f"kill {row.n}, in recovery", settle=False)
            _settle(case, store, row)
        row.facts |= {"undisturbed s": longest_s, "had ended before": missed}
    return row


def _killed_after(case: Case, store: Store, wait_s: float) -> bool:
    """Let it compute for a while and kill it; whether it was still at it."""
    child = case.child(store)
    time.sleep(wait_s)
    os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{case.name}: the child ended with status {status}.")
    return status != 0


def _judge(case: Case, store: Store, row: Row, when: str, *, settle: bool = True) -> None:
    """What readers and the doctor see after a kill; ``settle``: and what a rerun makes of it."""
    try:
        snapshot = read_snapshot(store, DATASET)
        for ref in snapshot.entries.values():
            store.verify(store.load(ref))
    except P2RecError as error:
        row.add(Fate.LOST, f"{when}: {error.problem}")
        return
    there = store.find(case.expected.stage, case.expected.key)
    if snapshot.number != 1 or (there is not None and there.ref() != case.expected):
        row.add(Fate.WRONG, f"{when}: another snapshot or another content than was published")
        return
    row.add(Fate.HARMLESS, "; ".join(f"{when}: {finding.problem}" for finding in examine(store).harm))
    if settle:
        _settle(case, store, row)


def _settle(case: Case, store: Store, row: Row) -> None:
    """A rerun has to end with the content of an undisturbed run, and collecting has to leave nothing behind."""
    begun = time.monotonic()
    ref = case.run(store)
    row.most("longest rerun s", time.monotonic() - begun)
    if ref != case.expected:
        row.problems.append("a rerun ends with other content than an undisturbed run")
    if left := left_behind(store):
        row.problems.append(left)
