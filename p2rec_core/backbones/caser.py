"""Caser: convolutions over the last few items."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p2rec_core.backbones.base import SequenceEncoder, left_padded
from p2rec_core.dropout import Dropout


class Caser(SequenceEncoder):
    """Encoder of Tang and Wang (2018) in RecBole's form, at every position of a row.

    The state after an item is a function of the image of the last W items, W x d. Horizontal filters of heights
    1 … W span the width: ReLU, then the maximum over the places in the window. Vertical filters span the height: a
    weighted sum of the items per dimension, without activation. Both go through dropout, z = ReLU(W₁ [vertical ;
    horizontal] + b₁) and r = ReLU(W₂ z + b₂).

    Every filter bank is one convolution over the whole row, shared by all windows that overlap. Only the maximum and
    what follows are computed for each window.

    Args:
        hidden_size: Width d of item vectors and states.
        window: Items W that a state is computed from; fewer are filled up with zero vectors before the first.
        n_horizontal: Horizontal filters of each height.
        n_vertical: Vertical filters.
        dropout: Probability, for what the filters give.
        max_length: Longest sequence that it is given: how rows are cut for training, not how far a state looks back.

    Source: Tang and Wang (2018), "Personalized top-n sequential recommendation via convolutional sequence embedding",
        as in RecBole 1.2: next item only (T = 1), scores against the input item table.
    Deviation: no user vector, since a user who was not there in training could not be served. Short windows are
        padded on the left with zero vectors, as in the authors' code; RecBole pads on the right with a learned vector.
        RecBole's penalty on the norms of weights is left out; ``weight_decay`` of the training is what there is. The
        final ReLU makes states non-negative, as there.
    """

    def __init__(
        self, *, hidden_size: int, window: int, n_horizontal: int, n_vertical: int, dropout: float, max_length: int
    ) -> None:
        super().__init__(hidden_size=hidden_size, max_length=max_length)
        self.window = window
        self.horizontal = nn.ModuleList(nn.Conv1d(hidden_size, n_horizontal, height) for height in range(1, window + 1))
        self.vertical = nn.Linear(window, n_vertical)
        self.dropout = Dropout(dropout)
        self.inner = nn.Linear(n_vertical * hidden_size + n_horizontal * window, hidden_size)
        self.outer = nn.Linear(hidden_size, hidden_size)
        for layer in (self.inner, self.outer):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """Encode; see ``SequenceEncoder.forward``. ``lengths`` are not needed."""
        n_rows, length, _ = vectors.shape
        # (B, d, W - 1 + L): the window of position t begins at t
        image = F.pad(vectors.transpose(1, 2), (self.window - 1, 0))
        # (B, d, L, W) @ (W, n_v) -> (B, L, n_v * d)
        vertical = self.vertical(image.unfold(2, self.window, 1))
        features = [vertical.permute(0, 2, 3, 1).reshape(n_rows, length, -1)]
        for height, bank in enumerate(self.horizontal, start=1):
            found = F.relu(bank(image))
            features.append(_sliding_maximum(found, self.window - height + 1).transpose(1, 2))
        inner = F.relu(self.inner(self.dropout(torch.cat(features, dim=2))))
        return F.relu(self.outer(inner))

    def final(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """The state after the last item of each row, (B, d), of the last W items alone; see ``SequenceEncoder``."""
        states: Tensor = self(left_padded(vectors, lengths, self.window), lengths)
        return states[:, -1]


def _sliding_maximum(x: Tensor, size: int) -> Tensor:
    """Maximum over every ``size`` neighbours of the last axis; n values give n - size + 1.

    A chain of element-wise maxima: unlike max-pooling it has a deterministic backward pass on every device.
    """
    n_windows = x.shape[-1] - size + 1
    best = x[..., :n_windows]
    for shift in range(1, size):
        best = torch.maximum(best, x[..., shift : shift + n_windows])
    return best
