"""Rows of a foreign file as Arrow batches that still carry their line numbers."""

import contextlib
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.csv import ConvertOptions, ParseOptions, ReadOptions, read_csv

from p2rec_core.errors import DataError
from storage.ingest.dates import is_date, is_number, seconds_of_dates, seconds_of_instants
from storage.ingest.layout import MAX_ID_BYTES, PLAIN, Columns, Dialect, Layout, find_columns, read_layout
from storage.ingest.source import Block, TextSource

BATCH_ROWS = 1 << 17

LINES = pa.schema([("line", pa.int64()), ("text", pa.string()), ("fields", pa.list_(pa.string()))])
"""A batch of text rows; ``fields`` is null where the text holds no quote and SQL cuts it."""

CLEAN = pa.schema([("line", pa.int64()), ("user_id", pa.string()), ("item_id", pa.string()), ("stamp", pa.float64())])
"""A batch of rows that are interactions as they stand; ``stamp`` is null without timestamps."""

ZONELESS = CLEAN.with_metadata({"zone": "none"})
"""The same, where ``stamp`` was made of dates without an offset."""

_DOUBTFUL = " \t\0"
"""Characters on account of which rows are looked at one by one, where they do not separate fields."""
_TELLING_ROWS = 1000
"""Rows of which one tells whether times are numbers or dates."""

_UNIT_SEPARATOR = "\x1f"
"""ASCII's own, in place of a delimiter of several characters."""


@dataclass(frozen=True)
class TextRecords:
    """The rows of a text file and how to cut them.

    Attributes:
        layout: Positions of the columns.
        batches: Tables of schema ``LINES`` or ``CLEAN`` in file order, without header and blank lines.
    """

    layout: Layout
    batches: Iterator[pa.Table]


def text_records(source: TextSource, *, format: str, columns: Columns, dialect: Dialect = PLAIN) -> TextRecords:
    """Open a text file: read its layout from its first line and prepare its rows.

    Args:
        source: The file.
        format: One of ``layout.FORMATS`` other than ``parquet``.
        columns: Names of the columns in a header.
        dialect: How a CSV or TSV file departs from its format.

    Returns:
        Layout and rows; the rows are read as they are asked for.

    Raises:
        DataError: The file has no line that is not blank, or its first one does not fit the format.
    """
    blocks = source.blocks()
    for block in blocks:
        for number, line in enumerate(block.text.split("\n"), start=block.first_line):
            if line.strip():
                layout = read_layout(source.path, line, line=number, format=format, columns=columns, dialect=dialect)
                return _told(source.path, chain([_below(block, layout.header_line)], blocks), layout)
    raise DataError(
        f"{source.path} holds no text but blank lines.", remedy="Check the export or download that wrote it."
    )


def _told(path: Path, blocks: Iterator[Block], layout: Layout) -> TextRecords:
    """Rows whose times are dates if the first one that tells is a date, among ``_TELLING_ROWS``, else numbers."""
    held: list[Block] = []
    if layout.timestamp is not None:
        for block in blocks:
            held.append(block)
            dated = _dated(block, layout)
            if dated is not None or block.first_line > _TELLING_ROWS:
                layout = replace(layout, dated=bool(dated))
                break
    return TextRecords(layout, _batches(path, chain(held, blocks), layout))


def _dated(block: Block, layout: Layout) -> bool | None:
    """Whether the first time of a block that is a date or a number is a date; None where there is none."""
    lines = block.text.split("\n", _TELLING_ROWS)[:_TELLING_ROWS]
    delimiter = layout.delimiter or ""
    rows = csv.reader(lines, delimiter=delimiter) if layout.quoted else (line.split(delimiter) for line in lines)
    with contextlib.suppress(csv.Error):
        for fields in rows:
            stamp = fields[layout.timestamp or 0].strip(" \t") if len(fields) == layout.n_fields else ""
            if is_date(stamp) or is_number(stamp):
                return is_date(stamp)
    return None


def _below(block: Block, line: int) -> Block:
    """What follows a line of the block; all of it where the line is before it."""
    n = max(line - block.first_line + 1, 0)
    return Block(block.first_line + n, block.text.split("\n", n)[n])


def _batches(path: Path, blocks: Iterator[Block], layout: Layout) -> Iterator[pa.Table]:
    for block in blocks:
        if layout.quoted and '"' in block.text:
            # A quoted field may hold line ends: from here on the reader of records takes over.
            yield from _quoted_batches(path, chain([block], blocks), block.first_line, layout)
            return
        clean = _clean_batch(block, layout)
        yield _plain_batch(block) if clean is None else clean


def _clean_batch(block: Block, layout: Layout) -> pa.Table | None:
    """The rows of a block, schema ``CLEAN``, cut and read at once.

    Returns:
        None where a row is or may be anything but fields without white space around ids, usable ids, and a finite
        number or a date: such a block is cut and judged row by row.
    """
    places = [place for place in (layout.user, layout.item, layout.timestamp) if place is not None]
    text, delimiter = block.text, layout.delimiter or ""
    if len(delimiter) > 1 and _UNIT_SEPARATOR not in text:
        text, delimiter = text.replace(delimiter, _UNIT_SEPARATOR), _UNIT_SEPARATOR
    if len(delimiter) != 1 or len({*places}) < len(places) or not text:
        return None
    # a date may hold a space: the ids are looked at below
    if any(character in text for character in _DOUBTFUL if character not in (delimiter, " " if layout.dated else "")):
        return None
    data = text.encode()
    names = [str(place) for place in range(layout.n_fields)]
    time = pa.string() if layout.dated else pa.float64()
    types = dict(zip((names[place] for place in places), (pa.string(), pa.string(), time), strict=False))
    try:
        table = read_csv(
            pa.py_buffer(data),
            read_options=ReadOptions(column_names=names, block_size=len(data) + 1),
            parse_options=ParseOptions(delimiter=delimiter, quote_char=False, ignore_empty_lines=False),
            convert_options=ConvertOptions(
                column_types=types, include_columns=list(types), null_values=[], check_utf8=False
            ),
        )
    except pa.ArrowInvalid:
        return None
    user, item, *stamps = table.columns
    header = layout.header
    if header and pc.any(pc.and_(pc.equal(user, header[layout.user]), pc.equal(item, header[layout.item]))).as_py():
        return None
    if not layout.dated:
        return _clean_rows(block.first_line, user, item, stamps[0] if stamps else None)
    times = seconds_of_dates(stamps[0])
    if times is None or not (_bare(user) and _bare(item)):
        return None
    rows = _clean_rows(block.first_line, user, item, times[0])
    return rows if rows is None or not times[1] else rows.cast(ZONELESS)


def _clean_rows(first_line: int, user: Any, item: Any, stamp: Any) -> pa.Table | None:
    """Rows of schema ``CLEAN``, or None if an id may not be used or a time is no finite number.

    Args:
        first_line: Number of the first.
        user: Ids as text.
        item: Likewise.
        stamp: Times, float64; None without.
    """
    if not (_usable(user) and _usable(item)):
        return None
    if stamp is None:
        stamp = pa.nulls(len(user), pa.float64())
    elif stamp.null_count or not pc.all(pc.is_finite(stamp)).as_py():
        return None
    return pa.table([_numbers(first_line, len(user)), user, item, stamp], schema=CLEAN)


def _numbers(first: int, n: int) -> pa.Array:
    """Numbers of so many lines."""
    return pa.array(np.arange(first, first + n, dtype=np.int64))


def _usable(ids: Any) -> bool:
    """Whether every one of these texts may be an id."""
    if not len(ids) or ids.null_count:
        return False
    length = pc.min_max(pc.binary_length(ids)).as_py()
    return length["min"] >= 1 and length["max"] <= MAX_ID_BYTES and not pc.any(pc.utf8_is_space(ids)).as_py()


def _plain_batch(block: Block) -> pa.Table:
    lines = pc.split_pattern(pa.array([block.text], pa.large_string()), "\n").values[:-1]
    fields = pa.nulls(len(lines), LINES.field("fields").type)
    table = pa.table([_numbers(block.first_line, len(lines)), lines.cast(pa.string()), fields], schema=LINES)
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
        batches: Tables of schema ``CLEAN``, or with columns ``line`` (row number from 1), ``user``, ``item`` and
            ``stamp`` (text, a number, or null without timestamps).
        zoneless: Whether timestamps came as date or time of day without a zone and were taken as UTC.
        dated: Whether times are texts that are dates in ISO 8601.
    """

    batches: Iterator[pa.Table]
    zoneless: bool
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
    zoneless = dated = False
    if columns.timestamp is not None:
        kind = _value_type(schema, columns.timestamp)
        zoneless = pa.types.is_date(kind) or (pa.types.is_timestamp(kind) and kind.tz is None)
        dated = _is_text(kind) and _texts_are_dates(path, file, columns.timestamp)
    return ParquetRecords(_parquet_batches(path, file, columns), zoneless, dated)


def _texts_are_dates(path: Path, file: Any, column: str) -> bool:
    """Whether the first text that is a date or a number is a date, as ``_told`` has it."""
    try:
        first = next(file.iter_batches(_TELLING_ROWS, columns=[column]), None)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _bad_parquet(path, error) from None
    texts = () if first is None else (text.strip(" \t") for text in first.column(0).to_pylist() if text is not None)
    return next((is_date(text) for text in texts if is_date(text) or is_number(text)), False)


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
            user, item = (pc.cast(batch.column(name), pa.string()) for name in (columns.user, columns.item))
            stamp = None if columns.timestamp is None else _seconds(batch.column(columns.timestamp))
            rows = None
            if stamp is None or pa.types.is_float64(stamp.type):
                rows = _clean_rows(line, user, item, stamp)
            if rows is None or not (_bare(user) and _bare(item)):
                numbers = _numbers(line, batch.num_rows)
                times = pa.nulls(batch.num_rows, pa.float64()) if stamp is None else stamp
                rows = pa.table({"line": numbers, "user": user, "item": item, "stamp": times})
            yield rows
            line += batch.num_rows


def _bare(ids: Any) -> bool:
    """Whether these texts, none of them null, have no white space around them, no line end and no NUL."""
    trimmed = pc.ascii_trim(ids, characters=" \t")
    held = (pc.any(pc.match_substring(ids, character)).as_py() for character in "\n\0")
    return pc.sum(pc.binary_length(trimmed)).as_py() == pc.sum(pc.binary_length(ids)).as_py() and not any(held)


def _seconds(column: pa.Array) -> pa.Array:
    """Turn a column of times into numbers, seconds for dates and timestamps; text stays text."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if _is_text(kind):
        return column.cast(pa.string())
    if pa.types.is_temporal(kind):
        return seconds_of_instants(column)
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
