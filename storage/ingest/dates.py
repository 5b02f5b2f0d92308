"""Times that a text gives as dates in ISO 8601 instead of numbers.

A file has one or the other. Dates become Unix seconds, exact to the microsecond as those of Parquet.
"""

import math
import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_PATTERN = (
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[T ]([01][0-9]|2[0-3])(?::([0-5][0-9])(?::([0-5][0-9])(?:\.([0-9]{1,9}))?)?)?"
    r"(Z| UTC|[+-]([01][0-9]|2[0-3])(?::?([0-5][0-9]))?)?)?"
)
"""A day, perhaps a time of day, perhaps an offset: what Arrow reads, and nanoseconds and `` UTC`` besides."""

_ISO = re.compile(_PATTERN)
_PARTS = "['day', 'hour', 'minute', 'second', 'fraction', 'zone', 'zone_hour', 'zone_minute']"


def is_date(text: str) -> bool:
    """Whether a text has the form of a date in ISO 8601, with or without a time of day."""
    return _ISO.fullmatch(text) is not None


def is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False


def date_columns(text: str) -> str:
    """SQL of two columns made of one: ``stamp``, Unix seconds or null, and ``zoneless``, whether it has no offset.

    Args:
        text: SQL of the column, which holds texts.
    """

    def number(part: str) -> str:
        return f"coalesce(try_cast(parts['{part}'] AS BIGINT), 0)"

    clock = f"({number('hour')} * 60 + {number('minute')}) * 60 + {number('second')}"
    offset = f"({number('zone_hour')} * 60 + {number('zone_minute')}) * 60"
    micro = "coalesce(try_cast(rpad(left(parts['fraction'], 6), 6, '0') AS BIGINT), 0)"
    return f"""regexp_extract({text}, '^{_PATTERN}$', {_PARTS}) AS parts,
        (epoch_us(try_cast(parts['day'] AS DATE)::TIMESTAMP) + {micro}
            + ({clock} - CASE WHEN parts['zone'][1] = '-' THEN -1 ELSE 1 END * {offset}) * 1000000) / 1e6 AS stamp,
        parts['zone'] = '' AS zoneless"""


def seconds_of_dates(texts: Any) -> tuple[Any, bool] | None:
    """Turn dates into numbers where all of them have an offset, or none, and no more than microseconds.

    Args:
        texts: An Arrow column of texts.

    Returns:
        Unix seconds, float64, and whether there is no offset; None where it has to be looked at one by one.
    """
    if not len(texts) or texts.null_count:
        return None
    first = texts[0].as_py()
    if first.endswith(" UTC"):
        texts = pc.replace_substring_regex(texts, pattern=r" UTC$", replacement="Z")
    match = _ISO.fullmatch(first)
    zoneless = match is not None and match[6] is None
    try:
        instants = pc.cast(texts, pa.timestamp("us", None if zoneless else "UTC"))
    except pa.ArrowInvalid:
        return None
    return seconds_of_instants(instants), zoneless


def seconds_of_instants(instants: Any) -> Any:
    """Unix seconds, float64, of an Arrow column of dates or timestamps, cut to microseconds."""
    micro = pc.cast(instants, pa.timestamp("us", getattr(instants.type, "tz", None)), safe=False)
    return pc.divide(pc.cast(pc.cast(micro, pa.int64()), pa.float64(), safe=False), 1e6)
