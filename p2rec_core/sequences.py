"""Interaction sequences: a flat ragged array, its training windows and length-bucketed batches.

Item 0 is PAD and never occurs in a sequence; items are 1 … N. Right padding throughout: causal encoders then need
no padding mask, and position t of a row means the same in every batch.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2rec_core.errors import DataError


@dataclass(frozen=True)
class RaggedSequences:
    """One item sequence per row, oldest item first.

    Attributes:
        items: int32 (total,), all rows end to end.
        offsets: int64 (rows + 1,); row r is ``items[offsets[r]:offsets[r + 1]]``.
    """

    items: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.items) or (np.diff(self.offsets) < 0).any():
            raise DataError(
                f"Offsets run from {self.offsets[0]} to {self.offsets[-1]} over {len(self.items)} items.",
                remedy="Offsets rise from 0 to the number of items.",
            )
        if len(self.items) and self.items.min() < 1:
            raise DataError(f"A sequence holds item {self.items.min()}.", remedy="Number items from 1; 0 is padding.")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 (rows,): number of items per row."""
        return np.diff(self.offsets)

    def lengths_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 (B,): number of items of each of the rows ``rows``; looks at no other row."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def coordinates(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Every item of the rows ``rows``: int64 (M,) place of its row in ``rows`` and int64 (M,) item."""
        lengths = self.lengths_of(rows)
        row = np.repeat(np.arange(len(rows)), lengths)
        within = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return row, self.items[self.offsets[rows][row] + within].astype(np.int64)

    def distinct(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Every different item of the rows ``rows``, by row and item.

        Returns:
            int64 (M,) each: place of the row in ``rows``, item, and the last place, from 0, that it has in the row.
        """
        lengths = self.lengths_of(rows)
        row, item = self.coordinates(rows)
        within = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        order = np.lexsort((item, row))  # stable: equal items stay in order of time
        row, item, within = row[order], item[order], within[order]
        final = np.ones(len(row), bool)
        final[:-1] = (row[1:] != row[:-1]) | (item[1:] != item[:-1])
        return row[final], item[final], within[final]

    def last_items(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Last item of each of the rows ``rows``, int64 (B,); 0 where a row is empty."""
        filled = self.lengths_of(rows) > 0
        last = np.zeros(len(rows), np.int64)
        last[filled] = self.items[self.offsets[rows[filled] + 1] - 1]
        return last

    def latest(self, n: int) -> "RaggedSequences":
        """The last n items of every row, or as many as there are."""
        kept = np.minimum(self.lengths, n)
        offsets = np.concatenate([[0], np.cumsum(kept)])
        place = np.repeat(self.offsets[1:] - offsets[1:], kept) + np.arange(offsets[-1])
        return RaggedSequences(self.items[place], offsets)

    def appended(self, extra: NDArray[np.int32]) -> "RaggedSequences":
        """A copy with one more item per row where ``extra`` (int32 (rows,)) is not 0."""
        more = extra > 0
        offsets = np.concatenate([[0], np.cumsum(self.lengths + more)])
        items = np.empty(offsets[-1], np.int32)
        old = np.ones(len(items), bool)
        old[offsets[1:][more] - 1] = False
        items[old], items[~old] = self.items, extra[more]
        return RaggedSequences(items, offsets)


@dataclass(frozen=True)
class Windows:
    """Slices of the rows of a ragged array, each short enough for the encoder.

    Attributes:
        sequences: The rows.
        starts: int64 (windows,), position of the first item in ``sequences.items``.
        lengths: int64 (windows,), number of items.
    """

    sequences: RaggedSequences
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    def padded(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The windows ``rows`` as int64 (B, L), right-padded with 0 to the longest of them."""
        lengths = self.lengths[rows]
        columns = np.arange(lengths.max(initial=0))
        inside = columns < lengths[:, None]
        position = np.where(inside, self.starts[rows][:, None] + columns, 0)
        return np.where(inside, self.sequences.items[position], 0).astype(np.int64)


def training_windows(sequences: RaggedSequences, max_length: int) -> Windows:
    """Cut every row into windows so that each next-item transition is trained exactly once.

    A window of n items gives n - 1 (prefix, next item) examples in one causal pass. Rows are cut from the end, so
    that the recent past has the longest context; neighbouring windows share one item (the last of one is the
    first of the next). Rows of fewer than two items give none.

    Args:
        sequences: The training parts.
        max_length: Most items that the encoder reads; a window has at most one more.
    """
    n_transitions = sequences.lengths - 1
    n_windows = np.maximum(-(-n_transitions // max_length), 0)
    row = np.repeat(np.arange(len(sequences)), n_windows)
    # the k-th window of a row, counted from its end
    k = np.arange(len(row)) - np.repeat(np.cumsum(n_windows) - n_windows, n_windows)
    last = sequences.offsets[row + 1] - 1 - k * max_length
    first = np.maximum(last - max_length, sequences.offsets[row])
    return Windows(sequences, first, last - first + 1)


def prefix_windows(sequences: RaggedSequences, max_length: int) -> Windows:
    """One window for every transition: the item that follows, and up to ``max_length`` items before it.

    A row of m items gives m - 1 windows, in order; a row of fewer than two gives none. This is what an encoder is
    trained on that has a state for a whole row only.

    Args:
        sequences: The training parts.
        max_length: Most items that the encoder reads; a window has at most one more.
    """
    n_transitions = np.maximum(sequences.lengths - 1, 0)
    row = np.repeat(np.arange(len(sequences)), n_transitions)
    k = np.arange(len(row)) - np.repeat(np.cumsum(n_transitions) - n_transitions, n_transitions)
    following = sequences.offsets[row] + 1 + k
    first = np.maximum(following - max_length, sequences.offsets[row])
    return Windows(sequences, first, following - first + 1)


def tail_windows(sequences: RaggedSequences, max_length: int) -> Windows:
    """The last ``max_length`` items of every row, empty rows included."""
    lengths = np.minimum(sequences.lengths, max_length)
    return Windows(sequences, sequences.offsets[1:] - lengths, lengths)


def bucketed_batches(
    lengths: NDArray[np.int64], batch_positions: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Group rows of like length, so that little of a batch is padding, and shuffle the groups.

    Args:
        lengths: int64 (rows,).
        batch_positions: Bound of rows x longest row in a batch; a longer single row is a batch of its own.
        rng: Source of the order.

    Returns:
        Row numbers of each batch, in random order; each row is in exactly one batch.
    """
    order = np.lexsort((rng.random(len(lengths)), lengths))
    batches, start = [], 0
    ordered = lengths[order]
    while start < len(order):
        # rows are ascending: the batch's longest row is its last
        end = start + 1
        reach = min(len(order), start + max(1, batch_positions // max(int(ordered[start]), 1)))
        fits = (np.arange(start + 1, reach + 1) - start) * ordered[start:reach] <= batch_positions
        end = start + max(1, int(fits.sum()))
        batches.append(order[start:end])
        start = end
    return [batches[i] for i in rng.permutation(len(batches))]


def pieces(rows: NDArray[np.int64], n_rows: int) -> list[NDArray[np.int64]]:
    """Cut a batch into pieces of so many rows; the last one may have fewer."""
    return [rows[start : start + n_rows] for start in range(0, len(rows), n_rows)]


def shuffled_batches(
    lengths: NDArray[np.int64], batch_rows: int, piece_rows: int, rng: np.random.Generator
) -> list[list[NDArray[np.int64]]]:
    """Put rows in random order, into batches of ``batch_rows`` and these into pieces of ``piece_rows``.

    Args:
        lengths: int64 (rows,); within a batch, pieces hold rows of like length.
        batch_rows: Rows of a batch; the last one may have fewer.
        piece_rows: Rows of a piece; the last of a batch may have fewer.
        rng: Source of the order.

    Returns:
        Row numbers by batch and piece; each row is in exactly one piece.
    """
    order = rng.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), batch_rows):
        rows = order[start : start + batch_rows]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches.append(pieces(rows, piece_rows))
    return batches
