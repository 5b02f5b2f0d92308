"""E4SRec's training: the language model learns to tell the next item, one example per target (Li et al. 2023)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p2rec_core.errors import DataError, SettingsError
from p2rec_core.language.batching import micro_batches
from p2rec_core.language.instances import LanguageModelWork, NextItemInstances, next_item_instances
from p2rec_core.language.loading import LanguageModel
from p2rec_core.language.next_item_model import NextItemLanguageModel, e4srec_scorer
from p2rec_core.language.prompt import Prompt
from p2rec_core.objectives import catalogue_cross_entropy
from p2rec_core.progress import Progress, silent
from p2rec_core.ranking import rank_metrics, ranks_of_users
from p2rec_core.sequences import RaggedSequences
from p2rec_core.training.adam import ParameterGroup
from p2rec_core.training.checkpoint import Checkpointer
from p2rec_core.training.loop import FitResult, FitSettings, fit


@dataclass(frozen=True)
class E4SRecResult:
    """What came of the training.

    Attributes:
        tensors: LoRA's matrices, the projector and the head by name, float32.
        history: One (epoch, metric, value) per epoch and metric, epochs from 1. ``train_loss`` is the mean
            cross-entropy in nats; with patience there are ``NDCG@10`` and ``HR@10`` on validation (``seen = keep``).
        best_epoch: Epoch whose tensors are kept.
        n_epochs: Epochs trained; with a bound of the steps these are its equal parts, see ``InstanceObjective``.
        n_steps: Optimiser steps.
        n_steps_per_epoch: Optimiser steps that a pass over all instances takes.
        n_instances: Instances of a pass.
        n_instances_trained: Instances trained on, those of every pass counted.
        n_empty: Targets with nothing before them, whether left out or not.
        n_untrained: Items without training interactions, whose embedding is taken for the trained items' mean.
        n_prompt_tokens: Tokens that every instance has beside its items.
        n_tokens_per_epoch: Tokens of a pass: prompts and items, without padding.
        n_trainable: Numbers that are trained.
        resumed_at_step: Step that a checkpoint was resumed at; None if the training began anew.
        notes: What a person should know.
    """

    tensors: dict[str, NDArray[np.float32]]
    history: list[tuple[int, str, float]]
    best_epoch: int
    n_epochs: int
    n_steps: int
    n_steps_per_epoch: int
    n_instances: int
    n_instances_trained: int
    n_empty: int
    n_untrained: int
    n_prompt_tokens: int
    n_tokens_per_epoch: int
    n_trainable: int
    resumed_at_step: int | None
    notes: tuple[str, ...] = ()


@dataclass
class InstanceObjective:
    """Telling next items; implements ``loop.Objective``.

    The steps of all passes are taken one after the other up to ``max_steps``. They are told to the loop in as many
    equal parts as passes are begun, so that a bounded training has its learning rate fall to zero too.

    Attributes:
        model: The model.
        instances: Histories and next items.
        batch_instances: Instances in one optimiser step.
        micro_batch_tokens: Tokens that go through the model at once, padding included.
        epochs: Passes over the instances at the most.
        max_steps: Optimiser steps at the most; None for all passes.
        seed: Seed of the order.
        validation: Validation item of each user, int32 (users,), 0 = none; None validates nothing.
        max_history: Most recent items that are read in validation; None reads all.
        autocast: Number format of activations in validation.
    """

    model: NextItemLanguageModel
    instances: NextItemInstances
    batch_instances: int
    micro_batch_tokens: int
    epochs: int
    max_steps: int | None
    seed: int
    validation: NDArray[np.int32] | None = None
    max_history: int | None = None
    autocast: torch.dtype | None = None
    n_steps_per_epoch: int = field(init=False)
    n_steps: int = field(init=False)
    n_parts: int = field(init=False)

    def __post_init__(self) -> None:
        self.n_steps_per_epoch = math.ceil(len(self.instances) / self.batch_instances)
        whole = self.epochs * self.n_steps_per_epoch
        self.n_steps = whole if self.max_steps is None else min(self.max_steps, whole)
        self.n_parts = math.ceil(self.n_steps / self.n_steps_per_epoch)

    def steps(self, epoch: int) -> list[list[NDArray[np.int64]]]:
        """The steps of one part of the training, cut into micro-batches."""
        first, end = (self.n_steps * part // self.n_parts for part in (epoch, epoch + 1))
        steps = []
        order: dict[int, NDArray[np.int64]] = {}
        for step in range(first, end):
            number, place = divmod(step, self.n_steps_per_epoch)
            if number not in order:
                order[number] = np.random.default_rng((self.seed, number)).permutation(len(self.instances))
            start = place * self.batch_instances
            steps.append(self.cut(order[number][start : start + self.batch_instances]))
        return steps

    def weight(self, batch: NDArray[np.int64]) -> float:
        """Number of instances."""
        return float(len(batch))

    def loss(self, batch: NDArray[np.int64]) -> Tensor:
        """Cross-entropy over the catalogue, summed over instances."""
        device = self.model.table.device
        items = torch.from_numpy(self.instances.histories(batch)).to(device)
        h = self.model.read(items, torch.from_numpy(self.instances.lengths[batch]).to(device))
        targets = torch.from_numpy(self.instances.targets(batch) - 1).to(device)
        return catalogue_cross_entropy(h, self.model.head.weight, targets)

    def validate(self) -> dict[str, float]:
        """NDCG@10 and HR@10 of the validation items under ``seen = keep``; nothing if there are none."""
        if self.validation is None:
            return {}
        scorer = e4srec_scorer(
            self.model,
            self.instances.windows.sequences,
            max_history=self.max_history,
            micro_batch_tokens=self.micro_batch_tokens,
            autocast=self.autocast,
        )
        metrics = rank_metrics(ranks_of_users(scorer, self.validation, seen=("keep",))["keep"], (10,))
        return {"NDCG@10": metrics["NDCG", 10], "HR@10": metrics["HR", 10]}

    def cut(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Cut instances into micro-batches."""
        return micro_batches(
            rows,
            self.instances.lengths[rows],
            n_prompt_tokens=self.model.n_prompt_tokens,
            max_tokens=self.micro_batch_tokens,
            device=self.model.table.device,
            packed=self.model.packs,
        )


def train_e4srec(
    language_model: LanguageModel,
    prompt: Prompt,
    item_embeddings: NDArray[np.float32],
    trained: NDArray[np.bool_],
    sequences: RaggedSequences,
    validation: NDArray[np.int32] | None = None,
    *,
    lora_rank: int,
    lora_alpha: float,
    lora_dropout: float,
    lora_targets: Sequence[str] | None,
    learning_rate: float,
    warmup_steps: int,
    max_grad_norm: float,
    batch_instances: int,
    micro_batch_tokens: int,
    epochs: int,
    max_steps: int | None,
    patience: int | None,
    n_last_targets: int | None,
    max_history: int | None,
    drop_empty_history: bool,
    gradient_checkpointing: bool,
    seed: int,
    pooling: str,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
    shared_prefix: bool = True,
    checkpointer: Checkpointer | None = None,
    progress: Progress = silent,
) -> E4SRecResult:
    """Teach the language model to tell users' next items.

    Args:
        language_model: The language model, on ``device``; its weights are not changed.
        prompt: The text around the items.
        item_embeddings: Backbone embeddings e_v, float32 (N, d), row i of item_idx i + 1.
        trained: Which items have training interactions, bool (N,).
        sequences: Training parts.
        validation: Validation item of each user, int32 (users,), 0 = none; read with patience only.
        lora_rank: Rank of the adapters.
        lora_alpha: The adapters' output is scaled by alpha / rank.
        lora_dropout: Dropout on the adapters' input.
        lora_targets: Names of the adapted layers; None means the feed-forward networks' projections.
        learning_rate: Peak step size.
        warmup_steps: Steps over which the learning rate rises; it then falls as a cosine.
        max_grad_norm: Bound of the gradient's norm.
        batch_instances: Instances in one optimiser step.
        micro_batch_tokens: Tokens that go through the model at once; changes memory and speed only.
        epochs: Passes over the instances.
        max_steps: Optimiser steps at the most; None trains all passes.
        patience: Epochs without a better validation NDCG@10 before the end; None validates nothing and keeps the
            last state.
        n_last_targets: Most recent training items of a user that are targets; None takes all.
        max_history: Most recent items before a target that are read; None reads all.
        drop_empty_history: Whether targets with nothing before them are left out.
        gradient_checkpointing: Whether activations are computed twice to save memory.
        seed: Seed of initial values, order and dropout.
        pooling: ``last`` or ``mean``.
        device: Where the language model is.
        autocast: Number format of activations, e.g. ``torch.bfloat16``; None leaves it to the weights.
        shared_prefix: Whether a causal model computes the instruction once per micro-batch.
        checkpointer: Where resumable state is kept.
        progress: Told after every step.

    Raises:
        DataError: Items and sequences do not fit each other, there is no instance to train on, or no validation
            item for patience to go by.
        SettingsError: ``max_steps`` is below 1.
        ModelError: The item embeddings are unusable, the language model has too few positions, LoRA's targets
            match no layer, or the loss is not finite.

    Source: Li et al. 2023, E4SRec, and its released code. Deviations: see ``NextItemLanguageModel``; histories are
    capped and empty ones left out unless asked for; the learning rate's schedule is the same for all parameters.
    """
    if max_steps is not None and max_steps < 1:
        raise SettingsError(f"max_steps = {max_steps} trains nothing.", remedy="Give at least 1, or null for no bound.")
    instances = next_item_instances(
        sequences, n_last_targets=n_last_targets, max_history=max_history, drop_empty_history=drop_empty_history
    )
    if patience is None:
        validation = None
    _check_data(sequences, instances, len(trained), validation, patience)
    model = NextItemLanguageModel(
        language_model,
        prompt,
        item_embeddings,
        trained,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        lora_targets=lora_targets,
        pooling=pooling,
        shared_prefix=shared_prefix,
        gradient_checkpointing=gradient_checkpointing,
        seed=seed,
    )
    model.check_length(int(instances.lengths.max()), setting="max_history")
    objective = InstanceObjective(
        model,
        instances,
        batch_instances,
        micro_batch_tokens,
        epochs,
        max_steps,
        seed,
        validation,
        max_history,
        autocast,
    )
    settings = FitSettings(
        max_epochs=objective.n_parts,
        patience=patience,
        metric=None if patience is None else "NDCG@10",
        seed=seed,
        warmup_steps=warmup_steps,
        cosine=True,
        max_grad_norm=max_grad_norm,
        autocast=autocast,
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    fitted = fit(
        model,
        objective,
        [ParameterGroup(parameters, learning_rate)],
        settings,
        device=torch.device(device),
        checkpointer=checkpointer,
        progress=progress,
    )
    return _result(fitted, objective, warmup_steps)


def _result(fitted: FitResult, objective: InstanceObjective, warmup_steps: int) -> E4SRecResult:
    model, instances = objective.model, objective.instances
    passes, rest = divmod(fitted.n_steps, objective.n_steps_per_epoch)
    notes = list(fitted.notes)
    if warmup_steps >= objective.n_steps:
        notes.append(f"The warm-up of {warmup_steps} steps takes the whole training of {objective.n_steps} steps.")
    if objective.n_steps < objective.epochs * objective.n_steps_per_epoch:
        notes.append(
            f"The budget of {objective.n_steps} steps ends the training before the"
            f" {objective.epochs * objective.n_steps_per_epoch} steps of {objective.epochs} epochs."
        )
    return E4SRecResult(
        tensors={name: tensor.float().numpy() for name, tensor in fitted.tensors.items()},
        history=[(epoch, "train_loss" if name == "loss" else name, value) for epoch, name, value in fitted.history],
        best_epoch=fitted.best_epoch,
        n_epochs=fitted.n_epochs,
        n_steps=fitted.n_steps,
        n_steps_per_epoch=objective.n_steps_per_epoch,
        n_instances=len(instances),
        n_instances_trained=passes * len(instances) + min(rest * objective.batch_instances, len(instances)),
        n_empty=instances.n_empty,
        n_untrained=model.n_untrained,
        n_prompt_tokens=model.n_prompt_tokens,
        n_tokens_per_epoch=LanguageModelWork.of(instances.lengths).n_tokens(model.n_prompt_tokens),
        n_trainable=sum(tensor.numel() for tensor in fitted.tensors.values()),
        resumed_at_step=fitted.resumed_at_step,
        notes=tuple(notes),
    )


def _check_data(
    sequences: RaggedSequences,
    instances: NextItemInstances,
    n_items: int,
    validation: NDArray[np.int32] | None,
    patience: int | None,
) -> None:
    highest = max(sequences.items.max(initial=0), 0 if validation is None else validation.max(initial=0))
    if highest > n_items:
        raise DataError(
            f"item_idx runs to {highest}, and there are {n_items} items.",
            remedy="Use item_idx from 1 to the number of items.",
        )
    if not len(instances):
        raise DataError(
            f"None of {len(sequences)} users has a training item with another before it, so there is nothing to"
            " learn from.",
            remedy="Import users with at least four interactions, or set drop_empty_history to false.",
        )
    if patience is not None and (validation is None or not (validation > 0).any()):
        raise DataError(
            "No user has a validation item, so early stopping has nothing to go by.",
            remedy="Import users with at least three interactions, or set patience to null.",
        )
    if validation is not None and len(validation) != len(sequences):
        raise DataError(
            f"There are {len(validation)} validation items for {len(sequences)} users.",
            remedy="Give one per user, 0 for a user without.",
        )


__all__ = ["E4SRecResult", "InstanceObjective", "train_e4srec"]
