"""Which items have to go through the language model again."""

import numpy as np
from numpy.typing import NDArray


def outdated_items(read: NDArray[np.float32], embedded: NDArray[np.float32], tolerance: float) -> NDArray[np.int64]:
    """Items that are new, or whose input has moved too far from the one that their knowledge was computed from.

    Args:
        read: float32 (N, D), what the language model reads of every item now.
        embedded: float32 (M, D), M <= N, what it had read of the first M items when it embedded them.
        tolerance: Movement that is let pass, as a part of the length of ``embedded``; an input that was zero and is
            not any more has moved.

    Returns:
        int64 (n,) their item_idx, rising.
    """
    known = len(embedded)
    moved = np.linalg.norm(read[:known].astype(np.float64) - embedded, axis=1)
    length = np.linalg.norm(embedded.astype(np.float64), axis=1)
    outdated = np.ones(len(read), bool)
    outdated[:known] = moved > tolerance * length
    return np.flatnonzero(outdated) + 1


def with_renewed_rows(
    previous: NDArray[np.float32], items: NDArray[np.int64], rows: NDArray[np.float32], n_items: int
) -> NDArray[np.float32]:
    """A table of all items: the rows that were computed anew, and bit for bit the previous ones for all others.

    Args:
        previous: float32 (M, D).
        items: int64 (n,) item_idx of the new rows; all items above M are among them.
        rows: float32 (n, D).
        n_items: N >= M.

    Raises:
        ValueError: An item would have no row.
    """
    filled = np.zeros(n_items, bool)
    filled[: len(previous)] = True
    filled[items - 1] = True
    if not filled.all():
        raise ValueError(f"Item {int(np.flatnonzero(~filled)[0]) + 1} has no row.")
    table = np.empty((n_items, rows.shape[1] if len(rows) else previous.shape[1]), np.float32)
    table[: len(previous)] = previous
    table[items - 1] = rows
    return table
