"""How long computations tell of their progress without knowing who listens."""

from typing import Protocol


class Progress(Protocol):
    """Called by a long computation each time it has got further."""

    def __call__(self, done: int, total: int, message: str) -> None:
        """Tell how far the computation is.

        Args:
            done: Units of work finished.
            total: Units of work in all; an upper bound where early stopping may end it before.
            message: One short line for a person, e.g. ``"epoch 3: loss 7.112, NDCG@10 .0302"``.
        """


def silent(done: int, total: int, message: str) -> None:
    """Tell nobody."""
