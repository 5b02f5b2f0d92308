"""What every sequence encoder is, and how one is built by its name."""

import importlib
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from p2rec_core.backbones.registry import encoder_entry

INIT_STD = 0.02
"""Standard deviation of initial weights, as in RecBole's SASRec and the code of FMLP-Rec's authors."""


class SequenceEncoder(nn.Module):
    """Maps the item vectors of a row to the state that the next item is predicted from.

    A causal encoder implements ``forward`` and is trained at every position of a row at once. Any other implements
    ``final`` and is trained on (prefix, next item) examples.

    Args:
        hidden_size: Width d of item vectors and states.
        max_length: Longest sequence L that it is given.
    """

    causal: ClassVar[bool] = True
    """Whether the state after an item depends on that item and earlier ones alone."""

    def __init__(self, *, hidden_size: int, max_length: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.max_length = max_length

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """States after every item.

        Args:
            vectors: (B, L, d) item vectors, right-padded with zero vectors.
            lengths: int64 (B,) items per row.

        Returns:
            (B, L, d): state t of a row depends on its items 0 … t only. What stands behind a row's last item
            means nothing.
        """
        raise NotImplementedError(f"{type(self).__name__} is not causal: it has a final state only.")

    def widest(self, length: int) -> int:
        """Numbers per place at the widest point, in rows of so many items; memory is planned by it."""
        return self.hidden_size

    def final(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """The state after the last item of each row, (B, d); finite but meaningless for a row without items."""
        return at_last(self(vectors, lengths), lengths)


def at_last(values: Tensor, lengths: Tensor) -> Tensor:
    """What stands at the last item of each row, (B, L, any) → (B, any); at the first place of a row without items."""
    return values[torch.arange(len(values), device=values.device), (lengths - 1).clamp_min(0)]


def initialise(module: nn.Module) -> None:
    """Draw normal weights of linear and embedding layers and make biases zero; for ``Module.apply``."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def left_padded(vectors: Tensor, lengths: Tensor, length: int) -> Tensor:
    """Move right-padded rows to the right end of rows of one fixed length.

    Args:
        vectors: (B, any, d), right-padded.
        lengths: int64 (B,) items per row; of more than ``length``, the last are kept.
        length: L.

    Returns:
        (B, L, d) with zero vectors before the first item.
    """
    n_rows, present, width = vectors.shape
    # (B, L): which column of the right-padded row belongs here; none where it is negative
    column = torch.arange(length, device=vectors.device) + (lengths - length)[:, None]
    row = torch.arange(n_rows, device=vectors.device)[:, None]
    real = column >= 0
    source = (row * present + column)[real]
    moved = vectors.reshape(-1, width).index_select(0, source)
    empty = moved.new_zeros(n_rows * length, width)
    return empty.index_copy(0, real.flatten().nonzero().squeeze(1), moved).view(n_rows, length, width)


def make_encoder(backbone: str, **options: Any) -> SequenceEncoder:
    """Build an encoder by its name.

    Args:
        backbone: Name in the registry.
        options: What its entry's ``defaults`` name.

    Raises:
        SettingsError: No encoder has that name.
    """
    entry = encoder_entry(backbone)
    encoder: SequenceEncoder = getattr(importlib.import_module(entry.module), entry.name)(**options)
    return encoder
