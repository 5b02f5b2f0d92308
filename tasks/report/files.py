"""Files of the report: tables as CSV and Parquet, and a directory that appears whole or not at all."""

import csv
import hashlib
import io
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from p2rec_core.analysis.tables import Table
from p2rec_core.errors import P2RecError

MARKER = "report.json"
"""File that says that a directory is a report, and that all of it is there: it is written last."""

_TYPES = {"text": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}


class ReportNotWritten(P2RecError):
    """The report cannot be put where it should go."""

    exit_status = 4


def csv_bytes(table: Table) -> bytes:
    """A table as CSV (RFC 4180, UTF-8, line feeds); nothing for None and NaN, floats in full."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [name for name, _ in table.columns]
    writer.writerow(names)
    writer.writerows([_csv_value(row.get(name)) for name in names] for row in table.rows)
    return buffer.getvalue().encode("utf-8")


def parquet_bytes(table: Table) -> bytes:
    """A table as Parquet; null for None."""
    schema = pa.schema([(name, _TYPES[kind]) for name, kind in table.columns])
    rows = [{name: row.get(name) for name in schema.names} for row in table.rows]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue().to_pybytes())


@contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """A directory to build in, which becomes ``target`` when the block ends without an error.

    What is at ``target`` stays until then, and is replaced only if it is a report or empty.

    Args:
        target: Where the report goes.

    Yields:
        A new directory beside it.

    Raises:
        ReportNotWritten: Something else is at ``target``, or its place cannot be written.
    """
    target = target.absolute()
    _check_replaceable(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        building = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
        building.mkdir()
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        yield building
        write_marker(building)
        _swap(building, target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def write_marker(directory: Path) -> None:
    """Write the list of all files with their sha256, which makes the directory a report."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    sums = {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    text = json.dumps({"format": "p2rec-report", "files": sums}, indent=1, sort_keys=True) + "\n"
    (directory / MARKER).write_text(text, encoding="utf-8")


def json_for_reading(value: Any) -> str:
    """A fact as one line of text for a person: ``name value, name value`` for a mapping."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {json_for_reading(value[name])}" for name in sorted(value))
    return "" if value is None else str(value)


def _csv_value(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(value) if isinstance(value, float) else value


def _check_replaceable(target: Path) -> None:
    if not target.exists() or (target.is_dir() and ((target / MARKER).exists() or not any(target.iterdir()))):
        return
    raise ReportNotWritten(
        f"{target} is there already and is not a report of P2Rec.", remedy="Choose another directory or move it away."
    )


def _swap(building: Path, target: Path) -> None:
    """Put the new directory in the place of the old one, or the old one back where that fails."""
    old = target.with_name(f".{target.name}.{secrets.token_hex(6)}.old")
    if target.exists():
        os.replace(target, old)
    try:
        os.replace(building, target)
    except OSError:
        if old.exists():
            os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _unwritable(target: Path, error: OSError) -> ReportNotWritten:
    return ReportNotWritten(
        f"The report cannot be written to {target}: {error.strerror or error}.",
        remedy="Choose a directory that can be written, on a disk with room.",
    )
