"""Windows, batches and ragged arrays hold every interaction once."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2rec_core.errors import DataError
from p2rec_core.sequences import (
    RaggedSequences,
    bucketed_batches,
    prefix_windows,
    shuffled_batches,
    tail_windows,
    training_windows,
)

ROWS = st.lists(st.lists(st.integers(1, 30), max_size=25), min_size=1, max_size=8)


def as_ragged(rows: list[list[int]]) -> RaggedSequences:
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return RaggedSequences(np.array([i for row in rows for i in row], np.int32), offsets)


def window(windows, number: int) -> list[int]:
    start, length = windows.starts[number], windows.lengths[number]
    return windows.sequences.items[start : start + length].tolist()


@given(ROWS, st.integers(1, 30))
def test_latest(rows, n):
    found = as_ragged(rows).latest(n)
    assert [found.items[a:b].tolist() for a, b in zip(found.offsets, found.offsets[1:], strict=False)] == [
        row[-n:] for row in rows
    ]


@given(ROWS, st.integers(1, 9))
def test_each_transition_is_trained_exactly_once(rows, max_length):
    sequences = as_ragged(rows)
    windows = training_windows(sequences, max_length)
    seen = Counter(
        (start + i, start + i + 1)
        for start, length in zip(windows.starts.tolist(), windows.lengths.tolist(), strict=True)
        for i in range(length - 1)
    )
    expected = {
        (i, i + 1)
        for first, end in zip(sequences.offsets[:-1].tolist(), sequences.offsets[1:].tolist(), strict=True)
        for i in range(first, end - 1)
    }
    assert set(seen) == expected
    assert set(seen.values()) <= {1}
    assert (windows.lengths >= 2).all()
    assert (windows.lengths <= max_length + 1).all()


def test_windows_are_cut_from_the_end():
    windows = training_windows(as_ragged([[1, 2, 3, 4, 5, 6], [7], [], [8, 9]]), 2)
    assert [window(windows, n) for n in range(len(windows))] == [[4, 5, 6], [2, 3, 4], [1, 2], [8, 9]]


@given(ROWS, st.integers(1, 9))
def test_every_prefix_is_a_window_with_the_item_that_follows(rows, max_length):
    windows = prefix_windows(as_ragged(rows), max_length)
    expected = [row[max(0, n - max_length) : n + 1] for row in rows for n in range(1, len(row))]
    assert [window(windows, n) for n in range(len(windows))] == expected
    assert len(windows) == sum(max(len(row) - 1, 0) for row in rows)
    # each transition is the last of exactly one window
    ends = (windows.starts + windows.lengths - 1).tolist()
    assert len(set(ends)) == len(ends)


@given(ROWS, st.integers(1, 9))
def test_tail_windows_are_the_latest_items(rows, max_length):
    windows = tail_windows(as_ragged(rows), max_length)
    assert [window(windows, n) for n in range(len(windows))] == [row[-max_length:] for row in rows]


@given(ROWS, st.integers(1, 9))
def test_padding_is_on_the_right(rows, max_length):
    windows = tail_windows(as_ragged(rows), max_length)
    chosen = np.arange(len(windows))[::-1].copy()
    padded = windows.padded(chosen)
    tails = [rows[n][-max_length:] for n in chosen]
    longest = max(map(len, tails))
    assert padded.dtype == np.int64
    assert padded.tolist() == [tail + [0] * (longest - len(tail)) for tail in tails]


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 120), st.integers(0, 5))
def test_batches_are_a_partition_within_the_bound(lengths, batch_positions, seed):
    lengths = np.array(lengths, np.int64)
    batches = bucketed_batches(lengths, batch_positions, np.random.default_rng(seed))
    assert sorted(np.concatenate([*batches, np.empty(0, np.int64)]).tolist()) == list(range(len(lengths)))
    for rows in batches:
        assert len(rows) == 1 or len(rows) * lengths[rows].max() <= batch_positions
    again = bucketed_batches(lengths, batch_positions, np.random.default_rng(seed))
    assert [b.tolist() for b in batches] == [b.tolist() for b in again]


def test_batches_hold_rows_of_like_length_in_an_order_of_the_seed():
    lengths = np.random.default_rng(0).integers(1, 50, 400)
    one, other = (bucketed_batches(lengths, 200, np.random.default_rng(seed)) for seed in (1, 2))
    assert [b.tolist() for b in one] != [b.tolist() for b in other]
    padding = sum(len(b) * lengths[b].max() for b in one) / lengths.sum()
    assert padding < 1.05
    # neither the batches nor the rows within a length come in order
    longest = [int(lengths[b].max()) for b in one]
    assert longest != sorted(longest)


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 30), st.integers(1, 9), st.integers(0, 5))
def test_shuffled_batches_are_a_partition_in_pieces(lengths, batch_rows, piece_rows, seed):
    lengths = np.array(lengths, np.int64)
    batches = shuffled_batches(lengths, batch_rows, piece_rows, np.random.default_rng(seed))
    pieces = [piece for batch in batches for piece in batch]
    assert sorted(np.concatenate([*pieces, np.empty(0, np.int64)]).tolist()) == list(range(len(lengths)))
    sizes = [sum(map(len, batch)) for batch in batches]
    assert all(size == batch_rows for size in sizes[:-1])
    for batch in batches:
        assert all(len(piece) == piece_rows for piece in batch[:-1])
        inside = lengths[np.concatenate(batch)]
        assert (np.diff(inside) >= 0).all()


@given(ROWS, st.data())
def test_appended(rows, data):
    extra = data.draw(st.lists(st.integers(0, 30), min_size=len(rows), max_size=len(rows)))
    longer = as_ragged(rows).appended(np.array(extra, np.int32))
    found = [longer.items[a:b].tolist() for a, b in zip(longer.offsets[:-1], longer.offsets[1:], strict=True)]
    assert found == [row + [item] * (item > 0) for row, item in zip(rows, extra, strict=True)]
    assert longer.items.dtype == np.int32


def test_lengths():
    sequences = as_ragged([[4, 4], [], [1]])
    assert len(sequences) == 3
    assert sequences.lengths.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    "offsets", [[1, 3], [0, 2], [0, 4], [0, 2, 1, 3]], ids=["not from 0", "too short", "too long", "falling"]
)
def test_offsets_that_do_not_fit(offsets):
    with pytest.raises(DataError, match=rf"Offsets run from {offsets[0]} to {offsets[-1]} over 3 items"):
        RaggedSequences(np.array([1, 2, 3], np.int32), np.array(offsets, np.int64))


@pytest.mark.parametrize("item", [0, -4])
def test_padding_inside_a_sequence(item):
    with pytest.raises(DataError, match=rf"A sequence holds item {item}. Number items from 1; 0 is padding."):
        RaggedSequences(np.array([2, item], np.int32), np.array([0, 2], np.int64))
