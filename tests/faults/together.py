"""Many processes at once: on one key, on different keys, and readers beside everything that changes a store."""

import contextlib
import os
import random
import shutil
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from p2rec_core.errors import P2RecError, StoreError
from storage.artefacts import Store
from storage.catalogue import Catalogue
from storage.doctor import examine
from storage.garbage import collect
from storage.snapshots import (
    Snapshot,
    list_snapshots,
    pin,
    promote,
    read_snapshot,
    rollback,
    unpin,
)
from tests.faults.house import DATASET, LONGEST_WAIT_S, fill, publish
from tests.faults.rows import Fate, Row, Timed

PART = "f together"
NOW = timedelta(0)
READERS = 4


def together_rows(directory: Path, *, quick: bool) -> list[Row]:
    """Same key, different keys, readers; the quick form has fewer rounds and 2,000 reads."""
    rounds = {2: 3, 8: 1} if quick else {2: 100, 8: 100, 32: 30}
    reads = _reads(directory / "reads", 1_000 if quick else 100_000)
    rows = [_same_key(directory / f"same-{n}", n, times) for n, times in rounds.items()]
    rows += [_different_keys(directory / f"different-{n}", n, times) for n, times in rounds.items()]
    return [*rows, reads]


def _run(jobs: list[Callable[[], None]]) -> list[str]:
    """Run each in a process of its own, all let go at once; what went wrong in them."""
    ready, go = os.pipe()
    children = []
    for place, job in enumerate(jobs):
        out, told = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):
                os.close(go)
                os.read(ready, 1)
                try:
                    job()
                    status = 0
                except BaseException:
                    os.write(told, f"process {place}: {traceback.format_exc()}".encode()[-4000:])
            os._exit(status)
        os.close(told)
        children.append((child, out))
    os.close(go)
    os.close(ready)
    problems = []
    for child, out in children:
        with os.fdopen(out, "rb") as pipe:
            said = pipe.read().decode(errors="replace")
        if os.waitpid(child, 0)[1] != 0:
            problems.append(said or "a process ended without a word")
    return problems


def _compute(store: Store, key: int, log: Path) -> None:
    """As a stage does: look, wait for the lock, look again, compute."""
    if store.find("train", f"v{key}") is not None:
        return
    with store.lock("train", f"v{key}"):
        if store.find("train", f"v{key}") is None:
            with log.open("a") as file:
                file.write(f"{key}\n")
            _unlocked(store, key)


def _unlocked(store: Store, key: int) -> None:
    with store.write("train", f"v{key}", settings={"value": key}, inputs={}, fingerprint="f") as writer:
        writer.json("report", {"value": key})
        writer.publish({"value": key}, 1.0)


def _same_key(directory: Path, n: int, rounds: int) -> Row:
    store, log = Store.open(directory / "store"), directory / "computed"
    with Timed(Row(PART, f"{n} processes compute one key")) as row:
        for key in range(rounds):
            begun = time.monotonic()
            problems = _run([lambda key=key: _compute(store, key, log)] * n)
            row.most("longest round s", time.monotonic() - begun)
            computed = log.read_text().split().count(str(key))
            if computed != 1:
                problems.append(f"key {key} was computed {computed} times")
            artefact = store.find("train", f"v{key}")
            if artefact is None:
                row.add(Fate.LOST, "nothing was published")
                continue
            store.verify(artefact)
            row.add(Fate.HARMLESS, "; ".join(problems))
    return row


def _different_keys(directory: Path, n: int, rounds: int) -> Row:
    """Each process publishes an artefact of its own and a snapshot of the dataset that all share."""
    store = Store.open(directory / "store")
    with Timed(Row(PART, f"{n} processes publish snapshots")) as row:
        for first in range(0, rounds * n, n):
            jobs = [lambda value=first + place: publish(store, value) for place in range(n)]
            problems = _run(jobs)
            there = {snapshot.info["value"]: snapshot for snapshot in list_snapshots(store, DATASET)}
            if missing := set(range(first, first + n)) - there.keys():
                row.add(Fate.LOST, f"snapshots of {sorted(missing)} are not there")
                continue
            if {s.number for s in there.values()} != set(range(1, first + n + 1)):
                problems.append("numbers are missing or doubled")
            row.add(Fate.HARMLESS, "; ".join(problems))
        if harm := examine(store).harm:
            row.add(Fate.WRONG, harm[0].problem)
    return row


def _change(store: Store, until: Path, seed: int) -> None:
    """Publish, promote, roll back, pin and collect in turn until a file is there; refusals are no harm."""
    draw, value = random.Random(seed), 10_000 * (seed + 1)
    while not until.exists():
        value += 1
        with contextlib.suppress(StoreError):  # what was chosen may have gone, or its artefact, just before
            numbers = [snapshot.number for snapshot in list_snapshots(store, DATASET)]
            match draw.randrange(6):
                case 0 | 1:
                    publish(store, value)
                case 2:
                    promote(store, DATASET, draw.choice(numbers))
                case 3:
                    rollback(store, DATASET)
                case 4:
                    pin(store, DATASET, chosen := draw.choice(numbers))
                    unpin(store, DATASET, chosen)
                case _:
                    collect(store, grace=NOW, keep_last=3)


def _read(store: Store, n: int, report: Path) -> None:
    """Read the current snapshot over and over and note what came of it."""
    counts = dict.fromkeys(("right", "moved", "mixed", "missing", "noted"), 0)
    for place in range(n):
        snapshot = read_snapshot(store, DATASET)
        counts["noted"] += bool(snapshot.notes)
        try:
            values = _values(store, snapshot, sql=place % 50 == 0)
        except P2RecError:
            # what is no longer the current one may be collected
            again = read_snapshot(store, DATASET)
            counts["moved" if again.number != snapshot.number else "missing"] += 1
            continue
        counts["right" if values == {float(snapshot.info["value"])} else "mixed"] += 1
    report.write_text(" ".join(str(counts[name]) for name in counts))


def _values(store: Store, snapshot: Snapshot, *, sql: bool) -> set[float]:
    artefact = store.load(snapshot.entries["train"])
    values = {
        float(artefact.table("history")["value"][0].as_py()),
        float(artefact.tensors("weights")["w"][0]),
        float(artefact.json("report")["value"]),
    }
    if sql:
        with Catalogue(store, snapshot, threads=1) as catalogue:
            values.add(catalogue.query("SELECT value FROM history WHERE epoch = 0").column(0)[0].as_py())
    return values


def _reads(directory: Path, n_reads: int) -> Row:
    store, stop = fill(directory / "store"), directory / "stop"
    reports = [directory / f"report-{place}" for place in range(READERS)]
    with Timed(Row(PART, "reads beside two that publish, promote, roll back, pin and collect")) as row:
        readers = [lambda report=report: _read(store, n_reads // READERS, report) for report in reports]
        problems = _with_writers(readers, [lambda seed=seed: _change(store, stop, seed) for seed in range(2)], stop)
        columns = [list(map(int, report.read_text().split())) for report in reports if report.exists()]
        right, moved, mixed, missing, noted = (sum(column) for column in zip(*columns, strict=True))
        row.add(Fate.HARMLESS, "; ".join(problems), n=right)
        row.add(Fate.DETECTED, n=moved)
        row.add(Fate.WRONG, "a reader saw a mix" if mixed else "", n=mixed)
        row.add(Fate.LOST, "the current snapshot could not be read" if missing else "", n=missing)
        row.facts["snapshots"] = read_snapshot(store, DATASET).number
        row.facts["pointers passed over"] = noted
        if harm := examine(store).harm:
            row.problems.append(harm[0].problem)
        begun = time.monotonic()
        publish(store, 5)
        row.most("longest wait s", time.monotonic() - begun)
        if row.facts["longest wait s"] > LONGEST_WAIT_S:
            row.problems.append("a lock was held")
        collect(store, grace=NOW, keep_last=1)
        if left := list(store.staging.iterdir()):
            row.problems.append(f"left behind: {left[0]}")
    shutil.rmtree(directory)
    return row


def _with_writers(readers: list[Callable[[], None]], writers: list[Callable[[], None]], stop: Path) -> list[str]:
    """Run the writers for as long as the readers take."""

    def until_read() -> None:
        problems = _run(readers)
        stop.touch()
        if problems:
            raise RuntimeError("; ".join(problems))

    return _run([until_read, *writers])
