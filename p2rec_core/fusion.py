"""What a recommender's item table is made of: Base, +CI and +P2Rec.

Every table is a module whose call gives (N + 1, d): row 0 is PAD and zero, row i is item i.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from p2rec_core.backbones.base import INIT_STD
from p2rec_core.errors import SettingsError


def _with_padding(rows: Tensor) -> Tensor:
    """Put the zero row of PAD before (N, d)."""
    return torch.cat([rows.new_zeros(1, rows.shape[1]), rows])


class IdTable(nn.Module):
    """Base: a learnable embedding per item.

    Args:
        n_items: N.
        hidden_size: d.
        std: Standard deviation of the embeddings at the start.
    """

    def __init__(self, n_items: int, hidden_size: int, *, std: float = INIT_STD) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(n_items, hidden_size).normal_(std=std))

    def forward(self) -> Tensor:
        """(N + 1, d) item vectors."""
        return _with_padding(self.embedding)


class ClusterTable(nn.Module):
    """+CI: the ID embedding plus a learnable embedding of the item's cluster (paper, section 5.2).

    Args:
        clusters: int (N,) cluster of each item, 0 … K - 1.
        n_clusters: K.
        hidden_size: d.
        std: Standard deviation of either embedding at the start.
    """

    clusters: Tensor

    def __init__(
        self, clusters: NDArray[np.integer], n_clusters: int, hidden_size: int, *, std: float = INIT_STD
    ) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(len(clusters), hidden_size).normal_(std=std))
        self.cluster_embedding = nn.Parameter(torch.empty(n_clusters, hidden_size).normal_(std=std))
        self.register_buffer("clusters", torch.from_numpy(clusters.astype(np.int64)), persistent=False)

    def forward(self) -> Tensor:
        """(N + 1, d) item vectors."""
        return _with_padding(self.embedding + self.cluster_embedding[self.clusters])


class _KnowledgeTable(nn.Module):
    """The knowledge embeddings, frozen or fine-tuned, and their projection to the width of the ID embeddings.

    Args:
        knowledge: float32 (N, D) prepared knowledge embeddings.
        hidden_size: d.
        std: Standard deviation of the ID embeddings and of projected knowledge at the start.
        trainable: Whether the knowledge embeddings are fine-tuned with the recommender.
    """

    knowledge: Tensor

    def __init__(self, knowledge: NDArray[np.float32], hidden_size: int, *, std: float, trainable: bool) -> None:
        super().__init__()
        n_items, width = knowledge.shape
        self.embedding = nn.Parameter(torch.empty(n_items, hidden_size).normal_(std=std))
        vectors = torch.from_numpy(knowledge.copy())  # what was read from a table may not be written to
        if trainable:
            self.knowledge = nn.Parameter(vectors)
        else:
            self.register_buffer("knowledge", vectors, persistent=False)
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
        embedding = torch.empty(len(knowledge), hidden_size).normal_(std=std)
        taken = torch.from_numpy(knowledge[:, :hidden_size])
        embedding[:, : taken.shape[1]] = taken * (std / max(float(taken.double().square().mean().sqrt()), 1e-12))
        self.embedding = nn.Parameter(embedding)

    def forward(self) -> Tensor:
        """(N + 1, d) item vectors."""
        return _with_padding(self.embedding)


class SmoothedTable(nn.Module):
    """An item table that is smoothed over the graph of like items: (1 - s) x_v + s Σ_u w_vu x_u.

    Training moves an item's vector together with those of its neighbours, so that what is learnt of a frequent item
    reaches the rare ones that the knowledge holds to be like it.

    Args:
        table: Gives x, (N + 1, d).
        neighbours: int64 (N, k) zero-based neighbours of each item.
        weights: float32 (N, k), each row sums to one.
        smoothing: s in [0, 1].

    Source: a fixed item-item graph of content features as in Zhou and Shen (2023), "A tale of two graphs" (FREEDOM),
        section 3.2, in one step and on the item table itself.
    """

    neighbours: Tensor
    weights: Tensor
    reverse_items: Tensor
    reverse_starts: Tensor
    reverse_weights: Tensor

    def __init__(
        self, table: nn.Module, neighbours: NDArray[np.int64], weights: NDArray[np.float32], *, smoothing: float
    ) -> None:
        super().__init__()
        self.table = table
        self.smoothing = smoothing
        n_items, n_neighbours = neighbours.shape
        # the graph with its edges turned round: whose neighbour an item is, one item behind the other
        order = np.argsort(neighbours, axis=None, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(neighbours.ravel(), minlength=n_items))[:-1]])
        for name, values in (
            ("neighbours", neighbours),
            ("weights", weights),
            ("reverse_items", order // n_neighbours),
            ("reverse_starts", starts),
            ("reverse_weights", weights.ravel()[order]),
        ):
            self.register_buffer(name, torch.from_numpy(values), persistent=False)

    def forward(self) -> Tensor:
        """(N + 1, d) item vectors."""
        rows = self.table()[1:]
        around: Tensor = _Around.apply(  # type: ignore[no-untyped-call]
            rows, self.neighbours, self.weights, self.reverse_items, self.reverse_starts, self.reverse_weights
        )
        return _with_padding(torch.lerp(rows, around, self.smoothing))


class _Around(torch.autograd.Function):
    """Weighted sums of neighbours; both directions gather, so that sums have one order and repeat bit by bit."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, neighbours: Tensor, weights: Tensor, *reverse: Tensor) -> Tensor:
        ctx.save_for_backward(*reverse)
        return nn.functional.embedding_bag(neighbours, rows, per_sample_weights=weights, mode="sum")

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        items, starts, weights = ctx.saved_tensors
        gradient = nn.functional.embedding_bag(
            items, upstream[0].contiguous(), starts, per_sample_weights=weights, mode="sum"
        )
        return gradient, None, None, None, None, None


def nearest_items(
    knowledge: NDArray[np.float32], n_neighbours: int, *, temperature: float, block: int = 1024
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The most similar other items by the cosine of their knowledge. Time grows with N squared, memory with N.

    Args:
        knowledge: float32 (N, D) prepared knowledge embeddings.
        n_neighbours: k; less where there are fewer other items.
        temperature: Weights are a softmax of cosine / temperature over the k.
        block: Items that are compared with all others at once; changes memory, not results.

    Returns:
        int64 (N, k) zero-based items, the most similar first, and float32 (N, k) weights that sum to one.
    """
    directions = nn.functional.normalize(torch.from_numpy(knowledge), dim=1)
    k = min(n_neighbours, len(knowledge) - 1)
    neighbours, weights = [], []
    for start in range(0, len(directions), block):
        cosine = directions[start : start + block] @ directions.T
        cosine[torch.arange(len(cosine)), torch.arange(start, start + len(cosine))] = -torch.inf
        nearest = cosine.topk(k, dim=1)
        neighbours.append(nearest.indices)
        weights.append((nearest.values / temperature).softmax(dim=1))
    return torch.cat(neighbours).numpy(), torch.cat(weights).numpy()


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
        std: Standard deviation of embeddings and (projected) knowledge at the start.
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
