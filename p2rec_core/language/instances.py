"""Which examples a language model is trained and asked with, and how many tokens that takes; no torch.

P2Rec takes one example per user in training and one per item afterwards. E4SRec takes one per target: the items
before it are the history. The tokens of an epoch compare the two whatever the machine (paper, RQ2).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2rec_core.sequences import RaggedSequences, Windows


@dataclass(frozen=True)
class LanguageModelWork:
    """Examples that go through a language model.

    Attributes:
        n_instances: Number of examples.
        n_items: Item vectors in all of them.
    """

    n_instances: int
    n_items: int

    @classmethod
    def of(cls, lengths: NDArray[np.int64]) -> "LanguageModelWork":
        """The work of examples that have so many items each, int64 (instances,)."""
        return cls(len(lengths), int(lengths.sum()))

    def n_tokens(self, n_prompt_tokens: int) -> int:
        """Tokens without padding: the prompt of every example, and an item vector per item.

        Args:
            n_prompt_tokens: Tokens that every example has beside its items.
        """
        return self.n_instances * n_prompt_tokens + self.n_items


def user_level_lengths(lengths: NDArray[np.int64], *, max_length: int | None) -> NDArray[np.int64]:
    """Items of P2Rec's training examples: one example per user who has any.

    Args:
        lengths: Training items of each user, int64 (U,).
        max_length: Most recent items that are read; None reads all.

    Returns:
        int64 (instances,).
    """
    return _capped(lengths[lengths > 0], max_length)


def instance_level_lengths(
    lengths: NDArray[np.int64], *, n_last_targets: int | None, max_history: int | None, drop_empty_history: bool
) -> NDArray[np.int64]:
    """Items of E4SRec's training examples: one example per target.

    Args:
        lengths: Training items of each user, int64 (U,).
        n_last_targets: Most recent items of a user that are targets; None takes all.
        max_history: Most recent items before a target that are read; None reads all.
        drop_empty_history: Whether targets with nothing before them are left out.

    Returns:
        int64 (instances,), user after user, each in time order.
    """
    _, position = _targets(lengths, n_last_targets, drop_empty_history)
    return _capped(position, max_history)


def inference_lengths(lengths: NDArray[np.int64], *, max_history: int | None) -> NDArray[np.int64]:
    """Items that E4SRec reads to recommend: one example per user.

    Args:
        lengths: Items known of each user, int64 (U,); for the test these are training and validation items.
        max_history: Most recent items that are read; None reads all.

    Returns:
        int64 (U,).
    """
    return _capped(lengths, max_history)


@dataclass(frozen=True)
class NextItemInstances:
    """Examples of (history, next item) as places in the users' sequences.

    Attributes:
        windows: The histories; a history may be empty. The item behind it is the target.
        n_empty: Targets with nothing before them, whether they are among the examples or were left out.
    """

    windows: Windows
    n_empty: int

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Items of each history, int64 (instances,)."""
        return self.windows.lengths

    def histories(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """item_idx of some examples' histories, int64 (B, L), right-padded with 0 to the longest."""
        return self.windows.padded(rows)

    def targets(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """item_idx of some examples' next items, int64 (B,)."""
        place = self.windows.starts[rows] + self.windows.lengths[rows]
        items: NDArray[np.int64] = self.windows.sequences.items[place].astype(np.int64)
        return items


def next_item_instances(
    sequences: RaggedSequences, *, n_last_targets: int | None, max_history: int | None, drop_empty_history: bool
) -> NextItemInstances:
    """E4SRec's training examples.

    Args:
        sequences: Training parts.
        n_last_targets: Most recent items of a user that are targets; None takes all, every prefix being a history.
        max_history: Most recent items before a target that are read; None reads all.
        drop_empty_history: Whether targets with nothing before them are left out.

    Source: E4SRec's released code, which takes the last 50 targets, caps no history and keeps empty ones.
    """
    user, position = _targets(sequences.lengths, n_last_targets, drop_empty_history)
    target = sequences.offsets[user] + position
    lengths = _capped(position, max_history)
    n_last = np.inf if n_last_targets is None else n_last_targets
    n_empty = int(((sequences.lengths > 0) & (sequences.lengths <= n_last)).sum())
    return NextItemInstances(Windows(sequences, target - lengths, lengths), n_empty)


def _targets(
    lengths: NDArray[np.int64], n_last: int | None, drop_empty: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The user of each target and its position in the user's sequence, both int64 (instances,)."""
    first = np.zeros_like(lengths) if n_last is None else np.maximum(lengths - n_last, 0)
    if drop_empty:
        first = np.maximum(first, 1)
    n_targets = np.maximum(lengths - first, 0)
    user = np.repeat(np.arange(len(lengths)), n_targets)
    within = np.arange(len(user)) - np.repeat(np.cumsum(n_targets) - n_targets, n_targets)
    return user, first[user] + within


def _capped(lengths: NDArray[np.int64], bound: int | None) -> NDArray[np.int64]:
    return lengths if bound is None else np.minimum(lengths, bound)


__all__ = [
    "LanguageModelWork",
    "NextItemInstances",
    "inference_lengths",
    "instance_level_lengths",
    "next_item_instances",
    "user_level_lengths",
]
