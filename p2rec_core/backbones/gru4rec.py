"""GRU4Rec: a gated recurrent unit over the item sequence."""

from torch import Tensor, nn

from p2rec_core.backbones.base import SequenceEncoder, at_last
from p2rec_core.dropout import Dropout


class GRU4Rec(SequenceEncoder):
    """Encoder of Tan et al. (2016) in RecBole's form.

    x = Drop(e); z = σ(W_z x + U_z h), r = σ(W_r x + U_r h), n = tanh(W_n x + r ⊙ U_n h), h ← (1 - z) ⊙ n + z ⊙ h; the
    state is A h + b.

    Args:
        hidden_size: Width d of item vectors and states.
        inner_size: Width of the recurrent state h.
        dropout: Probability, for item vectors.
        max_length: Longest sequence that it is given; any length can be read.

    Source: Hidasi et al. (2016), "Session-based recommendations with recurrent neural networks"; Tan et al. (2016),
        "Improved recurrent neural networks for session-based recommendations", as in RecBole 1.2: one layer without
        biases, a linear output.
    Deviation: training reads every position, not only the last, which gives the same (prefix, next item) examples;
        right-padded rows need no mask, since a later step cannot reach an earlier state.
    """

    def __init__(self, *, hidden_size: int, inner_size: int, dropout: float, max_length: int) -> None:
        super().__init__(hidden_size=hidden_size, max_length=max_length)
        self.dropout = Dropout(dropout)
        self.gru = nn.GRU(hidden_size, inner_size, bias=False, batch_first=True)
        self.output = nn.Linear(inner_size, hidden_size)
        for weight in self.gru.parameters():
            nn.init.xavier_uniform_(weight)

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """Encode; see ``SequenceEncoder.forward``. ``lengths`` are not needed."""
        hidden, _ = self.gru(self.dropout(vectors))
        states: Tensor = self.output(hidden)
        return states

    def final(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """The state after the last item of each row, (B, d); see ``SequenceEncoder``."""
        hidden, _ = self.gru(self.dropout(vectors))
        state: Tensor = self.output(at_last(hidden, lengths))
        return state
