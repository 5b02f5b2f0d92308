"""Trainings that are stopped after each of their optimiser steps, and gone on with from the checkpoint."""

import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from p2rec_core.language.finetune import UserObjective, finetune
from p2rec_core.progress import Progress, silent
from p2rec_core.recommender import NextItemObjective
from p2rec_core.training.checkpoint import Checkpointer
from p2rec_core.training.recommender import EncoderShape, NextItemTraining, train_recommender
from tests.core.conftest import SHAPES, TRAINING, make_cycles
from tests.core.language.conftest import PROMPT, SETTINGS, make_users, tiny_language_model
from tests.faults.rows import Fate, Row, Timed

PART = "e resume"
EPOCHS = 10
N_STOPS = 200

Train = Callable[[Checkpointer | None, Progress], Any]
"""Trains from the start or from a checkpoint."""


def resume_rows(directory: Path, *, quick: bool) -> list[Row]:
    """A backbone and a language model, stopped at 200 steps; the quick form stops at 4 of an epoch."""
    share = 10 if quick else 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # too small to share out
    try:
        return [
            _resumed("SASRec", backbone(EPOCHS // share or 1, share), NextItemObjective, directory / "a", quick),
            _resumed("language model", language_model(EPOCHS // share or 1), UserObjective, directory / "b", quick),
        ]
    finally:
        torch.set_num_threads(threads)


def backbone(epochs: int, share: int) -> Train:
    """A small SASRec, 20 steps an epoch, with dropout, warm-up and a falling learning rate."""
    sequences, targets = make_cycles(232, 12, seed=3)
    training = NextItemTraining(**TRAINING | {"max_epochs": epochs, "patience": 100, "batch_positions": 64})

    def train(checkpointer: Checkpointer | None, progress: Progress) -> Any:
        trained = train_recommender(
            sequences,
            targets,
            n_items=12,
            encoder=EncoderShape("sasrec", SHAPES["sasrec"]),
            training=training,
            device=torch.device("cpu"),
            checkpointer=checkpointer,
            progress=progress,
        )
        return trained.tensors, trained.fit.history, trained.fit.n_steps, trained.fit.resumed_at_step

    return train


def language_model(epochs: int) -> Train:
    """A small Llama with LoRA, 20 steps an epoch."""
    users = make_users(180)
    settings = SETTINGS | {"epochs": epochs, "lora_dropout": 0.2, "batch_users": 8}

    def train(checkpointer: Checkpointer | None, progress: Progress) -> Any:
        model = tiny_language_model("llama")
        done = finetune(model, PROMPT, *users.arrays, **settings, checkpointer=checkpointer, progress=progress)
        return done.tensors, done.history, done.n_steps, done.resumed_at_step

    return train


@contextmanager
def seen_by(objective: type[Any]) -> Any:
    """The examples of every loss that is computed, in order."""
    seen: list[np.ndarray] = []
    real = objective.loss

    def loss(self: Any, batch: np.ndarray) -> Any:
        seen.append(batch)
        return real(self, batch)

    objective.loss = loss
    try:
        yield seen
    finally:
        objective.loss = real


def _resumed(name: str, train: Train, objective: type[Any], directory: Path, quick: bool) -> Row:
    with Timed(Row(PART, f"{name} stopped after a step")) as row:
        with seen_by(objective) as whole:
            expected = train(None, silent)
        if problem := _not_once(whole):
            row.problems.append(problem)
        places: dict[int, int] = {}

        with seen_by(objective) as saved:

            def keep(done: int, total: int, message: str) -> None:
                if done not in places and (directory / "work").exists():
                    places[done] = len(saved)
                    shutil.copytree(directory / "work", directory / str(done))

            train(Checkpointer(directory / "work", every_s=0), keep)
        stops = sorted(places)[2::5] if quick else sorted(places)[:N_STOPS]
        for stop in stops:
            with seen_by(objective) as rest:
                found = train(Checkpointer(directory / str(stop), every_s=3600), silent)
            problem = _difference(found, expected, stop)
            if problem is None and not _same(saved[: places[stop]] + rest, whole):
                problem = "an example was left out or seen twice"
            row.add(Fate.WRONG if problem else Fate.HARMLESS, f"step {stop}: {problem}" if problem else "")
        row.facts["steps"] = expected[2]
    return row


def _not_once(batches: list[np.ndarray]) -> str | None:
    """Whether any epoch has an example more or less often than once."""
    examples = np.concatenate(batches)
    n = len(np.unique(examples))
    epochs = examples.reshape(-1, n) if len(examples) % n == 0 else examples[None]
    if any(len(np.unique(epoch)) != n or len(epoch) != n for epoch in epochs):
        return "an epoch does not have each example once"
    return None


def _same(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return len(left) == len(right) and all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def _difference(found: Any, expected: Any, stop: int) -> str | None:
    tensors, history, n_steps, resumed_at = found
    if resumed_at != stop:
        return f"it went on from step {resumed_at}"
    if (history, n_steps) != expected[1:3] or tensors.keys() != expected[0].keys():
        return "its learning curve is another"
    for name, tensor in expected[0].items():
        if np.asarray(tensors[name]).tobytes() != np.asarray(tensor).tobytes():
            return f"{name} is another"
    return None
