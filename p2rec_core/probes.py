"""What item vectors carry, measured without training a recommender.

Three probes ask the same matrix how much of it is where a recommender would look: what a user takes next, what users
take together, and what kind of thing an item is. Each stands beside its level by chance. Nothing here is drawn, and
only training and validation parts are read.

Similarities are cosines in double precision, rounded to ``_DECIMALS`` digits, so that equal vectors are ties whatever
the blocks. Ties give no place away: a target's rank is that of ``ranking``; among equally near neighbours every choice
counts alike.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from p2rec_core.analysis.groups import frequency_groups
from p2rec_core.metrics import user_metric
from p2rec_core.progress import Progress, silent
from p2rec_core.ranking import NOT_ELIGIBLE, Scorer, ranks_of_users
from p2rec_core.sequences import RaggedSequences, tail_windows

N_LATEST = 5
"""Latest training items that a user's query is the mean of."""

N_NEIGHBOURS = 10
"""Nearest items that an item is judged by."""

CUTOFF = 10
"""The k of HR@k and NDCG@k."""

EVERYTHING = "all"
"""The group that holds every user or item."""

NEXT_ITEM, COPURCHASE, CATEGORY = "next_item", "copurchase", "category"

_DECIMALS = 9
_BLOCK_VALUES = 1 << 22
"""Similarities that are in memory at once; changes memory, not results."""


@dataclass(frozen=True)
class Measure:
    """What one probe found.

    Attributes:
        probe: ``next_item``, ``copurchase`` or ``category``.
        metric: What was measured.
        group: Of which users or items: ``all``, or a group of targets by training frequency.
        value: The mean over them; None where there is nothing to measure.
        chance: What vectors that carry nothing would give; None where ``value`` is.
        n: Users or items that the mean is over.
    """

    probe: str
    metric: str
    group: str
    value: float | None
    chance: float | None
    n: int


def next_item_probe(
    vectors: NDArray[np.float32],
    sequences: RaggedSequences,
    targets: NDArray[np.int32],
    *,
    progress: Progress = silent,
) -> list[Measure]:
    """How high the next item ranks among all by its cosine to what a user had last; history excluded.

    A user's query is the mean of the unit vectors of the last ``N_LATEST`` training items. Chance is a ranking in
    random order of what may be recommended.

    Args:
        vectors: float32 (N, D), row i is item i + 1; a zero row is like nothing.
        sequences: Training parts, one row per user.
        targets: int32 (users,) the validation items; 0 leaves a user out. A target that is in the history is a miss.
        progress: Told after every block of users.

    Returns:
        HR@10 and NDCG@10 over all users, then NDCG@10 by the training frequency of the target.
    """
    n_items = len(vectors)
    users = np.flatnonzero(targets > 0)
    padded = np.concatenate([np.zeros((1, vectors.shape[1])), unit_rows(vectors)])  # (N + 1, D)
    windows = tail_windows(sequences, N_LATEST)

    def score(rows: NDArray[np.int64]) -> Tensor:
        latest = padded[windows.padded(rows)]  # (B, N_LATEST or less, D), zero where there is no item
        query = unit_rows(latest.sum(axis=1))  # the length of the query changes no rank
        return torch.from_numpy(np.round(query @ padded[1:].T, _DECIMALS))

    scorer = Scorer(sequences, score, windows.lengths)
    ranks = ranks_of_users(scorer, targets, seen=("mask",), progress=progress)["mask"]
    chance = _chances(ranks, _n_eligible(sequences, n_items)[users])
    n_train = np.bincount(sequences.items, minlength=n_items + 1).astype(np.int32)

    def measure(metric: str, group: str, rows: NDArray[np.int64]) -> Measure:
        values = user_metric(ranks[rows], metric)
        return Measure(NEXT_ITEM, metric, group, _mean(values), _mean(chance[metric][rows]), len(rows))

    hits, gains = f"HR@{CUTOFF}", f"NDCG@{CUTOFF}"
    everybody = np.arange(len(users))
    by_frequency = frequency_groups(n_train[targets[users]])
    return [
        measure(hits, EVERYTHING, everybody),
        measure(gains, EVERYTHING, everybody),
        *(measure(gains, group.name, group.rows) for group in by_frequency),
    ]


def copurchase_probe(
    vectors: NDArray[np.float32], sequences: RaggedSequences, *, progress: Progress = silent
) -> Measure:
    """How many of an item's nearest items at least one user has together with it in the training part.

    Only items with training interactions take part, as items and as neighbours: of the others nobody knows. Chance
    is that of random neighbours among them, the mean part of all other items that an item was taken with.

    Args:
        vectors: float32 (N, D), row i is item i + 1.
        sequences: Training parts, one row per user.
        progress: Told after every block of items.

    Returns:
        The mean over items of the part of the ``N_NEIGHBOURS`` nearest, itself excluded.
    """
    metric = f"precision@{N_NEIGHBOURS}"
    taken = np.unique(sequences.items)  # item numbers, ascending
    if len(taken) < 2:
        return Measure(COPURCHASE, metric, EVERYTHING, None, None, len(taken))
    units = unit_rows(vectors[taken - 1])
    place = np.searchsorted(taken, sequences.items)
    ones = np.ones(len(place), np.int32)
    by_user = csr_array((ones, place, sequences.offsets), shape=(len(sequences), len(taken)))
    by_item = by_user.T.tocsr()
    precision, possible = np.empty(len(taken)), np.empty(len(taken))
    for rows in _blocks(len(taken), len(taken), progress):
        together = (by_item[rows] @ by_user).toarray() > 0  # (B, M)
        together[np.arange(len(rows)), rows] = False
        possible[rows] = together.mean(axis=1) * len(taken) / (len(taken) - 1)
        row, column, weight = nearest(units, rows)
        found = np.bincount(row, weights=weight * together[row, column], minlength=len(rows))
        precision[rows] = found / min(N_NEIGHBOURS, len(taken) - 1)
    return Measure(COPURCHASE, metric, EVERYTHING, _mean(precision), _mean(possible), len(taken))


def category_probe(
    vectors: NDArray[np.float32], categories: NDArray[np.int64] | None, *, progress: Progress = silent
) -> Measure:
    """How often an item's nearest items tell its true category: leave-one-out, by majority of ``N_NEIGHBOURS``.

    Only items whose category is known take part. Where categories tie for the majority, the item counts by the chance
    of drawing the true one among them. Chance is the part of the largest category, which one gets by always naming it.

    Args:
        vectors: float32 (N, D), row i is item i + 1.
        categories: int64 (N,) number of each item's category from 0, negative where unknown; None where the dataset
            has none.
        progress: Told after every block of items.

    Returns:
        The accuracy; without a value where fewer than two items have a category.
    """
    metric = f"accuracy of {N_NEIGHBOURS} nearest"
    known = np.flatnonzero(categories >= 0) if categories is not None else np.empty(0, np.int64)
    if categories is None or len(known) < 2:
        return Measure(CATEGORY, metric, EVERYTHING, None, None, len(known))
    _, own = np.unique(categories[known], return_inverse=True)
    sizes = np.bincount(own)
    units = unit_rows(vectors[known])
    credit = np.empty(len(known))
    for rows in _blocks(len(known), max(len(known), len(sizes)), progress):
        row, column, weight = nearest(units, rows)
        votes = np.bincount(row * len(sizes) + own[column], weights=weight, minlength=len(rows) * len(sizes))
        votes = np.round(votes, _DECIMALS).reshape(len(rows), len(sizes))
        best = votes == votes.max(axis=1, keepdims=True)
        credit[rows] = best[np.arange(len(rows)), own[rows]] / best.sum(axis=1)
    return Measure(CATEGORY, metric, EVERYTHING, _mean(credit), float(sizes.max()) / len(known), len(known))


def unit_rows(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rows of length one, float64 (N, D); a zero row stays zero."""
    rows = vectors.astype(np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float64] = rows / np.where(length > 0, length, 1.0)
    return unit


def nearest(
    units: NDArray[np.float64], rows: NDArray[np.int64], k: int = N_NEIGHBOURS
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The k nearest of some rows by cosine, themselves excluded.

    Args:
        units: float64 (M, D) unit rows, M > 1.
        rows: int64 (B,) whose neighbours are wanted.
        k: How many; fewer where there are fewer.

    Returns:
        Position in ``rows``, neighbour and weight of every pair, int64 (P,), int64 (P,) and float64 (P,). The weights
        of a row sum to k: 1 for those nearer than the k-th, and for those as near as it what is left, in equal parts,
        which is the mean over all ways to choose.
    """
    k = min(k, len(units) - 1)
    cosine = np.round(units[rows] @ units.T, _DECIMALS)  # (B, M)
    cosine[np.arange(len(rows)), rows] = -np.inf
    kth = np.partition(cosine, len(units) - k, axis=1)[:, len(units) - k]
    row, column = np.nonzero(cosine >= kth[:, None])
    nearer = cosine[row, column] > kth[row]
    n_nearer = np.bincount(row[nearer], minlength=len(rows))
    n_equal = np.bincount(row[~nearer], minlength=len(rows))
    return row, column, np.where(nearer, 1.0, ((k - n_nearer) / n_equal)[row])


def _blocks(n_rows: int, width: int, progress: Progress) -> Iterator[NDArray[np.int64]]:
    """Rows 0 … n - 1 in blocks of which ``width`` values each fit into memory; progress is told after each."""
    size = max(1, _BLOCK_VALUES // width)
    for start in range(0, n_rows, size):
        rows = np.arange(start, min(start + size, n_rows))
        yield rows
        done = start + len(rows)
        progress(done, n_rows, f"{done} of {n_rows} items")


def _n_eligible(sequences: RaggedSequences, n_items: int) -> NDArray[np.int64]:
    """Items that a user does not have yet: int64 (users,)."""
    user = np.repeat(np.arange(len(sequences)), sequences.lengths)
    pairs = np.unique(user * (n_items + 1) + sequences.items)
    return n_items - np.bincount(pairs // (n_items + 1), minlength=len(sequences))


def _chances(ranks: NDArray[np.int32], n_eligible: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Expectation of HR and NDCG of each user under a random order of what is eligible; float64 (users,) by metric."""
    gain = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(1, CUTOFF + 1) + 1.0))])
    possible = ranks != NOT_ELIGIBLE  # so that something is eligible
    within = np.minimum(n_eligible, CUTOFF)
    eligible = np.maximum(n_eligible, 1)
    by_metric: dict[str, NDArray[np.floating]] = {f"HR@{CUTOFF}": within, f"NDCG@{CUTOFF}": gain[within]}
    return {metric: np.where(possible, best / eligible, 0.0) for metric, best in by_metric.items()}


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None
