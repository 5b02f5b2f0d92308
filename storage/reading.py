"""Reading an artefact: nothing that its manifest does not vouch for comes out of it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError

from p2rec_core.errors import ArtefactDamaged, ArtefactMissing, StoreError
from storage import tensors as tensor_files
from storage.disk import hash_file, os_errors
from storage.hashes import KNOWN
from storage.manifest import MANIFEST, REBUILD, ArtefactRef, FileEntry, InputRef, Kind, Manifest


@dataclass(frozen=True)
class Artefact:
    """A published, immutable result of a stage.

    Attributes:
        stage: Stage that wrote it.
        key: Its key.
        path: Its directory.
        manifest: What it is said to hold.
    """

    stage: str
    key: str
    path: Path
    manifest: Manifest

    @property
    def files(self) -> dict[str, FileEntry]:
        """Its files by name."""
        return self.manifest.files

    def sha256(self, name: str) -> str:
        """The hash in hex of a file's content.

        Raises:
            StoreError: There is no such file.
        """
        return self._entry(name).sha256

    def ref(self) -> ArtefactRef:
        """A small reference to it."""
        return self.manifest.ref()

    def input(self, name: str) -> InputRef:
        """A reference to one of its files, for the manifest and the key of what is computed from it.

        Raises:
            StoreError: There is no such file.
        """
        return InputRef(self.stage, self.key, name, self.sha256(name))

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a table.

        Args:
            name: Its name.
            columns: Which columns, in this order; None for all.

        Raises:
            StoreError: There is no such table or column.
            ArtefactMissing: The file is gone.
            ArtefactDamaged: Its hash is not that of the manifest.
        """
        entry = self._entry(name, "table")
        if unknown := [column for column in columns or () if column not in entry.columns]:
            raise StoreError(
                f"Table '{name}' has no column {', '.join(map(repr, unknown))}.",
                remedy=f"Use {', '.join(entry.columns)}.",
            )
        path = self.whole_file(name)
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                table = file.read(columns=None if columns is None else list(columns))
        except FileNotFoundError as error:
            raise self._missing(entry) from error
        except (pa.ArrowException, OSError, ValueError) as error:
            self._damaged(entry, str(error), error)
        return table if columns is None else table.select(list(columns))

    def whole_file(self, name: str) -> Path:
        """Where a file is, after its content was compared with the manifest.

        Within a process a file that has not changed since is not hashed again, so this can be asked before every use.

        Raises:
            StoreError: There is no such file, or it cannot be read.
            ArtefactMissing: It is gone.
            ArtefactDamaged: Its hash is not that of the manifest.
        """
        entry = self._entry(name)
        path = self.path / entry.path
        try:
            with os_errors(path):
                found = KNOWN.sha256(path)
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise self._missing(entry) from error
            raise
        if found != entry.sha256:
            self._damaged(entry, _hashes(entry.sha256, found))
        return path

    def tensors(self, name: str) -> tensor_files.Tensors:
        """Read arrays by name.

        Raises:
            StoreError: There is no such file.
            ArtefactMissing: The file is gone.
            ArtefactDamaged: Its hash is not that of the manifest.
        """
        entry = self._entry(name, "tensors")
        data = self._checked_bytes(entry)
        try:
            return tensor_files.decode(data)
        except SafetensorError as error:
            self._damaged(entry, str(error), error)

    def tensor_metadata(self, name: str) -> dict[str, str]:
        """Read the metadata beside the arrays; raises as ``tensors`` does."""
        header = tensor_files.read_header(self._checked_bytes(self._entry(name, "tensors")))
        metadata: dict[str, str] = header.get("__metadata__", {})
        return metadata

    def json(self, name: str) -> Any:
        """Read a JSON value.

        Raises:
            StoreError: There is no such file.
            ArtefactMissing: The file is gone.
            ArtefactDamaged: Its hash is not that of the manifest.
        """
        return json.loads(self._checked_bytes(self._entry(name, "json")))

    def _entry(self, name: str, kind: Kind | None = None) -> FileEntry:
        entry = self.files.get(name)
        if entry is None or (kind is not None and entry.kind != kind):
            there = [f.name for f in self.files.values() if kind is None or f.kind == kind]
            raise StoreError(
                f"Artefact {self.stage}/{self.key} has no {kind or 'file'} '{name}'.",
                remedy=f"It has: {', '.join(there) or 'none'}.",
            )
        return entry

    def _checked_bytes(self, entry: FileEntry) -> bytes:
        path = self.path / entry.path
        try:
            with os_errors(path):
                data = path.read_bytes()
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise self._missing(entry) from error
            raise
        found = hashlib.sha256(data).hexdigest()
        if found != entry.sha256:
            self._damaged(entry, _hashes(entry.sha256, found))
        return data

    def _missing(self, entry: FileEntry) -> ArtefactMissing:
        return ArtefactMissing(f"The file {self.path / entry.path} is missing.", remedy=REBUILD)

    def _damaged(self, entry: FileEntry, reason: str, cause: Exception | None = None) -> NoReturn:
        message = f"The file {self.path / entry.path} is damaged: {reason}."
        raise ArtefactDamaged(message, remedy=REBUILD) from cause


def read_manifest(directory: Path, stage: str, key: str) -> Manifest | None:
    """Read the manifest of an artefact's directory; None where there is none.

    Raises:
        StoreError: It cannot be read, or a newer P2Rec wrote it.
        ArtefactDamaged: It is not whole, or belongs to another artefact.
    """
    path = directory / MANIFEST
    with os_errors(path):
        if not path.exists():
            return None
        data = path.read_bytes()
    manifest = Manifest.parse(data, place=str(path))
    if (manifest.stage, manifest.key) != (stage, key):
        raise ArtefactDamaged(f"The manifest {path} is that of {manifest.stage}/{manifest.key}.", remedy=REBUILD)
    return manifest


def verify(artefact: Artefact) -> None:
    """Check every byte of an artefact against its manifest.

    Raises:
        ArtefactMissing: Its directory, its manifest or a file is gone.
        ArtefactDamaged: A file or the manifest has changed, or there is a file too many.
    """
    place = artefact.path
    manifest = read_manifest(place, artefact.stage, artefact.key)
    if manifest is None:
        raise ArtefactMissing(f"There is no artefact in {place}.", remedy=REBUILD)
    if manifest != artefact.manifest:
        raise ArtefactDamaged(
            f"The manifest {place / MANIFEST} has changed since it was read: "
            + _hashes(artefact.manifest.digest, manifest.digest)
            + ".",
            remedy=REBUILD,
        )
    with os_errors(place):
        there = {path.name: path for path in place.iterdir()}
    expected = {entry.path: entry for entry in manifest.files.values()}
    for extra in sorted(set(there) - set(expected) - {MANIFEST}):
        raise ArtefactDamaged(f"{there[extra]} is not in the manifest.", remedy=REBUILD)
    for name, entry in expected.items():
        path = place / name
        if name not in there:
            raise ArtefactMissing(f"The file {path} is missing.", remedy=REBUILD)
        if path.is_symlink() or not path.is_file():
            raise ArtefactDamaged(f"{path} is not a regular file.", remedy=REBUILD)
        with os_errors(path):
            n_bytes, found = path.stat().st_size, hash_file(path)
        if n_bytes != entry.bytes or found != entry.sha256:
            raise ArtefactDamaged(
                f"The file {path} is damaged: expected {entry.bytes} bytes, found {n_bytes}; "
                + _hashes(entry.sha256, found)
                + ".",
                remedy=REBUILD,
            )


def _hashes(expected: str, found: str) -> str:
    return f"expected sha256 {expected}, found {found}"
