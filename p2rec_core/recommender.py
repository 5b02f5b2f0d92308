"""The sequential recommender: an item table and a sequence encoder, its training objective and its ranking."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from p2rec_core.backbones.base import SequenceEncoder
from p2rec_core.errors import DataError
from p2rec_core.objectives import OwnItemBias, catalogue_cross_entropy, sampled_cross_entropy
from p2rec_core.ranking import Scorer, counted_blocks, rank_metrics, ranks_of_users
from p2rec_core.repeat_fit import RepeatFit, highest_unseen
from p2rec_core.sequences import (
    RaggedSequences,
    Windows,
    bucketed_batches,
    pieces,
    prefix_windows,
    shuffled_batches,
    tail_windows,
    training_windows,
)

PIECE_POSITIONS = 12_800
"""Places (prefixes x max_length) that go through an encoder at once where it reads prefixes; changes memory and
time, not results beyond rounding and dropout."""

PIECE_VALUES = 1 << 23
"""Numbers that go through an encoder at once at its widest point: however large a step, about a gibibyte."""

OWN_LAST, OWN_EARLIER = 0, 1
"""Places of ``Recommender.own_bias``: what the last item of a sequence gets, and what each item before it gets."""


class Recommender(nn.Module):
    """Scores items by the inner product of a user's state and the item's vector.

    Nothing is more like a user's last item than that item, so that inner products alone put it first, whether or not
    people come back to items. With ``learn_repeats`` two numbers, learned with the rest, are added to the scores of the
    items that the encoder has just read.

    Args:
        item_table: A module whose call gives (N + 1, d), row 0 = PAD and zero.
        encoder: Makes states of item vectors.
        learn_repeats: Whether the scores of own items get a learned bias.
    """

    def __init__(self, item_table: nn.Module, encoder: SequenceEncoder, *, learn_repeats: bool = False) -> None:
        super().__init__()
        self.item_table = item_table
        self.encoder = encoder
        self.own_bias = nn.Parameter(torch.zeros(2)) if learn_repeats else None

    def states(self, items: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """States after every item, where the encoder is causal.

        Args:
            items: int64 (B, L), right-padded with 0.
            lengths: int64 (B,).
            table: (N + 1, d), what ``item_table()`` gave.

        Returns:
            (B, L, d).
        """
        states: Tensor = self.encoder(nn.functional.embedding(items, table), lengths)
        return states

    def final_states(self, items: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """States after the last item of each row, (B, d); arguments as of ``states``."""
        return self.encoder.final(nn.functional.embedding(items, table), lengths)

    @torch.no_grad()
    def scores(self, items: Tensor, lengths: Tensor, table: Tensor, out: Tensor | None = None) -> Tensor:
        """Scores of the next item, float32 (B, N); a user without items gets zeros.

        Arguments as of ``states``, and ``out``, float32 (B, N), where to write them; None takes new memory.
        """
        n_rows = _rows_at_once(items.shape[1], self.encoder.widest(items.shape[1]))
        parts = zip(torch.split(items, n_rows), torch.split(lengths, n_rows), strict=True)
        states = [self.final_states(*part, table) for part in parts]
        last = torch.cat(states).masked_fill((lengths == 0)[:, None], 0)
        scores = torch.mm(last, table[1:].T, out=out)
        if self.own_bias is not None:
            row, column = (items > 0).nonzero(as_tuple=True)
            item = items[row, column]
            kinds = torch.where(item == items[row, lengths[row] - 1], OWN_LAST, OWN_EARLIER)
            # an item that occurs twice is written twice, with the same value
            scores[row, item - 1] = scores[row, item - 1] + self.own_bias[kinds]
        return scores


class NextItemObjective:
    """Next-item prediction with a softmax over the catalogue or a sample of it, for the training loop.

    Every transition of every user is predicted once per epoch. A causal encoder predicts at all positions of a window
    in one pass; any other reads every prefix as a row of its own.

    Args:
        model: The recommender.
        training: Training parts of all users.
        targets: int32 (users,) validation item of each user, 0 where there is none; None validates nothing.
        max_length: Longest sequence that the encoder reads.
        batch_positions: Bound of the positions that one optimiser step predicts from. Causal: rows x padded length,
            next to none of it padding, since rows of like length go together. Otherwise a prefix is one position, so
            that both kinds take about as many steps per epoch. A step goes through in pieces, whose gradients are
            summed: of at most ``PIECE_POSITIONS`` places where prefixes are read, else of ``PIECE_VALUES`` values.
        n_negatives: Items that stand for the catalogue in a step's softmax; None, or as many as there are, takes all.
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
        n_negatives: int | None = None,
        seed: int,
        device: torch.device,
    ) -> None:
        self.model = model
        self.training = training
        self.targets = targets
        self.max_length = max_length
        self.batch_positions = batch_positions
        self.n_negatives = n_negatives
        self.seed = seed
        self.device = device
        self.causal = model.encoder.causal
        self.windows = (training_windows if self.causal else prefix_windows)(training, max_length)
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
        if self.causal:
            lengths = self.windows.lengths - 1
            return [
                pieces(rows, self._rows_of_piece(int(lengths[rows].max())))
                for rows in bucketed_batches(lengths, self.batch_positions, rng)
            ]
        return shuffled_batches(
            self.windows.lengths, self.batch_positions, max(1, PIECE_POSITIONS // self.max_length), rng
        )

    def _rows_of_piece(self, length: int) -> int:
        # own items are looked for among all pairs of places
        pairs = 0 if self.model.own_bias is None else length
        return _rows_at_once(length, max(self.model.encoder.widest(length), pairs))

    def weight(self, batch: NDArray[np.int64]) -> float:
        """Number of predicted positions."""
        return float((self.windows.lengths[batch] - 1).sum()) if self.causal else float(len(batch))

    def loss(self, batch: NDArray[np.int64]) -> Tensor:
        """Summed cross-entropy of the batch's positions."""
        items, lengths = _as_batch(self.windows, batch, self.device)
        inputs, following = items[:, :-1], items[:, 1:]
        predicted = following > 0
        # the last item of a window is a target only
        inputs = inputs * predicted
        table = self.model.item_table()
        if self.causal:
            states = self.model.states(inputs, lengths - 1, table)[predicted]
            following = following[predicted]
        else:
            states = self.model.final_states(inputs, lengths - 1, table)
            rows = torch.arange(len(items), device=self.device)
            following = following[rows, lengths - 2]
            predicted = torch.zeros_like(predicted).index_put_((rows, lengths - 2), predicted.new_ones(()))
        own = None if self.model.own_bias is None else own_items(inputs, predicted, self.model.own_bias)
        if self.n_negatives is not None and self.n_negatives < len(table) - 1:
            return sampled_cross_entropy(states, table[1:], following - 1, self.n_negatives, own=own)
        return catalogue_cross_entropy(states, table[1:], following - 1, own=own)

    def validate(self) -> dict[str, float]:
        """NDCG@10 and HR@10 of the validation items under ``seen = keep``.

        Where repeats are learned, own items stand where they will in the end, see ``observed_repeats``.
        """
        if self.targets is None:
            return {}
        if self.model.own_bias is None:
            ranks = ranks_of_users(self._scorer(), self.targets, seen=("keep",))["keep"]
        else:
            observed = self.observed_repeats(self.targets)
            ranks = observed.ranks(observed.fit())
        metrics = rank_metrics(ranks, (10,))
        return {"NDCG@10": metrics["NDCG", 10], "HR@10": metrics["HR", 10]}

    def observed_repeats(self, targets: NDArray[np.int32]) -> RepeatFit:
        """How held-out items stand beside the own items that the recommender, in evaluation mode, has read.

        What comes of it is added to ``Recommender.own_bias`` after training: training makes own items as probable as
        they are, and the first places of a model that has learned its training parts by heart are less so
        (docs/adr/0012).

        Args:
            targets: int32 (users,) held-out items; 0 leaves a user out.

        Raises:
            ModelError: A score is not finite.
        """
        observed = RepeatFit()
        # the numbers are added to the items that are read, not to older ones
        scorer = replace(self._scorer(), history=self.training.latest(self.max_length))
        for _, scores, counts in counted_blocks(scorer, targets):
            observed.add(counts, highest_unseen(scores, counts))
            del scores, counts  # before the next block is scored
        return observed

    def _scorer(self) -> Scorer:
        return recommender_scorer(self.model, self.training, max_length=self.max_length, device=self.device)


def own_items(items: Tensor, at: Tensor, bias: Tensor) -> OwnItemBias:
    """The items that a recommender has read at some positions.

    Args:
        items: int64 (B, L), right-padded with 0.
        at: bool (B, L), the positions: P of them, in row-major order.
        bias: (2,), what ``Recommender.own_bias`` is.

    Returns:
        Every item up to a position once; its last occurrence tells whether it is the last item there.
    """
    length = items.shape[1]
    steps = torch.arange(length, device=items.device)
    later = (items[:, :, None] == items[:, None, :]) & (steps[None, :] > steps[:, None])
    # (B, L) where the item of each place occurs next
    again = torch.where(later.any(2), later.int().argmax(2), length)
    # (B, position, place)
    present = (steps[:, None] >= steps) & (again[:, None, :] > steps[:, None]) & (items > 0)[:, None, :]
    row, position, place = (present & at[:, :, None]).nonzero(as_tuple=True)
    number = at.flatten().cumsum(0).view_as(items) - 1
    kinds = torch.where(position == place, OWN_LAST, OWN_EARLIER)
    return OwnItemBias(number[row, position], items[row, place] - 1, kinds, bias)


def recommender_scorer(
    model: Recommender, history: RaggedSequences, *, max_length: int, device: torch.device
) -> Scorer:
    """A recommender as what ranks are computed from.

    Args:
        model: The recommender, in evaluation mode.
        history: What is known of each user.
        max_length: Most recent items that the encoder reads.
        device: Where the model is.
    """
    windows = tail_windows(history, max_length)
    with torch.no_grad():
        table = model.item_table()

    memory = table.new_empty(0)

    def score(rows: NDArray[np.int64]) -> Tensor:
        nonlocal memory
        items, lengths = _as_batch(windows, rows, device)
        if not items.shape[1]:
            items = items.new_zeros(len(rows), 1)
        if len(memory) < len(rows):
            memory = table.new_empty(len(rows), len(table) - 1)
        return model.scores(items, lengths, table, memory[: len(rows)])

    return Scorer(history, score, windows.lengths)


def _rows_at_once(length: int, width: int) -> int:
    """Rows of so many places, each of so many numbers, that go through an encoder at once."""
    return max(1, PIECE_VALUES // (length * width))


def _as_batch(windows: Windows, rows: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor]:
    """Padded items int64 (B, L) and lengths int64 (B,) of the windows ``rows`` on a device."""
    items = torch.from_numpy(windows.padded(rows))
    return items.to(device), torch.from_numpy(windows.lengths[rows]).to(device)
