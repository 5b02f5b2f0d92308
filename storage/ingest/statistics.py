"""Numbers that describe a data set."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Count = int | float
Ints = np.ndarray[tuple[int, ...], np.dtype[Any]]


class Description:
    """Numbers that describe a data set, collected from its parts.

    Args:
        n_items: Items of the data set.
    """

    def __init__(self, n_items: int) -> None:
        self._n_items = n_items
        self._lengths: list[Ints] = []
        self._validation: list[Ints] = []
        self._test: list[Ints] = []
        self._warm = np.zeros(n_items + 1, dtype=bool)
        self._n_repeats = 0
        self._n_repeat_test = 0

    def add(self, tables: Mapping[str, pa.Table]) -> None:
        """Add some users.

        Args:
            tables: Their rows of ``interactions``, ``sequences``, ``validation`` and ``test`` as ``ingest`` makes them.
        """
        users, items = (_column(tables["interactions"], name) for name in ("user_idx", "item_idx"))
        owners, test = (_column(tables["test"], name) for name in ("user_idx", "item_idx"))
        first = tables["sequences"].column("user_idx")[0].as_py()
        self._lengths.append(np.bincount(users - first, minlength=tables["sequences"].num_rows))
        self._validation.append(_column(tables["validation"], "item_idx"))
        self._test.append(test)
        self._warm[pc.list_flatten(tables["sequences"].column("items")).to_numpy()] = True
        found, times = np.unique(users.astype(np.int64) * (self._n_items + 1) + items, return_counts=True)
        targets = owners.astype(np.int64) * (self._n_items + 1) + test
        self._n_repeats += len(users) - len(found)
        self._n_repeat_test += int((times[np.searchsorted(found, targets)] > 1).sum())

    def counts(self) -> dict[str, Count]:
        """Describe all that was added.

        Returns:
            n_users, n_items, n_interactions; density (part of the user-item pairs, repetitions counted);
            length_min, length_median, length_mean, length_max (interactions of a user, targets among them);
            n_users_split and n_users_unsplit (fewer than three interactions); n_cold_test and n_cold_validation
            (targets, one a user, whose item no training part holds), n_cold_test_items (distinct such items);
            n_repeats (interactions with an item that the user had before) and n_repeat_test (targets that the
            user had before).
        """
        lengths, test = np.concatenate(self._lengths), np.concatenate(self._test)
        n_users, n_interactions = len(lengths), int(lengths.sum())
        cold_test = test[~self._warm[test]]
        return {
            "n_users": n_users,
            "n_items": self._n_items,
            "n_interactions": n_interactions,
            "density": n_interactions / (n_users * self._n_items),
            "length_min": int(lengths.min()),
            "length_median": float(np.median(lengths)),
            "length_mean": n_interactions / n_users,
            "length_max": int(lengths.max()),
            "n_users_split": len(test),
            "n_users_unsplit": n_users - len(test),
            "n_cold_test": len(cold_test),
            "n_cold_test_items": len(np.unique(cold_test)),
            "n_cold_validation": int((~self._warm[np.concatenate(self._validation)]).sum()),
            "n_repeats": self._n_repeats,
            "n_repeat_test": self._n_repeat_test,
        }


def describe(tables: Mapping[str, pa.Table]) -> dict[str, Count]:
    """Describe a data set by its tables.

    Args:
        tables: ``interactions``, ``sequences``, ``validation``, ``test`` and ``items`` as ``ingest`` makes them.

    Returns:
        See ``Description.counts``.
    """
    description = Description(tables["items"].num_rows)
    description.add(tables)
    return description.counts()


def _column(table: pa.Table, name: str) -> Ints:
    column: Ints = table[name].to_numpy()
    return column
