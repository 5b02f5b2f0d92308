"""SASRec: causal self-attention over the item sequence."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p2rec_core.backbones.base import SequenceEncoder, at_last, initialise
from p2rec_core.dropout import Dropout, dropout


class SASRec(SequenceEncoder):
    """Encoder of Kang and McAuley (2018) in RecBole's form.

    Post-norm blocks x ← LN(x + Drop(MHA(x))), x ← LN(x + Drop(FFN(x))), GELU, learned absolute positions; input
    LN(e + position) with dropout.

    Args:
        hidden_size: Width d.
        n_layers: Blocks.
        n_heads: Attention heads; divides hidden_size.
        inner_size: Width of the feed-forward layer.
        dropout: Probability, for embeddings, attention and hidden states.
        max_length: Longest sequence L.

    Source: Kang and McAuley (2018), "Self-attentive sequential recommendation", as in RecBole 1.2.
    Deviation: right-padded rows need no padding mask, since the causal mask hides what comes later; training reads
        every position, not only the last.
    """

    def __init__(
        self, *, hidden_size: int, n_layers: int, n_heads: int, inner_size: int, dropout: float, max_length: int
    ) -> None:
        super().__init__(hidden_size=hidden_size, max_length=max_length)
        self.n_heads = n_heads
        self.position = nn.Embedding(max_length, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(hidden_size, n_heads, inner_size, dropout) for _ in range(n_layers))
        self.apply(initialise)

    def widest(self, length: int) -> int:
        """Every head has a weight for every pair of places, which is more than their states where rows are long."""
        return max(self.hidden_size, self.n_heads * length)

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """Encode; see ``SequenceEncoder.forward``. ``lengths`` are not needed."""
        x = self._embedded(vectors)
        for block in self.blocks:
            x = block(x)
        return x

    def final(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """The state after the last item of each row, (B, d), see ``SequenceEncoder``.

        The last block is computed for that place only: nobody reads the others.
        """
        x = self._embedded(vectors)
        for block in self.blocks[:-1]:
            x = block(x)
        state: Tensor = self.blocks[-1](x, last_of=lengths)
        return state

    def _embedded(self, vectors: Tensor) -> Tensor:
        embedded: Tensor = self.dropout(self.norm(vectors + self.position.weight[: vectors.shape[1]]))
        return embedded


class _Block(nn.Module):
    def __init__(self, hidden_size: int, n_heads: int, inner_size: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.rate = dropout
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)
        self.attention_norm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.inner = nn.Linear(hidden_size, inner_size)
        self.outer = nn.Linear(inner_size, hidden_size)
        self.output_norm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, *, last_of: Tensor | None = None) -> Tensor:
        """Rows (B, L, d) → (B, L, d), or the place of the last item alone in rows of ``last_of`` items: (B, d)."""
        n_rows, length, width = x.shape
        rate = self.rate if self.training else 0.0
        if last_of is None:
            # (B, L, 3d) -> 3 x (B, heads, L, d / heads)
            q, k, v = self.qkv(x).view(n_rows, length, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
            attended = _attended(q, k, v, rate).transpose(1, 2).reshape(n_rows, length, width)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            # (B, L, 2d) -> 2 x (B, heads, L, d / heads)
            keys_values = F.linear(x, weight[width:], bias[width:])
            k, v = keys_values.view(n_rows, length, 2, self.n_heads, -1).permute(2, 0, 3, 1, 4)
            x = at_last(x, last_of)
            q = F.linear(x, weight[:width], bias[:width]).view(n_rows, self.n_heads, 1, -1)
            # the first place of a row without items, which any state will do for
            seen = torch.arange(length, device=x.device) < last_of.clamp_min(1)[:, None]
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None], dropout_p=rate)
            attended = attended.reshape(n_rows, width)
        x = self.attention_norm(x + self.dropout(self.out(attended)))
        transformed: Tensor = self.outer(F.gelu(self.inner(x)))
        normed: Tensor = self.output_norm(x + self.dropout(transformed))
        return normed


def _attended(q: Tensor, k: Tensor, v: Tensor, rate: float) -> Tensor:
    """Causal attention of queries, keys and values (B, heads, L, d / heads) with dropout of its weights."""
    if rate == 0 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
    # torch has no fused form with dropout on a CPU
    future = torch.full((q.shape[-2], q.shape[-2]), -torch.inf, dtype=q.dtype).triu(1)
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + future).softmax(dim=-1)
    return dropout(weights, rate) @ v
