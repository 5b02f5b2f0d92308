"""Kill -9 at every step that touches the disk."""

import contextlib
import itertools
import os
import shutil
from pathlib import Path

from p2rec_core.errors import P2RecError
from storage.artefacts import Store
from storage.snapshots import read_snapshot
from tests.faults.house import DATASET, OPERATIONS, Operation, fill, problem_of, settle, undisturbed
from tests.faults.rows import Fate, Row, Timed
from tests.storage.crash_driver import KILLED, kill_at

PART = "a kill"


def kill_rows(directory: Path, *, quick: bool) -> list[Row]:
    """Every operation, killed at every step; the quick form takes every 6th."""
    template = fill(directory / "template").root
    operations = OPERATIONS[1:2] + OPERATIONS[5:6] if quick else OPERATIONS
    return [killed(template, directory, operation, 6 if quick else 1) for operation in operations]


def killed(template: Path, directory: Path, operation: Operation, stride: int) -> Row:
    expected = undisturbed(template, operation, directory / "undisturbed")
    with Timed(Row(PART, operation.name)) as row:
        for step in itertools.count(1, stride):
            root = directory / f"step-{step}"
            shutil.copytree(template, root)
            if not run_killed(root, operation, step):
                shutil.rmtree(root)
                break
            _judge(Store(root), operation, expected, row, step)
            shutil.rmtree(root)
    row.facts["steps"] = step - 1
    return row


def run_killed(root: Path, operation: Operation, step: int) -> bool:
    """Run an operation in a child that is killed at a step; whether it came to that step."""
    child = os.fork()
    if child == 0:
        kill_at(step)
        with contextlib.suppress(BaseException):
            operation.run(Store(root))
            os._exit(0)
        os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, KILLED):
        raise RuntimeError(f"{operation.name}, step {step}: the child ended with status {status}")
    return status == KILLED


def _judge(store: Store, operation: Operation, expected: dict[str, object], row: Row, step: int) -> None:
    try:
        problem = problem_of(store, operation.seen)
    except P2RecError as error:
        row.add(Fate.LOST, f"step {step}: {error.problem}")
        return
    if problem is not None:
        row.add(Fate.WRONG, f"step {step}: {problem}")
        return
    fate = Fate.DETECTED if read_snapshot(store, DATASET).notes else Fate.HARMLESS
    problem, took = settle(store, operation, expected)
    row.most("longest rerun s", took)
    row.add(fate, f"step {step}: {problem}" if problem else "")
