"""Copying the current snapshot of a store into a bucket, and forgetting old ones there.

Artefacts go first, then the snapshot, then the pointer: who reads the bucket sees the snapshot of before or the new
one, whole. Artefacts never change, so one that is there is not sent again, and a push that was broken off is finished
by the next.
"""

import datetime
from dataclasses import dataclass

from p2rec_core.errors import StoreError
from storage.artefacts import Artefact, Store
from storage.manifest import MANIFEST, Manifest
from storage.remote.bucket import Bucket
from storage.remote.layout import (
    Told,
    artefact_prefixes,
    check_marker,
    each_artefact,
    find_place,
    pointer_name,
    read_current,
    read_numbered,
    snapshot_name,
)
from storage.snapshot_files import Snapshot, number_of, pointed_number, render_pointer, render_snapshot
from storage.snapshots import read_snapshot

GRACE = datetime.timedelta(days=1)
"""Artefacts in a bucket that are younger are not removed: a push may be about to refer to them."""


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Attributes:
        snapshot: What is the bucket's current snapshot now.
        n_sent: Artefacts that were sent.
        n_there: Artefacts that were there.
        n_bytes: Bytes that were sent.
        before: Number of the bucket's current snapshot before; None if there was none, or a damaged pointer.
    """

    snapshot: Snapshot
    n_sent: int
    n_there: int
    n_bytes: int
    before: int | None

    def summary(self, address: str) -> str:
        """What became of it, for people."""
        before = "" if self.before in (None, self.snapshot.number) else f"; before it was {self.before}"
        return (
            f"Snapshot {self.snapshot.number} of {self.snapshot.dataset} is the current one of {address}{before}. "
            f"{self.n_sent} artefacts sent ({self.n_bytes / 2**20:.1f} MiB), {self.n_there} were there."
        )


def push(store: Store, bucket: Bucket, dataset: str, *, check: bool = False, told: Told | None = None) -> Pushed:
    """Make the current snapshot of a store the current one of a bucket.

    Args:
        store: The store.
        bucket: The bucket.
        dataset: The dataset.
        check: Whether every byte of what is there already is read back, and sent again if it is damaged.
        told: Told of the progress.

    Raises:
        ArtefactMissing: A file of the snapshot is not in the store.
        ArtefactDamaged: A file of the snapshot in the store is damaged.
        StoreError: The bucket cannot be used, holds a snapshot of another store, or somebody else pushed meanwhile.
    """
    snapshot = read_snapshot(store, dataset)
    check_marker(bucket, create=True)
    pointer = bucket.read_marked(pointer_name(dataset))
    sent = each_artefact(snapshot, lambda ref: _send(bucket, store.load(ref), check=check), told)
    _send_snapshot(bucket, snapshot)
    content, name = render_pointer(snapshot), pointer_name(dataset)
    if pointer is None:
        done_so = bucket.create(name, content)
    else:
        done_so = pointer[0] == content or bucket.swap(name, content, pointer[1])
    if not done_so:
        raise StoreError(
            f"Somebody else changed the current snapshot of '{dataset}' in {bucket.address} meanwhile.",
            remedy="Look which one it is, and push again if this one is to be the current one.",
        )
    return Pushed(snapshot, *sent, None if pointer is None else _number(pointer[0]))


def _number(pointer: bytes) -> int | None:
    """The number that a pointer's content means; None where it is damaged, which a push mends."""
    try:
        return pointed_number(pointer)
    except ValueError:
        return None


def _send(bucket: Bucket, artefact: Artefact, *, check: bool) -> int | None:
    """Write an artefact that is not there, the manifest last; bytes sent, None if it was there."""
    place = find_place(bucket, artefact.ref())  # a damaged manifest is replaced
    if place.manifest is not None and (not check or _whole(bucket, place.prefix, place.manifest)):
        return None
    for name, entry in artefact.files.items():
        bucket.write(f"{place.prefix}/{entry.path}", artefact.whole_file(name))
    manifest = artefact.manifest.render()
    bucket.write(f"{place.prefix}/{MANIFEST}", manifest)
    return sum(entry.bytes for entry in artefact.files.values()) + len(manifest)


def _whole(bucket: Bucket, prefix: str, manifest: Manifest) -> bool:
    return all(bucket.sha256(f"{prefix}/{entry.path}") == entry.sha256 for entry in manifest.files.values())


def _send_snapshot(bucket: Bucket, snapshot: Snapshot) -> None:
    name, content = snapshot_name(snapshot.dataset, snapshot.number), render_snapshot(snapshot)
    if bucket.create(name, content):
        return
    try:
        other = read_numbered(bucket, snapshot.dataset, snapshot.number)
    except ValueError:
        bucket.write(name, content)  # it was damaged
        return
    if other.digest != snapshot.digest:
        raise StoreError(
            f"{bucket.address} holds a snapshot {snapshot.number} of '{snapshot.dataset}' of another store.",
            remedy="Two stores that publish the same dataset do not mix: choose another prefix for this one.",
        )


def forget(bucket: Bucket, dataset: str, *, keep: int, grace: datetime.timedelta = GRACE) -> tuple[list[int], int]:
    """Remove a dataset's old snapshots from a bucket, and the artefacts that no snapshot there refers to any more.

    Snapshots go before what they refer to, a manifest before its files: nothing that is referred to is ever missing.

    Args:
        bucket: The bucket.
        dataset: The dataset.
        keep: How many of the newest snapshots stay, from 1; the current one stays in any case.
        grace: Artefacts that are younger stay.

    Returns:
        Numbers of the snapshots that are gone, and how many artefacts are.

    Raises:
        StoreError: The bucket cannot be used, or a snapshot there is damaged: then nothing is removed.
    """
    if keep < 1:
        raise StoreError(f"{keep} snapshots cannot be kept.", remedy="Keep 1 or more.")
    current = read_current(bucket, dataset)
    snapshots = _snapshots(bucket)
    numbers = sorted(number for name, number in snapshots if name == dataset)
    gone = [number for number in numbers[:-keep] if number != current.number]
    bucket.remove([snapshot_name(dataset, number) for number in gone])
    kept = [snapshot for (name, number), snapshot in snapshots.items() if name != dataset or number not in gone]
    refs = [ref for snapshot in kept for ref in snapshot.entries.values()]
    needed = {prefix for ref in refs for prefix in artefact_prefixes(ref)}
    young = datetime.datetime.now(datetime.UTC) - grace
    removed = 0
    for prefix, objects in _artefacts(bucket).items():
        if prefix not in needed and all(changed < young for changed in objects.values()):
            bucket.remove(sorted(objects, key=lambda name: (not name.endswith(f"/{MANIFEST}"), name)))
            removed += 1
    return gone, removed


def _snapshots(bucket: Bucket) -> dict[tuple[str, int], Snapshot]:
    """All snapshots of a bucket by dataset and number."""
    found = {}
    for entry in bucket.list("snapshots"):
        dataset, _, file = entry.name.removeprefix("snapshots/").partition("/")
        number = number_of(file)
        if number is None:  # the pointer, the pins of a store that was copied, or nothing of P2Rec
            continue
        try:
            found[dataset, number] = read_numbered(bucket, dataset, number)
        except ValueError as error:
            raise StoreError(
                f"{entry.name} in {bucket.address} is damaged: {error}.",
                remedy="Remove it, or push again the snapshot that it should be; until then nothing is forgotten.",
            ) from error
    return found


def _artefacts(bucket: Bucket) -> dict[str, dict[str, datetime.datetime]]:
    """Objects of every artefact, whole or not, and when each was written."""
    found: dict[str, dict[str, datetime.datetime]] = {}
    for entry in bucket.list("artefacts"):
        found.setdefault(entry.name.rpartition("/")[0], {})[entry.name] = entry.changed
    return found
