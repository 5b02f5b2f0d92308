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

from p2rec_core.errors import P2RecError
from storage.disk import DurableFile, sync_directory, write_durably

METADATA = b"p2rec"
"""Key of the Parquet file's metadata under which it says, in JSON, what it was made of."""


class OutputNotWritten(P2RecError):
    """A file cannot be put where it should go."""

    exit_status = 4


def write_parquet(path: Path, schema: pa.Schema, parts: Iterable[pa.Table], facts: Mapping[str, Any]) -> int:
    """Write a table part by part, a row group each; what is at ``path`` is replaced when all of it is on the disk.

    Args:
        path: The file.
        schema: Its columns.
        parts: Its rows, in order; no more than one part is in memory.
        facts: JSON values for the file's metadata.

    Returns:
        How many rows it has.

    Raises:
        OutputNotWritten: The file cannot be written.
    """
    if path.is_dir():
        raise OutputNotWritten(f"{path} is a directory.", remedy="Name a file.")
    described = schema.with_metadata({METADATA: json.dumps(dict(facts), sort_keys=True, ensure_ascii=False)})
    n_rows = 0
    with _beside(path) as unfinished:
        with contextlib.closing(DurableFile(unfinished)) as file:
            with pq.ParquetWriter(file, described, compression="zstd", write_page_checksum=True) as writer:
                for part in parts:
                    if part.num_rows:
                        writer.write_table(part.cast(described), row_group_size=part.num_rows)
                        n_rows += part.num_rows
            file.sync()
        os.replace(unfinished, path)
    return n_rows


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
