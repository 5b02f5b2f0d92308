"""The artefact store: immutable results, named by what they were computed from.

    <root>/store.json                       format of the store
    <root>/artefacts/<stage>/<key>/         manifest.json and the files that it lists
    <root>/artefacts/<stage>/<key>~<hash>/  a variant: other content of that key, for those who refer to it
    <root>/snapshots/<dataset>/             named sets of artefacts, see storage.snapshots
    <root>/staging/                         what is being written
    <root>/work/<stage>/<key>/              checkpoints of what is being computed
    <root>/locks/                           one file per key, locked by the kernel
    <root>/quarantine/                      damaged artefacts, kept for their owner to look at

An artefact without a manifest does not exist; one with a manifest never changes. Under its key a run finds the content
that was computed last; what a forced recomputation replaced is moved beside it, by the hash of its content.
"""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock

from p2rec_core.errors import ArtefactDamaged, ArtefactMissing, StoreError
from storage.disk import make_directory, os_errors, replace_durably, sync_directory, write_durably
from storage.manifest import (
    BETWEEN,
    FORMAT_VERSION,
    MANIFEST,
    REBUILD,
    ArtefactRef,
    FileEntry,
    InputRef,
    Manifest,
    canonical_json,
    check_version,
    checked_name,
    content_key,
    key_of_directory,
    parse_canonical,
    render_json,
)
from storage.publish import ArtefactWriter, staged
from storage.reading import Artefact, read_manifest, verify

DEFAULT_STORE = Path(".p2rec")
"""Where the store is if nobody says otherwise."""

__all__ = [
    "DEFAULT_STORE",
    "Artefact",
    "ArtefactRef",
    "ArtefactWriter",
    "FileEntry",
    "InputRef",
    "Manifest",
    "Store",
    "canonical_json",
    "content_key",
    "is_store",
    "lock_owner",
]

_MARKER = "store.json"
_LOCK = ".lock"
_POLL_S = 0.1


class Store:
    """A directory of artefacts.

    Args:
        root: Directory of a store that exists; ``Store.open`` checks and creates one.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.staging = self.root / "staging"

    @classmethod
    def open(cls, root: Path, *, create: bool = True) -> "Store":
        """Open a store.

        Args:
            root: Its directory.
            create: Whether to create it if need be and to require that it can be written; without, a
                store on a read-only disk can be read.

        Raises:
            StoreError: There is no store there, it cannot be written, or a newer P2Rec made it.
        """
        store = cls(root.expanduser().resolve())
        marker = store.root / _MARKER
        with os_errors(store.root):
            exists = marker.exists()
        if not exists and not create:
            raise StoreError(
                f"There is no store in {store.root}.", remedy="Check the path, or make one with `p2rec run`."
            )
        if exists:
            store._check_marker(marker)
        if create:
            store._make_layout(marker, exists)
        return store

    def _check_marker(self, marker: Path) -> None:
        with os_errors(marker):
            data = marker.read_bytes()
        try:
            check_version(parse_canonical(data)["format_version"], str(self.root))
        except (KeyError, ValueError) as error:
            raise StoreError(
                f"{marker} is not the marker of a P2Rec store: {error}.",
                remedy="Choose another store directory, or restore that file if this one is a store.",
            ) from error

    def _make_layout(self, marker: Path, exists: bool) -> None:
        with os_errors(self.root):
            for name in ("artefacts", "snapshots"):
                make_directory(self.root / name)
            for name in ("staging", "locks", "work", "quarantine"):
                make_directory(self.root / name, 0o700)
            if not os.access(self.staging, os.W_OK | os.X_OK):
                raise PermissionError(13, "Permission denied", str(self.staging))
            if not exists:
                replace_durably(marker, render_json({"format_version": FORMAT_VERSION}), scratch=self.staging)

    def place(self, stage: str, key: str) -> Path:
        """The directory of an artefact, whether or not it exists.

        Raises:
            StoreError: A name is not allowed, or the directory would be outside the store.
        """
        return self._inside("artefacts", checked_name("a stage", stage), checked_name("a key", key))

    def _inside(self, *parts: str) -> Path:
        path = self.root.joinpath(*parts)
        if not path.resolve().is_relative_to(self.root):
            raise StoreError(
                f"{path} leads out of the store, to {path.resolve()}.", remedy="Remove that symbolic link."
            )
        return path

    def find(self, stage: str, key: str) -> Artefact | None:
        """Look an artefact up; cheap, only its manifest is read.

        Returns:
            The artefact, or None if there is none.

        Raises:
            StoreError: A name is not allowed, or a newer P2Rec wrote the artefact.
            ArtefactDamaged: Its manifest is not whole.
        """
        return self.at(self.place(stage, key))

    def at(self, path: Path) -> Artefact | None:
        """The artefact in a directory of the store, the key's own or a variant's; None if there is none.

        Raises:
            StoreError: A newer P2Rec wrote the artefact.
            ArtefactDamaged: Its manifest is not whole, or not that of the content which the directory is named by.
        """
        stage, key = path.parent.name, key_of_directory(path.name) or path.name
        manifest = read_manifest(path, stage, key)
        if manifest is None:
            return None
        artefact = Artefact(stage, key, path, manifest)
        if path.name not in (key, artefact.ref().variant):
            raise ArtefactDamaged(f"The manifest in {path} is that of {artefact.ref().variant}.", remedy=REBUILD)
        return artefact

    def variant_place(self, ref: ArtefactRef) -> Path:
        """The directory of an artefact's content where its key has other content, whether or not it exists."""
        self.place(ref.stage, ref.key)
        return self._inside("artefacts", ref.stage, ref.variant)

    def contents(
        self, stage: str, key: str, *, on_damaged: Callable[[Path, ArtefactDamaged], None] | None = None
    ) -> Iterator[Artefact]:
        """What there is under a key: what a run finds, then the variants.

        Args:
            stage: The stage.
            key: The key.
            on_damaged: Called for the directory of one whose manifest is not whole, which is then left out.

        Raises:
            StoreError: A name is not allowed, or a newer P2Rec wrote one.
            ArtefactDamaged: A manifest is not whole, and there is no ``on_damaged``.
        """
        for path in self._places(self.place(stage, key)):
            try:
                artefact = self.at(path)
            except ArtefactDamaged as error:
                if on_damaged is None:
                    raise
                on_damaged(path, error)
            else:
                if artefact is not None:
                    yield artefact

    def _places(self, own: Path) -> Iterator[Path]:
        """A key's own place and, listed after that was read so that what makes way is seen, those of its variants."""
        yield own
        with os_errors(own.parent):
            there = sorted(p.name for p in own.parent.glob(f"{own.name}{BETWEEN}*") if key_of_directory(p.name))
        yield from (self._inside("artefacts", own.parent.name, name) for name in there)

    def find_input(self, read: InputRef) -> Artefact | None:
        """The artefact of which a stage read a file; None if there is none with that content of it any more.

        Raises:
            StoreError: A newer P2Rec wrote an artefact of that key.
            ArtefactDamaged: The manifest of one is not whole.
        """
        for artefact in self.contents(read.stage, read.key):
            if read.file in artefact.files and artefact.sha256(read.file) == read.sha256:
                return artefact
        return None

    def load(self, ref: ArtefactRef) -> Artefact:
        """Look up the artefact that a reference means: what its key has now, or a variant.

        Raises:
            ArtefactMissing: It is not there.
            ArtefactDamaged: Its manifest is not whole, or lists other content than the reference.
        """
        damage = artefact = None
        try:
            artefact = self.find(ref.stage, ref.key)
        except ArtefactDamaged as error:
            damage = error
        if artefact is None or artefact.ref() != ref:
            variant = self.at(self.variant_place(ref))
            artefact = artefact if variant is None else variant
        if artefact is None and damage is not None:
            raise damage
        if artefact is None:
            raise ArtefactMissing(
                f"There is no artefact {ref.stage}/{ref.key} in {self.root}.",
                remedy="Run the pipeline again to compute it.",
            )
        found = artefact.ref().files
        for name in sorted(found.keys() | ref.files.keys()):
            if found.get(name) != ref.files.get(name):
                raise ArtefactDamaged(
                    f"The file '{name}' of artefact {ref.stage}/{ref.key} is not the one referred to: "
                    f"expected sha256 {ref.files.get(name)}, found {found.get(name)}.",
                    remedy="Run the pipeline again to compute what depends on it anew.",
                )
        return artefact

    def verify(self, artefact: Artefact) -> None:
        """Check every byte of an artefact against its manifest.

        Raises:
            ArtefactMissing: Its directory, its manifest or a file is gone.
            ArtefactDamaged: A file or the manifest has changed, or there is a file too many.
        """
        verify(artefact)

    def discard(self, stage: str, key: str, reason: str) -> Path:
        """Move an artefact out of the way, so that it can be built again; nothing is deleted.

        Args:
            stage: Its stage.
            key: Its key.
            reason: Why, kept beside it in ``discarded.txt``.

        Returns:
            Where it is now, in ``quarantine``.

        Raises:
            ArtefactMissing: It is not there.
            StoreError: It cannot be moved.
        """
        path = self.place(stage, key)
        if not path.exists():
            raise ArtefactMissing(f"There is no artefact {stage}/{key} to discard.", remedy=REBUILD)
        return self.set_aside(path, f"{stage}-{key}", reason)

    def whole_or_aside(self, path: Path) -> Artefact | None:
        """The artefact in a directory of the store, every byte checked; None if that is free, or is so afterwards.

        Args:
            path: A key's own place or a variant's; hold the lock of the key. What is damaged there is set aside.

        Raises:
            StoreError: A newer P2Rec wrote the artefact, or it cannot be moved.
        """
        if not path.exists():
            return None
        try:
            found = self.at(path)
            if found is None:
                raise ArtefactMissing("It has no manifest.", remedy=REBUILD)
            self.verify(found)
        except (ArtefactDamaged, ArtefactMissing) as error:
            self.set_aside(path, f"{path.parent.name}-{key_of_directory(path.name) or path.name}", error.problem)
            return None
        return found

    def make_way(self, artefact: Artefact) -> None:
        """Move a whole artefact from its key's place to that of a variant, where references to it still find it.

        It becomes as young as new, for a run that has read it and not published its snapshot yet.

        Args:
            artefact: What has the key's place; hold the lock of the key.

        Raises:
            StoreError: It cannot be moved.
        """
        target = self.variant_place(artefact.ref())
        if self.whole_or_aside(target) is not None:
            self.set_aside(artefact.path, f"{artefact.stage}-{artefact.key}", f"{target} has the same content.")
            return
        with os_errors(artefact.path):
            os.utime(artefact.path)
            os.rename(artefact.path, target)
            sync_directory(target.parent)

    def set_aside(self, path: Path, name: str, reason: str) -> Path:
        """Move a file or a directory of the store into ``quarantine``; nothing is deleted.

        Args:
            path: What to move.
            name: What its place in ``quarantine`` is to be called, but for a number behind.
            reason: Why, kept beside it in ``discarded.txt``.

        Returns:
            The directory that it is in, or is, now.

        Raises:
            StoreError: It cannot be moved.
        """
        quarantine = self.root / "quarantine"
        with os_errors(path):
            make_directory(quarantine, 0o700)
            n = 1
            while (target := quarantine / f"{name}-{n}").exists():
                n += 1
            if path.is_dir() and not path.is_symlink():
                os.rename(path, target)
            else:
                os.mkdir(target, 0o700)
                os.rename(path, target / path.name)
                sync_directory(target)
            sync_directory(quarantine)
            sync_directory(path.parent)
            with contextlib.suppress(OSError):  # a full disk must not keep a damaged artefact in place
                write_durably(target / "discarded.txt", f"{reason}\n".encode())
        return target

    @contextlib.contextmanager
    def lock(self, stage: str, key: str, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Hold the lock of a key; while one process computes it, others wait here.

        The kernel holds the lock and frees it when the process ends, however it ends.

        Args:
            stage: The stage.
            key: The key.
            on_wait: Called once if another holds the lock.

        Raises:
            StoreError: A name is not allowed, the lock is a symbolic link or cannot be used.
        """
        lock = self._file_lock(stage, key)
        path = Path(lock.lock_file)
        with os_errors(path):
            try:
                lock.acquire(timeout=0)
                waiting = False
            except filelock.Timeout:
                waiting = True
        if waiting:
            if on_wait is not None:
                on_wait()
            with os_errors(path):
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def is_locked(self, stage: str, key: str) -> bool:
        """Whether a process holds the lock of a key just now. Nothing is made or written.

        Raises:
            StoreError: A name is not allowed, the lock is a symbolic link or cannot be read.
        """
        path = self._lock_path(stage, key)
        with os_errors(path), contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def _file_lock(self, stage: str, key: str) -> filelock.BaseFileLock:
        path = self._lock_path(stage, key)
        with os_errors(path):
            make_directory(path.parent, 0o700)
        return filelock.FileLock(path, mode=0o600, poll_interval=_POLL_S, fallback_to_soft=False)

    def _lock_path(self, stage: str, key: str) -> Path:
        name = f"{checked_name('a stage', stage)}{BETWEEN}{checked_name('a key', key)}{_LOCK}"
        path = self.root / "locks" / name
        if path.is_symlink():
            raise StoreError(f"The lock {path} is a symbolic link.", remedy="Remove that symbolic link.")
        return path

    def workspace(self, stage: str, key: str) -> Path:
        """The directory for checkpoints of what is being computed; publishing the key removes it.

        Raises:
            StoreError: A name is not allowed, or the directory cannot be made.
        """
        path = self.workspace_path(stage, key)
        with os_errors(path):
            return make_directory(path, 0o700)

    def workspace_path(self, stage: str, key: str) -> Path:
        """Where the workspace of a key is, whether or not it exists; raises as ``place`` does."""
        return self._inside("work", checked_name("a stage", stage), checked_name("a key", key))

    @contextlib.contextmanager
    def write(
        self, stage: str, key: str, *, settings: dict[str, Any], inputs: dict[str, InputRef], fingerprint: str
    ) -> Iterator[ArtefactWriter]:
        """Write an artefact; hold the lock of its key meanwhile. Without ``publish`` nothing remains.

        Args:
            stage: The stage.
            key: What ``content_key`` gave for the rest.
            settings: The settings that the stage read.
            inputs: The files that it read, by input name.
            fingerprint: Hash of the code that computed it.

        Raises:
            StoreError: A name is not allowed, a setting cannot be stored, or the store cannot be written.
        """
        self.place(stage, key)
        canonical_json(settings)
        with self.stage_artefact(stage, key) as staging:
            yield ArtefactWriter(
                self, stage, key, staging=staging, settings=settings, inputs=inputs, fingerprint=fingerprint
            )

    @contextlib.contextmanager
    def stage_artefact(self, stage: str, key: str) -> Iterator[Path]:
        """A new directory for what is to become an artefact; however the block ends, none is left behind.

        Raises:
            StoreError: The store cannot be written.
        """
        staging = self.staging / BETWEEN.join((stage, key, secrets.token_hex(8)))
        with os_errors(self.staging):
            make_directory(self.staging, 0o700)
        with staged(staging):
            yield staging

    def artefacts(self, *, on_damaged: Callable[[ArtefactDamaged], None] | None = None) -> Iterator[Artefact]:
        """Every artefact that a run would find, sorted by stage and key; no variants.

        Args:
            on_damaged: Called for an artefact whose manifest is not whole, which is then left out.

        Raises:
            ArtefactDamaged: A manifest is not whole, and there is no ``on_damaged``.
        """
        with os_errors(self.root):
            places = sorted((self.root / "artefacts").glob(f"*/*/{MANIFEST}"))
        for place in places:
            if BETWEEN in place.parent.name:
                continue
            try:
                artefact = self.find(place.parent.parent.name, place.parent.name)
            except ArtefactDamaged as error:
                if on_damaged is None:
                    raise
                on_damaged(error)
            else:
                if artefact is not None:
                    yield artefact


def is_store(root: Path) -> bool:
    """Whether there is a store in a directory; nothing is made or read."""
    return (root.expanduser() / _MARKER).exists()


def lock_owner(path: Path) -> tuple[str, str] | None:
    """The stage and key whose lock a file is; None if it is no lock of a store."""
    stage, between, key = path.name.removesuffix(_LOCK).partition(BETWEEN)
    try:
        owner = checked_name("a stage", stage), checked_name("a key", key)
    except StoreError:
        return None
    return owner if between and path.name.endswith(_LOCK) else None
