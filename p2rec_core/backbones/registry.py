"""The sequence encoders by name. A new one is a file and a line here."""

from typing import Protocol

from torch import Tensor, nn

from p2rec_core.backbones.sasrec import SASRec
from p2rec_core.errors import SettingsError


class SequenceEncoder(Protocol):
    """What a recommender asks of its encoder.

    A factory takes ``hidden_size, n_layers, n_heads, inner_size, dropout, max_length`` by name.
    """

    def __call__(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """Map item vectors (B, L, d) of rows with ``lengths`` (B,) items to states (B, L, d)."""


ENCODERS: dict[str, type[nn.Module]] = {"sasrec": SASRec}


def make_encoder(
    backbone: str,
    *,
    hidden_size: int,
    n_layers: int,
    n_heads: int,
    inner_size: int,
    dropout: float,
    max_length: int,
) -> nn.Module:
    """Build an encoder by its name.

    Raises:
        SettingsError: No encoder has that name.
    """
    if backbone not in ENCODERS:
        raise SettingsError(
            f"There is no backbone {backbone!r}.", remedy=f"Choose one of: {', '.join(sorted(ENCODERS))}."
        )
    return ENCODERS[backbone](
        hidden_size=hidden_size,
        n_layers=n_layers,
        n_heads=n_heads,
        inner_size=inner_size,
        dropout=dropout,
        max_length=max_length,
    )
