"""The files of snapshots: what they hold, and reading one without looking at any other.

    <root>/snapshots/<dataset>/000001.json   a snapshot; never changes
    <root>/snapshots/<dataset>/current.json  number and digest of the current one
    <root>/snapshots/<dataset>/pins.json     numbers that are never forgotten

What is done with them is in ``storage.snapshots``.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2rec_core.errors import StoreError
from storage.artefacts import Store
from storage.disk import os_errors
from storage.manifest import FORMAT_VERSION, ArtefactRef, checked_name, parse_canonical, parse_digested, render_json

POINTER = "current.json"
"""Name of the pointer to the current snapshot."""

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


def is_name(text: str) -> bool:
    """Whether a store may have given a directory this name."""
    try:
        checked_name("a name", text)
    except StoreError:
        return False
    return True


def directory_of(store: Store, dataset: str) -> Path:
    """Where a dataset's snapshots are; StoreError if the name is not allowed."""
    return store.root / "snapshots" / checked_name("a dataset", dataset)


def file_name(number: int) -> str:
    """Name of a snapshot's file."""
    return f"{number:06d}.json"


def number_of(name: str) -> int | None:
    """The number of the snapshot that has a file of this name; None if it is no name of one."""
    match = _NUMBERED.fullmatch(name)
    return None if match is None else int(match[1])


def numbers_in(directory: Path) -> list[int]:
    """Numbers of the snapshots in a directory, rising, whether or not they are readable."""
    with os_errors(directory):
        names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return sorted(number for name in names if (number := number_of(name)) is not None)


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
    directory = directory_of(store, dataset)
    return {number: directory / file_name(number) for number in numbers_in(directory)}


def fields_of(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot as JSON values, without its digest."""
    return {
        "format_version": FORMAT_VERSION,
        "dataset": snapshot.dataset,
        "number": snapshot.number,
        "created_utc": snapshot.created_utc,
        "entries": {slot: ref.to_json() for slot, ref in sorted(snapshot.entries.items())},
        "info": snapshot.info,
    }


def parse_record(path: Path) -> dict[str, Any]:
    """Read a snapshot or the pins; ValueError if it is damaged, FileNotFoundError if it is not there."""
    return parse_digested(_content(path), str(path))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError:
        with os_errors(path):
            raise


def parse_numbered(data: bytes, place: str, dataset: str, number: int) -> Snapshot:
    """A numbered snapshot from its file's content; ValueError if it is damaged."""
    fields = parse_digested(data, place)
    if fields["number"] != number or fields["dataset"] != dataset:
        raise ValueError(f"it is snapshot {fields['number']} of {fields['dataset']}")
    entries = {slot: ArtefactRef.from_json(ref) for slot, ref in fields["entries"].items()}
    return Snapshot(dataset, number, fields["created_utc"], entries, fields["info"], fields["digest"])


def read_numbered(directory: Path, dataset: str, number: int) -> Snapshot:
    """Read a numbered snapshot; raises as ``parse_record`` does."""
    path = directory / file_name(number)
    return parse_numbered(_content(path), str(path), dataset, number)


def pointed_number(pointer: bytes) -> int:
    """The number that a pointer's content means; ValueError if it is damaged."""
    return checked_number(parse_canonical(pointer).get("number"))


def check_pointed(pointer: bytes, snapshot: Snapshot) -> None:
    """See that a pointer's content means this snapshot and no other of its number; ValueError if it does not."""
    fields = parse_canonical(pointer)
    if snapshot.digest != fields.get("digest"):
        raise ValueError(f"it expects digest {fields.get('digest')!r:.80}, found {snapshot.digest}")
    # the digest is the snapshot's, and a pointer to one of this version is of this version
    if fields.keys() != {"format_version", "number", "digest"} or fields["format_version"] != FORMAT_VERSION:
        raise ValueError(f"its format version is {fields.get('format_version')!r:.40}")


def read_pointed(directory: Path, dataset: str) -> Snapshot:
    """Read the snapshot that the pointer means; raises as ``parse_record`` does."""
    pointer = _content(directory / POINTER)
    snapshot = read_numbered(directory, dataset, pointed_number(pointer))
    check_pointed(pointer, snapshot)
    return snapshot


def render_snapshot(snapshot: Snapshot) -> bytes:
    """The content of a snapshot's file."""
    return render_json(fields_of(snapshot) | {"digest": snapshot.digest})


def render_pointer(snapshot: Snapshot) -> bytes:
    """The content of a pointer to a snapshot."""
    return render_json({"format_version": FORMAT_VERSION, "number": snapshot.number, "digest": snapshot.digest})


def checked_number(number: object) -> int:
    """The number of a snapshot as a file gives it; ValueError if it is none."""
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError(f"it points to {number!r:.40}")
    return number
