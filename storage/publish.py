"""Publishing an artefact: written beside the store, read back, and only then moved into it."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from p2rec_core.errors import ArtefactDamaged, StoreError
from storage import tensors as tensor_files
from storage.checksums import checksums
from storage.disk import DurableFile, hash_file, make_directory, os_errors, sync_directory, write_durably
from storage.manifest import MANIFEST, SUFFIX, FileEntry, InputRef, Kind, Manifest, checked_name, render_json
from storage.reading import Artefact
from storage.schemas import conform

if TYPE_CHECKING:
    from storage.artefacts import Store

_ROW_GROUP = 128 * 1024
_DEFECT = "The disk or its driver changes data: check it, then run the pipeline again."


class ArtefactWriter:
    """Collects the files of one artefact in a staging directory; ``Store.write`` makes one.

    Every file is flushed, read back and compared as it is written.
    """

    def __init__(
        self,
        store: "Store",
        stage: str,
        key: str,
        *,
        staging: Path,
        settings: dict[str, Any],
        inputs: dict[str, InputRef],
        fingerprint: str,
    ) -> None:
        self._store = store
        self._stage = stage
        self._key = key
        self._staging = staging
        self._settings = settings
        self._inputs = inputs
        self._fingerprint = fingerprint
        self._files: dict[str, FileEntry] = {}
        self._published = False

    def table(self, name: str, data: pa.Table) -> None:
        """Write a table as Parquet.

        Args:
            name: One of ``schemas.TABLES``; also the name of the file.
            data: Rows that conform to that table's schema.

        Raises:
            StoreError: The data does not conform, or cannot be written.
            ArtefactDamaged: What was read back is not what was written.
        """
        with self.table_by_parts(name) as append:
            append(data)

    @contextlib.contextmanager
    def table_by_parts(self, name: str) -> Iterator[Callable[[pa.Table], None]]:
        """Write a table as Parquet that is never whole in memory.

        Args:
            name: One of ``schemas.TABLES``; also the name of the file.

        Yields:
            What takes the next part: rows that conform to that table's schema. There has to be one.

        Raises:
            StoreError: The data does not conform, or cannot be written.
            ArtefactDamaged: What was read back is not what was written.
        """
        path = self._new_path(name, "table")
        with os_errors(path):
            file = DurableFile(path)
        with contextlib.closing(file):
            rows = _TableFile(name, file)
            try:
                yield rows.append
            except BaseException:
                with contextlib.suppress(OSError, StoreError):  # the file goes; the encoder must not outlive it
                    rows.close()
                raise
            with os_errors(path, n_bytes=rows.n_bytes):
                rows.close()
                expected = file.sync()
        self._compare(path, expected)
        with os_errors(path):
            columns = _read_back(path, rows)
        self._files[name] = FileEntry(name, path.name, "table", rows.n_rows, file.n_bytes, expected, columns)

    def tensors(self, name: str, tensors: tensor_files.Tensors, metadata: dict[str, str] | None = None) -> None:
        """Write arrays by name as safetensors.

        Args:
            name: Name of the file.
            tensors: Arrays of numbers or booleans, by name.
            metadata: Text by text, kept in the file's header.

        Raises:
            StoreError: An array cannot be stored, or the file cannot be written.
            ArtefactDamaged: What was read back is not what was written.
        """
        self._bytes(name, "tensors", tensor_files.encode(tensors, metadata), tensor_files.describe(tensors))

    def json(self, name: str, obj: object) -> None:
        """Write a JSON value.

        Args:
            name: Name of the file.
            obj: What ``canonical_json`` takes.

        Raises:
            StoreError: The value cannot be stored as JSON, or the file cannot be written.
            ArtefactDamaged: What was read back is not what was written.
        """
        self._bytes(name, "json", render_json(obj), {})

    def publish(self, info: dict[str, Any], wall_s: float, *, replace: bool = False) -> Artefact:
        """Write the manifest and move the artefact into the store.

        If the store already holds the artefact, whole and with the same content, that one is returned; one
        that is damaged is set aside. The workspace of the key is removed.

        Args:
            info: What else to report, such as counts.
            wall_s: Seconds that the stage took.
            replace: Whether whole but different content under this key makes way, so that only those who refer to it
                find it; equal content stays.

        Raises:
            StoreError: The store cannot be written, or holds other content under this key and ``replace`` is not set.
        """
        self._refuse_if_published()
        manifest = Manifest.create(
            self._stage,
            self._key,
            settings=self._settings,
            inputs=self._inputs,
            fingerprint=self._fingerprint,
            files=dict(sorted(self._files.items())),
            info=info,
            wall_s=wall_s,
        )
        data = manifest.render()
        final = self._store.place(self._stage, self._key)
        seal(self._staging, data)
        artefact = self._already_there(manifest, replace)
        if artefact is None:
            move_in(self._staging, final)
            artefact = Artefact(self._stage, self._key, final, manifest)
        self._published = True
        shutil.rmtree(self._store.workspace_path(self._stage, self._key), ignore_errors=True)
        return artefact

    def _already_there(self, manifest: Manifest, replace: bool) -> Artefact | None:
        """The artefact in the store if it is whole and equal; else its place is free afterwards."""
        found = self._store.whole_or_aside(self._store.place(self._stage, self._key))
        if found is None:
            return None
        ours, theirs = manifest.ref().files, found.ref().files
        if ours != theirs:
            if replace:
                self._store.make_way(found)
                return None
            differing = sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
            raise StoreError(
                f"The store already holds {self._stage}/{self._key} with other content "
                f"(differing: {', '.join(differing)}); an artefact is never overwritten.",
                remedy="Run the stage with --force to have new runs find the new content.",
            )
        return found

    def _bytes(self, name: str, kind: Kind, data: bytes, columns: dict[str, str]) -> None:
        path = self._new_path(name, kind)
        sha256, n_bytes = self._write(path, lambda file: file.write(data), len(data))
        self._files[name] = FileEntry(name, path.name, kind, None, n_bytes, sha256, columns)

    def _new_path(self, name: str, kind: Kind) -> Path:
        self._refuse_if_published()
        path = self._staging / (checked_name("a file name", name) + SUFFIX[kind])
        if name in self._files or path.name == MANIFEST:
            raise StoreError(
                f"Artefact {self._stage}/{self._key} already has a file '{name}'.", remedy="Use another name."
            )
        return path

    def _write(self, path: Path, write: Callable[[DurableFile], object], n_bytes: int) -> tuple[str, int]:
        with os_errors(path, n_bytes=n_bytes), contextlib.closing(DurableFile(path)) as file:
            write(file)
            expected = file.sync()
        self._compare(path, expected)
        return expected, file.n_bytes

    def _compare(self, path: Path, expected: str) -> None:
        with os_errors(path):
            found = hash_file(path)
        if found != expected:
            raise ArtefactDamaged(
                f"The file {path} is not what was written to it: expected sha256 {expected}, found {found}.",
                remedy=_DEFECT,
            )

    def _refuse_if_published(self) -> None:
        if self._published:
            raise StoreError(
                f"Artefact {self._stage}/{self._key} is published already and does not change any more.",
                remedy="Write every file before publish.",
            )


@contextlib.contextmanager
def staged(staging: Path) -> Iterator[None]:
    """Make a staging directory and, however the block ends, leave none behind."""
    with os_errors(staging):
        os.mkdir(staging)
    try:
        yield
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def seal(staging: Path, manifest: bytes) -> None:
    """Write the manifest beside an artefact's files, which are on the disk already."""
    with os_errors(staging, n_bytes=len(manifest)):
        write_durably(staging / MANIFEST, manifest)
        sync_directory(staging)


def move_in(staging: Path, final: Path) -> None:
    """Move a sealed artefact to its place in the store, in one step."""
    with os_errors(final):
        make_directory(final.parent)
        os.rename(staging, final)
        sync_directory(final.parent)


class _TableFile:
    """A Parquet file that grows by parts, and a checksum of every row group to compare it with.

    Args:
        name: One of ``schemas.TABLES``.
        file: Where to.
    """

    def __init__(self, name: str, file: DurableFile) -> None:
        self._name = name
        self._file = file
        self._writer: pq.ParquetWriter | None = None
        self.n_rows = 0
        self.n_bytes = 0
        """Of all parts in memory, more than the file takes."""
        self.checksums: list[list[int]] = []
        self.schema: pa.Schema | None = None

    def append(self, part: pa.Table) -> None:
        """Write the next part, in row groups of its own."""
        part = conform(self._name, part, first_row=self.n_rows)
        with os_errors(self._file.path, n_bytes=int(part.nbytes)):
            if self._writer is None:
                self.schema = part.schema
                self._writer = pq.ParquetWriter(self._file, part.schema, compression="zstd", write_page_checksum=True)
            self._writer.write_table(part, row_group_size=_ROW_GROUP)
        self.n_rows += part.num_rows
        self.n_bytes += int(part.nbytes)
        self.checksums += [checksums(part.slice(at, _ROW_GROUP)) for at in range(0, part.num_rows, _ROW_GROUP)]

    def close(self) -> None:
        """Write what comes after the last row."""
        if self._writer is None:
            raise StoreError(f"Table '{self._name}' was given no part.", remedy="Give it one, if only without rows.")
        self._writer.close()


def _read_back(path: Path, written: _TableFile) -> dict[str, str]:
    """Compare a Parquet file with what was written to it; the types by column as it gives them."""
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        start = 0
        groups = [group for group in range(file.num_row_groups) if file.metadata.row_group(group).num_rows]
        for group, expected in zip(groups, written.checksums, strict=False):
            found = file.read_row_group(group)
            if checksums(found) != expected:
                break
            start += found.num_rows
        if not start == written.n_rows == file.metadata.num_rows or file.schema_arrow != written.schema:
            raise ArtefactDamaged(
                f"The file {path} does not hold what was written to it, from row {start} on.", remedy=_DEFECT
            )
        return {field.name: str(field.type) for field in file.schema_arrow}
