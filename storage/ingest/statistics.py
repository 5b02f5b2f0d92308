"""Numbers that describe a data set."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Count = int | float


def describe(tables: Mapping[str, pa.Table]) -> dict[str, Count]:
    """Describe a data set by its tables.

    Args:
        tables: ``interactions``, ``sequences``, ``validation``, ``test``, ``users`` and ``items``
            as ``ingest`` makes them.

    Returns:
        n_users, n_items, n_interactions; density (part of the user-item pairs, repetitions counted);
        length_min, length_median, length_mean, length_max (interactions of a user, targets among them);
        n_users_split and n_users_unsplit (fewer than three interactions); n_cold_test and n_cold_validation
        (targets, one a user, whose item no training part holds), n_cold_test_items (distinct such items);
        n_repeats (interactions with an item that the user had before) and n_repeat_test (targets that the
        user had before).
    """
    interactions, test = tables["interactions"], tables["test"]
    n_users, n_items = tables["users"].num_rows, tables["items"].num_rows
    users, items = _column(interactions, "user_idx"), _column(interactions, "item_idx")
    lengths = np.bincount(users, minlength=n_users + 1)[1:]
    warm = np.zeros(n_items + 1, dtype=bool)
    warm[pc.list_flatten(tables["sequences"]["items"]).to_numpy()] = True
    cold_test = _column(test, "item_idx")[~warm[_column(test, "item_idx")]]
    cold_validation = ~warm[_column(tables["validation"], "item_idx")]
    pairs = users.astype(np.int64) * (n_items + 1) + items
    targets = _column(test, "user_idx").astype(np.int64) * (n_items + 1) + _column(test, "item_idx")
    found, times = np.unique(pairs, return_counts=True)
    return {
        "n_users": n_users,
        "n_items": n_items,
        "n_interactions": interactions.num_rows,
        "density": interactions.num_rows / (n_users * n_items),
        "length_min": int(lengths.min()),
        "length_median": float(np.median(lengths)),
        "length_mean": interactions.num_rows / n_users,
        "length_max": int(lengths.max()),
        "n_users_split": test.num_rows,
        "n_users_unsplit": n_users - test.num_rows,
        "n_cold_test": len(cold_test),
        "n_cold_test_items": len(np.unique(cold_test)),
        "n_cold_validation": int(cold_validation.sum()),
        "n_repeats": interactions.num_rows - len(found),
        "n_repeat_test": int((times[np.searchsorted(found, targets)] > 1).sum()),
    }


def _column(table: pa.Table, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    column: np.ndarray[tuple[int, ...], np.dtype[np.int32]] = table[name].to_numpy()
    return column
