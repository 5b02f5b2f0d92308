"""From a file of interactions to the tables that every later stage reads."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from p2rec_core.errors import DataError
from storage.ingest.engine import Engine, open_engine
from storage.ingest.kcore import k_core, largest_core
from storage.ingest.layout import Columns
from storage.ingest.load import load, rejects_of
from storage.ingest.lookalikes import lookalike_notices
from storage.ingest.statistics import Count, describe

INTERACTIONS = pa.schema(
    [
        ("user_idx", pa.int32()),
        ("item_idx", pa.int32()),
        ("timestamp", pa.float64()),
        ("position", pa.int64()),
    ]
)
SEQUENCES = pa.schema([("user_idx", pa.int32()), ("items", pa.list_(pa.int32()))])
TARGETS = pa.schema([("user_idx", pa.int32()), ("item_idx", pa.int32())])
ITEMS = pa.schema([("item_idx", pa.int32()), ("item_id", pa.string()), ("n_train", pa.int32())])
USERS = pa.schema([("user_idx", pa.int32()), ("user_id", pa.string()), ("n_train", pa.int32())])

MIN_SPLIT = 3
"""Fewest interactions of a user who is split: one each for training, validation and test."""


@dataclass(frozen=True)
class IngestResult:
    """Tables of one data set.

    Attributes:
        interactions: user_idx int32, item_idx int32, timestamp float64 (null without timestamps), position
            int64 (rank in the file among the rows accepted, from 0); by user, oldest first.
        sequences: user_idx int32, items list<int32>; the training part, oldest first. Row i is user i + 1;
            every user has one.
        validation: user_idx int32, item_idx int32; the last but one item of every user who is split.
        test: user_idx int32, item_idx int32; the last item of every user who is split.
        items: item_idx int32, item_id string, n_train int32 (times in ``sequences``); row i is item i + 1.
        users: user_idx int32, user_id string, n_train int32 (length of the training part); row i is user
            i + 1.
        rejects: line int64, reason string, content string; rows set aside.
        counts: Everything that was read, dropped or kept, as numbers.
        notices: Sentences about oddities that did not stop the ingest.
        sha256: Digest of the source file.
    """

    interactions: pa.Table
    sequences: pa.Table
    validation: pa.Table
    test: pa.Table
    items: pa.Table
    users: pa.Table
    rejects: pa.Table
    counts: dict[str, Count]
    notices: list[str]
    sha256: str


def ingest(
    path: Path,
    *,
    format: str,
    user_column: str,
    item_column: str,
    timestamp_column: str | None,
    min_user_interactions: int,
    min_item_interactions: int,
    drop_duplicates: bool,
    on_error: str,
    max_rejected: float,
    seed: int,
    encoding: str = "utf-8",
    normalise_ids: bool = False,
    first_day: str | None = None,
    last_day: str | None = None,
    memory_limit: str | None = None,
) -> IngestResult:
    """Read, check, filter, number and split a file of interactions.

    Interactions are ordered by timestamp, then by position in the file. Items are numbered 1…N by a seeded
    permutation of their sorted ids, users 1…U in the order of their sorted ids (as UTF-8 bytes): both
    depend on nothing but the set of ids and the seed, so a number says nothing about popularity or time.

    Args:
        path: One file; text formats may be gzip.
        format: ``sequences``, ``csv``, ``tsv``, ``parquet``, ``recbole`` or ``movielens``.
        user_column: Column of the user's id; not used by ``sequences`` and ``movielens``.
        item_column: Column of the item's id; likewise.
        timestamp_column: Column of the time; None keeps the order of the file.
        min_user_interactions: Fewest interactions of a user (k-core).
        min_item_interactions: Fewest interactions of an item (k-core).
        drop_duplicates: Whether rows equal in user, item and timestamp count once; without timestamps
            every row counts.
        on_error: ``strict`` stops at rows that cannot be read, ``quarantine`` sets them aside.
        max_rejected: Part of the rows, 0…1, that quarantine may reject.
        seed: Of the numbering of items.
        encoding: Encoding of a text file, one in which line ends and delimiters are those of ASCII.
        normalise_ids: Whether ids are brought into Unicode's composed form (NFC).
        first_day: Rows before this day (UTC, ISO 8601) are rejected; None is 1970.
        last_day: Rows after this day (UTC) are rejected; None is 2099.
        memory_limit: Most memory of DuckDB before it spills, such as ``4GB``; None is its default.

    Returns:
        The tables, all sorted, equal for equal input and settings.

    Raises:
        DataError: The file, its rows or what the filter leaves cannot be used.
        ValueError: ``format``, ``on_error`` or ``memory_limit`` is unknown.
    """
    with open_engine(memory_limit) as engine:
        loaded = load(
            engine,
            path,
            format=format,
            columns=Columns(user_column, item_column, timestamp_column),
            on_error=on_error,
            max_rejected=max_rejected,
            encoding=encoding,
            normalise_ids=normalise_ids,
            days=(first_day, last_day),
        )
        counts: dict[str, Count] = {"n_rows": loaded.n_rows, "n_rejected": loaded.n_rejected}
        counts |= _code(engine, drop_duplicates=drop_duplicates)
        counts |= _filter(engine, path, min_user=min_user_interactions, min_item=min_item_interactions)
        notices = loaded.notices + lookalike_notices(engine)
        _number(engine, seed=seed)
        tables = _tables(engine)
        counts |= describe(tables)
        if counts["n_users_unsplit"]:
            notices.append(
                f"{counts['n_users_unsplit']} users have fewer than {MIN_SPLIT} interactions: all of them "
                "are training, and these users have no validation or test item."
            )
        return IngestResult(**tables, rejects=rejects_of(engine), counts=counts, notices=notices, sha256=loaded.sha256)


def _code(engine: Engine, *, drop_duplicates: bool) -> dict[str, Count]:
    """Replace ids by sorted codes in ``events(u, i, stamp, position)``; drop exact duplicates."""
    for side, ids in (("user_id", "user_codes"), ("item_id", "item_codes")):
        engine.run(
            f"""CREATE TEMP TABLE {ids} AS
            SELECT id, (row_number() OVER (ORDER BY id))::INTEGER AS code
            FROM (SELECT DISTINCT {side} AS id FROM raw)"""
        )
    engine.run(
        """CREATE TEMP TABLE events AS
        SELECT user_codes.code AS u, item_codes.code AS i, stamp, position
        FROM (SELECT *, row_number() OVER (ORDER BY line, k) - 1 AS position FROM raw) AS placed
        JOIN user_codes ON user_codes.id = placed.user_id
        JOIN item_codes ON item_codes.id = placed.item_id"""
    )
    read = engine.number("SELECT count(*) FROM events")
    if drop_duplicates and engine.number("SELECT count(stamp) FROM events"):
        engine.run(
            """CREATE OR REPLACE TEMP TABLE events AS
            SELECT u, i, stamp, min(position) AS position FROM events GROUP BY u, i, stamp"""
        )
    kept = engine.number("SELECT count(*) FROM events")
    return {"n_interactions_read": read, "n_duplicates": read - kept}


def _filter(engine: Engine, path: Path, *, min_user: int, min_item: int) -> dict[str, Count]:
    """Leave the k-core in ``core``."""
    sizes = "SELECT count(*), count(DISTINCT u), count(DISTINCT i) FROM "
    before = engine.rows(sizes + "events")[0]
    rounds = k_core(engine, source="events", target="core", min_user=min_user, min_item=min_item)
    after = engine.rows(sizes + "core")[0]
    if after[0] == 0:
        user, item, users, items = largest_core(engine, source="events", min_user=min_user, min_item=min_item)
        raise DataError(
            f"{path}: min_user_interactions = {min_user} and min_item_interactions = {min_item} leave none "
            f"of {before[1]} users, {before[2]} items and {before[0]} interactions.",
            remedy=f"Lower them: {user} and {item} leave {users} users and {items} items.",
        )
    dropped = [int(was) - int(now) for was, now in zip(before, after, strict=True)]
    return {
        "k_core_rounds": rounds,
        "n_interactions_dropped": dropped[0],
        "n_users_dropped": dropped[1],
        "n_items_dropped": dropped[2],
    }


def _number(engine: Engine, *, seed: int) -> None:
    """Give survivors their final numbers and every interaction its rank: ``numbered``, ``split``."""
    n_items = engine.number("SELECT count(DISTINCT i) FROM core")
    permutation = np.random.default_rng(seed).permutation(n_items).astype(np.int32) + np.int32(1)
    drawn = pa.table({"rank": pa.array(np.arange(1, n_items + 1)), "item_idx": pa.array(permutation)})
    with engine.table("drawn", drawn):
        engine.run(
            """CREATE TEMP TABLE item_numbers AS SELECT ranked.i, drawn.item_idx, item_codes.id AS item_id
            FROM (SELECT i, row_number() OVER (ORDER BY i) AS rank FROM (SELECT DISTINCT i FROM core))
                AS ranked
            JOIN drawn USING (rank) JOIN item_codes ON item_codes.code = ranked.i"""
        )
    engine.run(
        """CREATE TEMP TABLE user_numbers AS
        SELECT u, (row_number() OVER (ORDER BY u))::INTEGER AS user_idx, user_codes.id AS user_id
        FROM (SELECT DISTINCT u FROM core) AS left_over JOIN user_codes ON user_codes.code = left_over.u"""
    )
    engine.run(
        f"""CREATE TEMP TABLE split AS
        SELECT user_idx, item_idx, stamp, position, rank, CASE
            WHEN n < {MIN_SPLIT} OR rank < n - 1 THEN 'train' WHEN rank = n - 1 THEN 'validation' ELSE 'test'
        END AS part
        FROM (
            SELECT user_idx, item_idx, stamp, position,
                row_number() OVER (PARTITION BY user_idx ORDER BY stamp, position) AS rank,
                count(*) OVER (PARTITION BY user_idx) AS n
            FROM core JOIN item_numbers USING (i) JOIN user_numbers USING (u)
        )"""
    )


def _tables(engine: Engine) -> dict[str, pa.Table]:
    targets = "SELECT user_idx, item_idx FROM split WHERE part = $part ORDER BY user_idx"
    return {
        "interactions": engine.arrow(
            "SELECT user_idx, item_idx, stamp AS timestamp, position FROM split ORDER BY user_idx, rank"
        ).cast(INTERACTIONS),
        "sequences": engine.arrow(
            """SELECT user_idx, list(item_idx ORDER BY rank) AS items FROM split WHERE part = 'train'
            GROUP BY user_idx ORDER BY user_idx"""
        ).cast(SEQUENCES),
        "validation": engine.arrow(targets, {"part": "validation"}).cast(TARGETS),
        "test": engine.arrow(targets, {"part": "test"}).cast(TARGETS),
        "items": engine.arrow(
            """SELECT item_idx, item_id, coalesce(n, 0)::INTEGER AS n_train FROM item_numbers
            LEFT JOIN (SELECT item_idx, count(*) AS n FROM split WHERE part = 'train' GROUP BY item_idx)
            USING (item_idx) ORDER BY item_idx"""
        ).cast(ITEMS),
        "users": engine.arrow(
            """SELECT user_idx, user_id, n::INTEGER AS n_train FROM user_numbers
            JOIN (SELECT user_idx, count(*) AS n FROM split WHERE part = 'train' GROUP BY user_idx)
            USING (user_idx) ORDER BY user_idx"""
        ).cast(USERS),
    }
