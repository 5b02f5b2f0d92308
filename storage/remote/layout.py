"""How a copy of a store lies in a bucket: as in a store's directory, so that copying the directory makes one too.

store.json                                format of the store
artefacts/<stage>/<key>/<file>            manifest.json last: without it, there is no artefact
artefacts/<stage>/<key>~<hash>/<file>     a variant, as in a store: other content under the same key
snapshots/<dataset>/000001.json           after the artefacts that it refers to
snapshots/<dataset>/current.json          the only object that ever changes
"""

from collections.abc import Callable
from dataclasses import dataclass

from p2rec_core.errors import ArtefactDamaged, StoreError
from storage.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    ArtefactRef,
    Manifest,
    check_version,
    checked_name,
    parse_canonical,
    render_json,
)
from storage.remote.bucket import Bucket
from storage.snapshot_files import POINTER, Snapshot, check_pointed, file_name, parse_numbered, pointed_number

MARKER = "store.json"

Told = Callable[[int, int, str], None]
"""Told after every artefact: how many are done, of how many, and which."""


def each_artefact(
    snapshot: Snapshot, move: Callable[[ArtefactRef], int | None], told: Told | None
) -> tuple[int, int, int]:
    """Move every artefact of a snapshot once, however many slots have it.

    Args:
        snapshot: The snapshot.
        move: Moves one; gives its bytes, or None where it was there.
        told: Told of the progress.

    Returns:
        How many were moved, how many were there, and the bytes that were moved.
    """
    artefacts = {(ref.stage, ref.variant): ref for ref in snapshot.entries.values()}
    moved: list[int] = []
    for done, ref in enumerate(artefacts.values(), 1):
        n_bytes = move(ref)
        if n_bytes is not None:
            moved.append(n_bytes)
        if told is not None:
            told(done, len(artefacts), f"{ref.stage}/{ref.key[:12]}")
    return len(moved), len(artefacts) - len(moved), sum(moved)


def artefact_prefixes(ref: ArtefactRef) -> tuple[str, str]:
    """Where an artefact's files are: at its key's place, or at a variant's where other content has that."""
    stage, key = checked_name("a stage", ref.stage), checked_name("a key", ref.key)
    return f"artefacts/{stage}/{key}", f"artefacts/{stage}/{ref.variant}"


def snapshot_prefix(dataset: str) -> str:
    """Where a dataset's snapshots are."""
    return f"snapshots/{checked_name('a dataset', dataset)}"


def pointer_name(dataset: str) -> str:
    """Name of the pointer to the current snapshot."""
    return f"{snapshot_prefix(dataset)}/{POINTER}"


def snapshot_name(dataset: str, number: int) -> str:
    """Name of a snapshot."""
    return f"{snapshot_prefix(dataset)}/{file_name(number)}"


def check_marker(bucket: Bucket, *, create: bool) -> None:
    """Refuse a bucket that holds something else, or a store of a newer P2Rec.

    Args:
        bucket: The bucket.
        create: Whether one without a marker gets it; it must be empty then.

    Raises:
        StoreError: It is none of ours.
    """
    data = bucket.read(MARKER)
    if data is None and create:
        if there := bucket.list(""):
            raise StoreError(
                f"{bucket.address} holds other objects, such as {there[0].name}, and no copy of a store.",
                remedy="Choose a prefix of its own, such as s3://bucket/p2rec.",
            )
        bucket.create(MARKER, render_json({"format_version": FORMAT_VERSION}))
        data = bucket.read(MARKER)
    if data is None:
        raise StoreError(f"There is no copy of a store in {bucket.address}.", remedy="Make one with `p2rec push`.")
    try:
        check_version(parse_canonical(data)["format_version"], bucket.address)
    except (KeyError, ValueError) as error:
        raise StoreError(
            f"{MARKER} in {bucket.address} is not the marker of a store: {error}.", remedy="Choose another prefix."
        ) from error


@dataclass(frozen=True)
class Place:
    """Where an artefact is in a bucket, or belongs.

    Attributes:
        prefix: Of its files.
        manifest: Its manifest; None if it is not there.
        damage: Why that could not be read; None if it could, or nothing is there.
    """

    prefix: str
    manifest: Manifest | None
    damage: ArtefactDamaged | None = None


def find_place(bucket: Bucket, ref: ArtefactRef) -> Place:
    """Look an artefact up in a bucket by its content.

    Raises:
        StoreError: A manifest in its place is that of another artefact.
    """
    at_key, beside = artefact_prefixes(ref)
    own = _place(bucket, at_key, ref)
    if _is_meant(own, ref):
        return own
    variant = _place(bucket, beside, ref)
    if _is_meant(variant, ref) or own.manifest is not None:
        return variant
    return own


def _is_meant(place: Place, ref: ArtefactRef) -> bool:
    return place.manifest is not None and place.manifest.ref() == ref


def _place(bucket: Bucket, prefix: str, ref: ArtefactRef) -> Place:
    name = f"{prefix}/{MANIFEST}"
    data = bucket.read(name)
    if data is None:
        return Place(prefix, None)
    try:
        manifest = Manifest.parse(data, place=f"{bucket.address}/{name}")
    except ArtefactDamaged as damage:
        return Place(prefix, None, damage)
    found = manifest.ref()
    if (found.stage, found.key) != (ref.stage, ref.key) or prefix not in artefact_prefixes(found):
        raise StoreError(
            f"{bucket.address} holds {found.stage}/{found.variant} in {prefix}, which is another's place.",
            remedy="Something else wrote there: choose another prefix for this store.",
        )
    return Place(prefix, manifest)


def read_current(bucket: Bucket, dataset: str) -> Snapshot:
    """The snapshot that a bucket's pointer means, checked as one of a store is.

    Raises:
        StoreError: There is none, or it is not whole.
    """
    name = pointer_name(dataset)
    pointer = bucket.read(name)
    if pointer is None:
        there = sorted({o.name.split("/")[1] for o in bucket.list("snapshots") if o.name.endswith(f"/{POINTER}")})
        raise StoreError(
            f"There is no current snapshot of '{dataset}' in {bucket.address} (it has: {', '.join(there) or 'none'}).",
            remedy=f"Push one with `p2rec push {bucket.address} --dataset {dataset}`.",
        )
    try:
        snapshot = read_numbered(bucket, dataset, pointed_number(pointer))
        check_pointed(pointer, snapshot)
    except ValueError as error:
        raise StoreError(
            f"{name} in {bucket.address}, or the snapshot that it points to, is damaged: {error}.",
            remedy="Push again from the store that it is a copy of.",
        ) from error
    return snapshot


def read_numbered(bucket: Bucket, dataset: str, number: int) -> Snapshot:
    """A snapshot in a bucket; ValueError if it is damaged or not there."""
    name = snapshot_name(dataset, number)
    data = bucket.read(name)
    if data is None:
        raise ValueError(f"{name} is not there")
    return parse_numbered(data, f"{bucket.address}/{name}", dataset, number)
