"""Items' texts: a table of identifiers and words, put beside a catalogue."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from p2rec_core.errors import DataError

_DELIMITERS = {".tsv": "\t", ".csv": ","}


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


def read_item_texts(path: Path, item_ids: Sequence[str], columns: Sequence[str] | None) -> ItemTexts:
    """Read the texts of a catalogue's items.

    Args:
        path: A ``.tsv`` or ``.csv`` file, UTF-8, with a header; its first column is the item's identifier.
        item_ids: Identifiers of the catalogue, in order.
        columns: Columns whose values make the text, joined by ``. ``; None takes all but the first.

    Raises:
        DataError: The file cannot be read, lacks a column, has a row of another width or an item twice, or none of
            its items is in the catalogue.
    """
    delimiter = _DELIMITERS.get(path.suffix.lower())
    if delimiter is None:
        raise DataError(
            f"The file of item texts {path} is neither .tsv nor .csv.", remedy="Write it as tab-separated text."
        )
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            # a quotation mark in tab-separated text is a character like any other
            plain = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            rows = list(plain if delimiter == "\t" else csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"The file of item texts {path} cannot be read: {error}.", remedy="Check the file.") from error
    if len(rows) < 2 or len(rows[0]) < 2:
        raise DataError(
            f"The file of item texts {path} has no rows of an identifier and a text.",
            remedy="Give it a header and one row per item, e.g. item_id<TAB>title.",
        )
    header, *body = rows
    places = _places(path, header, columns)
    found: dict[str, str] = {}
    for line, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise DataError(
                f"{path}, line {line}: {len(row)} fields where the header has {len(header)}.",
                remedy="Give every row the header's fields.",
            )
        if row[0] in found:
            raise DataError(f"{path}, line {line}: the item {row[0]!r} is there twice.", remedy="Keep one row of it.")
        found[row[0]] = ". ".join(value for place in places if (value := " ".join(row[place].split())))
    texts = [found.get(item, "") for item in item_ids]
    n_known = sum(item in found for item in item_ids)
    if not n_known:
        raise DataError(
            f"None of the {len(found)} items in {path} is in the catalogue, whose first is {item_ids[0]!r}; "
            f"the file's first is {body[0][0]!r}.",
            remedy="Use the interactions' item identifiers in the first column.",
        )
    return ItemTexts(texts, sum(not text for text in texts), len(found) - n_known)


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
