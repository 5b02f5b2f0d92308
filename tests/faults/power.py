"""The power goes: what was not flushed is lost, torn or there in another order."""

import shutil
from pathlib import Path

from p2rec_core.errors import P2RecError
from storage.artefacts import Store
from storage.snapshots import read_snapshot
from tests.faults.disk_model import Disk, Recorder, states
from tests.faults.house import DATASET, OPERATIONS, Operation, contents, fill, problem_of, settle, undisturbed
from tests.faults.rows import Fate, Row, Timed

PART = "c power cut"
SEED = 1


def power_rows(directory: Path, *, quick: bool) -> list[Row]:
    """Every operation, in every state that a cut may leave; the quick form looks at every 25th of two."""
    template = fill(directory / "template").root
    operations = OPERATIONS[1:2] + OPERATIONS[5:6] if quick else OPERATIONS
    return [cut(template, directory, operation, 25 if quick else 1) for operation in operations]


def cut(template: Path, directory: Path, operation: Operation, stride: int) -> Row:
    expected = undisturbed(template, operation, directory / "undisturbed")
    root = directory / "recorded"
    shutil.copytree(template, root)
    before, numbers = Disk.of(root)
    recorder = Recorder(root, numbers)
    with recorder.recording():
        operation.run(Store(root))
    shutil.rmtree(root)
    with Timed(Row(PART, operation.name)) as row:
        for number, (done, lost, disk) in enumerate(states(before, recorder.steps, seed=SEED)):
            if number and number % stride:
                continue
            disk.write_to(root)
            acknowledged = done == len(recorder.steps)
            _judge(Store(root), operation, expected, row, f"after step {done}, {lost}", acknowledged)
            shutil.rmtree(root)
    row.facts["steps"] = len(recorder.steps)
    return row


def _judge(
    store: Store, operation: Operation, expected: dict[str, object], row: Row, what: str, acknowledged: bool
) -> None:
    try:
        problem = problem_of(store, operation.seen)
        found = contents(store)
    except P2RecError as error:
        row.add(Fate.LOST, f"{what}: {error.problem}")
        return
    if problem is not None:
        row.add(Fate.WRONG, f"{what}: {problem}")
        return
    if acknowledged and any(found.get(name) != value for name, value in expected.items()):
        row.add(Fate.LOST, f"{what}: what was reported as done is not there")
        return
    fate = Fate.DETECTED if read_snapshot(store, DATASET).notes else Fate.HARMLESS
    problem, took = settle(store, operation, expected)
    row.most("longest rerun s", took)
    row.add(fate, f"{what}: {problem}" if problem else "")
