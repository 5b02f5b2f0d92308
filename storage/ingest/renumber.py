"""An import that keeps the numbers of an earlier one: who was known keeps the index, who is new gets the next."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from p2rec_core.errors import DataError
from storage.ingest.pipeline import INTERACTIONS, ITEMS, SEQUENCES, TARGETS, USERS, IngestResult
from storage.ingest.statistics import describe


def continued(result: IngestResult, *, user_ids: pa.ChunkedArray, item_ids: pa.ChunkedArray) -> IngestResult:
    """Number users and items as an earlier import did.

    Users and items that the earlier import had and this one has not keep their rows, with no interactions: a table's
    row i is the index i + 1. New ones follow in the order that they have in ``result``, which for items is a seeded
    permutation.

    Args:
        result: The import of today's file.
        user_ids: The earlier import's users, row i of user_idx i + 1.
        item_ids: Its items, likewise.

    Returns:
        The same interactions in other numbers; bit for bit ``result`` where that has the same users and items in the
        same order. ``counts`` has four more: n_new_users, n_new_items, n_vanished_users, n_vanished_items.

    Raises:
        DataError: No user, or no item, of the earlier import occurs in this one.
    """
    users, user_of = _numbers(user_ids, result.users.column("user_id"), "user")
    items, item_of = _numbers(item_ids, result.items.column("item_id"), "item")
    interactions = _renumbered(result.interactions, user_of, item_of)
    lists = result.sequences.column("items").combine_chunks()
    sequences = _sequences(lists, user_of, item_of, len(users))
    n_train = np.zeros(len(items), np.int32)
    n_train[item_of - 1] = result.items.column("n_train").to_numpy()
    tables = {
        "interactions": interactions.cast(INTERACTIONS),
        "sequences": sequences.cast(SEQUENCES),
        "validation": _renumbered(result.validation, user_of, item_of).cast(TARGETS),
        "test": _renumbered(result.test, user_of, item_of).cast(TARGETS),
        "items": pa.table({"item_idx": _dense(len(items)), "item_id": items, "n_train": pa.array(n_train)}).cast(ITEMS),
        "users": pa.table(
            {
                "user_idx": _dense(len(users)),
                "user_id": users,
                "n_train": pc.list_value_length(sequences.column("items")),
            }
        ).cast(USERS),
    }
    counts = result.counts | describe(tables)
    for name, all_ids, before, now in (
        ("users", users, user_ids, result.users.num_rows),
        ("items", items, item_ids, result.items.num_rows),
    ):
        counts |= {f"n_new_{name}": len(all_ids) - len(before), f"n_vanished_{name}": len(all_ids) - now}
    return dataclasses.replace(result, **tables, counts=counts)


def _numbers(before: pa.ChunkedArray, now: pa.ChunkedArray, what: str) -> tuple[pa.Array, NDArray[np.int32]]:
    """All ids in their new order, and the new index of each of ``now``, int32."""
    before, now = before.combine_chunks(), now.combine_chunks()
    known = pc.index_in(now, value_set=before)
    if known.null_count == len(now):
        raise DataError(
            f"No {what} of the current snapshot occurs in today's interactions.",
            remedy="Check that the file is the dataset's own and that its columns are right; "
            "to begin anew, use `p2rec run`.",
        )
    fresh = known.is_null().to_numpy(zero_copy_only=False)
    index = np.empty(len(now), np.int32)
    index[~fresh] = known.drop_null().to_numpy() + 1
    index[fresh] = len(before) + 1 + np.arange(int(fresh.sum()), dtype=np.int32)
    return pa.concat_arrays([before, now.filter(pa.array(fresh))]), index


def _renumbered(table: pa.Table, user_of: NDArray[np.int32], item_of: NDArray[np.int32]) -> pa.Table:
    """A table with user_idx and item_idx in new numbers, by user; a user's rows keep their order."""
    user = user_of[table.column("user_idx").to_numpy() - 1]
    item = item_of[table.column("item_idx").to_numpy() - 1]
    order = pa.array(np.argsort(user, kind="stable"))
    for name, values in (("user_idx", user), ("item_idx", item)):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    return table.take(order).combine_chunks()


def _sequences(lists: pa.ListArray, user_of: NDArray[np.int32], item_of: NDArray[np.int32], n_users: int) -> pa.Table:
    """The training parts in new numbers; empty for users who vanished."""
    offsets = lists.offsets.to_numpy().astype(np.int64)
    lengths = np.zeros(n_users, np.int64)
    starts = np.zeros(n_users, np.int64)
    lengths[user_of - 1], starts[user_of - 1] = np.diff(offsets), offsets[:-1]
    ends = np.cumsum(lengths)
    places = np.repeat(starts - (ends - lengths), lengths) + np.arange(int(lengths.sum()))
    values = item_of[lists.values.to_numpy()[places] - 1]
    rows = pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], ends]).astype(np.int32)), pa.array(values.astype(np.int32))
    )
    return pa.table({"user_idx": _dense(n_users), "items": rows})


def _dense(n_rows: int) -> pa.Array:
    return pa.array(np.arange(1, n_rows + 1, dtype=np.int32))
