"""Copying the current snapshot of a bucket into a store.

Every file is compared with the sha256 of its manifest before it is moved into the store; the snapshot is written down
when all are there. So readers of the store see the snapshot of before or the new one, and a pull that was broken off
is finished by the next.
"""

from dataclasses import dataclass
from pathlib import Path

from p2rec_core.errors import ArtefactMissing
from storage.artefacts import Artefact, Store
from storage.disk import os_errors
from storage.manifest import ArtefactRef
from storage.publish import move_in, seal
from storage.remote.bucket import Bucket
from storage.remote.layout import Told, check_marker, each_artefact, find_place, read_current
from storage.snapshots import Snapshot, adopt_snapshot, mark_used, refuse_another


@dataclass(frozen=True)
class Pulled:
    """What a pull did.

    Attributes:
        snapshot: What is the store's current snapshot now.
        n_fetched: Artefacts that were fetched.
        n_there: Artefacts that were there.
        n_bytes: Bytes that were fetched.
    """

    snapshot: Snapshot
    n_fetched: int
    n_there: int
    n_bytes: int


def pull(store: Store, bucket: Bucket, dataset: str, *, told: Told | None = None) -> Pulled:
    """Make the current snapshot of a bucket the current one of a store.

    Args:
        store: The store.
        bucket: The bucket.
        dataset: The dataset.
        told: Told of the progress.

    Raises:
        ArtefactMissing: The bucket lacks an artefact of it.
        ArtefactDamaged: An object is damaged; nothing of it is in the store.
        StoreError: The bucket or the store cannot be used, or the store has a history of its own.
    """
    check_marker(bucket, create=False)
    snapshot = read_current(bucket, dataset)
    refuse_another(store, snapshot)
    fetched = each_artefact(snapshot, lambda ref: _fetch(store, bucket, ref), told)
    adopt_snapshot(store, snapshot)
    return Pulled(snapshot, *fetched)


def _fetch(store: Store, bucket: Bucket, ref: ArtefactRef) -> int | None:
    """Bring an artefact into the store; bytes fetched, None if it was there."""
    with store.lock(ref.stage, ref.key):
        final = _free_place(store, ref)
        if final is None:
            return None
        place = find_place(bucket, ref)
        if place.damage is not None:
            raise place.damage
        if place.manifest is None:
            raise ArtefactMissing(
                f"{bucket.address} lacks {ref.stage}/{ref.key}, which its snapshot refers to.",
                remedy="Pull again; if it stays so, push again from the store that it is a copy of.",
            )
        manifest = place.manifest.render()
        with store.stage_artefact(ref.stage, ref.key) as staging:
            _download(bucket, place.prefix, Artefact(ref.stage, ref.key, staging, place.manifest))
            seal(staging, manifest)
            move_in(staging, final)
        return sum(entry.bytes for entry in place.manifest.files.values()) + len(manifest)


def _download(bucket: Bucket, prefix: str, artefact: Artefact) -> None:
    for entry in artefact.files.values():
        path = artefact.path / entry.path
        with os_errors(path, n_bytes=entry.bytes):
            bucket.download(f"{prefix}/{entry.path}", path, n_bytes=entry.bytes, sha256=entry.sha256)


def _free_place(store: Store, ref: ArtefactRef) -> Path | None:
    """Where an artefact is to go, a variant's place if its key has other content; None if it is there, whole.

    What is damaged is set aside.
    """
    free: list[Path] = []
    for path in (store.place(ref.stage, ref.key), store.variant_place(ref)):
        found = store.whole_or_aside(path)
        if found is None:
            free.append(path)
        elif found.ref() == ref:
            if mark_used(store, found):
                return None
            free.append(path)  # removed meanwhile, by a garbage collection
    return free[0]
