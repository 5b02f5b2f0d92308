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
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2rec_core.errors import ArtefactDamaged, ArtefactMissing, StoreError
from storage.artefacts import Store
from storage.disk import make_directory, os_errors, replace_durably
from storage.manifest import (
    FORMAT_VERSION,
    ArtefactRef,
    check_version,
    checked_name,
    digest_of,
    parse_canonical,
    render_json,
    utc_now,
)

_POINTER = "current.json"
_PINS = "pins.json"
_NUMBERED = re.compile(r"([0-9]{6,})\.json")


@dataclass(frozen=True)
class Snapshot:
    """A named set of artefacts.

    Attributes:
        dataset: The dataset.
        number: From 1, rising.
        created_utc: When it was published; for people only.
        entries: The artefacts by slot, such as ``ingest`` or ``recommender.sasrec.p2rec``.
        info: What else was reported, such as the quality gate.
        digest: sha256 over all of the above.
        notes: What a reader should be told, for example that a damaged pointer was passed over.
    """

    dataset: str
    number: int
    created_utc: str
    entries: dict[str, ArtefactRef]
    info: dict[str, Any]
    digest: str
    notes: tuple[str, ...] = ()


def references_lock(store: Store) -> contextlib.AbstractContextManager[None]:
    """The lock under which references to artefacts are written, and artefacts without any are removed.

    One for the whole store: the first snapshot of a dataset has to be safe from garbage collection too.
    """
    return store.lock("snapshots", "all")


def publish_snapshot(store: Store, dataset: str, entries: Mapping[str, ArtefactRef], info: dict[str, Any]) -> Snapshot:
    """Make a set of artefacts the current snapshot of a dataset.

    Args:
        store: The store.
        dataset: The dataset.
        entries: The artefacts by slot.
        info: What else to report.

    Returns:
        The new snapshot, or the current one if it has the same entries.

    Raises:
        ArtefactMissing: An artefact is not in the store.
        ArtefactDamaged: An artefact is not the one that its reference means.
        StoreError: A name is not allowed, there are no entries, or the store cannot be written.
    """
    directory = _directory(store, dataset)
    if not entries:
        raise StoreError(f"A snapshot of '{dataset}' needs artefacts; none were given.", remedy="Pass some.")
    for slot in entries:
        checked_name("a slot", slot)
    with references_lock(store):
        for ref in entries.values():
            store.load(ref)
        numbers = _numbers(directory)
        current = read_snapshot(store, dataset) if _has_complete(directory, dataset, numbers) else None
        if current is not None and current.entries == dict(entries):
            if current.notes:
                _point_to(store, directory, current)
            return current
        snapshot = _new_snapshot(dataset, max(numbers, default=0) + 1, dict(entries), info)
        content = render_json(_fields(snapshot) | {"digest": snapshot.digest})
        path = directory / _file_name(snapshot.number)
        with os_errors(path, n_bytes=len(content)):
            make_directory(directory)
            replace_durably(path, content, scratch=store.staging)
        _point_to(store, directory, snapshot)
    return snapshot


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
    directory = _directory(store, dataset)
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
    directory = _directory(store, dataset)
    with references_lock(store):
        current = read_snapshot(store, dataset)
        passed_over: list[str] = []
        for number in reversed([n for n in _numbers(directory) if n < current.number]):
            try:
                snapshot = _complete(store, directory, dataset, number)
            except StoreError as error:
                passed_over.append(error.problem)
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
    directory = _directory(store, dataset)
    if number is not None:
        return _read_number(store, directory, dataset, number)
    numbers = _numbers(directory)
    try:
        return _read_pointed(directory, dataset)
    except FileNotFoundError:
        problem = f"{directory / _POINTER} or the snapshot that it points to is missing"
    except ValueError as error:
        problem = f"{directory / _POINTER} or the snapshot that it points to is damaged ({error})"
    for candidate in reversed(numbers):
        with contextlib.suppress(ValueError, FileNotFoundError):
            snapshot = _read(directory, dataset, candidate)
            note = f"{problem}; using the last complete snapshot, {candidate}, instead."
            return dataclasses.replace(snapshot, notes=(note,))
    if numbers:
        raise StoreError(
            f"No snapshot of '{dataset}' is readable: {problem}.",
            remedy=f"Publish a new one with `p2rec run --dataset {dataset}`.",
        )
    raise _nothing_there(store, dataset)


def list_snapshots(store: Store, dataset: str) -> list[Snapshot]:
    """All readable snapshots of a dataset, oldest first; empty if there are none.

    Raises:
        StoreError: The name is not allowed, or a newer P2Rec wrote a snapshot.
    """
    directory = _directory(store, dataset)
    snapshots = []
    for number in _numbers(directory):
        with contextlib.suppress(ValueError, FileNotFoundError):
            snapshots.append(_read(directory, dataset, number))
    return snapshots


def snapshot_datasets(store: Store) -> list[str]:
    """Names of the datasets that have snapshots; a directory that a store cannot have made is left out."""
    snapshots = store.root / "snapshots"
    with os_errors(snapshots):
        paths = sorted(snapshots.iterdir()) if snapshots.is_dir() else []
        return [path.name for path in paths if path.is_dir() and is_name(path.name)]


def snapshot_files(store: Store, dataset: str) -> dict[int, Path]:
    """The files of a dataset's snapshots by number, in order, whether or not they are readable.

    Raises:
        StoreError: The name is not allowed.
    """
    directory = _directory(store, dataset)
    return {number: directory / _file_name(number) for number in _numbers(directory)}


def pinned(store: Store, dataset: str) -> frozenset[int]:
    """Numbers of the snapshots that are pinned.

    Raises:
        StoreError: The name is not allowed, or the file that says so is damaged.
    """
    path = _directory(store, dataset) / _PINS
    try:
        fields = _parse(path)
        if fields.get("digest") != digest_of(fields):
            raise ValueError("its digest is another")
        return frozenset(map(_checked_number, fields["pinned"]))
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
    directory = _directory(store, dataset)
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
    directory = _directory(store, dataset)
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


def is_name(text: str) -> bool:
    """Whether a store may have given a directory this name."""
    try:
        checked_name("a name", text)
    except StoreError:
        return False
    return True


def _directory(store: Store, dataset: str) -> Path:
    return store.root / "snapshots" / checked_name("a dataset", dataset)


def _file_name(number: int) -> str:
    return f"{number:06d}.json"


def _numbers(directory: Path) -> list[int]:
    with os_errors(directory):
        names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := _NUMBERED.fullmatch(name)))


def _fields(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "dataset": snapshot.dataset,
        "number": snapshot.number,
        "created_utc": snapshot.created_utc,
        "entries": {slot: ref.to_json() for slot, ref in sorted(snapshot.entries.items())},
        "info": snapshot.info,
    }


def _new_snapshot(dataset: str, number: int, entries: dict[str, ArtefactRef], info: dict[str, Any]) -> Snapshot:
    snapshot = Snapshot(dataset, number, utc_now(), entries, info, digest="")
    return dataclasses.replace(snapshot, digest=digest_of(_fields(snapshot)))


def _point_to(store: Store, directory: Path, snapshot: Snapshot) -> None:
    fields = {"format_version": FORMAT_VERSION, "number": snapshot.number, "digest": snapshot.digest}
    content = render_json(fields)
    with os_errors(directory / _POINTER, n_bytes=len(content)):
        replace_durably(directory / _POINTER, content, scratch=store.staging)


def _parse(path: Path) -> dict[str, Any]:
    """Read a pointer or a snapshot; ValueError if it is damaged, FileNotFoundError if it is not there."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError:
        with os_errors(path):
            raise
    fields = parse_canonical(data)
    check_version(fields.get("format_version"), str(path))
    return fields


def _read(directory: Path, dataset: str, number: int) -> Snapshot:
    """Read a numbered snapshot; raises as ``_parse`` does."""
    fields = _parse(directory / _file_name(number))
    found, expected = fields.get("digest"), digest_of(fields)
    if found != expected:
        raise ValueError(f"its digest should be {expected}, found {found!r:.80}")
    if fields["number"] != number or fields["dataset"] != dataset:
        raise ValueError(f"it is snapshot {fields['number']} of {fields['dataset']}")
    entries = {slot: ArtefactRef.from_json(ref) for slot, ref in fields["entries"].items()}
    return Snapshot(dataset, number, fields["created_utc"], entries, fields["info"], expected)


def _read_pointed(directory: Path, dataset: str) -> Snapshot:
    pointer = _parse(directory / _POINTER)
    number = _checked_number(pointer.get("number"))
    snapshot = _read(directory, dataset, number)
    if snapshot.digest != pointer.get("digest"):
        raise ValueError(f"it expects digest {pointer.get('digest')!r:.80}, found {snapshot.digest}")
    return snapshot


def _checked_number(number: object) -> int:
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError(f"it points to {number!r:.40}")
    return number


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
        return _read(directory, dataset, number)
    except FileNotFoundError as error:
        numbers = _numbers(directory)
        if not numbers:
            raise _nothing_there(store, dataset) from error
        there = ", ".join(map(str, numbers))
        raise StoreError(
            f"There is no snapshot {number} of '{dataset}'.", remedy=f"Choose one that exists: {there}."
        ) from error
    except ValueError as error:
        raise StoreError(
            f"{directory / _file_name(number)} is damaged: {error}.", remedy="Choose another snapshot."
        ) from error


def _has_complete(directory: Path, dataset: str, numbers: list[int]) -> bool:
    for number in reversed(numbers):
        with contextlib.suppress(ValueError, FileNotFoundError):
            _read(directory, dataset, number)
            return True
    return False


def _nothing_there(store: Store, dataset: str) -> StoreError:
    there = ", ".join(snapshot_datasets(store)) or "none"
    return StoreError(
        f"There is no snapshot of '{dataset}' in {store.root} (it has: {there}).",
        remedy=f"Make one with `p2rec run --dataset {dataset}`.",
    )
