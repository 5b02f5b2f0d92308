"""Files for other programs, outside the store: each appears whole or not at all."""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from p2rec_core.errors import P2RecError, SettingsError
from storage.disk import DurableFile, sync_directory, write_durably

METADATA = b"p2rec"
"""Key of the Parquet file's metadata under which it says, in JSON, what it was made of."""

SUFFIXES = (".parquet", ".csv")
"""Of a file of rows: what it becomes."""


class OutputNotWritten(P2RecError):
    """A file cannot be put where it should go."""

    exit_status = 4


def write_table(path: Path, schema: pa.Schema, parts: Iterable[pa.Table], facts: Mapping[str, Any]) -> int:
    """Write a table part by part; a file of P2Rec's that is at ``path`` is replaced when all of it is on the disk.

    Args:
        path: The file; its suffix says whether it becomes Parquet, a row group per part, or CSV with a header.
        schema: Its columns.
        parts: Its rows, in order; no more than one part is in memory.
        facts: JSON values for a Parquet file's metadata.

    Returns:
        How many rows it has.

    Raises:
        SettingsError: The suffix is another, or CSV has no way to write a column.
        OutputNotWritten: A file that P2Rec did not write is there, or the file cannot be written.
    """
    if path.is_dir():
        raise OutputNotWritten(f"{path} is a directory.", remedy="Name a file.")
    suffix = path.suffix.lower()
    has_lists = any(pa.types.is_nested(field.type) for field in schema)
    if suffix not in SUFFIXES or (suffix == ".csv" and has_lists):
        known = [".parquet"] if has_lists else SUFFIXES
        raise SettingsError(
            f"What {path} is to become is not clear from its suffix {path.suffix!r}.",
            remedy=f"Give it one of these: {', '.join(known)}.",
        )
    _refuse_others(path, schema)
    described = schema.with_metadata({METADATA: json.dumps(dict(facts), sort_keys=True, ensure_ascii=False)})
    n_rows = 0
    with _beside(path) as unfinished:
        with contextlib.closing(DurableFile(unfinished)) as file:
            with _writer(suffix, file, described) as writer:
                for part in parts:
                    if part.num_rows:
                        writer.write_table(part.cast(described), part.num_rows)
                        n_rows += part.num_rows
            file.sync()
        os.replace(unfinished, path)
    return n_rows


def _writer(suffix: str, file: DurableFile, schema: pa.Schema) -> Any:
    if suffix == ".csv":
        return csv.CSVWriter(file, schema)
    return pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True)


def _refuse_others(path: Path, schema: pa.Schema) -> None:
    """Refuse to replace a file that is not a table of P2Rec's with these columns; an empty one holds nothing."""
    try:
        if not path.exists() or path.stat().st_size == 0 or _is_ours(path, schema):
            return
    except OSError as error:
        raise OutputNotWritten(
            f"{path} cannot be read: {error.strerror or error}.", remedy="Name another file."
        ) from error
    raise OutputNotWritten(
        f"{path} is there already, and P2Rec did not write it.", remedy="Name another file or move it away."
    )


def _is_ours(path: Path, schema: pa.Schema) -> bool:
    """Whether a file's metadata or, since CSV has none, its header are what P2Rec writes."""
    with path.open("rb") as file:
        if file.read(4) == b"PAR1":
            try:
                return METADATA in (pq.read_metadata(path).metadata or {})
            except pa.ArrowException:
                return False
        file.seek(0)
        header = ",".join(f'"{name}"' for name in schema.names) + "\n"
        return file.read(len(header)) == header.encode()


def write_directory(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a new directory of files.

    Args:
        path: The directory; there may be an empty one.
        files: Content by name.

    Raises:
        OutputNotWritten: Something is there already, or it cannot be written.
    """
    with new_directory(path) as unfinished:
        for name, data in files.items():
            write_durably(unfinished / name, data)


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """An empty directory to fill, which becomes ``path`` when the block ends well.

    Args:
        path: The directory; there may be an empty one.

    Raises:
        OutputNotWritten: Something is there already, or it cannot be written.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise OutputNotWritten(f"{path} is there already.", remedy="Choose another directory or move it away.")
    with _beside(path) as unfinished:
        unfinished.mkdir()
        yield unfinished
        sync_directory(unfinished)
        # replaces an empty directory, and nothing else
        os.rename(unfinished, path)


def write_new_text(path: Path, text: str) -> None:
    """Write a new text file.

    Args:
        path: The file.
        text: Its content, written as UTF-8.

    Raises:
        OutputNotWritten: Something is there already, or it cannot be written.
    """
    with _beside(path) as unfinished:
        write_durably(unfinished, text.encode())
        try:
            os.link(unfinished, path)  # unlike a rename it replaces nothing
        except FileExistsError:
            raise OutputNotWritten(f"{path} is there already.", remedy="Name another file or move it away.") from None


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name beside ``path`` for what is not finished; nothing is left there, however the block ends."""
    path = path.absolute()
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        sync_directory(path.parent)
    except OSError as error:
        raise OutputNotWritten(
            f"{path} cannot be written: {error.strerror or error}.",
            remedy="Choose a place that can be written, on a disk with room.",
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        with contextlib.suppress(OSError):
            unfinished.unlink()
