"""Which field of a line is the user, which the item, which the time."""

import csv
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from p2rec_core.errors import DataError
from storage.ingest.dates import is_date

MAX_ID_BYTES = 1024
"""Longest id."""

FORMATS = ("sequences", "csv", "tsv", "parquet", "recbole", "movielens")
_DELIMITERS = {"csv": ",", "tsv": "\t", "recbole": "\t", "movielens": "::"}
_HEADER_WORDS = re.compile(r"(user|item|uid|iid|user_?id|item_?id|session_?id|timestamp)(:\w+)?", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?([eE][+-]?\d+)?")
_CLOCK_DIGITS = 9
"""Digits of Unix seconds since 1973: no name of a column is such a number."""
_SUGGESTIONS = (
    ("::", "fields are separated by '::': set the format to 'movielens'."),
    ("\t", "fields are separated by tabs: set the format to 'tsv'."),
    (";", "fields are separated by ';': set the format to 'csv' and the delimiter to ';' (--delimiter ';')."),
    (",", "fields are separated by commas: set the format to 'csv'."),
    ("|", "fields are separated by '|': set the format to 'csv' and the delimiter to '|' (--delimiter '|')."),
    (" ", "fields are separated by spaces: 'user item item …' is the format 'sequences'."),
)


@dataclass(frozen=True)
class Columns:
    """Names under which a file holds what is needed.

    Attributes:
        user: Column of the user's id.
        item: Column of the item's id.
        timestamp: Column of the time; None keeps the order of the file.
    """

    user: str
    item: str
    timestamp: str | None

    def names(self) -> list[str]:
        """List the columns that must be there."""
        return [self.user, self.item, *([self.timestamp] if self.timestamp is not None else [])]


@dataclass(frozen=True)
class Dialect:
    """How a CSV or TSV file departs from its format.

    Attributes:
        delimiter: What separates fields; None is that of the format.
        header: Whether the first line names the columns; without, they are called by their positions, from ``1``.
    """

    delimiter: str | None = None
    header: bool = True


PLAIN = Dialect()
"""Fields and header are those of the format."""


@dataclass(frozen=True)
class Layout:
    """How one line of a text file is cut into fields.

    Attributes:
        delimiter: What separates fields; None is ``user item item …`` separated by white space.
        header_line: Line number of the header; 0 without one.
        header: Names as they stand in the header; empty without one.
        n_fields: Fields every row must have; 0 is any number.
        user: Position of the user's id, from 0.
        item: Position of the item's id.
        timestamp: Position of the time, or None.
        quoted: Whether ``"`` quotes a field.
        dated: Whether times are dates in ISO 8601 instead of numbers.
    """

    delimiter: str | None
    header_line: int = 0
    header: tuple[str, ...] = ()
    n_fields: int = 0
    user: int = 0
    item: int = 1
    timestamp: int | None = None
    quoted: bool = False
    dated: bool = False


def check_dialect(path: Path, format: str, dialect: Dialect) -> None:
    """Refuse a dialect of a format that has none.

    Raises:
        DataError: It departs from a format other than CSV and TSV.
    """
    if dialect != PLAIN and format not in ("csv", "tsv"):
        what = "a delimiter" if dialect.delimiter is not None else "a header or none"
        raise DataError(
            f"{path}: format {format!r} has {what} of its own, and no other can be set.",
            remedy="Set the format to 'csv' or 'tsv', or leave delimiter and header away.",
        )


def read_layout(
    path: Path, first: str, *, line: int, format: str, columns: Columns, dialect: Dialect = PLAIN
) -> Layout:
    """Work out the layout of a text file from its first line that is not blank.

    Args:
        path: The file, for messages.
        first: That line without its end.
        line: Its number.
        format: One of ``FORMATS`` other than ``parquet``.
        columns: The names to look for in a header.
        dialect: How a CSV or TSV file departs from its format.

    Returns:
        The layout.

    Raises:
        DataError: The line does not fit the format: no header, a missing or doubled column, another
            delimiter.
    """
    check_dialect(path, format, dialect)
    if format == "sequences":
        return _sequences(path, first, line=line)
    delimiter = dialect.delimiter or _DELIMITERS[format]
    if format == "movielens":
        return _movielens(path, first, line=line, timed=columns.timestamp is not None)
    if delimiter not in first and (hint := _suggestion(first, format, delimiter)):
        raise DataError(
            f"{path}, line {line}: format {format!r} expects {_name(delimiter)}, but {hint[0]} Line: {_shown(first)}.",
            remedy=hint[1],
        )
    if format == "csv":
        cells = _quoted_header(path, first, line=line, delimiter=delimiter)
    else:
        cells = (
            first.split(delimiter) if '"' not in first else _quoted_header(path, first, line=line, delimiter=delimiter)
        )
    header = tuple(name.strip() for name in cells)
    if not dialect.header:
        names, line, header = positions(len(cells)), 0, ()
    elif format == "recbole":
        names = _recbole_names(path, header, line=line)
    else:
        names = list(header)
        check_header(path, names, columns.names(), line=line)
    user, item, timestamp = find_columns(path, names, columns, line=line)
    return Layout(
        delimiter=delimiter,
        header_line=line,
        header=header,
        n_fields=len(names),
        user=user,
        item=item,
        timestamp=timestamp,
        quoted=format in ("csv", "tsv"),
    )


def find_columns(
    path: Path, names: Sequence[str], columns: Columns, *, line: int | None
) -> tuple[int, int, int | None]:
    """Map columns by name.

    Args:
        path: The file, for messages.
        names: The names that the file has, in its order.
        columns: The names that are needed.
        line: Line of a text header; 0 where there is none, None where the names come from a schema.

    Returns:
        Positions of user, item and, unless it is not wanted, timestamp.

    Raises:
        DataError: A name is missing or stands there twice, or one column would serve twice.
    """
    where = f"{path}, line {line}" if line else str(path)
    needed = columns.names()
    if len(set(needed)) < len(needed):
        raise DataError(
            f"User, item and timestamp need a column each, but {', '.join(map(repr, needed))} were named.",
            remedy="Name different columns.",
        )
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise DataError(
            f"{where}: column {doubled[0]!r} stands in the header {names.count(doubled[0])} times.",
            remedy="Give every column a name of its own.",
        )
    missing = [name for name in needed if name not in names]
    if missing:
        raise _missing(where, names, missing[0], columns, headless=line == 0)
    positions = [names.index(name) for name in needed]
    return positions[0], positions[1], positions[2] if columns.timestamp is not None else None


def positions(n: int) -> list[str]:
    """Names of columns without a header."""
    return [str(place) for place in range(1, n + 1)]


def check_header(path: Path, names: Sequence[str], chosen: Sequence[str | None], *, line: int) -> None:
    """Refuse a header that is a row: whoever names columns by its values loses an interaction.

    Args:
        path: The file, for messages.
        names: The line's cells.
        chosen: Names of the columns that are needed; None is to be found out.
        line: Its number.

    Raises:
        DataError: It holds a number as long as a time, only numbers that do not count from 0 or 1, a date as one of
            the chosen names, or any number or date where one of these is not there.
    """
    numbers = [name for name in names if _NUMBER.fullmatch(name)]
    clock = any(len(re.split("[.,eE]", name)[0].lstrip("+-")) >= _CLOCK_DIGITS for name in numbers)
    counted = [*names] in ([str(place) for place in range(len(names))], positions(len(names)))
    dates = [name for name in names if is_date(name)]
    doubtful = (numbers or dates) if any(name not in names for name in chosen) else {*dates} & {*chosen}
    if clock or doubtful or (len(numbers) == len(names) and not counted):
        raise DataError(
            f"{path}, line {line}: there is no header; the first line looks like data: {_shown(', '.join(names))}.",
            remedy="Say so with --no-header (ingest.header = false) and name the columns by position, such as "
            "--user-column 1 --item-column 2 --timestamp-column 3; or add a first line that names them.",
        )


def _missing(where: str, names: Sequence[str], name: str, columns: Columns, *, headless: bool) -> DataError:
    near = {candidate.lower(): candidate for candidate in names}
    guess = difflib.get_close_matches(name.lower(), list(near), n=1, cutoff=0.5)
    hint = f" Did you mean {near[guess[0]]!r}?" if guess else ""
    kind = "user" if name == columns.user else "item" if name == columns.item else "timestamp"
    how = f"{'by its position' if headless else 'as the file does'} with --{kind}-column"
    remedy = f"Name the column {how} (ingest.{kind}_column); `p2rec init` finds the usual names by itself."
    if kind == "timestamp":
        remedy = (
            f"Name the column {how}, or set timestamp_column to null (--timestamp-column none) to keep the "
            "file's order."
        )
    listed = ", ".join(map(repr, names[:30]))
    return DataError(f"{where}: there is no column {name!r}; there are {listed}.{hint}", remedy=remedy)


def _sequences(path: Path, first: str, *, line: int) -> Layout:
    tokens = first.split()
    if any(_HEADER_WORDS.fullmatch(token.strip('",;')) for token in re.split(r"[\s,;]+", first)):
        raise DataError(
            f"{path}, line {line}: format 'sequences' has no header, but the line reads {_shown(first)}.",
            remedy="Set the format to 'csv', 'tsv' or 'recbole', or remove the line.",
        )
    lone = len(tokens) == 1 or all(token.endswith((",", ";")) for token in tokens[:-1])
    if lone and any(mark in first for mark in ("::", ",", ";", "|")):
        hint = _suggestion(first, "sequences")
        if hint:
            raise DataError(
                f"{path}, line {line}: format 'sequences' expects white space, but {hint[0]} Line: {_shown(first)}.",
                remedy=hint[1],
            )
    return Layout(delimiter=None)


def _movielens(path: Path, first: str, *, line: int, timed: bool) -> Layout:
    fields = first.split("::")
    if len(fields) != 4:
        hint = _suggestion(first, "movielens")
        raise DataError(
            f"{path}, line {line}: format 'movielens' expects user::item::rating::timestamp, "
            f"but the line reads {_shown(first)}.",
            remedy=hint[1] if hint else "Set the format to the file's own.",
        )
    return Layout(delimiter="::", n_fields=4, user=0, item=1, timestamp=3 if timed else None)


def _quoted_header(path: Path, first: str, *, line: int, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([first], delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{path}, line {line}: the header cannot be read ({error}): {_shown(first)}.",
            remedy="Close every quote in the header, on one line.",
        ) from None


def _recbole_names(path: Path, names: Sequence[str], *, line: int) -> list[str]:
    bare = [name for name in names if ":" not in name]
    if bare:
        raise DataError(
            f"{path}, line {line}: a RecBole header names every field as name:type, but {bare[0]!r} has no type.",
            remedy="Write for example user_id:token, item_id:token, timestamp:float; or set the format to 'tsv'.",
        )
    return [name.partition(":")[0] for name in names]


def _suggestion(first: str, format: str, delimiter: str | None = None) -> tuple[str, str] | None:
    """Recognise another delimiter than the one expected: what is there, and what to do about it."""
    for mark, sentence in _SUGGESTIONS:
        if (
            mark in first
            and mark != (delimiter or _DELIMITERS.get(format))
            and not (mark == " " and format == "sequences")
        ):
            there, _, remedy = sentence.partition(": ")
            if mark == "\t" and ":token" in first:
                remedy = "set the format to 'recbole'."
            if mark == _DELIMITERS.get(format):
                remedy = "leave the delimiter away."
            return f"{there}.", remedy[0].upper() + remedy[1:]
    return None


def _name(delimiter: str) -> str:
    return {",": "commas", "\t": "tabs"}.get(delimiter, repr(delimiter))


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "…")
