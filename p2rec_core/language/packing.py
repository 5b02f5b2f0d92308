"""Sequences of an encoder end to end in one row, so that nothing that is multiplied with weights is padding.

Attention alone looks at sequences one by one: those of one length, which stand together, are a batch of their own for
it, without a mask. Everything else in a transformer works token by token and does not care where a sequence ends.

The last layer is computed for those tokens alone whose states are read. Of the others it takes keys and values.
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
        n_read: int64 (B,) how many of its last tokens are read, at least 1; the same for sequences of one length.

    Attributes:
        index: int64 (tokens,) places in the flattened padded (B * T) tokens, in packed order.
        positions: int64 (tokens,) place of each token in its sequence, from 0.
        read: int64 (tokens read,) places of those in packed order.
        groups: Number of sequences, their length and how many tokens of each are read, for each length, ascending.
    """

    def __init__(self, lengths: Tensor, n_read: Tensor) -> None:
        order = torch.argsort(lengths, stable=True)
        ordered = lengths[order]
        first = torch.repeat_interleave(ordered.cumsum(0) - ordered, ordered)
        self.positions = torch.arange(len(first), device=lengths.device) - first
        self.index = torch.repeat_interleave(order * int(ordered[-1]), ordered) + self.positions
        self.read = (self.positions >= torch.repeat_interleave(ordered - n_read[order], ordered)).nonzero()[:, 0]
        widths, counts = torch.unique_consecutive(ordered, return_counts=True)
        reads = n_read[order][counts.cumsum(0) - 1]
        self.groups = list(zip(counts.tolist(), widths.tolist(), reads.tolist(), strict=True))
        self._back = torch.argsort(order)

    def pack(self, padded: Tensor) -> Tensor:
        """Tokens of (B, T, E), padded to the longest sequence, as (1, tokens, E)."""
        return padded.flatten(0, 1)[self.index][None]

    def mean(self, read: Tensor) -> Tensor:
        """The mean of each sequence's tokens that are read: (1, tokens read, E) to (B, E), in the order given."""
        parts = torch.split(read[0].float(), [count * n for count, _, n in self.groups])
        means = [part.view(count, n, -1).mean(1) for part, (count, _, n) in zip(parts, self.groups, strict=True)]
        return torch.cat(means)[self._back]


class _LastLayer:
    """A transformer's last layer, which given a packing gives the states of tokens that are read alone."""

    attention: Any
    intermediate: Any
    output: Any

    def forward(self, hidden_states: Tensor, *others: Any, packing: Packing | None = None, **named: Any) -> Tensor:
        """(1, tokens, E) to (1, tokens read, E); without a packing the layer's own."""
        if packing is None:
            states: Tensor = super().forward(hidden_states, *others, **named)  # type: ignore[misc]
            return states
        attention = self.attention.self
        read = hidden_states[:, packing.read]
        query, key, value = (
            layer(tokens).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)
            for layer, tokens in (
                (attention.query, read),
                (attention.key, hidden_states),
                (attention.value, hidden_states),
            )
        )
        dropout = attention.dropout.p if attention.training else 0.0
        seen, _ = _packed_attention(
            attention, query, key, value, None, packing=packing, scaling=attention.scaling, dropout=dropout
        )
        attended = self.attention.output(seen.flatten(2), read)
        last: Tensor = self.output(self.intermediate(attended), attended)
        return last


def read_last_tokens(encoder: Any) -> None:
    """Have an encoder's last layer compute only what is read, wherever it is given a packing.

    Args:
        encoder: Of a type in ``PACKABLE``; changed in place.
    """
    layer = encoder.encoder.layer[-1]
    layer.__class__ = type(f"Read{type(layer).__name__}", (_LastLayer, type(layer)), {})


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

    The query may be of the tokens that are read alone. Without a packing it is transformers' own, of padded sequences.
    """
    if packing is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return out, None
    widths = [width for _, width, _ in packing.groups]
    asked = widths if query.shape[2] == key.shape[2] else [n for _, _, n in packing.groups]
    counts = [count for count, _, _ in packing.groups]
    parts = []
    grouped = _by_length(query, counts, asked), _by_length(key, counts, widths), _by_length(value, counts, widths)
    for q, k, v in zip(*grouped, strict=True):
        out = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)[None], None


def _by_length(tokens: Tensor, counts: list[int], widths: list[int]) -> list[Tensor]:
    """(1, heads, tokens, width) as (sequences, heads, tokens of each, width) for each length."""
    sizes = [count * width for count, width in zip(counts, widths, strict=True)]
    return [
        part.view(len(part), count, -1, part.shape[-1]).transpose(0, 1)
        for part, count in zip(torch.split(tokens[0], sizes, dim=1), counts, strict=True)
    ]


ALL_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, _packed_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, sdpa_mask)


__all__ = ["PACKABLE", "PACKED_ATTENTION", "Packing", "read_last_tokens"]
