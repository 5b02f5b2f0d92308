"""The sequential recommender: an item table and a sequence encoder, its training objective and its ranking."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from p2rec_core.errors import DataError, ModelError
from p2rec_core.objectives import catalogue_cross_entropy
from p2rec_core.ranking import rank_metrics, target_ranks
from p2rec_core.sequences import RaggedSequences, Windows, bucketed_batches, tail_windows, training_windows

EVALUATION_ROWS = 512
"""Users scored at once; changes memory, not results."""


class Recommender(nn.Module):
    """Scores items by the inner product of a user's state and the item's vector.

    Args:
        item_table: A module whose call gives (N + 1, d), row 0 = PAD.
        encoder: Maps (B, L, d) and lengths (B,) to states (B, L, d).
    """

    def __init__(self, item_table: nn.Module, encoder: nn.Module) -> None:
        super().__init__()
        self.item_table = item_table
        self.encoder = encoder

    def states(self, items: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """States after every item.

        Args:
            items: int64 (B, L), right-padded with 0.
            lengths: int64 (B,).
            table: (N + 1, d), what ``item_table()`` gave.

        Returns:
            (B, L, d).
        """
        vectors = nn.functional.embedding(items, table)
        states: Tensor = self.encoder(vectors, lengths)
        return states

    @torch.no_grad()
    def scores(self, items: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """Scores of the next item, float32 (B, N); a user without items gets zeros."""
        states = self.states(items, lengths, table)
        last = states[torch.arange(len(items), device=items.device), (lengths - 1).clamp_min(0)]
        return ((last * (lengths > 0)[:, None]) @ table[1:].T).float()


class NextItemObjective:
    """Next-item prediction at every position, full softmax, for the training loop.

    Args:
        model: The recommender.
        training: Training parts of all users.
        targets: int32 (users,) validation item of each user, 0 where there is none; None validates nothing.
        max_length: Longest sequence that the encoder reads.
        batch_positions: Bound of users x padded length in one optimiser step.
        seed: Seed of the order.
        device: Where the model is.

    Raises:
        DataError: No user has two training items, or targets are given and no user has one.
    """

    def __init__(
        self,
        model: Recommender,
        training: RaggedSequences,
        targets: NDArray[np.int32] | None,
        *,
        max_length: int,
        batch_positions: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.model = model
        self.training = training
        self.targets = targets
        self.max_length = max_length
        self.batch_positions = batch_positions
        self.seed = seed
        self.device = device
        self.windows = training_windows(training, max_length)
        if not len(self.windows):
            raise DataError(
                "No user has two or more training items, so there is nothing to learn from.",
                remedy="Import users with at least four interactions.",
            )
        if targets is not None and not (targets > 0).any():
            raise DataError(
                "No user has a validation item, so early stopping has nothing to go by.",
                remedy="Import users with at least three interactions, or set training.patience to null.",
            )

    def steps(self, epoch: int) -> Sequence[Sequence[NDArray[np.int64]]]:
        """Window numbers of each step; the order depends on the seed and the epoch alone."""
        rng = np.random.default_rng((self.seed, epoch))
        return [[rows] for rows in bucketed_batches(self.windows.lengths - 1, self.batch_positions, rng)]

    def weight(self, batch: NDArray[np.int64]) -> float:
        """Number of predicted positions."""
        return float((self.windows.lengths[batch] - 1).sum())

    def loss(self, batch: NDArray[np.int64]) -> Tensor:
        """Summed cross-entropy of the batch's positions."""
        items, lengths = _as_batch(self.windows, batch, self.device)
        inputs, following = items[:, :-1], items[:, 1:]
        predicted = following > 0
        # the last item of a window is a target only
        inputs = inputs * predicted
        table = self.model.item_table()
        states = self.model.states(inputs, lengths - 1, table)
        return catalogue_cross_entropy(states[predicted], table[1:], following[predicted] - 1)

    def validate(self) -> dict[str, float]:
        """NDCG@10 and HR@10 of the validation items under ``seen = keep``."""
        if self.targets is None:
            return {}
        keep, _ = rank_targets(
            self.model, self.training, self.targets, max_length=self.max_length, device=self.device, mask=False
        )
        metrics = rank_metrics(keep, (10,))
        return {"NDCG@10": metrics["NDCG", 10], "HR@10": metrics["HR", 10]}


@torch.no_grad()
def rank_targets(
    model: Recommender,
    history: RaggedSequences,
    targets: NDArray[np.int32],
    *,
    max_length: int,
    device: torch.device,
    mask: bool = True,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Rank each user's target among all items.

    Args:
        model: The recommender, in evaluation mode.
        history: What is known of each user.
        targets: int32 (users,); 0 leaves a user out.
        max_length: Most recent items that the encoder reads.
        device: Where the model is.
        mask: Whether to rank under ``seen = mask`` too; otherwise the second result equals the first.

    Returns:
        int32 ranks under ``keep`` and ``mask`` of the users that have a target, in user order.

    Raises:
        ModelError: A score is not finite.
    """
    windows = tail_windows(history, max_length)
    users = np.flatnonzero(targets > 0)
    by_length = users[np.argsort(windows.lengths[users], kind="stable")]
    keep, masked = np.zeros(len(targets), np.int32), np.zeros(len(targets), np.int32)
    table = model.item_table()
    for start in range(0, len(by_length), EVALUATION_ROWS):
        rows = by_length[start : start + EVALUATION_ROWS]
        items, lengths = _as_batch(windows, rows, device)
        if not items.shape[1]:
            items = items.new_zeros(len(rows), 1)
        scores = model.scores(items, lengths, table)
        if not torch.isfinite(scores.sum()):
            # a comparison with NaN is false, so that a broken model would rank everything first
            raise ModelError(
                "The recommender gives scores that are not finite numbers.",
                remedy="Train it again, with a lower learning rate.",
            )
        target = torch.from_numpy(targets[rows].astype(np.int64)).to(device)
        k, m = target_ranks(scores, target, history if mask else None, rows)
        keep[rows], masked[rows] = k.cpu().numpy(), m.cpu().numpy()
    return keep[users], masked[users]


def _as_batch(windows: Windows, rows: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor]:
    """Padded items int64 (B, L) and lengths int64 (B,) of the windows ``rows`` on a device."""
    items = torch.from_numpy(windows.padded(rows))
    return items.to(device), torch.from_numpy(windows.lengths[rows]).to(device)
