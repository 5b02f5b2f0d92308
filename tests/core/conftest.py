"""Tiny recommenders and sequences with a known pattern."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from p2rec_core.runtime import prepared_device
from p2rec_core.sequences import RaggedSequences
from p2rec_core.training.recommender import (
    EncoderShape,
    Knowledge,
    NextItemTraining,
    TrainedRecommender,
    train_recommender,
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """These models are too small to share out, and what is bit-identical is so on one number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """A GPU, made ready; without one the test is skipped."""
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    return prepared_device("cuda", 1)


def make_ragged(rows: Iterable[Sequence[int]]) -> RaggedSequences:
    rows = [list(row) for row in rows]
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return RaggedSequences(np.array([item for row in rows for item in row], np.int32), offsets)


@pytest.fixture(scope="session")
def ragged() -> Callable[[Iterable[Sequence[int]]], RaggedSequences]:
    """Rows of items as sequences."""
    return make_ragged


def make_cycles(n_users: int, n_items: int, *, seed: int = 0, shuffled: bool = False) -> tuple[Any, np.ndarray]:
    """Every item is followed by one and the same other item; shuffled, by any."""
    rng = np.random.default_rng(seed)
    after = np.roll(np.arange(n_items), 1)
    name = rng.permutation(n_items) + 1
    rows, targets = [], []
    for _ in range(n_users):
        at, row = int(rng.integers(n_items)), []
        for _ in range(int(rng.integers(4, 9))):
            row.append(int(name[at]))
            at = int(rng.integers(n_items)) if shuffled else int(after[at])
        rows.append(row)
        targets.append(int(name[at]))
    return make_ragged(rows), np.array(targets, np.int32)


@pytest.fixture(scope="session")
def cycles() -> Callable[..., tuple[RaggedSequences, np.ndarray]]:
    return make_cycles


SHAPES: dict[str, dict[str, Any]] = {
    "sasrec": {
        "hidden_size": 16,
        "n_layers": 1,
        "n_heads": 2,
        "inner_size": 32,
        "dropout": 0.2,
        "max_length": 5,
    },
    "gru4rec": {"hidden_size": 16, "inner_size": 24, "dropout": 0.2, "max_length": 5},
    "caser": {
        "hidden_size": 16,
        "window": 3,
        "n_horizontal": 4,
        "n_vertical": 2,
        "dropout": 0.2,
        "max_length": 5,
    },
    "fmlp_rec": {"hidden_size": 16, "n_layers": 2, "inner_size": 32, "dropout": 0.2, "max_length": 5},
}
TRAINING = {
    "learning_rate": 1e-2,
    "weight_decay": 0.01,
    "batch_positions": 64,
    "n_negatives": None,
    "max_epochs": 3,
    "patience": 2,
    "warmup_steps": 3,
    "cosine": True,
    "seed": 5,
    "learn_repeats": False,
    "item_std": 0.02,
}


@pytest.fixture(scope="session")
def train() -> Callable[..., TrainedRecommender]:
    """Train a tiny recommender; fields of the encoder's shape and of the training may be changed by name."""

    def train(sequences: RaggedSequences, validation: Any, n_items: int, **changes: Any) -> TrainedRecommender:
        backbone = changes.pop("backbone", "sasrec")
        options = {name: changes.pop(name, value) for name, value in SHAPES.get(backbone, SHAPES["sasrec"]).items()}
        training = {name: changes.pop(name, value) for name, value in TRAINING.items()}
        device = changes.pop("device", "cpu")
        return train_recommender(
            sequences,
            validation,
            n_items=n_items,
            encoder=EncoderShape(backbone, options),
            training=NextItemTraining(**training),
            device=torch.device(device),
            **changes,
        )

    return train


@pytest.fixture(scope="session")
def given() -> Callable[..., dict[str, Any]]:
    """What a variant's item table is made of beside the ids, as ``train`` takes it."""

    def given(variant: str, n_items: int, fusion: str = "gate", **knowledge: Any) -> dict[str, Any]:
        if variant == "base":
            return {}
        if variant == "ci":
            return {"clusters": (np.arange(n_items) % 4).astype(np.int32), "n_clusters": 4}
        vectors = np.random.default_rng(0).normal(size=(n_items, 12)).astype(np.float32)
        return {"knowledge": Knowledge(vectors, fusion, **knowledge)}

    return given


@pytest.fixture(scope="session")
def train_settings() -> Callable[..., NextItemTraining]:
    """How long and how fast a known succession takes; fields may be changed by name."""
    quick = {"learning_rate": 2e-2, "max_epochs": 20, "warmup_steps": 0, "weight_decay": 0.0}
    return lambda **changes: NextItemTraining(**TRAINING | quick | changes)


@pytest.fixture(scope="session")
def tiny_shape() -> EncoderShape:
    return EncoderShape("sasrec", SHAPES["sasrec"])


@pytest.fixture(scope="session")
def tiny_shapes() -> dict[str, EncoderShape]:
    """The shape of a tiny encoder by backbone."""
    return {backbone: EncoderShape(backbone, options) for backbone, options in SHAPES.items()}
