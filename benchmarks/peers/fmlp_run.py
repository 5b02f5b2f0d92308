"""One training of FMLP-Rec as its authors train it: what recbole_run.py does for the backbones that RecBole has.

    python fmlp_run.py REQUEST.json RESULT.json

The request is recbole_run.py's: ``data_path`` and ``dataset`` name an atomic file, ``model_options`` has hidden_size,
n_layers, inner_size and dropout; ``task`` is train or pace.

A plain program of PyTorch after the authors' recipe: every prefix of a user's training items is a row of its own, its
last ``max_length`` items padded on the left; batches of 256 rows, Adam at 1e-3; the filter and the feed-forward layer
are computed for all places of all blocks. The loss is a cross-entropy over the catalogue, P2Rec's, where the authors
draw one other item: it learns more in an epoch. Validation ranks all items, seen ones among them.

Source: Zhou et al. (2022), "Filter-enhanced MLP is all you need for sequential recommendation", sections 3 and 4.
"""

import json
import sys
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1]))
import clock
from memory import peak_rss_bytes
from ndcg import gains
from pace import Pace, SomeSteps, paced

BATCH = 256
LEARNING_RATE = 1e-3
INIT_STD = 0.02


class Block(nn.Module):
    """A filter over the places of a row, and a feed-forward layer, each with a residual and a norm."""

    def __init__(self, hidden_size: int, inner_size: int, dropout: float, length: int) -> None:
        super().__init__()
        self.length = length
        self.filter = nn.Parameter(torch.randn(1, length // 2 + 1, hidden_size, 2) * INIT_STD)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_size, eps=1e-12) for _ in range(2))
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden_size, inner_size), nn.GELU(), nn.Linear(inner_size, hidden_size)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Rows (B, L, d) → (B, L, d)."""
        spectrum = torch.fft.rfft(x, dim=1, norm="ortho") * torch.view_as_complex(self.filter)
        x = self.norms[0](x + self.dropout(torch.fft.irfft(spectrum, n=self.length, dim=1, norm="ortho")))
        mixed: Tensor = self.norms[1](x + self.dropout(self.feed_forward(x)))
        return mixed


class Model(nn.Module):
    """FMLP-Rec; row 0 of its item table is padding."""

    def __init__(
        self, n_items: int, length: int, *, hidden_size: int, n_layers: int, inner_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.items = nn.Embedding(n_items + 1, hidden_size, padding_idx=0)
        self.places = nn.Embedding(length, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(hidden_size, inner_size, dropout, length) for _ in range(n_layers)))
        self.apply(_initialise)

    def forward(self, rows: Tensor) -> Tensor:
        """Scores of all items after rows (B, L), (B, N)."""
        states = self.blocks(self.dropout(self.norm(self.items(rows) + self.places.weight)))
        scores: Tensor = states[:, -1] @ self.items.weight[1:].T
        return scores


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def rows_of(histories: list[NDArray[np.int64]], length: int) -> Tensor:
    """The last ``length`` items of each history, padded on the left with 0, int64 (rows, L)."""
    rows = np.zeros((len(histories), length), np.int64)
    for row, history in zip(rows, histories, strict=True):
        row[length - min(len(history), length) :] = history[-length:]
    return torch.from_numpy(rows)


def loaded(path: Path, length: int) -> tuple[list[tuple[Tensor, Tensor]], dict[str, int]]:
    """Training and validation examples, each (rows, next items numbered from 1), and what is counted of them."""
    numbers: dict[str, int] = {}
    by_user: dict[str, list[tuple[float, int]]] = {}
    with path.open(encoding="utf-8") as file:
        next(file)  # the header
        for line in file:
            user, item, timestamp = line.split("\t")
            by_user.setdefault(user, []).append((float(timestamp), numbers.setdefault(item, len(numbers) + 1)))
    users = [np.array([item for _, item in sorted(events, key=itemgetter(0))]) for events in by_user.values()]
    parts = [[items[:stop] for items in users for stop in range(1, len(items) - 2)], [items[:-2] for items in users]]
    following = [np.concatenate([items[1:-2] for items in users]), np.array([items[-2] for items in users])]
    counts = {
        "n_users": len(users),
        "n_items": len(numbers),
        "n_validated": len(users),
        "n_examples": len(parts[0]),
    }
    return [
        (rows_of(part, length), torch.from_numpy(items)) for part, items in zip(parts, following, strict=True)
    ], counts


@torch.no_grad()
def validated(model: Model, rows: Tensor, targets: Tensor) -> float:
    """NDCG@10 by P2Rec's definition, all items eligible."""
    model.eval()
    found = []
    for some, following in zip(rows.split(BATCH), targets.split(BATCH), strict=True):
        found.append(gains(model(some), following - 1))
    return float(torch.cat(found).mean())


def batches(n_examples: int) -> tuple[Tensor, ...]:
    """An epoch's batches: numbers of all examples in random order."""
    return torch.randperm(n_examples).split(BATCH)


def train_epoch(
    model: Model, optimiser: torch.optim.Optimizer, rows: Tensor, targets: Tensor, steps: Iterable[Tensor]
) -> None:
    """One step for every batch of numbers of examples."""
    model.train()
    for batch in steps:
        loss = F.cross_entropy(model(rows[batch]), targets[batch] - 1)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()


def measured(request: dict[str, Any]) -> dict[str, Any]:
    """Do what the request says.

    Raises:
        ValueError: There is no such task.
    """
    if request["task"] not in {"train", "pace"}:
        raise ValueError(f"There is no task {request['task']!r} here, only train and pace.")
    imported = peak_rss_bytes()
    torch.set_num_threads(request["threads"])
    torch.manual_seed(request["seed"])
    begun = clock.now()
    dataset = request["dataset"]
    path = Path(request["data_path"], dataset, f"{dataset}.inter")
    (training, validation), counts = loaded(path, request["max_length"])
    load_s = clock.now() - begun

    model = Model(counts["n_items"], request["max_length"], **request["model_options"])
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    result: dict[str, Any] = {
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "threads": torch.get_num_threads(),
        **counts,
        "load_s": load_s,
        "imported_rss_bytes": imported,
    }
    if request["task"] == "pace":
        pace, steps = Pace(request["pace_s"]), batches(counts["n_examples"])
        train_epoch(model, optimiser, *training, SomeSteps(steps, pace))
        return result | paced(pace, len(steps)) | {"peak_rss_bytes": peak_rss_bytes()}
    curve = []
    for number in range(request["epochs"]):
        begun = clock.now()
        train_epoch(model, optimiser, *training, batches(counts["n_examples"]))
        trained = clock.now()
        ndcg = validated(model, *validation)
        curve.append({"train_s": trained - begun, "validate_s": clock.now() - trained, "ndcg": ndcg})
        print(f"epoch {number + 1}: {curve[-1]}", flush=True)
    return result | {"curve": curve, "peak_rss_bytes": peak_rss_bytes()}


def main() -> None:
    """Read the request, measure, write the result."""
    request_file, result_file = map(Path, sys.argv[1:3])
    result_file.write_text(json.dumps(measured(json.loads(request_file.read_text()))))


if __name__ == "__main__":
    main()
