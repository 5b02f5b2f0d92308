"""Sequences of an encoder end to end in one row, so that nothing that is multiplied with weights is padding.

Attention alone looks at sequences one by one: those of one length, which stand together, are a batch of their own for
it, without a mask. Everything else in a transformer works token by token and does not care where a sequence ends.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PACKED_ATTENTION = "p2rec_packed"
"""Name of the attention in a model's configuration."""

PACKABLE = ("bert", "electra", "roberta", "xlm-roberta")
"""Model types whose tokens learn of their neighbours through full attention and of their place through ``position_ids``
alone."""


class Packing:
    """Where the tokens of right-padded sequences stand when they are packed, ordered by length.

    Args:
        lengths: int64 (B,) tokens of each sequence, at least 1.

    Attributes:
        index: int64 (tokens,) places in the flattened padded (B * T) tokens, in packed order.
        positions: int64 (tokens,) place of each token in its sequence, from 0.
        groups: Number of sequences and their length, for each length, ascending.
    """

    def __init__(self, lengths: Tensor) -> None:
        order = torch.argsort(lengths, stable=True)
        ordered = lengths[order]
        first = torch.repeat_interleave(ordered.cumsum(0) - ordered, ordered)
        self.positions = torch.arange(len(first), device=lengths.device) - first
        self.index = torch.repeat_interleave(order * int(ordered[-1]), ordered) + self.positions
        widths, counts = torch.unique_consecutive(ordered, return_counts=True)
        self.groups = list(zip(counts.tolist(), widths.tolist(), strict=True))

    def pack(self, padded: Tensor) -> Tensor:
        """Tokens of (B, T, E), padded to the longest sequence, as (1, tokens, E)."""
        return padded.flatten(0, 1)[self.index][None]

    def padded(self, packed: Tensor, n_rows: int) -> Tensor:
        """The opposite of ``pack``: (B, T, E), zero where there is no token."""
        longest = self.groups[-1][1]
        flat = packed.new_zeros(n_rows * longest, packed.shape[-1])
        return flat.index_copy(0, self.index, packed[0]).view(n_rows, longest, -1)


def _packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention within each packed sequence: three (1, heads, tokens, width) to (1, tokens, heads, width).

    Without a packing it is transformers' own, of padded sequences.
    """
    if packing is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return out, None
    sizes = [count * width for count, width in packing.groups]
    parts = []
    split = [torch.split(tensor[0], sizes, dim=1) for tensor in (query, key, value)]
    for (count, width), *of_group in zip(packing.groups, *split, strict=True):
        q, k, v = (tensor.unflatten(1, (count, width)).transpose(0, 1) for tensor in of_group)
        out = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)[None], None


ALL_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, _packed_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, sdpa_mask)


__all__ = ["PACKABLE", "PACKED_ATTENTION", "Packing"]
