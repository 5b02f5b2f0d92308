"""Rows into DuckDB: every row is either a valid interaction or a reject with a reason."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from p2rec_core.errors import DataError
from storage.ingest.dates import date_columns
from storage.ingest.engine import Engine, open_engine
from storage.ingest.layout import FORMATS, MAX_ID_BYTES, PLAIN, Columns, Dialect, Layout, check_dialect
from storage.ingest.records import CLEAN, parquet_records, text_records
from storage.ingest.rejects import SHOWN_CHARACTERS, judge, rejects_of
from storage.ingest.source import TextSource, check_file, sha256_of
from storage.ingest.timestamps import reject_bad_times

_CREATE = (
    "CREATE TABLE raw(line BIGINT, k BIGINT, user_id VARCHAR, item_id VARCHAR, stamp DOUBLE)",
    "CREATE TABLE rejects(line BIGINT, reason VARCHAR, content VARCHAR, value VARCHAR)",
    "CREATE TABLE tally(n_rows BIGINT, n_trimmed BIGINT, n_itemless BIGINT, n_zoneless BIGINT)",
)

_ID_REASONS = f"""
    WHEN contains(user_id, chr(0)) OR contains(item_id, chr(0)) THEN 'nul_byte'
    WHEN coalesce(user_id, '') = '' THEN 'empty_user'
    WHEN coalesce(item_id, '') = '' THEN 'empty_item'
    WHEN contains(user_id, chr(10)) OR contains(item_id, chr(10)) THEN 'newline_in_id'
    WHEN strlen(user_id) > {MAX_ID_BYTES} OR strlen(item_id) > {MAX_ID_BYTES} THEN 'id_too_long'"""

_TIME_REASONS = r"""
    WHEN coalesce(stamp_text, '') = '' THEN 'empty_timestamp'
    WHEN stamp IS NULL AND regexp_full_match(stamp_text, '[+-]?[0-9.]+(,[0-9]+)+')
        THEN 'decimal_comma_timestamp'
    WHEN stamp IS NULL OR contains(stamp_text, '_') THEN 'text_timestamp'
    WHEN isnan(stamp) THEN 'nan_timestamp'
    WHEN isinf(stamp) THEN 'infinite_timestamp'"""

_DATE_REASONS = """
    WHEN coalesce(stamp_text, '') = '' THEN 'empty_timestamp'
    WHEN stamp IS NULL THEN 'invalid_date'"""


@dataclass(frozen=True)
class RawInteractions:
    """What a file holds, before anything is dropped on purpose.

    Attributes:
        interactions: line int64 (from 1), user_id string, item_id string, timestamp float64 (null where the
            source has none), position int64 (rank in the file, from 0); in file order.
        rejects: line int64, reason string (a key of ``REASONS``), content string (at most
            ``SHOWN_CHARACTERS``); in file order.
        n_rows: Rows that were read, the rejected among them; header and blank lines are none.
        notices: Sentences about oddities that do not stop the reading.
        sha256: Digest of the file.
    """

    interactions: pa.Table
    rejects: pa.Table
    n_rows: int
    notices: list[str]
    sha256: str


@dataclass(frozen=True)
class Loaded:
    """What ``load`` leaves beside the tables ``raw`` and ``rejects`` in the engine.

    Attributes:
        n_rows: Rows read.
        n_rejected: Of these, rejected.
        notices: Sentences about oddities.
        sha256: Digest of the file.
    """

    n_rows: int
    n_rejected: int
    notices: list[str]
    sha256: str


def read_interactions(
    path: Path,
    *,
    format: str,
    user_column: str,
    item_column: str,
    timestamp_column: str | None,
    on_error: str,
    max_rejected: float,
    delimiter: str | None = None,
    header: bool = True,
    encoding: str = "utf-8",
    normalise_ids: bool = False,
    first_day: str | None = None,
    last_day: str | None = None,
    memory_limit: str | None = None,
) -> RawInteractions:
    """Read a file of interactions and judge every row.

    Args:
        path: One file; text formats may be gzip.
        format: ``sequences``, ``csv``, ``tsv``, ``parquet``, ``recbole`` or ``movielens``.
        user_column: Column of the user's id; not used by ``sequences`` and ``movielens``.
        item_column: Column of the item's id; likewise.
        timestamp_column: Column of the time; None keeps the order of the file.
        on_error: ``strict`` stops at rows that cannot be read, ``quarantine`` sets them aside.
        max_rejected: Part of the rows, 0…1, that quarantine may reject.
        delimiter: What separates the fields of a CSV or TSV file; None is that of the format.
        header: Whether its first line names the columns; without, they are called by their positions, from ``1``.
        encoding: Encoding of a text file, one in which line ends and delimiters are those of ASCII.
        normalise_ids: Whether ids are brought into Unicode's composed form (NFC).
        first_day: Rows before this day (UTC, ISO 8601) are rejected; None is 1970.
        last_day: Rows after this day (UTC) are rejected; None is 2099.
        memory_limit: Most memory of DuckDB before it spills, such as ``4GB``.

    Returns:
        Interactions and rejects.

    Raises:
        DataError: The file or its rows cannot be used; the message names file, line, column and value.
        ValueError: ``format`` or ``on_error`` is unknown.
    """
    with open_engine(memory_limit) as engine:
        loaded = load(
            engine,
            path,
            format=format,
            columns=Columns(user_column, item_column, timestamp_column),
            dialect=Dialect(delimiter, header),
            on_error=on_error,
            max_rejected=max_rejected,
            encoding=encoding,
            normalise_ids=normalise_ids,
            days=(first_day, last_day),
        )
        interactions = engine.arrow(
            """SELECT line, user_id, item_id, stamp AS timestamp,
                row_number() OVER (ORDER BY line, k) - 1 AS position FROM raw ORDER BY position"""
        )
        return RawInteractions(interactions, rejects_of(engine), loaded.n_rows, loaded.notices, loaded.sha256)


def load(
    engine: Engine,
    path: Path,
    *,
    format: str,
    columns: Columns,
    on_error: str,
    max_rejected: float,
    dialect: Dialect = PLAIN,
    encoding: str = "utf-8",
    normalise_ids: bool = False,
    days: tuple[str | None, str | None] = (None, None),
) -> Loaded:
    """Fill ``raw(line, k, user_id, item_id, stamp)`` and ``rejects`` from a file.

    Args:
        engine: Where to.
        path: One file.
        format: One of ``layout.FORMATS``.
        columns: Names of the columns.
        on_error: ``strict`` or ``quarantine``.
        max_rejected: Part of the rows that quarantine may reject.
        dialect: How a CSV or TSV file departs from its format.
        encoding: Encoding of a text file.
        normalise_ids: Whether ids are brought into Unicode's composed form (NFC).
        days: First and last day (UTC, ISO 8601) of the rows that are kept; None is no bound of one's own.

    Returns:
        Counts and notices.

    Raises:
        DataError: See ``read_interactions``.
        ValueError: ``format`` or ``on_error`` is unknown.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is none of {', '.join(FORMATS)}")
    if on_error not in ("strict", "quarantine"):
        raise ValueError(f"on_error {on_error!r} is neither 'strict' nor 'quarantine'")
    check_file(path)
    check_dialect(path, format, dialect)
    sha256 = sha256_of(path)
    for statement in _CREATE:
        engine.run(statement)
    if format == "parquet":
        notices, dated = _load_parquet(engine, path, columns)
        timed = columns.timestamp is not None
    else:
        source = TextSource(path, encoding=encoding)
        notices, layout = _load_text(engine, source, format, columns, dialect)
        timed, dated = layout.timestamp is not None, layout.dated
    pa.default_memory_pool().release_unused()  # no later step asks Arrow for blocks like those of the file
    if sha256_of(path) != sha256:
        raise DataError(
            f"{path} changed while it was being read.",
            remedy="Wait until its writer has finished, then run again.",
        )
    if timed:
        notices += reject_bad_times(engine, path, *days, dated=dated)
    elif days != (None, None):
        raise DataError(
            f"{path}: interactions without timestamps cannot be kept to days.",
            remedy="Name the timestamp_column, or set first_day and last_day to null.",
        )
    if normalise_ids:
        notices += _normalise(engine)
    n_rows, n_trimmed, n_itemless = (
        int(value or 0) for value in engine.rows("SELECT sum(n_rows), sum(n_trimmed), sum(n_itemless) FROM tally")[0]
    )
    n_rejected = engine.number("SELECT count(*) FROM rejects")
    judge(engine, path, n_rows=n_rows, n_rejected=n_rejected, on_error=on_error, max_rejected=max_rejected)
    if n_trimmed:
        notices.append(f"White space around ids was removed in {n_trimmed} rows.")
    if n_itemless:
        notices.append(f"{n_itemless} users have no item at all and were left out.")
    return Loaded(n_rows, n_rejected, notices, sha256)


def _load_text(
    engine: Engine, source: TextSource, format: str, columns: Columns, dialect: Dialect
) -> tuple[list[str], Layout]:
    records = text_records(source, format=format, columns=columns, dialect=dialect)
    layout = records.layout
    if layout.delimiter is None:
        _take(engine, records.batches, partial(_stage_sequences, engine))
    else:
        _take(engine, records.batches, partial(_stage_delimited, engine, layout))
    return [*source.notices, *_zoneless(engine)], layout


def _zoneless(engine: Engine) -> list[str]:
    n_zoneless, n = engine.number("SELECT sum(n_zoneless) FROM tally"), engine.number("SELECT count(*) FROM raw")
    which = "Timestamps" if n_zoneless == n else f"{n_zoneless} of {n} timestamps"
    return [f"{which} carry no time zone and were taken as UTC."] if n_zoneless else []


def _take(engine: Engine, batches: Iterable[pa.Table], judge: Callable[[], None]) -> None:
    """Put rows into ``raw``: clean ones as they are, others by what ``judge`` makes of the table ``batch``."""
    for batch in batches:
        with engine.table("batch", batch):
            if batch.schema == CLEAN:
                engine.run("INSERT INTO raw SELECT line, 1, user_id, item_id, stamp FROM batch")
                n_zoneless = 0 if batch.schema.metadata is None else batch.num_rows
                engine.run("INSERT INTO tally VALUES (?, 0, 0, ?)", [batch.num_rows, n_zoneless])
            else:
                judge()


def _stage_sequences(engine: Engine) -> None:
    """Cut ``user item item …`` lines; a reject is a whole line, k counts the items of a line."""
    engine.run(
        f"""CREATE OR REPLACE TEMP TABLE staged AS
        WITH cut AS (
            SELECT line, text, string_split_regex(trim(text, ' \t\f\v'), '[ \t\f\v]+') AS tokens FROM batch
        )
        SELECT line, tokens, NULL::VARCHAR AS value, CASE
            WHEN contains(text, chr(0)) THEN 'nul_byte'
            WHEN strlen(text) > {MAX_ID_BYTES} AND list_max(list_transform(tokens, lambda t: strlen(t)))
                > {MAX_ID_BYTES} THEN 'id_too_long'
            WHEN tokens[1] = '#' THEN 'comment'
        END AS reason, CASE WHEN reason IS NOT NULL THEN text END AS text
        FROM cut"""
    )
    engine.run(
        """INSERT INTO raw SELECT line, k, user_id, item_id, NULL FROM (
            SELECT line, generate_subscripts(tokens, 1) - 1 AS k, tokens[1] AS user_id,
                unnest(tokens) AS item_id
            FROM staged WHERE reason IS NULL
        ) WHERE k > 0"""
    )
    engine.run(
        """INSERT INTO tally
        SELECT count(*), 0, count(*) FILTER (reason IS NULL AND len(tokens) = 1), 0 FROM staged"""
    )
    _keep_rejects(engine)


def _stage_delimited(engine: Engine, layout: Layout) -> None:
    """Cut rows at the delimiter, or take the fields that the reader of quotes has cut."""
    has_time, reasons = layout.timestamp is not None, _DATE_REASONS if layout.dated else _TIME_REASONS
    stamp = "trim(fields[$stamp], ' \t')" if has_time else "NULL::VARCHAR"
    named = "user_id = $user_name AND item_id = $item_name" if layout.header else "false"
    parameters: dict[str, object] = {
        "delimiter": layout.delimiter,
        "user": layout.user + 1,
        "item": layout.item + 1,
        "n_fields": layout.n_fields,
    }
    if has_time:
        parameters["stamp"] = (layout.timestamp or 0) + 1
    if layout.header:
        parameters |= {"user_name": layout.header[layout.user], "item_name": layout.header[layout.item]}
    engine.run(
        f"""CREATE OR REPLACE TEMP TABLE staged AS
        WITH cut AS (
            SELECT line, text, coalesce(fields, string_split(text, $delimiter)) AS fields FROM batch
        ), named AS (
            SELECT line, text, fields,
                trim(fields[$user], ' \t') AS user_id, trim(fields[$item], ' \t') AS item_id,
                {stamp} AS stamp_text, {_time("stamp_text", dated=layout.dated)},
                strlen(user_id) < strlen(fields[$user]) OR strlen(item_id) < strlen(fields[$item]) AS trimmed
            FROM cut
        )
        SELECT line, user_id, item_id, stamp, trimmed, zoneless, stamp_text AS value, CASE
            WHEN len(fields) = 0 THEN 'bad_quoting'
            WHEN contains(text, chr(0)) THEN 'nul_byte'
            WHEN {named} THEN 'repeated_header'
            WHEN len(fields) < $n_fields THEN 'short_row'
            WHEN len(fields) > $n_fields THEN 'long_row'
            {_ID_REASONS} {reasons if has_time else ""}
        END AS reason, CASE WHEN reason IS NOT NULL THEN text END AS text
        FROM named""",
        parameters,
    )
    _keep(engine)


def _time(number: str, *, dated: bool) -> str:
    """SQL of the columns ``stamp`` and ``zoneless``, made of a number or of the date in ``stamp_text``."""
    return date_columns("stamp_text") if dated else f"try_cast({number} AS DOUBLE) AS stamp, false AS zoneless"


def _load_parquet(engine: Engine, path: Path, columns: Columns) -> tuple[list[str], bool]:
    records = parquet_records(path, columns=columns)
    judge = partial(_stage_columns, engine, timed=columns.timestamp is not None, dated=records.dated)
    _take(engine, records.batches, judge)
    if records.zoneless:
        return ["Timestamps carry no time zone and were taken as UTC."], False
    return _zoneless(engine), records.dated


def _stage_columns(engine: Engine, *, timed: bool, dated: bool) -> None:
    """Judge rows that came in columns."""
    reasons = _DATE_REASONS if dated else _TIME_REASONS
    engine.run(
        f"""CREATE OR REPLACE TEMP TABLE staged AS
        WITH named AS (
            SELECT line, trim("user", ' \t') AS user_id, trim(item, ' \t') AS item_id,
                trim(CAST(batch.stamp AS VARCHAR), ' \t') AS stamp_text,
                {_time("batch.stamp", dated=dated)},
                strlen(user_id) < strlen("user") OR strlen(item_id) < strlen(item) AS trimmed
            FROM batch
        )
        SELECT line, user_id, item_id, stamp, trimmed, zoneless, stamp_text AS value,
            CASE {_ID_REASONS} {reasons if timed else ""} END AS reason,
            CASE WHEN reason IS NOT NULL THEN concat_ws(', ', user_id, item_id, stamp_text) END
            AS text
        FROM named"""
    )
    _keep(engine)


def _normalise(engine: Engine) -> list[str]:
    """Bring ids into Unicode's composed form, after the rejects were told by what the file says."""
    other = "nfc_normalize(user_id) <> user_id OR nfc_normalize(item_id) <> item_id"
    n = engine.number(f"SELECT count(*) FROM raw WHERE {other}")
    if not n:
        return []
    engine.run(f"UPDATE raw SET user_id = nfc_normalize(user_id), item_id = nfc_normalize(item_id) WHERE {other}")
    return [f"Ids were brought into Unicode's composed form (NFC) in {n} rows."]


def _keep(engine: Engine) -> None:
    engine.run("INSERT INTO raw SELECT line, 1, user_id, item_id, stamp FROM staged WHERE reason IS NULL")
    engine.run(
        """INSERT INTO tally SELECT count(*), count(*) FILTER (reason IS NULL AND trimmed), 0,
            count(*) FILTER (reason IS NULL AND zoneless) FROM staged"""
    )
    _keep_rejects(engine)


def _keep_rejects(engine: Engine) -> None:
    engine.run(
        f"""INSERT INTO rejects
        SELECT line, reason, replace(left(text, {SHOWN_CHARACTERS}), chr(0), '\\0'), left(value, {SHOWN_CHARACTERS})
        FROM staged WHERE reason IS NOT NULL"""
    )
