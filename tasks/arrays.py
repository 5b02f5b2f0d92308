"""Between the store's Arrow tables and the core's arrays; no copy where the layout allows."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from p2rec_core.sequences import RaggedSequences


def ragged(table: pa.Table) -> RaggedSequences:
    """The rows of a ``sequences`` table, in user order."""
    lists = table.column("items").combine_chunks()
    offsets = lists.offsets.to_numpy().astype(np.int64)
    items = lists.values.to_numpy()[offsets[0] : offsets[-1]] if len(lists) else np.empty(0, np.int32)
    return RaggedSequences(
        items.astype(np.int32, copy=False), offsets - offsets[0] if len(lists) else np.zeros(1, np.int64)
    )


def targets(table: pa.Table, n_users: int) -> NDArray[np.int32]:
    """A table (user_idx, item_idx) as int32 (users,), 0 where a user has no row."""
    values = np.zeros(n_users, np.int32)
    values[table.column("user_idx").to_numpy() - 1] = table.column("item_idx").to_numpy()
    return values


def vectors(table: pa.Table, column: str) -> NDArray[np.float32]:
    """A column of vectors as float32 (rows, width)."""
    chunk = table.column(column).combine_chunks()
    if isinstance(chunk, pa.ChunkedArray):
        chunk = chunk.chunk(0)
    width = chunk.type.list_size
    values: NDArray[np.float32] = chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    return values


def vector_array(values: NDArray[np.float32]) -> pa.FixedSizeListArray:
    """float32 (rows, width) as a column of vectors."""
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def numbering(n_rows: int) -> pa.Array:
    """1 … n as int32, the dense index column of a table."""
    return pa.array(np.arange(1, n_rows + 1, dtype=np.int32))


def learning_curve(history: Iterable[tuple[int, str, float]]) -> pa.Table:
    """A learning curve as a ``history`` table."""
    rows = list(history)
    columns: dict[str, Any] = {
        "epoch": pa.array([e for e, _, _ in rows], pa.int32()),
        "metric": pa.array([m for _, m, _ in rows], pa.string()),
        "value": pa.array([v for _, _, v in rows], pa.float64()),
    }
    return pa.table(columns)
