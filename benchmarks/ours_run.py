"""One measurement of P2Rec: what peers/recbole_run.py does for RecBole.

    python benchmarks/ours_run.py REQUEST.json RESULT.json

The request has ``task`` (load, evaluate, train or pace), ``interactions`` (the atomic file that RecBole reads too),
``dataset`` (what it was made of), ``encoder`` (its settings), ``threads``, ``seed``, ``repeats``, ``pace_s`` and
``last_epoch`` (null trains to the end; the learning rate falls as if it did in any case). Everything else is P2Rec's
default recipe for the data set. Validation ranks all items under ``seen = keep``, which is RecBole's way.
"""

import contextlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import clock
import numpy as np
import torch
from memory import peak_rss_bytes
from numpy.typing import NDArray
from pace import Pace, paced

from p2rec_core.fusion import IdTable
from p2rec_core.progress import Progress
from p2rec_core.recommender import NextItemObjective, Recommender
from p2rec_core.runtime import prepared_device
from p2rec_core.sequences import RaggedSequences
from p2rec_core.settings.data import IngestSettings, SourceFormat
from p2rec_core.settings.pipeline import pipeline_settings
from p2rec_core.settings.sequence_model import Schedule, TrainingSettings
from p2rec_core.training.recommender import EncoderShape, NextItemTraining, train_recommender
from storage.ingest.pipeline import ingest
from tasks.arrays import ragged, targets


class EnoughError(Exception):
    """As many epochs were trained as are to be measured."""


class EpochClock:
    """The training loop's progress, which writes down what each epoch took.

    The loop tells of an epoch's last step twice: when the step is done, and when the epoch is validated.

    Attributes:
        seconds: Of every epoch, the seconds of its steps and those of its validation.
        ndcg: Validation NDCG@10 of every epoch, to the four digits that the loop tells.

    Args:
        last_epoch: Epoch after which the training is broken off by ``EnoughError``; None lets it end.
    """

    def __init__(self, last_epoch: int | None = None) -> None:
        self.seconds: list[tuple[float, float]] = []
        self.ndcg: list[float] = []
        self.last_epoch = last_epoch
        self._begun = self._told = clock.now()
        self._done = 0

    @property
    def curve(self) -> list[dict[str, float]]:
        """Per epoch: seconds of training, seconds of validation, validation NDCG@10.

        The first one has the making of model and windows too.
        """
        return [
            {"train_s": train_s, "validate_s": validate_s, "ndcg": value}
            for (train_s, validate_s), value in zip(self.seconds, self.ndcg, strict=True)
        ]

    def __call__(self, done: int, total: int, message: str) -> None:
        """Take the time; see ``progress.Progress``."""
        now = clock.now()
        if done == self._done:
            self.seconds.append((self._told - self._begun, now - self._told))
            self.ndcg.append(float(message.partition("NDCG@10 ")[2].partition(",")[0]))
            print(message, flush=True)
            if len(self.seconds) == self.last_epoch:
                raise EnoughError
            self._begun = now
        self._done, self._told = done, now


class StepClock:
    """The training loop's progress, which breaks the first epoch off when its pace is known.

    Attributes:
        done: Optimiser steps so far.
        total: Of the whole training.

    Args:
        pace: Told after every step.
    """

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.done = self.total = 0

    def __call__(self, done: int, total: int, message: str) -> None:
        """Count a step; see ``progress.Progress``."""
        if done == self.done or self.pace():  # told twice of an epoch's last step: see EpochClock
            raise EnoughError
        self.done, self.total = done, total


def loaded(path: Path) -> tuple[RaggedSequences, NDArray[np.int32], int]:
    """Training parts, validation items (0 = none) and N of an atomic file; every row of it counts."""
    settings = IngestSettings(format=SourceFormat.RECBOLE, min_user_interactions=1, min_item_interactions=1)
    tables = ingest(path, **settings.model_dump(mode="json"))
    sequences = ragged(tables.sequences)
    return sequences, targets(tables.validation, len(sequences)), tables.items.num_rows


def fresh_objective(
    sequences: RaggedSequences,
    validation: NDArray[np.int32],
    n_items: int,
    encoder: EncoderShape,
    training: TrainingSettings,
    device: torch.device,
) -> NextItemObjective:
    """The objective of an untrained recommender in evaluation mode."""
    model = Recommender(IdTable(n_items, encoder.hidden_size), encoder.build()).to(device).eval()
    return NextItemObjective(
        model,
        sequences,
        validation,
        max_length=encoder.max_length,
        batch_positions=training.batch_positions,
        seed=training.seed,
        device=device,
    )


def trained_until_enough(
    sequences: RaggedSequences,
    validation: NDArray[np.int32],
    n_items: int,
    encoder: EncoderShape,
    training: TrainingSettings,
    device: torch.device,
    progress: Progress,
) -> None:
    """Train as the pipeline does, until ``progress`` has had enough or the recipe ends."""
    recipe = NextItemTraining(**training.model_dump(exclude={"schedule"}), cosine=training.schedule is Schedule.COSINE)
    with contextlib.suppress(EnoughError):
        train_recommender(
            sequences, validation, n_items=n_items, encoder=encoder, training=recipe, device=device, progress=progress
        )


def measured(request: dict[str, Any]) -> dict[str, Any]:
    """Do what the request says."""
    imported = peak_rss_bytes()
    device = prepared_device("cpu", request["threads"])
    changes = {"encoder": request["encoder"], "training": {"seed": request["seed"]}}
    recipe = pipeline_settings(dataset=request["dataset"], changes={"recommender": changes}).recommender
    settings, training = recipe.encoder, recipe.training
    encoder = EncoderShape(settings.backbone, settings.options())

    begun = clock.now()
    sequences, validation, n_items = loaded(Path(request["interactions"]))
    objective = fresh_objective(sequences, validation, n_items, encoder, training, device)
    first = objective.steps(0)[0][0]
    torch.from_numpy(objective.windows.padded(first))
    load_s = clock.now() - begun

    result: dict[str, Any] = {
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "threads": torch.get_num_threads(),
        "encoder": settings.model_dump(mode="json"),
        "training": training.model_dump(mode="json"),
        "n_users": len(sequences),
        "n_items": n_items,
        "n_validated": int((validation > 0).sum()),
        "n_examples": int(np.maximum(sequences.lengths - 1, 0).sum()),
        "load_s": load_s,
        "imported_rss_bytes": imported,
    }
    trained = partial(trained_until_enough, sequences, validation, n_items, encoder, training, device)
    if request["task"] == "train":
        told = EpochClock(request["last_epoch"])
        trained(told)
        result["curve"] = told.curve
    elif request["task"] == "pace":
        pace = Pace(request["pace_s"])
        steps = StepClock(pace)
        trained(steps)
        result |= paced(pace, steps.total // training.max_epochs)
    elif request["task"] == "evaluate":
        seconds = []
        with torch.no_grad():
            for _ in range(request["repeats"] + 1):  # the first one warms up
                begun = clock.now()
                objective.validate()
                seconds.append(clock.now() - begun)
        result["evaluate_s"] = seconds[1:]
    result["peak_rss_bytes"] = peak_rss_bytes()
    return result


def main() -> None:
    """Read the request, measure, write the result."""
    request_file, result_file = map(Path, sys.argv[1:3])
    result_file.write_text(json.dumps(measured(json.loads(request_file.read_text()))))


if __name__ == "__main__":
    main()
