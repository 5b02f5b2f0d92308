"""What a foreign file of interactions looks like: its format, and which column is which."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from p2rec_core.errors import DataError
from storage.ingest.layout import PLAIN, Columns, Dialect, check_header, find_columns, positions, read_layout
from storage.ingest.source import TextSource, check_file

_PARQUET = b"PAR1"
_TYPED = re.compile(r"[^\s:]+:(token|token_seq|float|float_seq)")
_DELIMITERS = {"csv": ",", "tsv": "\t", "recbole": "\t"}
_OTHER_DELIMITERS = (";", "|")

_USER = (
    *("user_id", "user", "uid", "visitor_id", "visitor", "customer_id", "customer", "client_id", "member_id"),
    *("account_id", "reviewer_id", "reader_id", "session_id", "session", "sid"),
)
_ITEM = (
    *("item_id", "item", "iid", "product_id", "product", "sku", "article_id", "article", "asin", "parent_asin"),
    *("movie_id", "track_id", "song_id", "book_id", "isbn", "business_id", "listing_id", "offer_id", "content_id"),
    *("video_id", "news_id", "page_id", "stock_code"),
)
_TIME = (
    *("timestamp", "time", "ts", "unix_timestamp", "unix_review_time", "unix_time", "event_time", "created_at"),
    *("datetime", "date_time", "date", "event_date", "order_date", "invoice_date", "when"),
)


@dataclass(frozen=True)
class Detected:
    """What a file seems to be.

    Attributes:
        format: One of ``layout.FORMATS``.
        columns: Which column is which; the defaults where the format has no names.
        named: Whether the format has columns with names.
        dialect: How the file departs from its format.
    """

    format: str
    columns: Columns
    named: bool
    dialect: Dialect = PLAIN


@dataclass(frozen=True)
class Wanted:
    """What the user says of a file; None is to be found out.

    Attributes:
        format: One of ``layout.FORMATS``.
        user: Column of the user's id.
        item: Column of the item's id.
        timestamp: Column of the time.
        untimed: Whether the order of the file counts and no column of the time is looked for.
        delimiter: What separates fields.
        header: Whether the first line names the columns.
    """

    format: str | None = None
    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    untimed: bool = False
    delimiter: str | None = None
    header: bool = True


def detect(path: Path, wanted: Wanted = Wanted()) -> Detected:
    """Recognise a file's format by its content, and its columns by their names.

    Args:
        path: One file; text may be gzip.
        wanted: What is known already.

    Returns:
        The format and the columns, which are in the file.

    Raises:
        DataError: The file cannot be read, has no header, or no column looks like the user's, the item's or, unless
            the file's order counts, the time.
    """
    check_file(path)
    with path.open("rb") as stream:
        parquet = stream.read(4) == _PARQUET
    if wanted.format == "parquet" or (wanted.format is None and parquet):
        names = _parquet_names(path)
        columns = _chosen(path, names, wanted)
        find_columns(path, names, columns, line=None)
        return Detected("parquet", columns, named=True)
    line, first = _first_line(path)
    format = wanted.format or _format(first, wanted.delimiter)
    dialect = Dialect(wanted.delimiter or (_delimiter(first) if format == "csv" else None), wanted.header)
    if format in _DELIMITERS:
        cells = _header(first, format, dialect)
        if not wanted.header:
            columns = _chosen(path, positions(len(cells)), wanted, shown=cells)
        else:
            columns = _chosen(path, cells, wanted, line=line if format != "recbole" else None)
    else:
        timed = format == "movielens" and not wanted.untimed
        columns = Columns("user_id", "item_id", "timestamp" if timed else None)
    read_layout(path, first, line=line, format=format, columns=columns, dialect=dialect)
    return Detected(format, columns, named=format in _DELIMITERS, dialect=dialect)


def _first_line(path: Path) -> tuple[int, str]:
    for block in TextSource(path, block_bytes=1 << 16).blocks():
        for number, text in enumerate(block.text.split("\n"), start=block.first_line):
            if text.strip():
                return number, text
    raise DataError(f"{path} holds no text but blank lines.", remedy="Check the export or download that wrote it.")


def _format(first: str, delimiter: str | None) -> str:
    if delimiter is not None:
        return "csv"
    if first.count("::") >= 2:
        return "movielens"
    if "\t" in first:
        typed = all(_TYPED.fullmatch(name.strip()) for name in first.split("\t"))
        return "recbole" if typed else "tsv"
    return "csv" if any(mark in first for mark in (",", *_OTHER_DELIMITERS)) else "sequences"


def _delimiter(first: str) -> str | None:
    """What separates the fields of a CSV file more often than a comma; None where nothing does."""
    mark = max(_OTHER_DELIMITERS, key=first.count)
    return mark if first.count(mark) > first.count(",") else None


def _header(first: str, format: str, dialect: Dialect) -> list[str]:
    """Names in a header, without RecBole's types; what is wrong with it, ``read_layout`` says."""
    delimiter = dialect.delimiter or _DELIMITERS[format]
    cells = next(csv.reader([first], delimiter=delimiter), []) if '"' in first else first.split(delimiter)
    names = [cell.strip() for cell in cells]
    return [name.partition(":")[0] for name in names] if format == "recbole" else names


def _parquet_names(path: Path) -> list[str]:
    try:
        return list(pq.read_schema(path).names)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet: {str(error).splitlines()[0].rstrip('.')}.",
            remedy="Check that the file is complete and that the format is right.",
        ) from error


def _chosen(
    path: Path, names: Sequence[str], wanted: Wanted, *, line: int | None = None, shown: Sequence[str] = ()
) -> Columns:
    """The columns that are wanted, or else those whose names are usual.

    Args:
        path: The file, for messages.
        names: The names that it has.
        wanted: What is known already.
        line: Line of the header that may be a row instead; None where that cannot be.
        shown: What is in the first row, where the names are positions.
    """
    user = wanted.user or _usual(names, _USER)
    item = wanted.item or _usual([name for name in names if name != user], _ITEM)
    stamp = None if wanted.untimed else wanted.timestamp or _usual(names, _TIME)
    given = replace(wanted, user=user, item=item, timestamp=stamp)
    if line is not None:
        check_header(path, names, (user, item) if wanted.untimed else (user, item, stamp), line=line)
    for kind, option, name in (
        ("the users' ids", "--user-column", given.user),
        ("the items' ids", "--item-column", given.item),
        ("the times", "--timestamp-column", given.timestamp),
    ):
        if name is None and not (option == "--timestamp-column" and wanted.untimed):
            values = [f" ({cell})" for cell in shown] or [""] * len(names)
            listed = ", ".join(f"{name!r}{value:.40}" for name, value in zip(names[:30], values, strict=False))
            order = ", or `--timestamp-column none` to keep the order of the file" if option.startswith("--t") else ""
            raise DataError(
                f"{path}: no column has a name that is usual for {kind}; there are {listed}.",
                remedy=f"Name it with {option} NAME{order}.",
            )
    return Columns(given.user or "", given.item or "", given.timestamp)


def _usual(names: Sequence[str], usual: Sequence[str]) -> str | None:
    """The first of the usual names that is there, whatever its case and separators."""
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in reversed(names)}
    return next((plain[key] for name in usual if (key := name.replace("_", "")) in plain), None)
