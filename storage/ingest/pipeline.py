"""From a file of interactions to the tables that every later stage reads."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from p2rec_core.errors import DataError
from storage.ingest.engine import Engine, open_engine
from storage.ingest.kcore import k_core, largest_core
from storage.ingest.layout import Columns, Dialect
from storage.ingest.load import load
from storage.ingest.lookalikes import lookalike_notices
from storage.ingest.rejects import REJECTS, rejects_of
from storage.ingest.statistics import Count, Description

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

TABLES = {
    "interactions": INTERACTIONS,
    "sequences": SEQUENCES,
    "validation": TARGETS,
    "test": TARGETS,
    "items": ITEMS,
    "users": USERS,
    "rejects": REJECTS,
}
"""What an import makes, by name."""

MIN_SPLIT = 3
"""Fewest interactions of a user who is split: one each for training, validation and test."""

PART_ROWS = 4_000_000
"""Interactions of a part, about: so many are in memory at once. The bytes of what is stored depend on it."""

_BATCH_ROWS = 1 << 20

Take = Callable[[str, pa.Table], None]
"""Takes the next part of a table: its name and rows."""


@dataclass(frozen=True)
class IngestFacts:
    """What is to be said of an import beside its tables.

    Attributes:
        counts: Everything that was read, dropped or kept, as numbers.
        notices: Sentences about oddities that did not stop the ingest.
        sha256: Digest of the source file.
    """

    counts: dict[str, Count]
    notices: list[str]
    sha256: str


@dataclass(frozen=True)
class IngestResult(IngestFacts):
    """Tables of one data set, in memory, and what is to be said of them.

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
    """

    interactions: pa.Table
    sequences: pa.Table
    validation: pa.Table
    test: pa.Table
    items: pa.Table
    users: pa.Table
    rejects: pa.Table


def ingest(path: Path, **settings: Any) -> IngestResult:
    """Import a file of interactions into memory.

    Args:
        path: One file.
        settings: Those of ``ingest_by_parts``.

    Returns:
        The tables, all sorted, equal for equal input and settings.

    Raises:
        DataError: See ``ingest_by_parts``.
        ValueError: Likewise.
    """
    parts: dict[str, list[pa.Table]] = defaultdict(list)
    facts = ingest_by_parts(path, lambda name, part: parts[name].append(part), **settings)
    tables = {name: pa.concat_tables(parts[name]).combine_chunks() for name in TABLES}
    return IngestResult(counts=facts.counts, notices=facts.notices, sha256=facts.sha256, **tables)


def ingest_by_parts(
    path: Path,
    take: Take,
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
    delimiter: str | None = None,
    header: bool = True,
    encoding: str = "utf-8",
    normalise_ids: bool = False,
    first_day: str | None = None,
    last_day: str | None = None,
    memory_limit: str | None = None,
) -> IngestFacts:
    """Read, check, filter, number and split a file of interactions, and hand its tables over part by part.

    Interactions are ordered by timestamp, then by position in the file. Items are numbered 1…N by a seeded
    permutation of their sorted ids, users 1…U in the order of their sorted ids (as UTF-8 bytes): both
    depend on nothing but the set of ids and the seed, so a number says nothing about popularity or time.

    Beside DuckDB, which spills, a part of ``PART_ROWS`` interactions is in memory, and a few numbers of each user and
    item with the items' ids.

    Args:
        path: One file; text formats may be gzip.
        take: Is given the parts of the tables of ``TABLES``, those of each in order; at least one of each.
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
        delimiter: What separates the fields of a CSV or TSV file; None is that of the format.
        header: Whether its first line names the columns; without, they are called by their positions, from ``1``.
        encoding: Encoding of a text file, one in which line ends and delimiters are those of ASCII.
        normalise_ids: Whether ids are brought into Unicode's composed form (NFC).
        first_day: Rows before this day (UTC, ISO 8601) are rejected; None is 1970.
        last_day: Rows after this day (UTC) are rejected; None is 2099.
        memory_limit: Most memory of DuckDB before it spills, such as ``4GB``; None is its default.

    Returns:
        What is to be said beside the tables.

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
            dialect=Dialect(delimiter, header),
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
        engine.run("DROP TABLE raw")
        engine.run("DROP TABLE events")
        description = _hand_over(engine, take, seed=seed)
        take("rejects", rejects_of(engine))
        counts |= description.counts()
        if counts["n_users_unsplit"]:
            notices.append(
                f"{counts['n_users_unsplit']} users have fewer than {MIN_SPLIT} interactions: all of them "
                "are training, and these users have no validation or test item."
            )
        return IngestFacts(counts=counts, notices=notices, sha256=loaded.sha256)


def _code(engine: Engine, *, drop_duplicates: bool) -> dict[str, Count]:
    """Replace ids by sorted codes in ``events(u, i, stamp, position)``; drop exact duplicates."""
    for side, ids in (("user_id", "user_codes"), ("item_id", "item_codes")):
        engine.run(
            f"""CREATE TEMP TABLE {ids} AS
            SELECT id, (row_number() OVER (ORDER BY id))::INTEGER AS code
            FROM (SELECT DISTINCT {side} AS id FROM raw)"""
        )
    # rows are in the order of the file; where none was taken out again, their numbers have no gaps
    dense = engine.number("SELECT count(*) = max(rowid) + 1 FROM raw")
    engine.run(
        f"""CREATE TEMP VIEW placed AS
        SELECT user_id, item_id, stamp, {"rowid" if dense else "row_number() OVER (ORDER BY rowid) - 1"} AS position
        FROM raw"""
    )
    engine.run(
        """CREATE TEMP TABLE events AS
        SELECT user_codes.code AS u, item_codes.code AS i, stamp, position
        FROM placed
        JOIN user_codes ON user_codes.id = placed.user_id
        JOIN item_codes ON item_codes.id = placed.item_id"""
    )
    read, timed = engine.rows("SELECT count(*), count(stamp) FROM events")[0]
    kept = read
    if drop_duplicates and timed:
        kept = engine.number("SELECT count(*) FROM (SELECT DISTINCT u, i, stamp FROM events)")
    if kept < read:
        engine.run(
            """CREATE OR REPLACE TEMP TABLE events AS
            SELECT u, i, stamp, min(position) AS position FROM events GROUP BY u, i, stamp"""
        )
    return {"n_interactions_read": read, "n_duplicates": read - kept}


def _filter(engine: Engine, path: Path, *, min_user: int, min_item: int) -> dict[str, Count]:
    """Leave the k-core in ``core``."""
    tables = ("events", "user_codes", "item_codes")
    before = [engine.number(f"SELECT count(*) FROM {table}") for table in tables]
    rounds = k_core(engine, source="events", target="core", min_user=min_user, min_item=min_item)
    after = before
    if rounds:
        after = list(engine.rows("SELECT count(*), count(DISTINCT u), count(DISTINCT i) FROM core")[0])
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


def _hand_over(engine: Engine, take: Take, *, seed: int) -> Description:
    """Number and split what is in ``core``, a range of users at a time."""
    users = engine.arrow(
        """SELECT id, n FROM (SELECT u, count(*) AS n FROM core GROUP BY u) JOIN user_codes ON code = u
        ORDER BY u"""
    ).combine_chunks()
    lengths = users.column("n").to_numpy()
    item_ids, item_of = _numbered_items(engine, seed)
    n_train = np.zeros(len(item_ids) + 1, np.int64)
    description = Description(n_items=len(item_ids))
    ordered = engine.batches("SELECT i, stamp, position FROM core ORDER BY u, stamp, position", _BATCH_ROWS)
    ranges = _ranges(lengths)
    for (first, end), rows in zip(ranges, _cut(ordered, [int(lengths[a:b].sum()) for a, b in ranges]), strict=True):
        tables = _split(rows, item_of, users.column("id").slice(first, end - first), lengths[first:end], first + 1)
        n_train += np.bincount(tables["sequences"].column("items").combine_chunks().values, minlength=len(n_train))
        description.add(tables)
        for name, part in tables.items():
            take(name, part.cast(TABLES[name]))
    numbers = np.arange(1, len(item_ids) + 1, dtype=np.int32)
    take("items", pa.table([numbers, item_ids, n_train[1:].astype(np.int32)], schema=ITEMS))
    return description


def _numbered_items(engine: Engine, seed: int) -> tuple[pa.Array, NDArray[np.int32]]:
    """The ids of the items in their order, and the number of each code, int32, 0 for those that were dropped."""
    items = engine.arrow(
        "SELECT code, id FROM item_codes WHERE code IN (SELECT DISTINCT i FROM core) ORDER BY code"
    ).combine_chunks()
    numbers = np.random.default_rng(seed).permutation(len(items)).astype(np.int32) + np.int32(1)
    codes = items.column("code").to_numpy()
    item_of = np.zeros(int(codes.max()) + 1, np.int32)
    item_of[codes] = numbers
    return items.column("id").combine_chunks().take(pa.array(np.argsort(numbers))), item_of


def _ranges(lengths: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ranges of users, each until it has ``PART_ROWS`` interactions: their first place, and that after the last."""
    ends = np.cumsum(lengths)
    found, first = [], 0
    while first < len(lengths):
        before = ends[first - 1] if first else 0
        end = min(int(np.searchsorted(ends, before + PART_ROWS)) + 1, len(lengths))
        found.append((first, end))
        first = end
    return found


def _cut(batches: Iterator[pa.RecordBatch], sizes: Iterable[int]) -> Iterator[pa.Table]:
    """Rows that come in batches, in tables of the sizes asked for."""
    held: list[pa.RecordBatch] = []
    for size in sizes:
        while sum(batch.num_rows for batch in held) < size:
            held.append(next(batches))
        table = pa.Table.from_batches(held)
        yield table.slice(0, size)
        held = table.slice(size).to_batches()


def _split(
    rows: pa.Table, item_of: NDArray[np.int32], user_ids: pa.ChunkedArray, lengths: NDArray[np.int64], first: int
) -> dict[str, pa.Table]:
    """The tables of some users, leave-one-out.

    Args:
        rows: i, stamp, position; by user, oldest first.
        item_of: Number of an item by its code.
        user_ids: The users' ids.
        lengths: Their interactions.
        first: Number of the first user.
    """
    user = np.arange(first, first + len(lengths), dtype=np.int32)
    item = item_of[rows.column("i").to_numpy()]
    ends = np.cumsum(lengths)
    split = lengths >= MIN_SPLIT
    in_training = np.ones(len(item), bool)
    in_training[ends[split] - 1] = in_training[ends[split] - 2] = False
    n_train = lengths - 2 * split
    offsets = np.concatenate([[0], np.cumsum(n_train)]).astype(np.int32)
    return {
        "interactions": pa.table(
            {
                "user_idx": np.repeat(user, lengths),
                "item_idx": item,
                "timestamp": rows.column("stamp"),
                "position": rows.column("position"),
            }
        ),
        "sequences": pa.table({"user_idx": user, "items": pa.ListArray.from_arrays(offsets, item[in_training])}),
        "validation": pa.table({"user_idx": user[split], "item_idx": item[ends[split] - 2]}),
        "test": pa.table({"user_idx": user[split], "item_idx": item[ends[split] - 1]}),
        "users": pa.table({"user_idx": user, "user_id": user_ids, "n_train": n_train.astype(np.int32)}),
    }
