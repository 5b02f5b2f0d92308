"""Partitions, such as a file a day in a directory or the matches of a pattern, as the one file that an import reads."""

import contextlib
import glob
import gzip
import hashlib
import itertools
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from p2rec_core.errors import DataError
from storage.disk import hash_file, make_directory, os_errors, sync_directory, sync_file

_SUFFIX = {"parquet": ".parquet", "csv": ".csv", "tsv": ".tsv", "recbole": ".inter"}
_HEADED = ("csv", "tsv", "recbole")
_KEPT = 2
"""Joined files of a directory that are kept: a run that reads the one before may still be going on."""


def joined(directory: Path, format: str, place: Path, *, header: bool = True) -> Path:
    """Join the partitions of a directory, or what a pattern matches, in the order of their paths, below each other.

    Hidden files, and files or directories whose name begins with an underscore, are left out. Text partitions may be
    gzip. The result is made once; it is named by the content of all partitions and by its own, so that one that is
    damaged is made anew.

    Args:
        directory: The partitions, at any depth; or a pattern of paths with ``*``, ``?``, ``[…]`` or ``**``.
        format: Format of every partition, one of ``layout.FORMATS``.
        place: Directory of joined files.
        header: Whether text partitions of a format with a header have one.

    Returns:
        The joined file.

    Raises:
        DataError: There is no partition, one is damaged or changes meanwhile, or two do not have the same columns.
        StoreError: The joined file cannot be written.
    """
    partitions = partitions_of(directory)
    before = _hashes(partitions)
    prefix = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:12]
    kind = format if header else f"{format} without a header"
    content = hashlib.sha256(kind.encode() + b"".join(map(bytes.fromhex, before))).hexdigest()[:20]
    suffix = _SUFFIX.get(format, ".txt")
    for made in place.glob(f"{prefix}-{content}-*{suffix}"):
        with os_errors(made):
            if made.name == f"{prefix}-{content}-{hash_file(made)[:20]}{suffix}":
                return made
            made.unlink()
    staged = place / f".{prefix}-{content}.{os.getpid()}"
    with os_errors(staged):
        make_directory(place)
        try:
            if format == "parquet":
                _join_parquet(partitions, staged)
            else:
                _join_text(partitions, staged, headed=header and format in _HEADED)
            for partition, was, now in zip(partitions, before, _hashes(partitions), strict=True):
                if was != now:
                    raise DataError(
                        f"{partition} changed while it was being read.",
                        remedy="Wait until its writer has finished, then run again.",
                    )
            sync_file(staged)
            target = place / f"{prefix}-{content}-{hash_file(staged)[:20]}{suffix}"
            os.replace(staged, target)
            sync_directory(place)
        finally:
            staged.unlink(missing_ok=True)
        for old in sorted(place.glob(f"{prefix}-*"), key=lambda path: path.stat().st_mtime_ns)[:-_KEPT]:
            old.unlink(missing_ok=True)
    return target


def _hashes(partitions: Sequence[Path]) -> list[str]:
    found = []
    for partition in partitions:
        with os_errors(partition):
            found.append(hash_file(partition))
    return found


def is_pattern(path: Path) -> bool:
    """Whether a path is meant as a pattern: nothing is there, and it has a character of patterns."""
    return not path.exists() and glob.has_magic(str(path))


def _literal(pattern: Path) -> Path:
    """The directories of a pattern before the first part that is none by itself."""
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))


def partitions_of(directory: Path) -> list[Path]:
    """The files of a directory, or those that a pattern matches, in the order of their paths.

    Raises:
        DataError: There is none.
    """
    with os_errors(directory):
        if is_pattern(directory):
            root, matches = _literal(directory), [Path(name) for name in glob.glob(str(directory), recursive=True)]
        else:
            root, matches = directory, list(directory.rglob("*"))
        found = [
            path
            for path in matches
            if path.is_file() and not any(p.startswith((".", "_")) for p in path.relative_to(root).parts)
        ]
    if not found:
        if is_pattern(directory):
            raise DataError(
                f"The pattern {directory} matches no file, those aside that begin with a dot or an underscore.",
                remedy="Check it, and quote it in a shell.",
            )
        raise DataError(
            f"The directory {directory} holds no partition.",
            remedy="Put files into it whose names begin with neither a dot nor an underscore.",
        )
    return sorted(found, key=lambda path: path.as_posix())


def _join_parquet(partitions: Sequence[Path], target: Path) -> None:
    schema: pa.Schema | None = None
    writer: pq.ParquetWriter | None = None
    try:
        for partition in partitions:
            try:
                with pq.ParquetFile(partition) as file:
                    found = _columns(file.schema_arrow)
                    if schema is None:
                        schema = found
                        writer = pq.ParquetWriter(target, schema)
                    elif not found.equals(schema):
                        raise _other_columns(partitions[0], schema, partition, found)
                    assert writer is not None
                    for batch in file.iter_batches():
                        writer.write_batch(batch.cast(schema))
            except pa.ArrowException as error:
                raise DataError(
                    f"{partition} cannot be read as Parquet: {str(error).splitlines()[0].rstrip('.')}.",
                    remedy="Check that the partition is complete and that the format is right.",
                ) from error
    finally:
        if writer is not None:
            writer.close()


def _columns(schema: pa.Schema) -> pa.Schema:
    """Names and types alone: who wrote a partition decides whether a column may be null, and how long its texts."""
    plain = {pa.large_string(): pa.string(), pa.string_view(): pa.string()}
    return pa.schema([pa.field(field.name, plain.get(field.type, field.type)) for field in schema])


def _join_text(partitions: Sequence[Path], target: Path, *, headed: bool) -> None:
    header: bytes | None = None
    with target.open("w+b") as out:
        for partition in partitions:
            with _opened(partition) as stream:
                if headed:
                    line = stream.readline().removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
                    if header is None:
                        header = line
                        out.write(line + b"\n")
                    elif line != header:
                        raise _other_columns(
                            partitions[0], header.decode(errors="replace"), partition, line.decode(errors="replace")
                        )
                shutil.copyfileobj(stream, out)
            if out.tell():
                out.seek(-1, os.SEEK_END)
                if out.read(1) != b"\n":
                    out.write(b"\n")


@contextlib.contextmanager
def _opened(partition: Path) -> Iterator[BinaryIO]:
    """A text partition, unpacked if it is gzip."""
    try:
        with gzip.open(partition) if partition.name.endswith(".gz") else partition.open("rb") as stream:
            yield cast(BinaryIO, stream)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{partition} is a damaged gzip archive: {error}.",
            remedy="Download or compress it again; 'gzip -t' must accept it.",
        ) from None


def _other_columns(first: Path, expected: object, partition: Path, found: object) -> DataError:
    def named(columns: object) -> list[str]:
        names = (
            [f"{f.name} {f.type}" for f in columns]
            if isinstance(columns, pa.Schema)
            else re.split("[,\t;|]", str(columns))
        )
        return [name if len(name) <= 60 else name[:60] + "…" for name in names]

    there, wanted = named(found), named(expected)
    missing, added = [c for c in wanted if c not in there], [c for c in there if c not in wanted]
    parts = [f"without {', '.join(missing)}"] if missing else []
    parts += [f"with {', '.join(added)} besides"] if added else []
    difference = " and ".join(parts) or "in another order"
    return DataError(
        f"{partition} has the columns {', '.join(there[:20])}; {first} has {', '.join(wanted[:20])}: {difference}.",
        remedy="Write all partitions with the same columns in the same order.",
    )
