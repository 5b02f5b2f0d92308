"""How large a data set of one's own is, and which k-core suits it, before anything is imported."""

from dataclasses import dataclass
from pathlib import Path

from p2rec_core.errors import DataError
from storage.ingest.engine import Engine, open_engine
from storage.ingest.item_text import read_item_texts
from storage.ingest.kcore import k_core
from storage.ingest.layout import PLAIN, Columns, Dialect
from storage.ingest.load import load
from storage.ingest.pipeline import MIN_SPLIT

BOUNDS = ((5, 5), (4, 4), (3, 3), (3, 2), (3, 1))
"""Fewest interactions of a user and of an item, the usual ones first; all let every user be split."""

KEPT = 0.5
"""Part of the interactions of the loosest symmetric core (3, 3) that a stricter one has to keep."""


@dataclass(frozen=True)
class Core:
    """What a k-core leaves.

    Attributes:
        min_user: Fewest interactions of a user.
        min_item: Fewest interactions of an item.
        n_users: Users that are left.
        n_items: Items that are left.
        n_interactions: Interactions that are left.
        longest: Length that nine of ten users' sequences do not exceed.
    """

    min_user: int
    min_item: int
    n_users: int
    n_items: int
    n_interactions: int
    longest: int


@dataclass(frozen=True)
class FirstLook:
    """What a file holds.

    Attributes:
        n_rows: Rows.
        n_rejected: Of these, rows that cannot be read.
        n_users: Users before any filter.
        n_items: Items before any filter.
        core: The k-core that suits it.
        notices: Sentences about oddities.
    """

    n_rows: int
    n_rejected: int
    n_users: int
    n_items: int
    core: Core
    notices: list[str]


def first_look(
    path: Path,
    *,
    format: str,
    columns: Columns,
    on_error: str,
    max_rejected: float,
    drop_duplicates: bool,
    dialect: Dialect = PLAIN,
    item_texts: Path | None = None,
) -> FirstLook:
    """Read a file as an import does, count, and try the k-cores of ``BOUNDS``.

    Args:
        path: One file.
        format: One of ``layout.FORMATS``.
        columns: Which column is which.
        on_error: ``strict`` stops at rows that cannot be read, ``quarantine`` passes over them.
        max_rejected: Part of the rows, 0…1, that quarantine may pass over.
        drop_duplicates: Whether rows equal in user, item and timestamp count once.
        dialect: How a CSV or TSV file departs from its format.
        item_texts: A file of the items' texts, to see whether an import can use it.

    Returns:
        Counts, and the strictest core that keeps enough.

    Raises:
        DataError: The file or its rows, or the file of texts, cannot be used, or no user has enough interactions.
    """
    with open_engine(None) as engine:
        loaded = load(
            engine,
            path,
            format=format,
            columns=columns,
            on_error=on_error,
            max_rejected=max_rejected,
            dialect=dialect,
        )
        timed = engine.number("SELECT count(stamp) FROM raw") > 0
        distinct = "DISTINCT" if drop_duplicates and timed else "ALL"
        engine.run(f"CREATE TEMP TABLE events AS SELECT {distinct} user_id AS u, item_id AS i, stamp FROM raw")
        n_users, n_items = engine.rows("SELECT count(DISTINCT u), count(DISTINCT i) FROM events")[0]
        notices = loaded.notices + _about_texts(engine, item_texts)
        core = _suiting(engine)
        if core is None:
            raise DataError(
                f"{path}: none of its {n_users} users has {MIN_SPLIT} interactions, so there is nothing to learn an "
                "order from.",
                remedy="Check that the user's column is the right one, or take a longer period.",
            )
        return FirstLook(loaded.n_rows, loaded.n_rejected, int(n_users), int(n_items), core, notices)


def _about_texts(engine: Engine, path: Path | None) -> list[str]:
    if path is None:
        return []
    item_ids = [item_id for (item_id,) in engine.rows("SELECT DISTINCT i FROM events ORDER BY i")]
    n_missing = read_item_texts(path, item_ids, None).n_missing
    return [f"{n_missing} of {len(item_ids)} items have no text."] if n_missing else []


def _suiting(engine: Engine) -> Core | None:
    """The first of the bounds whose core is not empty and keeps enough of what the third one keeps."""
    cores = [core for bounds in BOUNDS if (core := _core(engine, *bounds)) is not None]
    symmetric = [core for core in cores if core.min_user == core.min_item]
    if not symmetric:
        return cores[0] if cores else None
    enough = KEPT * symmetric[-1].n_interactions
    return next(core for core in symmetric if core.n_interactions >= enough)


def _core(engine: Engine, min_user: int, min_item: int) -> Core | None:
    k_core(engine, source="events", target="core", min_user=min_user, min_item=min_item)
    sizes = engine.rows("SELECT count(DISTINCT u), count(DISTINCT i), count(*) FROM core")[0]
    n_users, n_items, n_interactions = map(int, sizes)
    if not n_interactions:
        return None
    longest = engine.number("SELECT quantile_disc(n, 0.9) FROM (SELECT count(*) AS n FROM core GROUP BY u)")
    return Core(min_user, min_item, n_users, n_items, n_interactions, longest)
