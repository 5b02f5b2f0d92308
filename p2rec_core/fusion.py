"""What a recommender's item table is made of: Base, +CI and +P2Rec.

Every table is a module whose call gives (N + 1, d): row 0 is PAD and zero, row i is item i.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from p2rec_core.errors import SettingsError

INIT_STD = 0.02


def _with_padding(rows: Tensor) -> Tensor:
    """Put the zero row of PAD before (N, d)."""
    return torch.cat([rows.new_zeros(1, rows.shape[1]), rows])


class IdTable(nn.Module):
    """Base: a learnable embedding per item.

    Args:
        n_items: N.
        hidden_size: d.
    """

    def __init__(self, n_items: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(n_items, hidden_size).normal_(std=INIT_STD))

    def forward(self) -> Tensor:
        """(N + 1, d) item vectors."""
        return _with_padding(self.embedding)


class ClusterTable(nn.Module):
    """+CI: the ID embedding plus a learnable embedding of the item's cluster (paper, section 5.2).

    Args:
        clusters: int (N,) cluster of each item, 0 … K - 1.
        n_clusters: K.
        hidden_size: d.
    """

    clusters: Tensor

    def __init__(self, clusters: NDArray[np.integer], n_clusters: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(len(clusters), hidden_size).normal_(std=INIT_STD))
        self.cluster_embedding = nn.Parameter(torch.empty(n_clusters, hidden_size).normal_(std=INIT_STD))
        self.register_buffer("clusters", torch.from_numpy(clusters.astype(np.int64)), persistent=False)

    def forward(self) -> Tensor:
        """(N + 1, d) item vectors."""
        return _with_padding(self.embedding + self.cluster_embedding[self.clusters])


class _KnowledgeTable(nn.Module):
    """The knowledge embeddings, frozen or fine-tuned, and their projection to the width of the ID embeddings.

    Args:
        knowledge: float32 (N, D) prepared knowledge embeddings.
        hidden_size: d.
        std: Standard deviation of projected knowledge at the start.
        trainable: Whether the knowledge embeddings are fine-tuned with the recommender.
    """

    knowledge: Tensor

    def __init__(self, knowledge: NDArray[np.float32], hidden_size: int, *, std: float, trainable: bool) -> None:
        super().__init__()
        n_items, width = knowledge.shape
        self.embedding = nn.Parameter(torch.empty(n_items, hidden_size).normal_(std=INIT_STD))
        if trainable:
            self.knowledge = nn.Parameter(torch.from_numpy(knowledge.copy()))
        else:
            self.register_buffer("knowledge", torch.from_numpy(knowledge), persistent=False)
        self.projection = nn.Linear(width, hidden_size)
        scale = float(np.sqrt(np.mean(knowledge.astype(np.float64) ** 2))) or 1.0
        nn.init.normal_(self.projection.weight, std=std / (scale * width**0.5))
        nn.init.zeros_(self.projection.bias)


class GatedKnowledgeTable(_KnowledgeTable):
    """+P2Rec as in the paper: z ⊙ e + (1 - z) ⊙ W h with the gate z = σ(A [e ; W h] + b) (section 4.2).

    Deviation: the paper says "a simple gating mechanism" and no more; this is the usual element-wise gate.
    """

    def __init__(self, knowledge: NDArray[np.float32], hidden_size: int, *, std: float, trainable: bool) -> None:
        super().__init__(knowledge, hidden_size, std=std, trainable=trainable)
        self.gate = nn.Linear(2 * hidden_size, hidden_size)
        nn.init.xavier_uniform_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self) -> Tensor:
        """(N + 1, d) item vectors."""
        projected = self.projection(self.knowledge)
        gate = torch.sigmoid(self.gate(torch.cat([self.embedding, projected], dim=1)))
        return _with_padding(torch.lerp(projected, self.embedding, gate))


class SummedKnowledgeTable(_KnowledgeTable):
    """The ID embedding plus projected knowledge, e + W h."""

    def forward(self) -> Tensor:
        """(N + 1, d) item vectors."""
        return _with_padding(self.embedding + self.projection(self.knowledge))


class ConcatenatedKnowledgeTable(_KnowledgeTable):
    """A projection of both, M [e ; W h]; it starts as the mean of the two."""

    def __init__(self, knowledge: NDArray[np.float32], hidden_size: int, *, std: float, trainable: bool) -> None:
        super().__init__(knowledge, hidden_size, std=std, trainable=trainable)
        self.mix = nn.Linear(2 * hidden_size, hidden_size)
        with torch.no_grad():
            self.mix.weight.copy_(torch.eye(hidden_size).repeat(1, 2) / 2)
        nn.init.zeros_(self.mix.bias)

    def forward(self) -> Tensor:
        """(N + 1, d) item vectors."""
        return _with_padding(self.mix(torch.cat([self.embedding, self.projection(self.knowledge)], dim=1)))


class InitialisedTable(nn.Module):
    """A learnable embedding per item that starts from the item's knowledge instead of noise.

    Args:
        knowledge: float32 (N, D) prepared knowledge embeddings, the most telling dimensions first.
        hidden_size: d; the first d dimensions are taken. Where D < d, the others start as noise.
        std: Standard deviation of the embeddings at the start.
    """

    def __init__(self, knowledge: NDArray[np.float32], hidden_size: int, *, std: float) -> None:
        super().__init__()
        embedding = torch.empty(len(knowledge), hidden_size).normal_(std=INIT_STD)
        taken = torch.from_numpy(knowledge[:, :hidden_size])
        embedding[:, : taken.shape[1]] = taken * (std / max(float(taken.double().square().mean().sqrt()), 1e-12))
        self.embedding = nn.Parameter(embedding)

    def forward(self) -> Tensor:
        """(N + 1, d) item vectors."""
        return _with_padding(self.embedding)


FUSIONS = ("gate", "sum", "concat", "init")
"""The ways in which knowledge enters the item table."""


def knowledge_table(
    fusion: str, knowledge: NDArray[np.float32], hidden_size: int, *, std: float, trainable: bool
) -> nn.Module:
    """The item table of +P2Rec.

    Args:
        fusion: One of ``FUSIONS``.
        knowledge: float32 (N, D) prepared knowledge embeddings.
        hidden_size: d.
        std: Standard deviation of (projected) knowledge at the start.
        trainable: Whether knowledge is fine-tuned; a table that starts from it is in any case.

    Raises:
        SettingsError: There is no such fusion.
    """
    if fusion == "init":
        return InitialisedTable(knowledge, hidden_size, std=std)
    tables = {"gate": GatedKnowledgeTable, "sum": SummedKnowledgeTable, "concat": ConcatenatedKnowledgeTable}
    if fusion not in tables:
        raise SettingsError(f"There is no fusion {fusion!r}.", remedy=f"Choose one of: {', '.join(FUSIONS)}.")
    return tables[fusion](knowledge, hidden_size, std=std, trainable=trainable)
