"""FMLP-Rec: a learnable filter in the frequency domain in place of self-attention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p2rec_core.backbones.base import INIT_STD, SequenceEncoder, initialise, left_padded
from p2rec_core.dropout import Dropout


class FMLPRec(SequenceEncoder):
    """Encoder of Zhou et al. (2022).

    Post-norm blocks x ← LN(x + Drop(irFFT(K ⊙ rFFT(x)))), x ← LN(x + Drop(FFN(x))), GELU; input LN(e + position) with
    dropout. The Fourier transform is orthonormal and runs over the L places of a row that is padded on the left;
    padding is not masked. A product of spectra is a circular convolution: every place sees every other, so that there
    is a state for the whole row only, and training takes (prefix, next item) examples.

    The last block is computed for the last place only, which is all that is read: the circular convolution is there a
    weighted sum over the row.

    Args:
        hidden_size: Width d of item vectors and states.
        n_layers: Blocks.
        inner_size: Width of the feed-forward layer.
        dropout: Probability, for embeddings and hidden states.
        max_length: Length L to which every row is padded.

    Source: Zhou et al. (2022), "Filter-enhanced MLP is all you need for sequential recommendation", equations 1 to 10.
    Deviation: full softmax, not binary cross-entropy with one sampled item; no example with an empty prefix; padding
        is a zero vector plus its position, and not learned.
    """

    causal = False

    def __init__(self, *, hidden_size: int, n_layers: int, inner_size: int, dropout: float, max_length: int) -> None:
        super().__init__(hidden_size=hidden_size, max_length=max_length)
        self.position = nn.Embedding(max_length, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(FilterBlock(hidden_size, inner_size, dropout, max_length) for _ in range(n_layers))
        self.apply(initialise)

    def final(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """The state after the last item of each row, (B, d); see ``SequenceEncoder``."""
        x = left_padded(vectors, lengths, self.max_length) + self.position.weight
        x = self.dropout(self.norm(x))
        for block in self.blocks[:-1]:
            x = block(x)
        state: Tensor = self.blocks[-1](x, last_only=True)
        return state


class FilterBlock(nn.Module):
    """A filter layer and a feed-forward layer over rows of one fixed length."""

    def __init__(self, hidden_size: int, inner_size: int, dropout: float, length: int) -> None:
        super().__init__()
        self.length = length
        # real and imaginary parts of K, for the frequencies 0 … L / 2
        self.filter = nn.Parameter(torch.randn(length // 2 + 1, hidden_size, 2) * INIT_STD)
        self.filter_norm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.inner = nn.Linear(hidden_size, inner_size)
        self.outer = nn.Linear(inner_size, hidden_size)
        self.output_norm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, *, last_only: bool = False) -> Tensor:
        """Rows (B, L, d) → (B, L, d), or their last place only, (B, d)."""
        spectrum = torch.view_as_complex(self.filter)
        x = x.to(self.filter.dtype)
        with torch.autocast(x.device.type, enabled=False):
            if last_only:
                # the orthonormal factors cancel: y_t = Σ_s k_{(t - s) mod L} x_s with k the plain inverse of K
                kernel = torch.fft.irfft(spectrum, n=self.length, dim=0)
                filtered = (x * kernel.flip(0)).sum(dim=1)
                x = x[:, -1]
            else:
                transformed = torch.fft.rfft(x, dim=1, norm="ortho")
                filtered = torch.fft.irfft(transformed * spectrum, n=self.length, dim=1, norm="ortho")
        return self._mixed(x, filtered)

    def _mixed(self, x: Tensor, filtered: Tensor) -> Tensor:
        x = self.filter_norm(x + self.dropout(filtered))
        transformed: Tensor = self.outer(F.gelu(self.inner(x)))
        normed: Tensor = self.output_norm(x + self.dropout(transformed))
        return normed
