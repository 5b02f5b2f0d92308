"""Work over the whole catalogue beside the plain way of writing it: the loss, neighbours, clusters."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from processes import BenchmarkError
from report import Row
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors
from timing import in_turn

from p2rec_core.clustering import Clusters, cluster_items
from p2rec_core.objectives import catalogue_cross_entropy
from p2rec_core.recommendation import nearest_items
from p2rec_core.settings.clustering import ClusterSettings

LOSS_TOLERANCE = 1e-5
"""Largest relative difference of the two losses: float32 sums in another order."""
INERTIA_TOLERANCE = 0.01
"""Largest relative difference of the two sums of squared distances: k-means ends in local optima."""


def cross_entropy_row(rounds: int, *, n_positions: int = 2048, n_items: int = 12_101, width: int = 64) -> Row:
    """Loss and gradients of one training step, at Beauty's size unless named.

    Raises:
        BenchmarkError: The losses differ.
    """
    torch.manual_seed(1)
    states = torch.randn(n_positions, width, requires_grad=True)
    table = torch.randn(n_items, width).mul(0.05).requires_grad_()
    targets = torch.randint(n_items, (n_positions,))

    def plain_loss() -> torch.Tensor:
        return F.cross_entropy(states @ table.T, targets, reduction="sum")

    with torch.no_grad():
        ours, plain = catalogue_cross_entropy(states, table, targets).item(), plain_loss().item()
    if abs(ours - plain) > LOSS_TOLERANCE * plain:
        raise BenchmarkError(f"P2Rec's loss is {ours}, the plain one {plain}.")
    timed = in_turn(
        lambda: torch.autograd.backward(catalogue_cross_entropy(states, table, targets)),
        lambda: torch.autograd.backward(plain_loss()),
        rounds,
    )
    data = f"{n_positions:,} positions, {n_items:,} items"
    # logits, and the gradients of both sides
    gflop = 3 * 2e-9 * n_positions * n_items * width
    note = "against torch with all logits in memory"
    return Row("loss and gradients of a step", data, "", "s", timed.peer, timed.ours, note=note, gflop=gflop)


def neighbours_row(rounds: int, *, n_items: int, width: int = 64, n_rows: int = 1024, n: int = 20) -> Row:
    """Exact nearest items of a batch of items by cosine.

    Raises:
        BenchmarkError: The cosines differ.
    """
    vectors = np.random.default_rng(1).normal(size=(n_items, width)).astype(np.float32)
    rows = np.arange(n_rows)

    def plain() -> NDArray[np.float32]:
        index = NearestNeighbors(n_neighbors=n + 1, metric="cosine", algorithm="brute").fit(vectors)
        distances: NDArray[np.float32] = index.kneighbors(vectors[rows])[0]
        return distances

    cosines = nearest_items(vectors, rows, n)[1]
    if not np.allclose(cosines, 1 - plain()[:, 1:], atol=1e-5):
        raise BenchmarkError("P2Rec's nearest items have other cosines than scikit-learn's.")
    timed = in_turn(lambda: nearest_items(vectors, rows, n), plain, rounds)
    data = f"{n_rows:,} of {n_items:,} items, width {width}"
    note = f"the {n} nearest, against scikit-learn's NearestNeighbors"
    gflop = 2e-9 * n_rows * n_items * width
    return Row("exact neighbours", data, "", "s", timed.peer, timed.ours, note=note, gflop=gflop)


def kmeans_row(rounds: int, threads: int, *, n_items: int, width: int = 256, n_centres: int = 200) -> Row:
    """k-means over item vectors that lie around ``n_centres`` points, one random start.

    Raises:
        BenchmarkError: One side ends in a worse optimum than the other.
    """
    settings = ClusterSettings(n_init=1)
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(n_centres, width))
    vectors = (centres[rng.integers(n_centres, size=n_items)] + rng.normal(size=(n_items, width))).astype(np.float32)
    inertia: dict[str, float] = {}

    def ours() -> None:
        found: Clusters = cluster_items(
            vectors, np.ones(n_items, bool), **settings.model_dump(exclude={"finer", "normalise"}), normalise=False
        )
        inertia["ours"] = found.inertia

    def plain() -> None:
        kmeans = KMeans(settings.n_clusters, n_init=1, max_iter=settings.max_iter, random_state=settings.seed)
        inertia["plain"] = float(kmeans.fit(vectors).inertia_)

    timed = in_turn(ours, plain, rounds, warm_up=False)
    if abs(inertia["ours"] - inertia["plain"]) > INERTIA_TOLERANCE * inertia["plain"]:
        raise BenchmarkError(f"P2Rec's inertia is {inertia['ours']}, scikit-learn's {inertia['plain']}.")
    note = (
        f"against scikit-learn with {threads} threads; P2Rec gives it one, so that results repeat bit by bit, "
        "and looks for vectors that are the same or not finite"
    )
    return Row("k-means", f"{n_items:,} x {width}", "", "s", timed.peer, timed.ours, note=note)


def catalogue_rows(*, quick: bool, rounds: int, threads: int) -> list[Row]:
    """All of them.

    Args:
        quick: Whether to take a tenth of the items.
        rounds: Rounds that count.
        threads: Threads of either side.
    """
    share = 10 if quick else 1
    return [
        cross_entropy_row(rounds, n_items=12_101 // share),
        neighbours_row(rounds, n_items=100_000 // share),
        kmeans_row(rounds, threads, n_items=100_000 // share),
    ]
