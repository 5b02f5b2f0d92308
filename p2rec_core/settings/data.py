"""Settings of ingest: where interactions come from and which of them count."""

from enum import StrEnum

from pydantic import Field, field_validator

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
    """Column of the times, where the layout has names. Null (in TOML an empty text) keeps the order of
    the file."""
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

    @field_validator("timestamp_column", mode="before")
    @classmethod
    def _empty_is_none(cls, name: object) -> object:
        return None if name == "" else name  # TOML has no null
