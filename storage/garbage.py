"""Garbage collection: what nothing refers to any more goes, once it is older than a grace period.

References are the entries of all retained snapshots with what these were computed from, since a rerun and the lineage
need it, and what the caller adds with everything above it. What a run would find under a key stays if anything refers
to the key; a variant stays if something refers to its content. A refresh computes a snapshot from the one before: going
further up from a snapshot would keep every night since the last ordinary run (docs/adr/0011). Age decides only about
what is not referred to, so a clock that is far off cannot cost an artefact that is.

Nothing is deleted in place. Under ``references_lock`` and the lock of its key, a directory is renamed into ``staging``,
where nobody looks, and deleted afterwards; killed in between, the next collection deletes it.
"""

import contextlib
import math
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from p2rec_core.errors import ArtefactDamaged, StoreError
from storage.artefacts import Artefact, ArtefactRef, InputRef, Store, lock_owner
from storage.disk import os_errors, sync_directory
from storage.manifest import BETWEEN, key_of_directory
from storage.snapshots import (
    Snapshot,
    current_number,
    is_name,
    pinned,
    read_snapshot,
    references_lock,
    refusal_of,
    snapshot_datasets,
    snapshot_files,
)

DEFAULT_GRACE = timedelta(days=7)
"""How old garbage becomes before it is removed, if nobody says otherwise."""

References = Callable[[], Mapping[str, Iterable[ArtefactRef]]]
"""Gives further references to artefacts, by what refers to them, such as ``experiment table2``. Whatever these were
computed from, and that in turn, is referred to as well."""

FOREIGN = "it was not made by P2Rec"
"""Why something was kept that a store cannot have put there."""

_OWN_LOCK = ("garbage", "collect")
_STANDING = {_OWN_LOCK, ("snapshots", "all")}
"""Locks of the store itself, which every collection takes; the others belong to a key."""

_UNOWNED_GRACE_S = 3600.0
_YOUNG = "it is younger than the grace period"
_REMOVED = "removed."
"""Begins the name in ``staging`` of what waits to be deleted; a writer's directory there has a ~ in its name."""


class Kind(StrEnum):
    """What can be garbage."""

    SNAPSHOT = "snapshot"
    ARTEFACT = "artefact"
    STAGING = "staging"
    """What a writer that did not finish left, and what waits to be deleted."""
    WORK = "work"
    """Checkpoints of a computation that did not finish."""
    QUARANTINE = "quarantine"
    """A damaged artefact that was set aside."""
    LOCK = "lock"
    """The file of a lock that nobody holds."""


@dataclass(frozen=True)
class Item:
    """Something in the store that was judged.

    Attributes:
        kind: What it is.
        name: Its path within the store.
        n_bytes: Size of its files.
        reason: Why it was removed or kept.
        referrer: What refers to it, one of several; None where nothing does.
    """

    kind: Kind
    name: str
    n_bytes: int
    reason: str
    referrer: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The item as JSON values."""
        return asdict(self) | {"kind": str(self.kind)}


@dataclass(frozen=True)
class GarbageReport:
    """What a collection did.

    Attributes:
        dry_run: Whether it only looked.
        removed: What was removed, or would have been.
        kept: What was not.
    """

    dry_run: bool
    removed: tuple[Item, ...]
    kept: tuple[Item, ...]

    @property
    def n_bytes_freed(self) -> int:
        """Size of what was removed, or would have been."""
        return sum(item.n_bytes for item in self.removed)

    @property
    def summary(self) -> str:
        """How much was removed, or would have been, for a person."""
        verb = "would be removed" if self.dry_run else "removed"
        return f"{len(self.removed)} {verb}, {self.n_bytes_freed / 2**20:.1f} MiB"

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "dry_run": self.dry_run,
            "n_bytes_freed": self.n_bytes_freed,
            "removed": [item.to_json() for item in self.removed],
            "kept": [item.to_json() for item in self.kept],
        }


def collect(
    store: Store,
    *,
    grace: timedelta = DEFAULT_GRACE,
    keep_last: int | None = None,
    references: References = dict,
    dry_run: bool = False,
) -> GarbageReport:
    """Remove artefacts without a reference, leftovers of crashed writers, and old entries of the quarantine.

    It is safe beside running writers and readers: what belongs to a key that is locked stays. A computation does not
    refer to what it reads until its snapshot is published, so the grace period has to be longer than a run takes.

    Args:
        store: The store.
        grace: What is younger stays, whatever it is; files' times of change count.
        keep_last: Forget snapshots of each dataset but the last so many that were not refused, the current one and the
            pinned ones, and the last so many refused ones above the current one. None keeps all.
        references: Gives further references to artefacts. It is called while no snapshot can change.
        dry_run: Change nothing, and tell what would be removed.

    Raises:
        StoreError: ``grace`` or ``keep_last`` is out of range, what a snapshot refers to cannot be told because it is
            damaged, or the store cannot be written. Nothing that is referred to has been removed.
        ArtefactDamaged: What an artefact was computed from cannot be told because its manifest is damaged.
    """
    if grace < timedelta(0):
        raise StoreError(f"The grace period is {grace}.", remedy="Choose 0 or more.")
    if keep_last is not None and keep_last < 1:
        raise StoreError(f"keep_last is {keep_last}.", remedy="Choose 1 or more; the current snapshot always stays.")
    collection = _Collection(store, grace.total_seconds(), dry_run)
    with contextlib.nullcontext() if dry_run else store.lock(*_OWN_LOCK):
        collection.judge_leftovers()
        with contextlib.nullcontext() if dry_run else references_lock(store):
            retained, forgotten = collection.judge_snapshots(keep_last)
            referenced = _referenced(store, retained, references())
            collection.unlink(forgotten)
            collection.judge_artefacts(referenced)
        collection.delete_taken()
    return GarbageReport(dry_run, tuple(collection.removed), tuple(collection.kept))


def collect_leftovers(store: Store, *, grace: timedelta = DEFAULT_GRACE, dry_run: bool = False) -> GarbageReport:
    """Remove what crashed writers left, old entries of the quarantine and old locks, and no artefact or snapshot.

    Args:
        store: The store.
        grace: What is younger stays; locks and unfinished copies of pointers and records stay for an hour at least.
        dry_run: Change nothing, and tell what would be removed.

    Raises:
        StoreError: The store cannot be written.
    """
    collection = _Collection(store, grace.total_seconds(), dry_run)
    with contextlib.nullcontext() if dry_run else store.lock(*_OWN_LOCK):
        collection.judge_leftovers()
        collection.delete_taken()
    return GarbageReport(dry_run, tuple(collection.removed), tuple(collection.kept))


class _Held(Exception):
    """Another process holds the lock of a key."""


def _refuse_to_wait() -> None:
    raise _Held


class _Collection:
    """One run of ``collect``: what it has judged so far, and what it has moved out of the way."""

    def __init__(self, store: Store, grace_s: float, dry_run: bool) -> None:
        self.store = store
        self.grace_s = grace_s
        self.dry_run = dry_run
        self.removed: list[Item] = []
        self.kept: list[Item] = []
        self._taken: list[Path] = []
        self._renamed_in: set[Path] = set()

    def judge_leftovers(self) -> None:
        """Take what crashed writers left, and old entries of the quarantine."""
        root = self.store.root
        for path in _entries(root / "locks"):
            self._judge_lock(path, lock_owner(path))
        for path in _entries(self.store.staging):
            if path.name.startswith(_REMOVED):
                self.removed.append(self._item(Kind.STAGING, path, "an earlier collection did not delete it"))
                self._taken.append(path)
                continue
            stage, _, rest = path.name.partition("~")
            owner = _owner(stage, rest.partition("~")[0])
            # without a key it is the unfinished copy of a pointer or a record, and no lock tells if its writer lives
            grace_s = self.grace_s if owner else max(self.grace_s, _UNOWNED_GRACE_S)
            self._take(Kind.STAGING, path, "its writer did not finish", owner, grace_s)
        for path, owner in self._keyed(Kind.WORK, root / "work"):
            self._take(Kind.WORK, path, "its computation did not go on", owner)
        for path in _entries(root / "quarantine"):
            stage, _, key = path.name.rpartition("-")[0].rpartition("-")
            self._take(Kind.QUARANTINE, path, "it was set aside long enough ago", _owner(stage, key))

    def _judge_lock(self, path: Path, owner: tuple[str, str] | None) -> None:
        """Remove the file of an old lock; whoever waits for it opens it anew, and sees if it was removed meanwhile."""
        grace_s = max(self.grace_s, _UNOWNED_GRACE_S)
        if owner is None or owner in _STANDING or _age_s(path) < grace_s or path.is_symlink() or not path.is_file():
            return
        item = self._item(Kind.LOCK, path, "nobody holds it")
        try:
            with self._held_off(owner), os_errors(path):
                if not self.dry_run:
                    path.unlink()
        except _Held:
            return
        self.removed.append(item)

    def judge_snapshots(self, keep_last: int | None) -> tuple[list[Snapshot], list[Path]]:
        """The snapshots that are retained, and the files of those that are not."""
        retained, forgotten = [], []
        for dataset in snapshot_datasets(self.store):
            files = snapshot_files(self.store, dataset)
            if not files:
                continue
            current, pins = current_number(self.store, dataset), pinned(self.store, dataset)
            last, last_refused = (
                (set[int](), set[int]()) if keep_last is None else self._last(dataset, files, current, keep_last)
            )
            for number, path in files.items():
                if number == current:
                    reason = "it is the current one"
                elif number in pins:
                    reason = "it is pinned"
                elif keep_last is None:
                    reason = "every snapshot is kept"
                elif number in last:
                    reason = f"it is one of the last {keep_last}"
                elif number in last_refused:
                    reason = f"it is one of the last {keep_last} that were refused, and nothing came after it"
                elif _age_s(path) < self.grace_s:
                    reason = _YOUNG
                else:
                    forgotten.append(path)
                    reason = f"it is not one of the last {keep_last}"
                    self.removed.append(self._item(Kind.SNAPSHOT, path, reason))
                    continue
                self.kept.append(self._item(Kind.SNAPSHOT, path, reason))
                retained.append(_read_retained(self.store, dataset, number))
        return retained, forgotten

    def _last(
        self, dataset: str, numbers: Iterable[int], current: int | None, keep_last: int
    ) -> tuple[set[int], set[int]]:
        """The last snapshots that were not refused and, of those above the current one, the last that were.

        So refused nights, however many, do not crowd out what a rollback would go to.
        """
        good: list[int] = []
        refused: list[int] = []
        for number in numbers:
            try:
                was_refused = bool(refusal_of(read_snapshot(self.store, dataset, number)))
            except StoreError:  # told where it is retained
                was_refused = False
            (refused if was_refused else good).append(number)
        return set(good[-keep_last:]), {number for number in refused[-keep_last:] if number > (current or 0)}

    def unlink(self, forgotten: Iterable[Path]) -> None:
        """Remove the files of snapshots, for good before anything that they refer to goes."""
        if self.dry_run:
            return
        for path in forgotten:
            with os_errors(path):
                path.unlink()
                sync_directory(path.parent)

    def judge_artefacts(self, referenced: Mapping[tuple[str, str], str]) -> None:
        """Take the artefacts that nothing refers to."""
        for path, owner in self._keyed(Kind.ARTEFACT, self.store.root / "artefacts"):
            name = path.parent.name, path.name
            if name in referenced:
                item = self._item(Kind.ARTEFACT, path, "it is referred to")
                self.kept.append(replace(item, referrer=referenced[name]))
            else:
                self._take(Kind.ARTEFACT, path, "nothing refers to it", owner)

    def delete_taken(self) -> None:
        """Delete what was moved out of the way."""
        if self.dry_run:
            return
        # a power cut must not bring back, under its old name, a directory whose deletion has begun
        for directory in sorted(self._renamed_in):
            with os_errors(directory):
                sync_directory(directory)
        for path in self._taken:
            with os_errors(path):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _keyed(self, kind: Kind, directory: Path) -> Iterator[tuple[Path, tuple[str, str]]]:
        """The directories of stages' keys; what a store cannot have put there stays, and no link is followed."""
        for stage in _entries(directory):
            for path in _entries(stage) if is_name(stage.name) and not stage.is_symlink() else [stage]:
                key = key_of_directory(path.name) if kind is Kind.ARTEFACT else path.name
                owner = _owner(path.parent.name, key or path.name)
                if path == stage or owner is None or path.is_symlink() or not path.is_dir():
                    self.kept.append(self._item(kind, path, FOREIGN))
                else:
                    yield path, owner

    def _take(
        self, kind: Kind, path: Path, reason: str, owner: tuple[str, str] | None, grace_s: float | None = None
    ) -> None:
        """Move something into ``staging`` to be deleted, unless it is young or its owner's key is locked."""
        grace_s = self.grace_s if grace_s is None else grace_s
        if _age_s(path) < grace_s:
            self.kept.append(self._item(kind, path, _YOUNG))
            return
        try:
            with self._held_off(owner):
                if _age_s(path) < grace_s:  # between the first look and the lock it was made anew
                    self.kept.append(self._item(kind, path, _YOUNG))
                    return
                item = self._item(kind, path, reason)
                if self.dry_run:
                    self.removed.append(item)
                    return
                target = self.store.staging / f"{_REMOVED}{secrets.token_hex(8)}"
                with os_errors(path):
                    try:
                        os.rename(path, target)
                    except FileNotFoundError:  # its owner has finished with it meanwhile
                        return
        except _Held:
            self.kept.append(self._item(kind, path, "a process works on it"))
            return
        self.removed.append(item)
        self._taken.append(target)
        self._renamed_in |= {path.parent, target.parent}

    @contextlib.contextmanager
    def _held_off(self, owner: tuple[str, str] | None) -> Iterator[None]:
        """Hold the lock of a key if there is one; a dry run only looks at it. _Held where a process holds it."""
        if owner is None:
            yield
        elif self.dry_run:
            if self.store.is_locked(*owner):
                raise _Held
            yield
        else:
            with self.store.lock(*owner, on_wait=_refuse_to_wait):
                yield

    def _item(self, kind: Kind, path: Path, reason: str) -> Item:
        return Item(kind, str(path.relative_to(self.store.root)), _n_bytes(path), reason)


def _referenced(
    store: Store, retained: Iterable[Snapshot], further: Mapping[str, Iterable[ArtefactRef]]
) -> dict[tuple[str, str], str]:
    """What refers to an artefact, by its stage and the name of its directory; one of several referrers is named."""
    in_snapshots: dict[tuple[str, str], str] = {}
    for snapshot in reversed(list(retained)):
        for ref in snapshot.entries.values():
            for name in _names(ref):
                in_snapshots.setdefault(name, f"snapshot {snapshot.number} of {snapshot.dataset}")
    others = {name: referrer for referrer, refs in further.items() for ref in refs for name in _names(ref)}
    sources = _Sources(store)
    queue = list(others)
    while queue:
        above = sources.above([queue.pop()], others)
        queue += above
        others |= above
    return others | sources.above(in_snapshots, in_snapshots) | in_snapshots


def _names(ref: ArtefactRef) -> tuple[tuple[str, str], ...]:
    """The stage and the directories that a reference keeps: what its key has, and its content wherever it is."""
    return (ref.stage, ref.key), (ref.stage, ref.variant)


class _Sources:
    """What artefacts were computed from; every manifest is read once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[tuple[str, str], tuple[list[Artefact], dict[str, ArtefactDamaged]]] = {}

    def above(
        self, names: Iterable[tuple[str, str]], known: Mapping[tuple[str, str], str]
    ) -> dict[tuple[str, str], str]:
        """What artefacts were computed from, without what is known already, and what each of it was used for.

        Raises:
            ArtefactDamaged: It cannot be told, since a manifest is damaged.
        """
        found: dict[tuple[str, str], str] = {}
        for stage, name in names:
            key = name.partition(BETWEEN)[0]
            artefacts, damaged = self._contents(stage, key)
            if name in damaged:
                raise ArtefactDamaged(
                    f"What {stage}/{name} was computed from cannot be told, and {known[stage, name]} refers to it: "
                    f"{damaged[name].problem}",
                    remedy=f"{damaged[name].remedy} Until then nothing is removed.",
                )
            for artefact in artefacts:
                for used in artefact.manifest.inputs.values():
                    for place in self._read(used):
                        if place not in known:
                            found[place] = f"{stage}/{key}, which was computed from it"
        return found

    def _read(self, used: InputRef) -> Iterator[tuple[str, str]]:
        """The directories that may hold what was read, now or as soon as a forced recomputation replaces it."""
        yield used.stage, used.key
        artefacts, damaged = self._contents(used.stage, used.key)
        yield from ((used.stage, name) for name in damaged)
        for artefact in artefacts:
            if used.file in artefact.files and artefact.sha256(used.file) == used.sha256:
                yield used.stage, artefact.ref().variant

    def _contents(self, stage: str, key: str) -> tuple[list[Artefact], dict[str, ArtefactDamaged]]:
        if (stage, key) not in self._known:
            damaged: dict[str, ArtefactDamaged] = {}
            artefacts = self._store.contents(stage, key, on_damaged=lambda path, e: damaged.update({path.name: e}))
            self._known[stage, key] = list(artefacts), damaged
        return self._known[stage, key]


def _read_retained(store: Store, dataset: str, number: int) -> Snapshot:
    try:
        return read_snapshot(store, dataset, number)
    except StoreError as error:
        raise StoreError(
            f"What snapshot {number} of '{dataset}' refers to cannot be told: {error.problem}",
            remedy="Move that file out of the store, or forget it with a smaller number of last snapshots to keep.",
        ) from error


def _owner(stage: str, key: str) -> tuple[str, str] | None:
    """The stage and key that something belongs to; None if these are no such names."""
    return (stage, key) if is_name(stage) and is_name(key) else None


def _entries(directory: Path) -> list[Path]:
    with os_errors(directory):
        return sorted(directory.iterdir()) if directory.is_dir() else []


def _status(path: Path) -> list[os.stat_result]:
    """What the operating system says of a path and of everything below it; what goes meanwhile is left out."""
    below = () if path.is_symlink() else os.walk(path)
    paths = [path, *(Path(top) / name for top, directories, files in below for name in (*directories, *files))]
    found = []
    for each in paths:
        with os_errors(each), contextlib.suppress(FileNotFoundError):
            found.append(each.lstat())
    return found


def _n_bytes(path: Path) -> int:
    return sum(found.st_size for found in _status(path) if not stat.S_ISDIR(found.st_mode))


def _age_s(path: Path) -> float:
    """Seconds since the last change of anything in it; 0 if that is dated ahead, since the clock was set back."""
    return max(0.0, time.time() - max((found.st_mtime for found in _status(path)), default=math.inf))
