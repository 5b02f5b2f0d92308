"""The one training loop: sequential recommenders and the language model go through it alike.

Design choices:
- The objective gives steps and losses; the loop owns order, optimiser, selection and checkpoints.
- A loss is a SUM over examples and is divided by the whole step's weight, so that cutting a step into
  micro-batches changes nothing but rounding.
- Random numbers are seeded anew at every step from (seed, epoch, step): resuming is exact with no RNG to save.
- The best state by the selection metric is kept on the CPU and is what comes back.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from p2rec_core.errors import ModelError
from p2rec_core.progress import Progress, silent
from p2rec_core.runtime import release_freed_memory
from p2rec_core.seeds import step_seed
from p2rec_core.training.adam import Adam, ParameterGroup
from p2rec_core.training.checkpoint import Checkpoint, Checkpointer

Batch = TypeVar("Batch")


class Objective(Protocol[Batch]):
    """What is trained for: the examples, their loss and how progress is measured."""

    def steps(self, epoch: int) -> Sequence[Sequence[Batch]]:
        """The epoch's optimiser steps, each a list of micro-batches; a function of the epoch alone.

        Args:
            epoch: Number of the pass, from 0.
        """

    def weight(self, batch: Batch) -> float:
        """How many examples the micro-batch counts for in its step's mean."""

    def loss(self, batch: Batch) -> Tensor:
        """The loss summed over the micro-batch's examples: a float32 scalar with a graph."""

    def validate(self) -> dict[str, float]:
        """Metrics after an epoch, by name; the model is in evaluation mode."""


@dataclass(frozen=True)
class FitSettings:
    """How the loop trains.

    Attributes:
        max_epochs: Passes over the examples at the most.
        patience: Epochs without a better metric before the end; None trains max_epochs and keeps the last state.
        metric: Name of the metric, higher is better, that selects the state to keep.
        seed: Seed of everything random in the steps.
        warmup_steps: Optimiser steps over which the learning rate rises linearly from zero.
        cosine: Whether the learning rate then falls as a half cosine to zero at max_epochs.
        max_grad_norm: Bound of the gradient's norm; None leaves it alone.
        autocast: Number format of activations, e.g. ``torch.bfloat16``; None is float32.
    """

    max_epochs: int
    patience: int | None
    metric: str | None
    seed: int
    warmup_steps: int = 0
    cosine: bool = False
    max_grad_norm: float | None = None
    autocast: torch.dtype | None = None


@dataclass(frozen=True)
class FitResult:
    """What came of a training.

    Attributes:
        tensors: The kept values of the trainable parameters, on the CPU.
        history: One (epoch, metric, value) per epoch and metric; ``loss`` is the mean training loss. Epochs from 1.
        best_epoch: Epoch whose state is kept, from 1.
        n_epochs: Epochs trained.
        n_steps: Optimiser steps taken, those before a resume included.
        resumed_at_step: Step that a checkpoint was resumed at; None if the training began anew.
        notes: What a person should know, e.g. a damaged checkpoint that was passed over.
    """

    tensors: dict[str, Tensor]
    history: list[tuple[int, str, float]]
    best_epoch: int
    n_epochs: int
    n_steps: int
    resumed_at_step: int | None
    notes: tuple[str, ...] = ()


@dataclass
class _State:
    """The part of a training that a checkpoint holds beside the tensors."""

    epoch: int = 0
    step: int = 0  # steps done of this epoch
    n_steps: int = 0
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    best: float = -math.inf
    best_epoch: int = 0
    bad_epochs: int = 0
    history: list[tuple[int, str, float]] = field(default_factory=list)


def fit(
    model: nn.Module,
    objective: Objective[Any],
    groups: Sequence[ParameterGroup],
    settings: FitSettings,
    *,
    device: torch.device,
    checkpointer: Checkpointer | None = None,
    progress: Progress = silent,
) -> FitResult:
    """Train until the metric stops rising or the epochs are used up.

    Args:
        model: The model; its trainable parameters are changed and end in the kept state.
        objective: Examples, loss and metrics.
        groups: What is trained, and how fast.
        settings: How to train.
        device: Where to train.
        checkpointer: Where resumable state is kept; an existing checkpoint is resumed.
        progress: Told after every step.

    Returns:
        The kept state and the learning curve.

    Raises:
        ModelError: The loss is not a finite number.
    """
    release_freed_memory()
    optimiser = Adam(groups)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    state = _State()
    best: dict[str, Tensor] = {}
    resumed_at: int | None = None
    if checkpointer is not None and (checkpoint := checkpointer.load()) is not None:
        state, best = _restore(checkpoint, trainable, optimiser)
        resumed_at = state.n_steps

    while state.epoch < settings.max_epochs and not _exhausted(state, settings):
        steps = objective.steps(state.epoch)
        model.train()
        for index in range(state.step, len(steps)):
            done = state.epoch + index / len(steps)
            torch.manual_seed(step_seed(settings.seed, state.epoch, index))
            total = sum(objective.weight(batch) for batch in steps[index])
            for batch in steps[index]:
                with torch.autocast(device.type, settings.autocast, enabled=settings.autocast is not None):
                    loss = objective.loss(batch)
                torch.autograd.backward(loss / total)
                state.loss_sum += loss.item()
            if not math.isfinite(state.loss_sum):
                raise ModelError(
                    f"The training loss is {state.loss_sum} at epoch {state.epoch + 1}, step {index + 1}.",
                    remedy="Lower the learning rate, or look for non-finite values in the inputs.",
                )
            if settings.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(trainable.values(), settings.max_grad_norm)
            optimiser.step(_rate_factor(state.n_steps, done / settings.max_epochs, settings))
            optimiser.zero_grad()
            state.weight_sum += total
            state.step, state.n_steps = index + 1, state.n_steps + 1
            if checkpointer is not None and checkpointer.due():
                checkpointer.save(_checkpoint(state, best, trainable, optimiser))
            progress(state.n_steps, settings.max_epochs * len(steps), _message(state))
        best = _end_epoch(model, objective, settings, state, best, trainable)
        progress(state.n_steps, settings.max_epochs * len(steps), _message(state))
        if checkpointer is not None and checkpointer.due():
            checkpointer.save(_checkpoint(state, best, trainable, optimiser))

    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(best[name])
    model.eval()
    notes = tuple(checkpointer.notes) if checkpointer is not None else ()
    return FitResult(best, state.history, state.best_epoch, state.epoch, state.n_steps, resumed_at, notes)


def _end_epoch(
    model: nn.Module,
    objective: Objective[Any],
    settings: FitSettings,
    state: _State,
    best: dict[str, Tensor],
    trainable: dict[str, nn.Parameter],
) -> dict[str, Tensor]:
    """Validate, write the learning curve and return the best tensors so far."""
    epoch = state.epoch + 1
    state.history.append((epoch, "loss", state.loss_sum / state.weight_sum))
    model.eval()
    release_freed_memory()  # of the steps' sizes, and then of validation's
    with torch.no_grad():
        metrics = objective.validate()
    release_freed_memory()
    state.history.extend((epoch, name, value) for name, value in metrics.items())
    value = math.inf if settings.metric is None else metrics[settings.metric]
    if settings.patience is None or value > state.best:
        best = {name: p.detach().to("cpu", copy=True) for name, p in trainable.items()}
        state.best, state.best_epoch, state.bad_epochs = min(value, 1e30), epoch, 0
    else:
        state.bad_epochs += 1
    state.epoch, state.step, state.loss_sum, state.weight_sum = epoch, 0, 0.0, 0.0
    return best


def _exhausted(state: _State, settings: FitSettings) -> bool:
    return settings.patience is not None and state.bad_epochs >= settings.patience


def _rate_factor(n_steps: int, progress: float, settings: FitSettings) -> float:
    if n_steps < settings.warmup_steps:
        return (n_steps + 1) / (settings.warmup_steps + 1)
    return 0.5 * (1 + math.cos(math.pi * progress)) if settings.cosine else 1.0


def _message(state: _State) -> str:
    """One line for a person: the epoch at hand with its mean loss so far, and the metrics of the one before."""
    last = ", ".join(f"{name} {value:.4f}" for epoch, name, value in state.history if epoch == state.epoch)
    if not state.step:
        return f"epoch {state.epoch}: {last}"
    running = f"epoch {state.epoch + 1}: loss {state.loss_sum / state.weight_sum:.4f}"
    return f"{running}; epoch {state.epoch}: {last}" if last else running


def _checkpoint(
    state: _State,
    best: dict[str, Tensor],
    trainable: dict[str, nn.Parameter],
    optimiser: Adam,
) -> Checkpoint:
    tensors = {f"parameter/{name}": p.detach() for name, p in trainable.items()}
    tensors |= {f"best/{name}": t for name, t in best.items()}
    tensors |= {f"adam/{name}": t for name, t in optimiser.state(trainable).items()}
    cursor = {key: getattr(state, key) for key in _State.__dataclass_fields__}
    return Checkpoint(tensors, cursor)


def _restore(
    checkpoint: Checkpoint,
    trainable: dict[str, nn.Parameter],
    optimiser: Adam,
) -> tuple[_State, dict[str, Tensor]]:
    parameters = checkpoint.group("parameter")
    if parameters.keys() != trainable.keys():
        raise ModelError(
            f"The checkpoint holds other parameters than the model: {sorted(parameters.keys() ^ trainable.keys())}.",
            remedy="Delete the checkpoint's directory to train from the start.",
        )
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(parameters[name])
    optimiser.restore(checkpoint.group("adam"), trainable)
    cursor = dict(checkpoint.cursor)
    cursor["history"] = [(int(e), str(m), float(v)) for e, m, v in cursor["history"]]
    return _State(**cursor), checkpoint.group("best")


__all__ = ["FitResult", "FitSettings", "Objective", "fit"]
