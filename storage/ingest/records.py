"""Rows of a foreign file as Arrow batches that still carry their line numbers."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from p2rec_core.errors import DataError
from storage.ingest.layout import Columns, Layout, find_columns, read_layout
from storage.ingest.source import Block, TextSource

BATCH_ROWS = 1 << 17

LINES = pa.schema([("line", pa.int64()), ("text", pa.string()), ("fields", pa.list_(pa.string()))])
"""A batch of text rows; ``fields`` is null where the text holds no quote and SQL cuts it."""


@dataclass(frozen=True)
class TextRecords:
    """The rows of a text file and how to cut them.

    Attributes:
        layout: Positions of the columns.
        batches: Tables of schema ``LINES`` in file order; blank lines are left out, the header is not.
    """

    layout: Layout
    batches: Iterator[pa.Table]


def text_records(source: TextSource, *, format: str, columns: Columns) -> TextRecords:
    """Open a text file: read its layout from its first line and prepare its rows.

    Args:
        source: The file.
        format: One of ``layout.FORMATS`` other than ``parquet``.
        columns: Names of the columns in a header.

    Returns:
        Layout and rows; the rows are read as they are asked for.

    Raises:
        DataError: The file has no line that is not blank, or its first one does not fit the format.
    """
    blocks = source.blocks()
    for block in blocks:
        for number, line in enumerate(block.text.split("\n"), start=block.first_line):
            if line.strip():
                layout = read_layout(source.path, line, line=number, format=format, columns=columns)
                return TextRecords(layout, _batches(source.path, _again(block, blocks), layout))
    raise DataError(
        f"{source.path} holds no text but blank lines.", remedy="Check the export or download that wrote it."
    )


def _again(block: Block, rest: Iterator[Block]) -> Iterator[Block]:
    yield block
    yield from rest


def _batches(path: Path, blocks: Iterator[Block], layout: Layout) -> Iterator[pa.Table]:
    for block in blocks:
        if layout.quoted and '"' in block.text:
            # A quoted field may hold line ends: from here on the reader of records takes over.
            yield from _quoted_batches(path, _again(block, blocks), block.first_line, layout)
            return
        yield _plain_batch(block)


def _plain_batch(block: Block) -> pa.Table:
    lines = pc.split_pattern(pa.array([block.text], pa.large_string()), "\n").values[:-1]
    numbers = np.arange(block.first_line, block.first_line + len(lines), dtype=np.int64)
    table = pa.table(
        [pa.array(numbers), lines.cast(pa.string()), pa.nulls(len(lines), LINES.field("fields").type)],
        schema=LINES,
    )
    return table.filter(pc.not_equal(pc.utf8_trim_whitespace(table["text"]), ""))


def _quoted_batches(path: Path, blocks: Iterator[Block], first_line: int, layout: Layout) -> Iterator[pa.Table]:
    records = _quoted_records(path, blocks, first_line, layout)
    while chunk := list(islice(records, BATCH_ROWS)):
        lines, texts, fields = zip(*chunk, strict=True)
        yield pa.table([pa.array(lines), pa.array(texts), pa.array(fields, LINES.field("fields").type)], schema=LINES)


def _quoted_records(
    path: Path, blocks: Iterator[Block], first_line: int, layout: Layout
) -> Iterator[tuple[int, str, list[str]]]:
    """Yield line number, text and fields of every record; no fields where its quoting is broken."""
    latest = ""

    def lines() -> Iterator[str]:
        nonlocal latest
        for block in blocks:
            for line in io.StringIO(block.text, newline="\n"):
                latest = line
                yield line

    reader = csv.reader(lines(), delimiter=layout.delimiter or ",", strict=True)
    while True:
        start = first_line + reader.line_num
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            end = first_line + reader.line_num - 1
            if end > start or not str(error).endswith(("after '\"'",)):
                raise _unclosed(path, start, end, error) from None
            yield start, latest.rstrip("\n"), []
            continue
        if fields and (len(fields) > 1 or fields[0].strip()):
            yield start, (layout.delimiter or ",").join(fields), fields


def _unclosed(path: Path, start: int, end: int, error: Exception) -> DataError:
    return DataError(
        f"{path}, line {start}: a quote opened in this row is not closed where the row ends; "
        f"it swallows the lines up to {end} ({error}).",
        remedy='Close the quote, or write two ("") for a literal one.',
    )


@dataclass(frozen=True)
class ParquetRecords:
    """The rows of a Parquet file.

    Attributes:
        batches: Tables with columns ``line`` (row number from 1), ``user``, ``item`` and ``stamp``
            (text, a number, or null without timestamps).
        dated: Whether timestamps came as date or time of day without a zone and were taken as UTC.
    """

    batches: Iterator[pa.Table]
    dated: bool


def parquet_records(path: Path, *, columns: Columns) -> ParquetRecords:
    """Open a Parquet file and check its columns.

    Args:
        path: One file.
        columns: Names of the columns.

    Returns:
        Rows of these columns; they are read as they are asked for.

    Raises:
        DataError: It is no Parquet file, lacks a column, or a column's type is no id or no time.
    """
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _bad_parquet(path, error) from None
    find_columns(path, schema.names, columns, line=None)
    wrong = [
        f"{name!r} is {_value_type(schema, name)}, expected {expected}"
        for name, fits, expected in (
            (columns.user, _is_id, "text or an integer"),
            (columns.item, _is_id, "text or an integer"),
            (columns.timestamp, _is_time, "a number, a timestamp, a date or text"),
        )
        if name is not None and not fits(_value_type(schema, name))
    ]
    if wrong:
        file.close()
        raise DataError(
            f"{path}: {'; '.join(wrong)}.",
            remedy="Write the column with such a type: an id that went through a floating-point or nested "
            "column is not the owner's id any more.",
        )
    dated = False
    if columns.timestamp is not None:
        kind = _value_type(schema, columns.timestamp)
        dated = pa.types.is_date(kind) or (pa.types.is_timestamp(kind) and kind.tz is None)
    return ParquetRecords(_parquet_batches(path, file, columns), dated)


def _parquet_batches(path: Path, file: Any, columns: Columns) -> Iterator[pa.Table]:
    line = 1
    with file:
        batches = file.iter_batches(BATCH_ROWS, columns=columns.names())
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (pa.ArrowException, OSError, ValueError) as error:
                raise _bad_parquet(path, error) from None
            if columns.timestamp is None:
                stamp = pa.nulls(batch.num_rows, pa.float64())
            else:
                stamp = _seconds(batch.column(columns.timestamp))
            yield pa.table(
                {
                    "line": pa.array(np.arange(line, line + batch.num_rows, dtype=np.int64)),
                    "user": pc.cast(batch.column(columns.user), pa.string()),
                    "item": pc.cast(batch.column(columns.item), pa.string()),
                    "stamp": stamp,
                }
            )
            line += batch.num_rows


def _seconds(column: pa.Array) -> pa.Array:
    """Turn a column of times into numbers, seconds for dates and timestamps; text stays text."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if _is_text(kind):
        return column.cast(pa.string())
    if pa.types.is_temporal(kind):
        micro = pc.cast(column, pa.timestamp("us"), safe=False)
        return pc.divide(pc.cast(pc.cast(micro, pa.int64()), pa.float64(), safe=False), 1e6)
    return pc.cast(column, pa.float64(), safe=False)


def _value_type(schema: pa.Schema, name: str) -> Any:
    kind = schema.field(name).type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_id(kind: Any) -> bool:
    return _is_text(kind) or bool(pa.types.is_integer(kind))


def _is_time(kind: Any) -> bool:
    types = pa.types
    number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
    return _is_text(kind) or bool(number or types.is_timestamp(kind) or types.is_date(kind))


def _bad_parquet(path: Path, error: Exception) -> DataError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DataError(
        f"{path} cannot be read as Parquet: {first.rstrip('.')}.",
        remedy="Check that the file is complete and that the format is right.",
    )
