"""Items' texts: a table of identifiers and words, put beside a catalogue."""

import contextlib
import csv
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from p2rec_core.errors import DataError

_MAX_FIELD_CHARACTERS = 16 << 20


@dataclass(frozen=True)
class ItemTexts:
    """The text of every item of a catalogue.

    Attributes:
        texts: One per item, in the catalogue's order; empty where there is none.
        n_missing: Items of the catalogue without a text.
        n_unknown: Rows of the file that are about items outside the catalogue.
    """

    texts: list[str]
    n_missing: int
    n_unknown: int


def read_item_texts(
    path: Path, item_ids: Sequence[str], columns: Sequence[str] | None, *, normalise_ids: bool = False
) -> ItemTexts:
    """Read the texts of a catalogue's items.

    Identifiers are read as those of interactions are: without blanks around them. Empty lines are passed over.

    Args:
        path: A ``.tsv`` or ``.csv`` file, UTF-8, with a header; its first column is the item's identifier.
        item_ids: Identifiers of the catalogue, in order.
        columns: Columns whose values make the text, joined by ``. ``; None takes all but the first.
        normalise_ids: Whether identifiers are brought into Unicode's composed form (NFC), as the catalogue's were.

    Raises:
        DataError: The file cannot be read, has a field that is too long, lacks a column, has a row of another width or
            an item twice, or none of its items is in the catalogue.
    """
    if path.suffix.lower() not in (".tsv", ".csv"):
        raise DataError(
            f"The file of item texts {path} is neither .tsv nor .csv.", remedy="Write it as tab-separated text."
        )
    rows = _rows(path)
    if len(rows) < 2 or len(rows[0][1]) < 2:
        raise DataError(
            f"The file of item texts {path} has no rows of an identifier and a text.",
            remedy="Give it a header and one row per item, e.g. item_id<TAB>title.",
        )
    (_, header), *body = rows
    places = _places(path, header, columns)
    found: dict[str, str] = {}
    for line, row in body:
        if len(row) != len(header):
            raise DataError(
                f"{path}, line {line}: {len(row)} fields where the header has {len(header)}.",
                remedy="Give every row the header's fields.",
            )
        item = row[0].strip(" \t")
        if normalise_ids:
            item = unicodedata.normalize("NFC", item)
        if item in found:
            raise DataError(f"{path}, line {line}: the item {item!r} is there twice.", remedy="Keep one row of it.")
        found[item] = ". ".join(value for place in places if (value := " ".join(row[place].split())))
    texts = [found.get(item, "") for item in item_ids]
    n_known = sum(item in found for item in item_ids)
    if not n_known:
        raise DataError(
            f"None of the {len(found)} items in {path} is in the catalogue, whose first is {item_ids[0]!r}; "
            f"the file's first is {next(iter(found))!r}.",
            remedy="Use the interactions' item identifiers in the first column.",
        )
    return ItemTexts(texts, sum(not text for text in texts), len(found) - n_known)


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """The rows of a file that are not empty, and in which line each of them ends."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file, _long_fields():
            reader = reader_of(file, path)
            return [(reader.line_num, row) for row in reader if not is_empty(row)]
    except csv.Error as error:
        raise DataError(
            f"The file of item texts {path}, line {reader.line_num}, cannot be read: {error}.",
            remedy=f"Check quotation marks and line ends; a field has at most {_MAX_FIELD_CHARACTERS:,} characters.",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The file of item texts {path} cannot be read: {error}.", remedy="Check the file.") from error


def reader_of(file: TextIO, path: Path) -> Any:
    """The csv module's reader of an open file, by the file's suffix."""
    if path.suffix.lower() == ".tsv":
        # a quotation mark in tab-separated text is a character like any other
        return csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    return csv.reader(file)


def is_empty(row: list[str]) -> bool:
    """Whether a row is that of a line with nothing in it but blanks."""
    return not row or (len(row) == 1 and not row[0].strip())


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Let the csv module read long fields; its limit is one for the whole process, and others rely on it."""
    before = csv.field_size_limit(_MAX_FIELD_CHARACTERS)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _places(path: Path, header: list[str], columns: Sequence[str] | None) -> list[int]:
    """Positions of the text's columns."""
    if columns is None:
        return list(range(1, len(header)))
    missing = [name for name in columns if name not in header[1:]]
    if missing:
        raise DataError(
            f"The file of item texts {path} has no column {missing[0]!r} after the first.",
            remedy=f"Choose among {', '.join(header[1:])}.",
        )
    return [header.index(name) for name in columns]
