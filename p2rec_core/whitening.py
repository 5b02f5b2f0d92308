"""Preparation of embeddings: standardised dimensions, or whitened principal components."""

import numpy as np
from numpy.typing import NDArray

from p2rec_core.errors import DataError


def standardised(knowledge: NDArray[np.float32]) -> NDArray[np.float32]:
    """Zero mean and unit variance per dimension; a constant dimension becomes zero. (N, D) → (N, D)."""
    centred = knowledge.astype(np.float64) - knowledge.mean(axis=0, dtype=np.float64)
    deviation = centred.std(axis=0)
    scaled: NDArray[np.float32] = (centred / np.where(deviation > 0, deviation, 1.0)).astype(np.float32)
    return scaled


def side_by_side(*blocks: NDArray[np.float32]) -> NDArray[np.float32]:
    """Embeddings of the same items from several origins, as one: each origin has the same total variance.

    Args:
        *blocks: float32 (N, D_i); a row of zeros where an origin says nothing of an item.

    Returns:
        float32 (N, sum of D_i): every block centred over its items and scaled to a mean squared norm of one; items of
        which a block says nothing are at its centre.
    """
    parts = []
    for block in blocks:
        known = (block != 0).any(axis=1)
        part = np.zeros(block.shape, np.float64)
        if known.any():
            rows = block[known].astype(np.float64)
            centred = rows - rows.mean(axis=0)
            part[known] = centred / max(np.sqrt((centred**2).sum(axis=1).mean()), 1e-12)
        parts.append(part)
    return np.concatenate(parts, axis=1).astype(np.float32)


def leading_components(rows: NDArray[np.float32], at_most: int, *, tolerance: float) -> NDArray[np.float32]:
    """The leading principal components, each scaled to unit variance; fewer than asked for where the rank is smaller.

    Signs are fixed (the largest loading of a component is positive), so that the result is a function of the input
    alone.

    Args:
        rows: float32 (N, D).
        at_most: Components that are asked for.
        tolerance: A component counts towards the rank if its variance exceeds this part of the first one's.

    Returns:
        float32 (N, min(at_most, rank)).
    """
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    variance, axes = np.linalg.eigh(centred.T @ centred / max(len(centred) - 1, 1))
    variance, axes = variance[::-1], axes[:, ::-1]
    n_components = min(at_most, int((variance > variance[0] * tolerance).sum()))
    axes = axes[:, :n_components]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(n_components)])
    whitened: NDArray[np.float32] = (centred @ axes / np.sqrt(variance[:n_components])).astype(np.float32)
    return whitened


def pca_whitened(knowledge: NDArray[np.float32], n_components: int) -> NDArray[np.float32]:
    """Whitened knowledge embeddings, as ``leading_components``. (N, D) → (N, n_components).

    Language-model states are anisotropic: a few directions common to all items hold most of the variance.

    Raises:
        DataError: More components are asked for than the embeddings have rank.
    """
    whitened = leading_components(knowledge, n_components, tolerance=1e-10)
    rank = whitened.shape[1]
    if rank < n_components:
        raise DataError(
            f"{n_components} principal components are asked for; the knowledge embeddings "
            f"({knowledge.shape[0]} items x {knowledge.shape[1]}) have rank {rank}.",
            remedy=f"Set fusion.n_components to {rank} or less.",
        )
    return whitened
