"""Items' true categories, where the table of item texts has them in a column of their own."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from p2rec_core.errors import DataError
from storage.ingest.item_text import is_empty, read_item_texts, reader_of

CATEGORY_COLUMN = "category"
"""The column that holds an item's category; a value is taken as a whole, also where it lists several."""


def has_categories(path: Path) -> bool:
    """Whether a table of item texts, ``.tsv`` or ``.csv``, has a column of categories after the identifier.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header: list[str] = next((row for row in reader_of(file, path) if not is_empty(row)), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"The file of item texts {path} cannot be read: {error}.", remedy="Check the file.") from error
    return CATEGORY_COLUMN in header[1:]


def read_item_categories(path: Path, item_ids: Sequence[str], *, normalise_ids: bool = False) -> NDArray[np.int64]:
    """The categories of a catalogue's items, numbered from 0 by name.

    Args:
        path: A table of item texts with a column ``category``.
        item_ids: Identifiers of the catalogue, in order.
        normalise_ids: Whether identifiers are brought into Unicode's composed form (NFC), as the catalogue's were.

    Returns:
        int64 (N,); -1 where an item has none.

    Raises:
        DataError: The file cannot be used, see ``read_item_texts``.
    """
    names = read_item_texts(path, item_ids, (CATEGORY_COLUMN,), normalise_ids=normalise_ids).texts
    numbers = {name: number for number, name in enumerate(sorted(set(names) - {""}))}
    return np.array([numbers.get(name, -1) for name in names], np.int64)
