"""Settings of ingest: where interactions come from and which of them count."""

import codecs
from datetime import date
from enum import StrEnum

from pydantic import Field, field_validator, model_validator

from p2rec_core.settings.base import Settings


class SourceFormat(StrEnum):
    """Layout of a file of interactions."""

    SEQUENCES = "sequences"
    """``user item item …`` per line, oldest item first."""
    CSV = "csv"
    TSV = "tsv"
    PARQUET = "parquet"
    RECBOLE = "recbole"
    """RecBole's atomic ``.inter``: tab separated, header ``name:type``."""
    MOVIELENS = "movielens"
    """``user::item::rating::timestamp``."""


class OnError(StrEnum):
    """What happens to rows that cannot be read."""

    STRICT = "strict"
    """Stop with a table of reasons, counts and line numbers."""
    QUARANTINE = "quarantine"
    """Keep rejected rows in a table of their own; stop above ``max_rejected``."""


class IngestSettings(Settings):
    """From raw interactions to sequences."""

    format: SourceFormat = SourceFormat.SEQUENCES
    """Layout of the file; that of a known or imported dataset is remembered."""
    user_column: str = Field("user_id", min_length=1)
    """Column of the users, where the layout has names."""
    item_column: str = Field("item_id", min_length=1)
    """Column of the items, where the layout has names."""
    timestamp_column: str | None = "timestamp"
    """Column of the times, where the layout has names. Null keeps the order of
    the file."""
    delimiter: str | None = None
    """Character between the fields of a CSV or TSV file, such as ``;``. Null: that of
    the format."""
    header: bool = True
    """Whether the first line of a CSV or TSV file names the columns; without, they are called by their positions, from
    ``1``."""
    encoding: str = "utf-8"
    """Encoding of a text file, such as ``latin-1``; one in which line ends and delimiters are those of ASCII."""
    normalise_ids: bool = False
    """Bring ids into Unicode's composed form (NFC), so that those equal to the eye count as one."""
    first_day: str | None = None
    """Interactions before this day (UTC, ``2020-01-31``) are rejected. Null: before 1970."""
    last_day: str | None = None
    """Interactions after this day (UTC) are rejected. Null: after 2099."""
    min_user_interactions: int = Field(5, ge=1)
    """k-core: users with fewer interactions are dropped, to a fixed point with the items."""
    min_item_interactions: int = Field(5, ge=1)
    """k-core: items with fewer interactions are dropped, to a fixed point with the users."""
    drop_duplicates: bool = True
    """Drop rows equal in user, item and timestamp (only where there are timestamps), with a count."""
    on_error: OnError = OnError.STRICT
    """What happens to rows that cannot be read."""
    max_rejected: float = Field(0.01, ge=0, le=1)
    """Part of the rows that quarantine may reject."""
    seed: int = Field(1, ge=0, lt=2**31)
    """Seed of the permutation that numbers the items."""

    @field_validator("timestamp_column", "delimiter", mode="before")
    @classmethod
    def _empty_is_none(cls, name: object) -> object:
        return None if name == "" else name

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, mark: str | None) -> str | None:
        mark = "\t" if mark == "\\t" else mark  # as a shell hands it over
        if mark is not None and (len(mark) != 1 or not mark.isascii() or mark.isalnum() or mark in '"\r\n\0'):
            raise ValueError("a delimiter is one character of ASCII other than a letter, a digit and a quote")
        return mark

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str) -> str:
        marks = '\r\n\t ,;:|"'
        try:
            if marks.encode(name) != marks.encode("ascii"):
                raise ValueError(f"line ends in {name} are not those of ASCII: convert the file with iconv")
            return codecs.lookup(name).name
        except (LookupError, UnicodeError):
            raise ValueError(f"there is no text encoding {name!r}; for example utf-8, latin-1, cp1252") from None

    @field_validator("first_day", "last_day")
    @classmethod
    def _a_day(cls, day: str | None) -> str | None:
        return None if day is None else date.fromisoformat(day).isoformat()

    @model_validator(mode="after")
    def _days_in_order(self) -> "IngestSettings":
        if self.first_day is not None and self.last_day is not None and self.first_day > self.last_day:
            raise ValueError(f"first_day {self.first_day} is after last_day {self.last_day}")
        return self
