"""A dataset as if it had come night by night: for trying a refresh, and for measuring one."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from p2rec_core.errors import DataError
from storage.ingest.pipeline import IngestResult


def nights(
    result: IngestResult,
    n_nights: int,
    *,
    per_user: int = 1,
    share: float | None = None,
    late_users: float,
    late_items: float,
    min_rows: int,
    seed: int,
) -> list[pa.Table]:
    """Cut an import into a beginning and some nights that each add to it.

    A user's last ``n_nights`` times ``per_user`` interactions come ``per_user`` a night, but ``min_rows`` are there
    from the beginning. With a ``share``, about that part of all interactions comes in a night instead: users' last
    ones, as many as are drawn for each, in nights drawn at random. Some users, and some items, are not there before a
    night of their own. A user's order is kept: what follows a late item comes no earlier than it.

    Args:
        result: The import.
        n_nights: Nights after the beginning.
        per_user: Interactions of a user in a night.
        share: Part of all interactions that comes in a night, 0…1; None goes by ``per_user``.
        late_users: Part of the users who come late, 0…1.
        late_items: Part of the items that come late, 0…1.
        min_rows: Interactions of a user that is there from the beginning.
        seed: Of who comes late, and when.

    Returns:
        n_nights + 1 tables with user_id and item_id, text, and timestamp, a float64 that rises within a user; each
        begins with the rows of the one before.

    Raises:
        DataError: There are no nights, more is to come in them than users have beside their first interactions, or
            nothing is left for the beginning.
    """
    if n_nights < 1 or per_user < 1:
        raise DataError(
            f"{n_nights} nights of {per_user} interactions per user are none.", remedy="Give numbers from 1."
        )
    user = result.interactions.column("user_idx").to_numpy() - 1
    item = result.interactions.column("item_idx").to_numpy() - 1
    n_rows = np.bincount(user, minlength=result.users.num_rows)
    rank = np.arange(len(user)) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)
    rng = np.random.default_rng(seed)
    if share is None:
        beginning = np.maximum(n_rows - n_nights * per_user, np.minimum(min_rows, n_rows))
        night = np.where(rank < beginning[user], 0, 1 + (rank - beginning[user]) // per_user)
    else:
        night = _drawn(user, rank, n_rows, n_nights, share, min_rows, rng)
    night = np.maximum(night, _late(len(n_rows), late_users, n_nights, rng)[user])
    night = np.maximum(night, _late(result.items.num_rows, late_items, n_nights, rng)[item])
    # a running maximum within each user
    above = user.astype(np.int64) * (n_nights + 1)
    night = np.maximum.accumulate(night + above) - above
    if not (night == 0).any():
        raise DataError(
            f"{n_nights} nights of {per_user} interactions per user leave nothing for the beginning.",
            remedy="Take fewer nights, or interactions, or late users and items.",
        )
    order = np.argsort(night, kind="stable")
    table = pa.table(
        {
            "user_id": result.users.column("user_id").combine_chunks().take(pa.array(user[order])),
            "item_id": result.items.column("item_id").combine_chunks().take(pa.array(item[order])),
            "timestamp": pa.array(rank[order].astype(np.float64)),
        }
    )
    return [table.slice(0, int((night <= last).sum())) for last in range(n_nights + 1)]


def _drawn(
    user: NDArray[np.int64],
    rank: NDArray[np.int64],
    n_rows: NDArray[np.int64],
    n_nights: int,
    share: float,
    min_rows: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """The night of every row, 0 for those of the beginning; rises within a user."""
    spare = np.maximum(n_rows - min_rows, 0)
    wanted = share * n_nights * len(user)
    if not 0 < wanted <= spare.sum():
        raise DataError(
            f"{n_nights} nights of {share:g} of all {len(user)} interactions are {wanted:.0f}; users have "
            f"{spare.sum()} beside their first {min_rows}.",
            remedy="Give a smaller share above 0, or fewer nights.",
        )
    beginning = n_rows - rng.binomial(spare, wanted / spare.sum())
    night = np.where(rank < beginning[user], 0, rng.integers(1, n_nights + 1, len(user)))
    # rows lie user by user, and 0 sorts first
    return night[np.lexsort((night, user))]


def _late(n: int, part: float, n_nights: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The night of each of n, 0 for those that are not late."""
    late = rng.random(n) < part
    return np.where(late, rng.integers(1, n_nights + 1, n), 0)
