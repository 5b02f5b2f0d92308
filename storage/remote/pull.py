"""Copying the current snapshot of a bucket into a store.

Every file is compared with the sha256 of its manifest before it is moved into the store; the snapshot is written down
when all are there. So readers of the store see the snapshot of before or the new one, and a pull that was broken off
is finished by the next.
"""

import contextlib
from dataclasses import dataclass

from p2rec_core.errors import ArtefactDamaged, ArtefactMissing, StoreError
from storage.artefacts import Artefact, Store
from storage.disk import os_errors
from storage.manifest import ArtefactRef
from storage.publish import move_in, seal
from storage.remote.bucket import Bucket
from storage.remote.layout import Told, artefact_prefix, check_marker, each_artefact, read_current, read_manifest
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
        if _there(store, ref):
            return None
        found = read_manifest(bucket, ref)
        if found is None:
            raise ArtefactMissing(
                f"{bucket.address} lacks {ref.stage}/{ref.key}, which its snapshot refers to.",
                remedy="Pull again; if it stays so, push again from the store that it is a copy of.",
            )
        data, manifest = found
        final = store.place(ref.stage, ref.key)
        with store.stage_artefact(ref.stage, ref.key) as staging:
            _download(bucket, artefact_prefix(ref.stage, ref.key), Artefact(ref.stage, ref.key, staging, manifest))
            seal(staging, data)
            move_in(staging, final)
        return sum(entry.bytes for entry in manifest.files.values()) + len(data)


def _download(bucket: Bucket, prefix: str, artefact: Artefact) -> None:
    for entry in artefact.files.values():
        path = artefact.path / entry.path
        with os_errors(path, n_bytes=entry.bytes):
            bucket.download(f"{prefix}/{entry.path}", path, n_bytes=entry.bytes, sha256=entry.sha256)


def _there(store: Store, ref: ArtefactRef) -> bool:
    """Whether the store holds the artefact; a damaged one is set aside, one with other content is refused."""
    try:
        found = store.find(ref.stage, ref.key)
        if found is not None and found.ref() == ref:
            for name in found.files:
                found.whole_file(name)
            return mark_used(store, found)
    except (ArtefactDamaged, ArtefactMissing) as error:
        with contextlib.suppress(ArtefactMissing):
            store.discard(ref.stage, ref.key, error.problem)
        return False
    if found is not None:
        raise StoreError(
            f"{store.root} holds {ref.stage}/{ref.key} with other content than the bucket.",
            remedy="Two stores that computed the same differently do not mix: pull into another, as in --store copy.",
        )
    return False
