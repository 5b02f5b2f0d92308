"""Snapshots: which artefacts belong together as the current state of a dataset.

A snapshot is an immutable numbered file. ``current.json`` is a small pointer to one, replaced in one
step, so that a reader sees the old snapshot or the new one and never a mix. Order is by number,
never by a clock. ``pins.json`` names the snapshots that garbage collection never forgets.

Whatever changes which artefacts are referred to holds ``references_lock`` while it checks that they are
there and writes it down; garbage collection holds it while it removes artefacts. So a reference to an
artefact that has just been removed cannot be written.
"""

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from p2rec_core.errors import ArtefactDamaged, ArtefactMissing, SnapshotOvertaken, StoreError, did_you_mean
from storage.artefacts import Artefact, Store
from storage.disk import make_directory, os_errors, replace_durably
from storage.manifest import FORMAT_VERSION, ArtefactRef, checked_name, digest_of, render_json, utc_now
from storage.snapshot_files import (
    POINTER,
    Snapshot,
    checked_number,
    directory_of,
    fields_of,
    file_name,
    is_name,
    numbers_in,
    parse_record,
    read_numbered,
    read_pointed,
    render_pointer,
    render_snapshot,
    snapshot_datasets,
    snapshot_files,
)

__all__ = [
    "Snapshot",
    "adopt_snapshot",
    "current_number",
    "is_name",
    "list_snapshots",
    "mark_used",
    "mend_pointer",
    "pin",
    "pinned",
    "promote",
    "publish_snapshot",
    "read_snapshot",
    "references_lock",
    "refusal_of",
    "refuse_another",
    "rollback",
    "snapshot_datasets",
    "snapshot_files",
    "unpin",
]

_PINS = "pins.json"
_REFUSED = "refused"


def references_lock(store: Store) -> contextlib.AbstractContextManager[None]:
    """The lock under which references to artefacts are written, and artefacts without any are removed.

    One for the whole store: the first snapshot of a dataset has to be safe from garbage collection too.
    """
    return store.lock("snapshots", "all")


def mark_used(store: Store, artefact: Artefact) -> bool:
    """Make an artefact as young as one that was just published, so that garbage collection leaves it to a run.

    Nothing refers to what a run reads until its snapshot is published. Only the directory's time of change is set;
    no file changes.

    Args:
        store: The store.
        artefact: What the run is about to read.

    Returns:
        Whether it is there; False if garbage collection has just removed it.

    Raises:
        StoreError: The time cannot be set.
    """
    with references_lock(store), os_errors(artefact.path):
        try:
            os.utime(artefact.path)
        except FileNotFoundError:
            return False
    return True


def publish_snapshot(
    store: Store,
    dataset: str,
    entries: Mapping[str, ArtefactRef],
    info: dict[str, Any],
    *,
    refused: Sequence[str] = (),
    base: int | None = None,
) -> Snapshot:
    """Make a set of artefacts the current snapshot of a dataset.

    Args:
        store: The store.
        dataset: The dataset.
        entries: The artefacts by slot.
        info: What else to report.
        refused: Why the snapshot is kept without becoming the current one; empty makes it current.
        base: Number of the snapshot that is to be replaced; None for whichever is the current one.

    Returns:
        The new snapshot, or the current one if it has the same entries; of refused ones, one that was kept with the
        same entries and information.

    Raises:
        ArtefactMissing: An artefact is not in the store.
        ArtefactDamaged: An artefact is not the one that its reference means.
        SnapshotOvertaken: Another snapshot than ``base``, with other entries, is the current one.
        StoreError: A name is not allowed, there are no entries, or the store cannot be written.
    """
    directory = directory_of(store, dataset)
    if not entries:
        raise StoreError(f"A snapshot of '{dataset}' needs artefacts; none were given.", remedy="Pass some.")
    for slot in entries:
        checked_name("a slot", slot)
    with references_lock(store):
        for ref in entries.values():
            store.load(ref)
        numbers = numbers_in(directory)
        current, _ = _current(directory, dataset)
        if refused:
            info = info | {_REFUSED: list(refused)}
            for kept in reversed(list_snapshots(store, dataset)):
                if kept.entries == dict(entries) and kept.info == info:
                    return kept
        elif current is not None and current.entries == dict(entries):
            if current.notes:
                _point_to(store, directory, current)
            return current
        elif base is not None and (now := read_snapshot(store, dataset).number) != base:
            raise SnapshotOvertaken(
                f"Snapshot {now} of '{dataset}' became the current one while snapshot {base} was to be replaced.",
                remedy="Run again to go on from the current one.",
            )
        snapshot = _new_snapshot(dataset, max(numbers, default=0) + 1, dict(entries), info)
        _write_numbered(store, directory, snapshot)
        if not refused:
            _point_to(store, directory, snapshot)
    return snapshot


def adopt_snapshot(store: Store, snapshot: Snapshot) -> None:
    """Write a snapshot that another store published down under its number, and make it the current one.

    Args:
        store: Holds its artefacts already.
        snapshot: The snapshot.

    Raises:
        ArtefactMissing: An artefact is not in the store.
        ArtefactDamaged: An artefact is not the one that its reference means.
        StoreError: The store has another snapshot of that number, or cannot be written.
    """
    directory = directory_of(store, snapshot.dataset)
    with references_lock(store):
        for ref in snapshot.entries.values():
            store.load(ref)
        refuse_another(store, snapshot)
        _write_numbered(store, directory, snapshot)
        _point_to(store, directory, snapshot)


def refuse_another(store: Store, snapshot: Snapshot) -> None:
    """Refuse a snapshot whose number another one has in the store.

    Raises:
        StoreError: There is one, or what has that number is damaged.
    """
    directory = directory_of(store, snapshot.dataset)
    if snapshot.number in numbers_in(directory):
        there = _read_number(store, directory, snapshot.dataset, snapshot.number)
        if there.digest != snapshot.digest:
            raise StoreError(
                f"{store.root} has a snapshot {snapshot.number} of '{snapshot.dataset}' of its own.",
                remedy="Two stores that publish the same dataset do not mix: use another store, as in --store copy.",
            )


def _write_numbered(store: Store, directory: Path, snapshot: Snapshot) -> None:
    content = render_snapshot(snapshot)
    path = directory / file_name(snapshot.number)
    with os_errors(path, n_bytes=len(content)):
        make_directory(directory)
        replace_durably(path, content, scratch=store.staging)


def refusal_of(snapshot: Snapshot) -> tuple[str, ...]:
    """Why a snapshot did not become the current one when it was made; empty where it did."""
    return tuple(snapshot.info.get(_REFUSED, ()))


def promote(store: Store, dataset: str, number: int) -> Snapshot:
    """Make a snapshot that exists the current one.

    Args:
        store: The store.
        dataset: The dataset.
        number: Which.

    Returns:
        The snapshot, now the current one.

    Raises:
        ArtefactMissing: An artefact of it is no longer in the store.
        ArtefactDamaged: An artefact is not the one that it means.
        StoreError: There is no such snapshot, it is damaged, or the store cannot be written.
    """
    directory = directory_of(store, dataset)
    with references_lock(store):
        snapshot = _complete(store, directory, dataset, number)
        _point_to(store, directory, snapshot)
    return snapshot


def rollback(store: Store, dataset: str) -> Snapshot:
    """Go back to the snapshot before the current one: the complete one with the greatest number below.

    Args:
        store: The store.
        dataset: The dataset.

    Returns:
        The snapshot, now the current one; ``notes`` says which were passed over and why.

    Raises:
        StoreError: There is no snapshot, no complete one before the current one, or the store cannot be written.
    """
    directory = directory_of(store, dataset)
    with references_lock(store):
        current = read_snapshot(store, dataset)
        passed_over: list[str] = []
        for number in reversed([n for n in numbers_in(directory) if n < current.number]):
            try:
                snapshot = _complete(store, directory, dataset, number)
            except StoreError as error:
                passed_over.append(error.problem)
                continue
            if refusal_of(snapshot):
                passed_over.append(f"Snapshot {number} of '{dataset}' was refused when it was made.")
                continue
            _point_to(store, directory, snapshot)
            return dataclasses.replace(snapshot, notes=(*current.notes, *passed_over))
    problem = f"There is no complete snapshot of '{dataset}' before the current one, {current.number}."
    raise StoreError(
        " ".join([problem, *passed_over]),
        remedy=f"See what there is with `p2rec snapshots --dataset {dataset}`, or make a new one with `p2rec run`.",
    )


def read_snapshot(store: Store, dataset: str, number: int | None = None) -> Snapshot:
    """Read a snapshot.

    Args:
        store: The store.
        dataset: The dataset.
        number: Which; None for the current one. If the pointer to the current one is damaged, the last
            complete snapshot is read and ``notes`` says so.

    Raises:
        StoreError: There is no such snapshot, or the one asked for is damaged.
    """
    directory = directory_of(store, dataset)
    if number is not None:
        return _read_number(store, directory, dataset, number)
    current, problem = _current(directory, dataset)
    if current is not None:
        return current
    if numbers_in(directory):
        raise StoreError(
            f"No snapshot of '{dataset}' is readable: {problem}.",
            remedy=f"Publish a new one with `p2rec run --dataset {dataset}`.",
        )
    raise _nothing_there(store, dataset)


def current_number(store: Store, dataset: str) -> int | None:
    """Number of the current snapshot; None where there never was one, since all that were made were refused.

    Raises:
        StoreError: There is no snapshot, or which is the current one cannot be told because of damage.
    """
    try:
        return read_snapshot(store, dataset).number
    except StoreError:
        directory = directory_of(store, dataset)
        snapshots = list_snapshots(store, dataset)
        if not snapshots or len(snapshots) < len(numbers_in(directory)) or (directory / POINTER).exists():
            raise
        if not all(map(refusal_of, snapshots)):
            raise
        return None


def mend_pointer(store: Store, dataset: str) -> Snapshot:
    """Write the pointer to the current snapshot anew where it is damaged or means one that is.

    Returns:
        The current snapshot; ``notes`` says what was wrong.

    Raises:
        StoreError: There is no readable snapshot, or the store cannot be written.
    """
    with references_lock(store):
        snapshot = read_snapshot(store, dataset)
        if snapshot.notes:
            _point_to(store, directory_of(store, dataset), snapshot)
    return snapshot


def _current(directory: Path, dataset: str) -> tuple[Snapshot | None, str]:
    """The current snapshot or, with a note, the last complete one; and what is wrong with the pointer.

    Read until the pointer stays the same, since the snapshot that it means may be forgotten when it has moved on.
    """
    while True:
        pointer = _content(directory / POINTER)
        try:
            return read_pointed(directory, dataset), ""
        except FileNotFoundError:
            problem = f"{directory / POINTER} or the snapshot that it points to is missing"
        except ValueError as error:
            problem = f"{directory / POINTER} or the snapshot that it points to is damaged ({error})"
        snapshot = _last_complete(directory, dataset)
        if _content(directory / POINTER) == pointer:  # else another became the current one meanwhile
            break
    if snapshot is None:
        return None, problem
    note = f"{problem}; using the last complete snapshot, {snapshot.number}, instead."
    return dataclasses.replace(snapshot, notes=(note,)), problem


def _content(path: Path) -> bytes | None:
    with os_errors(path):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None


def _last_complete(directory: Path, dataset: str) -> Snapshot | None:
    """The readable snapshot with the greatest number that was not refused."""
    for number in reversed(numbers_in(directory)):
        with contextlib.suppress(ValueError, FileNotFoundError):
            snapshot = read_numbered(directory, dataset, number)
            if not refusal_of(snapshot):
                return snapshot
    return None


def list_snapshots(store: Store, dataset: str) -> list[Snapshot]:
    """All readable snapshots of a dataset, oldest first; empty if there are none.

    Raises:
        StoreError: The name is not allowed, or a newer P2Rec wrote a snapshot.
    """
    directory = directory_of(store, dataset)
    snapshots = []
    for number in numbers_in(directory):
        with contextlib.suppress(ValueError, FileNotFoundError):
            snapshots.append(read_numbered(directory, dataset, number))
    return snapshots


def pinned(store: Store, dataset: str) -> frozenset[int]:
    """Numbers of the snapshots that are pinned.

    Raises:
        StoreError: The name is not allowed, or the file that says so is damaged.
    """
    path = directory_of(store, dataset) / _PINS
    try:
        return frozenset(map(checked_number, parse_record(path)["pinned"]))
    except FileNotFoundError:
        return frozenset()
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{path} is damaged: {error}.", remedy=f"Remove it and pin again with `p2rec pin N --dataset {dataset}`."
        ) from error


def pin(store: Store, dataset: str, number: int) -> frozenset[int]:
    """Keep a snapshot from being forgotten by garbage collection.

    Returns:
        All that are pinned now.

    Raises:
        StoreError: There is no such snapshot, it is damaged, or the store cannot be written.
    """
    directory = directory_of(store, dataset)
    with references_lock(store):
        _read_number(store, directory, dataset, number)
        return _write_pins(store, directory, pinned(store, dataset) | {number})


def unpin(store: Store, dataset: str, number: int) -> frozenset[int]:
    """Take the pin of a snapshot back.

    Returns:
        All that are pinned now.

    Raises:
        StoreError: It is not pinned, or the store cannot be written.
    """
    directory = directory_of(store, dataset)
    with references_lock(store):
        before = pinned(store, dataset)
        if number not in before:
            there = ", ".join(map(str, sorted(before))) or "none"
            raise StoreError(f"Snapshot {number} of '{dataset}' is not pinned.", remedy=f"Choose one that is: {there}.")
        return _write_pins(store, directory, before - {number})


def _write_pins(store: Store, directory: Path, numbers: frozenset[int]) -> frozenset[int]:
    fields = {"format_version": FORMAT_VERSION, "pinned": sorted(numbers)}
    content = render_json(fields | {"digest": digest_of(fields)})
    with os_errors(directory / _PINS, n_bytes=len(content)):
        replace_durably(directory / _PINS, content, scratch=store.staging)
    return numbers


def _new_snapshot(dataset: str, number: int, entries: dict[str, ArtefactRef], info: dict[str, Any]) -> Snapshot:
    snapshot = Snapshot(dataset, number, utc_now(), entries, info, digest="")
    return dataclasses.replace(snapshot, digest=digest_of(fields_of(snapshot)))


def _point_to(store: Store, directory: Path, snapshot: Snapshot) -> None:
    content = render_pointer(snapshot)
    with os_errors(directory / POINTER, n_bytes=len(content)):
        replace_durably(directory / POINTER, content, scratch=store.staging)


def _complete(store: Store, directory: Path, dataset: str, number: int) -> Snapshot:
    """Read a snapshot whose artefacts are all in the store; the error names the slot that is not."""
    snapshot = _read_number(store, directory, dataset, number)
    for slot, ref in snapshot.entries.items():
        try:
            store.load(ref)
        except (ArtefactMissing, ArtefactDamaged) as error:
            raise type(error)(
                f"Snapshot {number} of '{dataset}' is not complete, slot {slot}: {error.problem}",
                remedy=f"Choose another: `p2rec snapshots --dataset {dataset}` lists them.",
            ) from error
    return snapshot


def _read_number(store: Store, directory: Path, dataset: str, number: int) -> Snapshot:
    try:
        return read_numbered(directory, dataset, number)
    except FileNotFoundError as error:
        numbers = numbers_in(directory)
        if not numbers:
            raise _nothing_there(store, dataset) from error
        there = ", ".join(map(str, numbers))
        raise StoreError(
            f"There is no snapshot {number} of '{dataset}'.", remedy=f"Choose one that exists: {there}."
        ) from error
    except ValueError as error:
        raise StoreError(
            f"{directory / file_name(number)} is damaged: {error}.", remedy="Choose another snapshot."
        ) from error


def _nothing_there(store: Store, dataset: str) -> StoreError:
    names = snapshot_datasets(store)
    hint = did_you_mean(dataset.lower(), names)
    return StoreError(
        f"There is no snapshot of '{dataset}' in {store.root} ({hint}{' ' if hint else ''}it has: "
        f"{', '.join(names) or 'none'}).",
        remedy=f"Make one with `p2rec run --dataset {dataset}`.",
    )
