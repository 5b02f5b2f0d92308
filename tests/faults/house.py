"""A small store in a known state, what is done to it while faults are injected, and what must hold afterwards."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from p2rec_core.errors import P2RecError
from storage.artefacts import Artefact, ArtefactRef, Store
from storage.doctor import examine
from storage.garbage import collect, collect_leftovers
from storage.snapshots import mend_pointer, pin, promote, publish_snapshot, read_snapshot, rollback

DATASET = "tiny"
NOW = timedelta(0)
LONGEST_WAIT_S = 5.0


def publish_artefact(store: Store, value: int, *, content: int | None = None) -> Artefact:
    """An artefact with a file of every kind, as a stage makes one; the checkpoint goes when it is published.

    With ``content``, as a forced stage makes one whose bytes come out otherwise.
    """
    key, forced = f"v{value}", content is not None
    value = value if content is None else content
    history = {"epoch": pa.array([0, 1], pa.int32()), "metric": ["loss"] * 2, "value": [float(value), 0.5]}
    with store.lock("train", key):
        (store.workspace("train", key) / "checkpoint").write_bytes(b"half way")
        with store.write("train", key, settings={"value": value}, inputs={}, fingerprint="f") as writer:
            writer.table("history", pa.table(history))
            writer.tensors("weights", {"w": np.full(64, value, np.float32)}, {"value": str(value)})
            writer.json("report", {"value": value})
            return writer.publish({"value": value}, 1.0, replace=forced)


def publish(store: Store, value: int) -> None:
    """An artefact and the snapshot that names it."""
    publish_snapshot(store, DATASET, {"train": publish_artefact(store, value).ref()}, {"value": value})


def fill(root: Path) -> Store:
    """Three snapshots, the third the current one, the first pinned, and an artefact without a reference."""
    store = Store.open(root)
    for value in (1, 2, 3):
        publish(store, value)
    pin(store, DATASET, 1)
    publish_artefact(store, 9)
    return store


@dataclass(frozen=True)
class Operation:
    """Something that a store does, to be disturbed at every step.

    Attributes:
        name: What it is called in the table.
        run: Does it; a second time it ends in the same state.
        seen: Numbers of the snapshots that may be the current one while it is disturbed.
    """

    name: str
    run: Callable[[Store], object]
    seen: tuple[int, ...]


def _artefact(store: Store) -> None:
    publish_artefact(store, 4)


def _forced(store: Store) -> None:
    publish_artefact(store, 3, content=33)


def _snapshot(store: Store) -> None:
    publish(store, 4)


def _promote(store: Store) -> None:
    promote(store, DATASET, 2)


def _rollback(store: Store) -> None:
    if read_snapshot(store, DATASET).number == 3:
        rollback(store, DATASET)


def _pin(store: Store) -> None:
    pin(store, DATASET, 2)


def _gc(store: Store) -> None:
    collect(store, grace=NOW, keep_last=1)


def _repair(store: Store) -> None:
    (store.root / "snapshots" / DATASET / "current.json").write_text("torn")
    mend_pointer(store, DATASET)


OPERATIONS = (
    Operation("publish an artefact", _artefact, (3,)),
    Operation("publish an artefact and its snapshot", _snapshot, (3, 4, 5)),
    Operation("promote", _promote, (3, 2)),
    Operation("roll back", _rollback, (3, 2)),
    Operation("pin", _pin, (3,)),
    Operation("collect garbage", _gc, (3,)),
    Operation("mend a torn pointer", _repair, (3,)),
    Operation("force other content under a key in use", _forced, (3,)),
)


def contents(store: Store) -> dict[str, object]:
    """What a reader can get out of a store: the artefacts' hashes and the entries of the current snapshot."""
    found: dict[str, object] = {f"{a.stage}/{a.key}": a.ref().files for a in store.artefacts()}
    found["current"] = read_snapshot(store, DATASET).entries
    return found


def problem_of(store: Store, seen: tuple[int, ...]) -> str | None:
    """What a reader gets to see that it must not; None if all is well."""
    snapshot = read_snapshot(store, DATASET)
    if snapshot.number not in seen:
        return f"the current snapshot is {snapshot.number}, expected one of {seen}"
    artefact = store.load(snapshot.entries["train"])
    store.verify(artefact)
    values = {
        float(artefact.table("history")["value"][0].as_py()),
        float(artefact.tensors("weights")["w"][0]),
        float(artefact.json("report")["value"]),
        float(snapshot.info["value"]),
    }
    if len(values) != 1:
        return f"snapshot {snapshot.number} is a mix of {sorted(values)}"
    harm = [f for f in examine(store).harm if f.kind != "pointer" or not snapshot.notes]  # a note tells of that one
    return "; ".join(finding.problem for finding in harm) or None


def left_behind(store: Store) -> str | None:
    """What is still there after leftovers were made old and collected; None if nothing is."""
    for path in (*store.staging.rglob("*"), *(store.root / "work").rglob("*")):
        os.utime(path, (0, 0))
    collect_leftovers(store, grace=NOW)
    left = [*store.staging.iterdir(), *(store.root / "work").glob("*/*")]
    return f"left behind by garbage collection: {left[0]}" if left else None


def copy_without(template: Path, place: Path, ref: ArtefactRef) -> Store:
    """A copy of a store, in place of what was there, in which an artefact has not been computed."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(template, place)
    shutil.rmtree(place / "artefacts" / ref.stage / ref.key)
    return Store(place)


def settle(store: Store, operation: Operation, expected: dict[str, object]) -> tuple[str | None, float]:
    """Do the operation again and collect what was left; what is wrong then, and the seconds that it took."""
    begun = time.monotonic()
    try:
        operation.run(store)
    except P2RecError as error:
        return f"a rerun fails: {error.problem}", time.monotonic() - begun
    took = time.monotonic() - begun
    if contents(store) != expected:
        return "a rerun ends with other content than an undisturbed run", took
    if left := left_behind(store):
        return left, took
    if took > LONGEST_WAIT_S:
        return f"the rerun was blocked for {took:.1f} s", took
    return None, took


@contextmanager
def copied(template: Path, place: Path) -> Iterator[Store]:
    """A copy of a store that goes afterwards."""
    shutil.copytree(template, place, symlinks=True)
    try:
        yield Store(place)
    finally:
        shutil.rmtree(place)


def undisturbed(template: Path, operation: Operation, place: Path) -> dict[str, object]:
    """What an undisturbed run ends with."""
    with copied(template, place) as store:
        operation.run(store)
        return contents(store)
