"""Judging timestamps as a whole: one unit, plausible years, any variation at all."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from p2rec_core.errors import DataError
from storage.ingest.engine import Engine

_UNITS = (("seconds", 1.0), ("milliseconds", 1e3), ("microseconds", 1e6), ("nanoseconds", 1e9))
_EARLIEST_S = 1e8
_LATEST_S = 4_102_444_800.0
"""1973-03-03 and 2100-01-01 in Unix seconds: between them the four units do not overlap."""

MINORITY = 0.01
"""Part of the rows in a second unit from which the file counts as mixed."""


def reject_bad_times(
    engine: Engine, path: Path, first_day: str | None = None, last_day: str | None = None, *, dated: bool = False
) -> list[str]:
    """Move rows of ``raw`` with an implausible time, or one outside some days, to ``rejects``.

    Numbers are taken for a clock only if most of them lie between 1973 and 2100 in one unit; other numbers
    (ranks, sessions) are left as they are.

    Args:
        engine: Holds ``raw`` and ``rejects``.
        path: The file, for messages.
        first_day: First day (UTC, ISO 8601) of what is kept; None is 1970.
        last_day: Last such day; None is the last of 2099.
        dated: Whether the times were dates, so that they are seconds of a clock whatever their size.

    Returns:
        Notices.

    Raises:
        DataError: Two units are mixed, or there are days and the timestamps are no clock.
    """
    sums = ", ".join(
        f"count(*) FILTER (stamp BETWEEN {_EARLIEST_S * scale} AND {_LATEST_S * scale})" for _, scale in _UNITS
    )
    total, distinct, *inside = engine.rows(f"SELECT count(*), (min(stamp) <> max(stamp))::INT, {sums} FROM raw")[0]
    if total == 0:
        return []
    ranked = sorted(range(len(_UNITS)), key=lambda unit: -inside[unit])
    main, second = ranked[0], ranked[1]
    if not dated and 2 * sum(inside) >= total and inside[second] >= max(MINORITY * total, 1):
        raise _mixed(engine, path, main, second, inside)
    if dated or 2 * inside[main] >= total:
        scale = 1.0 if dated else _UNITS[main][1]
        low = 0.0 if first_day is None else _seconds(first_day) * scale
        high = _LATEST_S * scale if last_day is None else (_seconds(last_day) + 86400) * scale
        outside = f"stamp < {low!r} OR stamp >= {high!r}"
        engine.run(
            f"""INSERT INTO rejects
            SELECT line, 'timestamp_out_of_range', concat_ws(', ', user_id, item_id, stamp), stamp::VARCHAR
            FROM raw WHERE {outside}"""
        )
        engine.run(f"DELETE FROM raw WHERE {outside}")
    elif first_day is not None or last_day is not None:
        raise DataError(
            f"{path}: the timestamps are no times of a clock since 1973, so they cannot be kept to days.",
            remedy="Set first_day and last_day to null, or write Unix seconds.",
        )
    if total > 1 and not distinct:
        return ["All timestamps are equal: interactions keep the order of the file."]
    return []


def _seconds(day: str) -> float:
    """Unix seconds at the beginning of a day (UTC)."""
    return (datetime.fromisoformat(day).replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(seconds=1)


def _mixed(engine: Engine, path: Path, main: int, second: int, inside: list[int]) -> DataError:
    examples = []
    for unit in (main, second):
        name, scale = _UNITS[unit]
        line, stamp = engine.rows(
            f"""SELECT line, stamp FROM raw WHERE stamp BETWEEN {_EARLIEST_S * scale} AND {_LATEST_S * scale}
            ORDER BY line LIMIT 1"""
        )[0]
        examples.append(f"{inside[unit]} rows look like {name} (first: line {line}, {stamp:.0f})")
    return DataError(
        f"{path} mixes units of time: {' and '.join(examples)}.",
        remedy="Convert every timestamp to one unit.",
    )
