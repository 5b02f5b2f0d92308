"""Rows that cannot be read: the reasons, and when they stop an import."""

from pathlib import Path

import pyarrow as pa

from p2rec_core.errors import DataError
from storage.ingest.dates import is_date, is_number
from storage.ingest.engine import Engine
from storage.ingest.layout import MAX_ID_BYTES

SHOWN_CHARACTERS = 200

REASONS = {
    "bad_quoting": "text follows a closing quote: double every literal quote",
    "comment": "comments are not part of the format: remove the line",
    "decimal_comma_timestamp": "write the number with a point and without separators of thousands",
    "empty_item": "the item id is empty",
    "empty_timestamp": "the timestamp is empty",
    "empty_user": "the user id is empty",
    "id_too_long": f"an id is longer than {MAX_ID_BYTES} bytes",
    "invalid_date": "the timestamp is no date, though the file's others are dates in ISO 8601",
    "infinite_timestamp": "the timestamp is infinite",
    "long_row": "more fields than the header has",
    "nan_timestamp": "the timestamp is not a number (NaN)",
    "newline_in_id": "an id holds a line end",
    "nul_byte": "the row holds a NUL byte",
    "repeated_header": "the header again: files were concatenated",
    "short_row": "fewer fields than the header has",
    "text_timestamp": "the timestamp is text: write numbers, for example Unix seconds, or ISO 8601 dates throughout",
    "timestamp_out_of_range": "the timestamp lies outside first_day to last_day, else outside 1970 to 2099, in the "
    "unit of the others",
}
"""Reason code → what it means."""

_TIME = "a number such as 1700000000, or a date such as 2023-11-05 12:00:00"
_EXPECTED = {
    "decimal_comma_timestamp": "a number such as 1700000000.5",
    "empty_timestamp": _TIME,
    "infinite_timestamp": _TIME,
    "invalid_date": "a date such as 2023-11-05, 2023-11-05 12:00:00 or 2023-11-05T12:00:00+01:00",
    "nan_timestamp": _TIME,
    "text_timestamp": _TIME,
}
"""Reason code of a time → what it should look like."""

MOST = 0.9
"""Part of the rows from which it is the file or its settings that are wrong, and not rows."""

REJECTS = pa.schema([("line", pa.int64()), ("reason", pa.string()), ("content", pa.string())])


def rejects_of(engine: Engine) -> pa.Table:
    """Hand out the rejected rows in file order, schema ``REJECTS``."""
    return engine.arrow("SELECT line, reason, content FROM rejects ORDER BY line").cast(REJECTS)


def judge(engine: Engine, path: Path, *, n_rows: int, n_rejected: int, on_error: str, max_rejected: float) -> None:
    """Stop if there is nothing, or too much that cannot be read.

    Raises:
        DataError: More rows are rejected than ``on_error`` and ``max_rejected`` allow, or none is left.
    """
    if n_rejected and (on_error == "strict" or n_rejected > max_rejected * n_rows):
        raise _rejected(engine, path, n_rows, n_rejected, on_error, max_rejected)
    if engine.number("SELECT count(*) FROM raw") == 0:
        what = "no rows below its header" if n_rows == 0 else "no usable row"
        raise DataError(f"{path} holds no interactions: {what}.", remedy="Check the export that wrote it.")


def _rejected(
    engine: Engine, path: Path, n_rows: int, n_rejected: int, on_error: str, max_rejected: float
) -> DataError:
    table = engine.rows(
        """SELECT reason, count(*), list(line ORDER BY line)[1:5], arg_min(content, line)
        FROM rejects GROUP BY reason ORDER BY min(line), reason"""
    )
    rows = [f"{'reason':<24} {'rows':>8}  first lines; first row; meaning"]
    for reason, count, lines, content in table:
        shown = content if len(content) <= 60 else content[:60] + "…"
        rows.append(f"{reason:<24} {count:>8}  {', '.join(map(str, lines))}; {shown!r}; {REASONS[reason]}")
    allowed = "" if on_error == "strict" else f", more than max_rejected = {max_rejected:g} allows"
    remedy = "Mend these rows, or set on_error to 'quarantine' to set them aside."
    if n_rejected >= MOST * n_rows:
        remedy = _of_the_file(engine)
    elif on_error == "quarantine":
        remedy = "Mend these rows, or raise max_rejected if they may be lost."
    listing = "\n".join(rows)
    return DataError(f"{path}: {n_rejected} of {n_rows} rows cannot be read{allowed}.\n{listing}\n", remedy=remedy)


def _of_the_file(engine: Engine) -> str:
    """What to do where hardly any row can be read: the first one, and what was expected."""
    reason, line, content, value = engine.rows(
        """SELECT reason, min(line), arg_min(content, line), arg_min(value, line)
        FROM rejects GROUP BY reason ORDER BY count(*) DESC, min(line) LIMIT 1"""
    )[0]
    if reason not in _EXPECTED:
        return f"Hardly any row is as the settings say. Look at line {line}, {content[:80]!r}: {REASONS[reason]}."
    if (reason == "text_timestamp" and is_date(value)) or (reason == "invalid_date" and is_number(value)):
        kinds = ("numbers", "dates") if reason == "text_timestamp" else ("dates", "numbers")
        return (
            f"A file has numbers or dates: its first time makes this one of {kinds[0]}, while line {line} has "
            f"{value[:80]!r}. Write all of them as {kinds[1]}, or mend the first rows."
        )
    return (
        f"Hardly any row has a time. Line {line} has {(value or '')[:80]!r} in that column, expected "
        f"{_EXPECTED[reason]}: write the times so, name another column (--timestamp-column), or keep the order "
        "of the file (--timestamp-column none)."
    )
