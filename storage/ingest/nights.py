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
    per_user: int,
    late_users: float,
    late_items: float,
    min_rows: int,
    seed: int,
) -> list[pa.Table]:
    """Cut an import into a beginning and some nights that each add to it.

    A user's last ``n_nights`` times ``per_user`` interactions come ``per_user`` a night, but ``min_rows`` are there
    from the beginning. Some users, and some items, are not there before a night of their own. A user's order is kept:
    what follows a late item comes no earlier than it.

    Args:
        result: The import.
        n_nights: Nights after the beginning.
        per_user: Interactions of a user in a night.
        late_users: Part of the users who come late, 0…1.
        late_items: Part of the items that come late, 0…1.
        min_rows: Interactions of a user that is there from the beginning.
        seed: Of who comes late, and when.

    Returns:
        n_nights + 1 tables with user_id and item_id, text, and timestamp, a float64 that rises within a user; each
        begins with the rows of the one before.

    Raises:
        DataError: There are no nights, or nothing is left for the beginning.
    """
    if n_nights < 1 or per_user < 1:
        raise DataError(
            f"{n_nights} nights of {per_user} interactions per user are none.", remedy="Give numbers from 1."
        )
    user = result.interactions.column("user_idx").to_numpy() - 1
    item = result.interactions.column("item_idx").to_numpy() - 1
    n_rows = np.bincount(user, minlength=result.users.num_rows)
    rank = np.arange(len(user)) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)
    beginning = np.maximum(n_rows - n_nights * per_user, np.minimum(min_rows, n_rows))
    night = np.where(rank < beginning[user], 0, 1 + (rank - beginning[user]) // per_user)
    rng = np.random.default_rng(seed)
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


def _late(n: int, part: float, n_nights: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The night of each of n, 0 for those that are not late."""
    late = rng.random(n) < part
    return np.where(late, rng.integers(1, n_nights + 1, n), 0)
