"""A look at everything in a store: what is damaged, what that means, and how to get it back.

Reading checks what it reads; this checks the rest too: every byte of every artefact, the records, what refers to what,
locks, and what crashed writers left. Mending never deletes what cannot be computed again: damaged files are moved into
``quarantine``, and leftovers go by the rules of garbage collection.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from p2rec_core.errors import ArtefactDamaged, ArtefactMissing, StoreError
from storage.artefacts import Artefact, Store, lock_owner
from storage.disk import os_errors
from storage.garbage import DEFAULT_GRACE, FOREIGN, Kind, collect_leftovers
from storage.manifest import BETWEEN, MANIFEST, REBUILD, key_of_directory
from storage.snapshot_files import POINTER, file_name
from storage.snapshots import (
    Snapshot,
    current_number,
    is_name,
    list_snapshots,
    mend_pointer,
    pinned,
    read_snapshot,
    references_lock,
    snapshot_datasets,
    snapshot_files,
)

_DIRECTORIES = ("artefacts", "snapshots", "staging", "locks", "work", "quarantine")
_PINS = "pins.json"


@dataclass(frozen=True)
class Finding:
    """Something in a store that is not as it should be.

    Attributes:
        kind: What it is about: layout, artefact, snapshot, pointer, pins, lock, checkpoint, record, leftover, work,
            quarantine.
        name: Its path within the store.
        problem: What is wrong.
        remedy: What to do about it.
        harmful: Whether something cannot be used for it; leftovers only take room.
        mended: What was done about it; empty where nothing was.
    """

    kind: str
    name: str
    problem: str
    remedy: str
    harmful: bool = True
    mended: str = ""

    def to_json(self) -> dict[str, Any]:
        """The finding as JSON values."""
        return asdict(self)


Mend = Callable[[], str]
"""Mends what was found and tells what it did; StoreError if it cannot."""

Found = tuple[Finding, Mend | None]
"""A finding and, where something can be done about it here, what does it."""


@dataclass(frozen=True)
class HealthReport:
    """What a look at a store gave.

    Attributes:
        findings: What is wrong.
        n_artefacts: Artefacts that were looked at.
        n_bytes: Bytes of them that were read and compared.
        n_snapshots: Snapshots that were looked at.
        wall_s: Seconds that it took.
    """

    findings: tuple[Finding, ...]
    n_artefacts: int
    n_bytes: int
    n_snapshots: int
    wall_s: float

    @property
    def harm(self) -> tuple[Finding, ...]:
        """What still keeps something from being used."""
        return tuple(finding for finding in self.findings if finding.harmful and not finding.mended)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        counts = {name: getattr(self, name) for name in ("n_artefacts", "n_bytes", "n_snapshots", "wall_s")}
        return {"healthy": not self.harm, **counts, "findings": [finding.to_json() for finding in self.findings]}


def examine(
    store: Store,
    *,
    repair: bool = False,
    grace: timedelta = DEFAULT_GRACE,
    further: Callable[[], Iterable[Found]] = tuple,
) -> HealthReport:
    """Look at everything in a store. Writers and readers may go on meanwhile.

    Args:
        store: The store.
        repair: Whether to mend what can be mended: set damaged files aside, point to the last complete snapshot,
            remove leftovers.
        grace: Leftovers that are younger stay.
        further: Gives what others find who keep files of their own in the store.

    Raises:
        StoreError: The store cannot be read, or a newer P2Rec wrote to it.
    """
    begun = time.monotonic()
    examination = _Examination(store)
    findings = []
    for parts in (
        examination.layout,
        examination.artefacts,
        examination.snapshots,
        examination.locks,
        further,
        lambda: examination.leftovers(grace, repair),
    ):
        for finding, mend in parts():
            findings.append(_mended(finding, mend) if repair and mend is not None else finding)
    return HealthReport(
        tuple(findings),
        examination.n_artefacts,
        examination.n_bytes,
        examination.n_snapshots,
        time.monotonic() - begun,
    )


def _mended(finding: Finding, mend: Mend) -> Finding:
    try:
        return replace(finding, mended=mend())
    except StoreError as error:
        return replace(finding, problem=f"{finding.problem} It could not be mended: {error.problem}")


class _Examination:
    """One look at a store, and what was counted."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.n_artefacts = 0
        self.n_bytes = 0
        self.n_snapshots = 0
        self._users: dict[tuple[str, str], str] = {}

    def layout(self) -> Iterator[Found]:
        """The directories of the store itself."""
        for name in _DIRECTORIES:
            path = self.store.root / name
            if path.is_symlink() or (path.exists() and not path.is_dir()):  # what is not there is made when needed
                what = "is a symbolic link" if path.is_symlink() else "is no directory"
                remedy = "Put a directory in its place; a store does not reach beyond its root."
                yield Finding("layout", name, f"{path} {what}.", remedy), None

    def artefacts(self) -> Iterator[Found]:
        """Every artefact, byte by byte."""
        for dataset in snapshot_datasets(self.store):
            for snapshot in list_snapshots(self.store, dataset):
                for ref in snapshot.entries.values():
                    self._users[ref.stage, ref.key] = f"`p2rec run --dataset {dataset}`"
        for stage in _entries(self.store.root / "artefacts"):
            for path in _entries(stage) if is_name(stage.name) and not stage.is_symlink() else [stage]:
                if path == stage or key_of_directory(path.name) is None or path.is_symlink() or not path.is_dir():
                    yield self._foreign("artefact", path), None
                    continue
                self.n_artefacts += 1
                if (found := self._artefact(path)) is not None:
                    yield found

    def _artefact(self, path: Path) -> Found | None:
        try:
            problem = self._damage(path)
        except StoreError as error:  # another version wrote it, or the disk does not give it
            return Finding("artefact", self._name(path), error.problem, error.remedy), None
        if problem is None:
            return None
        stage, key = path.parent.name, path.name.partition(BETWEEN)[0]
        user = self._users.get((stage, key))
        remedy = f"Rebuild it with {user}." if user else REBUILD
        after = "; a rerun rebuilds it"
        if key != path.name:  # a rerun takes what a forced recomputation put in its place
            remedy = "Set it aside with `--repair`; a snapshot that refers to it is found incomplete then."
            after = ""

        def mend() -> str:
            with self.store.lock(stage, key, on_wait=_refuse_to_wait):
                if not path.exists() or self._damage(path) is None:
                    return "another process has just mended it"
                return f"set aside in {self.store.set_aside(path, f'{stage}-{key}', problem)}{after}"

        return Finding("artefact", self._name(path), problem, remedy), mend

    def _damage(self, path: Path) -> str | None:
        """What is wrong with an artefact; None if nothing is, or if it has just been removed."""
        try:
            artefact = self.store.at(path)
            if artefact is None:
                return f"{path} has no {MANIFEST}." if path.exists() else None
            self.store.verify(artefact)
            return self._wrong_rows(artefact)
        except (ArtefactDamaged, ArtefactMissing) as error:
            return error.problem if path.exists() else None

    def _wrong_rows(self, artefact: Artefact) -> str | None:
        """Which table does not have as many rows as its manifest says: its writer was wrong, not the disk."""
        for entry in artefact.files.values():
            self.n_bytes += entry.bytes
            if entry.kind != "table":
                continue
            path = artefact.path / entry.path
            try:
                rows = pq.read_metadata(path).num_rows
            except (OSError, pa.ArrowException) as error:
                return f"The file {path} cannot be opened: {error}."
            if rows != entry.rows:
                return f"The file {path} has {rows} rows, and its manifest says {entry.rows}."
        return None

    def snapshots(self) -> Iterator[Found]:
        """Every snapshot, what points to them, and what they refer to."""
        known = snapshot_datasets(self.store)
        for path in _entries(self.store.root / "snapshots"):
            if path.name not in known:
                yield self._foreign("snapshot", path), None
        for dataset in known:
            directory = self.store.root / "snapshots" / dataset
            files = snapshot_files(self.store, dataset)
            own = {POINTER, _PINS, *map(file_name, files)}
            yield from ((self._foreign("snapshot", p), None) for p in _entries(directory) if p.name not in own)
            for number in files:
                yield from self._snapshot(dataset, number, directory / file_name(number))
            if files:
                yield from self._pointer(dataset, directory / POINTER)
            yield from self._pins(dataset, directory / _PINS)

    def _snapshot(self, dataset: str, number: int, path: Path) -> Iterator[Found]:
        self.n_snapshots += 1
        try:
            snapshot = read_snapshot(self.store, dataset, number)
        except StoreError as error:
            if not path.exists():  # forgotten meanwhile
                return
            problem = error.problem
            remedy = f"Go on with another snapshot, or make a new one with `p2rec run --dataset {dataset}`."
            yield (
                Finding("snapshot", self._name(path), problem, remedy),
                lambda: (
                    self._set_aside(path, f"snapshots-{dataset}", problem)
                    + "; artefacts that only it referred to are garbage when they are old"
                ),
            )
            return
        yield from ((finding, None) for finding in self._references(snapshot, path))

    def _references(self, snapshot: Snapshot, path: Path) -> Iterator[Finding]:
        """The slots of a snapshot whose artefacts are not there."""
        for slot, ref in snapshot.entries.items():
            try:
                self.store.load(ref)
            except StoreError as error:
                problem = f"Snapshot {snapshot.number} of '{snapshot.dataset}' is not complete, slot {slot}: "
                remedy = (
                    f"Compute it again with `p2rec run --dataset {snapshot.dataset}` and the settings of then, or go "
                    f"to a complete snapshot with `p2rec rollback --dataset {snapshot.dataset}`."
                )
                yield Finding("snapshot", self._name(path), problem + error.problem, remedy)

    def _pointer(self, dataset: str, path: Path) -> Iterator[Found]:
        try:
            if current_number(self.store, dataset) is None:
                return
            notes = read_snapshot(self.store, dataset).notes
        except StoreError as error:
            yield Finding("pointer", self._name(path), error.problem, error.remedy), None
            return
        for note in notes:
            remedy = f"Choose a snapshot with `p2rec promote N --dataset {dataset}`."
            yield (
                Finding("pointer", self._name(path), note, remedy),
                lambda: f"it points to snapshot {mend_pointer(self.store, dataset).number} now",
            )

    def _pins(self, dataset: str, path: Path) -> Iterator[Found]:
        try:
            pinned(self.store, dataset)
        except StoreError as error:
            problem = error.problem
            yield (
                Finding("pins", self._name(path), problem, error.remedy),
                lambda: self._set_aside(path, f"snapshots-{dataset}", problem) + "; no snapshot is pinned now",
            )

    def _set_aside(self, path: Path, name: str, reason: str) -> str:
        with references_lock(self.store):
            return f"set aside in {self.store.set_aside(path, name, reason)}"

    def locks(self) -> Iterator[Found]:
        """Files in the place of locks that cannot be locked. One that nobody holds is no harm: the kernel decides."""
        for path in _entries(self.store.root / "locks"):
            if lock_owner(path) is None:
                yield self._foreign("lock", path), None
                continue
            remedy = "Remove it; the next process that needs the lock makes it anew."
            if path.is_symlink() or not path.is_file():
                what = "a symbolic link" if path.is_symlink() else "no regular file"
                problem = f"The lock {path} is {what}, so that nobody can use what it protects."
                yield Finding("lock", self._name(path), problem, remedy), self._lock_mend(path, problem)
            elif not os.access(path, os.R_OK | os.W_OK):
                problem = f"The lock {path} cannot be opened by this user."
                yield Finding("lock", self._name(path), problem, remedy), self._lock_mend(path, problem)

    def _lock_mend(self, path: Path, problem: str) -> Mend:
        return lambda: f"set aside in {self.store.set_aside(path, 'locks-foreign', problem)}"

    def leftovers(self, grace: timedelta, repair: bool) -> Iterator[Found]:
        """What crashed writers left, and what was set aside."""
        report = collect_leftovers(self.store, grace=grace, dry_run=not repair)
        for item in report.removed:
            remedy = "Remove it with `p2rec gc`, or with `--repair`."
            problem = f"{item.reason[:1].upper()}{item.reason[1:]} ({item.n_bytes:,} bytes)."
            finding = Finding("leftover", item.name, problem, remedy, harmful=False)
            yield replace(finding, mended="removed" if repair else ""), None
        for item in report.kept:
            if item.kind is Kind.QUARANTINE:
                remedy = "Look at it, and remove it if it is of no use; `p2rec gc` does so in time."
                yield Finding(str(item.kind), item.name, "It was set aside.", remedy, harmful=False), None
            elif item.kind is Kind.WORK and item.reason == FOREIGN:
                yield self._foreign(str(item.kind), self.store.root / item.name), None

    def _foreign(self, kind: str, path: Path) -> Finding:
        remedy = "Move it elsewhere; nothing of P2Rec reads it."
        return Finding(kind, self._name(path), f"{path} was not made by P2Rec.", remedy, harmful=False)

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.store.root))


def _refuse_to_wait() -> None:
    raise StoreError("A process works on it.", remedy="Try again when it has ended.")


def _entries(directory: Path) -> list[Path]:
    with os_errors(directory):
        return sorted(directory.iterdir()) if directory.is_dir() else []
