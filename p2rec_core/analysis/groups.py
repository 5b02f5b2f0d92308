"""Users in groups: by how active they are, how frequent the item is that they should get, and whether they had it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

N_ACTIVITY_GROUPS = 5
N_WARM_GROUPS = 4


@dataclass(frozen=True, eq=False)
class Group:
    """Some of the users.

    Attributes:
        name: What they have in common, for a table or an axis.
        low: Least value of the property that the groups are made by.
        high: Greatest value.
        rows: int64 (m,) positions among the users that were grouped.
    """

    name: str
    low: int
    high: int
    rows: NDArray[np.int64]


def activity_groups(
    users: NDArray[np.int32], n_train: NDArray[np.int32], n_groups: int = N_ACTIVITY_GROUPS
) -> list[Group]:
    """Groups of equal size by training length, ascending (paper, Fig. 6); sizes differ by one at most.

    Args:
        users: int32 (n,) user_idx; breaks ties of length.
        n_train: int32 (n,) training interactions of each of them.
        n_groups: Number of groups; fewer where there are fewer users.
    """
    order = np.lexsort((users, n_train))
    return [_group(rows, n_train) for rows in np.array_split(order, n_groups) if len(rows)]


def frequency_groups(target_n_train: NDArray[np.int32], n_warm: int = N_WARM_GROUPS) -> list[Group]:
    """Groups by the training interactions of the target item: cold (none), then about equal parts, rare to frequent.

    Users with equally frequent targets are never parted, so that sizes differ; empty groups are left out.

    Args:
        target_n_train: int32 (n,) training interactions of each user's target; negative = unknown, in no group.
        n_warm: Number of groups among those with a target that has training interactions.
    """
    cold, warm = np.flatnonzero(target_n_train == 0), np.flatnonzero(target_n_train > 0)
    groups = [Group("cold", 0, 0, cold)] if len(cold) else []
    if len(warm):
        limits = np.unique(np.quantile(target_n_train[warm], np.arange(1, n_warm + 1) / n_warm, method="inverted_cdf"))
        part = np.searchsorted(limits, target_n_train[warm])
        groups.extend(_group(warm[part == i], target_n_train) for i in range(len(limits)))
    return groups


def target_groups(target_seen: NDArray[np.int32]) -> list[Group]:
    """Users whose target is new to them, and those who come back to an item; empty groups are left out.

    Args:
        target_seen: int32 (n,) 1 where the user had the target before, 0 where not; negative = unknown, in no group.
    """
    parts = [(name, value, np.flatnonzero(target_seen == value)) for name, value in (("new", 0), ("had before", 1))]
    return [Group(name, value, value, rows) for name, value, rows in parts if len(rows)]


def _group(rows: NDArray[np.int64], values: NDArray[np.int32]) -> Group:
    low, high = int(values[rows].min()), int(values[rows].max())
    return Group(str(low) if low == high else f"{low}–{high}", low, high, rows)
