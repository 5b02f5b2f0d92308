"""User-level supervised fine-tuning of the language model (paper, section 4.1.2, Eq. 2-4).

One example per user: the training items, and the user's preference over clusters that the model has to tell.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p2rec_core.errors import DataError
from p2rec_core.language.batching import Sequences, micro_batches
from p2rec_core.language.loading import LanguageModel
from p2rec_core.language.memory import halving
from p2rec_core.language.preference_model import PreferenceLanguageModel
from p2rec_core.language.prompt import Prompt
from p2rec_core.preferences import Grouping
from p2rec_core.progress import Progress, silent
from p2rec_core.training.adam import ParameterGroup
from p2rec_core.training.checkpoint import Checkpointer
from p2rec_core.training.loop import FitResult, FitSettings, fit


@dataclass(frozen=True)
class FinetuneResult:
    """What came of the fine-tuning.

    Attributes:
        tensors: LoRA's matrices, the projector and the head by name, float32.
        history: One (epoch, metric, value) per epoch and metric, epochs from 1. ``train_error`` is the mean
            over users of the squared error summed over clusters (Eq. 4), averaged over groupings by their number of
            clusters, seen while training. With a holdout
            there are ``held_out_error`` (the same over held-out users), ``held_out_kl`` (nats, from
            preference to prediction), ``held_out_top1`` (share of users whose strongest cluster is told),
            ``held_out_error_K`` for every finer grouping of K clusters, and
            ``trivial_error`` (error of telling the training users' mean preference to everyone).
        best_epoch: Epoch whose tensors are kept: the last.
        n_epochs: Passes over the users.
        n_steps: Optimiser steps.
        n_users: Users trained on.
        n_held_out: Users held out.
        n_skipped: Users without any training item.
        n_untrained: Items without training interactions, whose embedding is taken for the trained items'
            mean.
        n_tokens_per_epoch: Tokens of all examples trained on: prompt and items, without padding.
        n_trainable: Numbers that are trained.
        resumed_at_step: Step that a checkpoint was resumed at; None if the training began anew.
        notes: What a person should know of memory and checkpoints.
    """

    tensors: dict[str, NDArray[np.float32]]
    history: list[tuple[int, str, float]]
    best_epoch: int
    n_epochs: int
    n_steps: int
    n_users: int
    n_held_out: int
    n_skipped: int
    n_untrained: int
    n_tokens_per_epoch: int
    n_trainable: int
    resumed_at_step: int | None
    notes: tuple[str, ...] = ()


@dataclass
class UserObjective:
    """Telling users' preferences; implements ``loop.Objective``.

    Attributes:
        model: The model.
        sequences: Training parts of all users.
        preferences: Preference of every user, float32 (U, K).
        finer: Further groupings, over which preferences are reconstructed beside.
        training: Rows of the users to train on, int64.
        held_out: Rows of the users to validate on, int64; may be empty.
        batch_users: Users in one optimiser step.
        micro_batch_tokens: Tokens that go through the model at once, padding included.
        seed: Seed of the order of users.
        autocast: Number format of activations in validation.
    """

    model: PreferenceLanguageModel
    sequences: Sequences
    preferences: NDArray[np.float32]
    training: NDArray[np.int64]
    held_out: NDArray[np.int64]
    batch_users: int
    micro_batch_tokens: int
    seed: int
    autocast: torch.dtype | None = None
    finer: Sequence[Grouping] = ()
    trivial_error: float = field(init=False)

    def __post_init__(self) -> None:
        mean = self.preferences[self.training].mean(axis=0, dtype=np.float64)
        error = ((self.preferences[self.held_out] - mean) ** 2).sum(axis=1)
        self.trivial_error = float(error.mean()) if len(self.held_out) else math.nan

    def steps(self, epoch: int) -> list[list[NDArray[np.int64]]]:
        """All training users in an order of this epoch's own, cut into steps and micro-batches."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.training)
        starts = range(0, len(order), self.batch_users)
        return [self.cut(order[start : start + self.batch_users]) for start in starts]

    def weight(self, batch: NDArray[np.int64]) -> float:
        """Number of users."""
        return float(len(batch))

    def loss(self, batch: NDArray[np.int64]) -> Tensor:
        """Squared error summed over clusters and users, times K / 2, summed over groupings (see ``finetune``)."""
        groupings = self._predict(batch)
        with torch.autocast(groupings[0][0].device.type, enabled=False):
            errors = [
                target.shape[1] / 2 * (logits.softmax(-1) - target).square().sum() for logits, target in groupings
            ]
            return torch.stack(errors).sum()

    def validate(self) -> dict[str, float]:
        """Errors on the held-out users; nothing if there are none."""
        if not len(self.held_out):
            return {}
        error = kl = top1 = 0.0
        finer = dict.fromkeys([grouping.n_clusters for grouping in self.finer], 0.0)
        for batch in self.cut(self.held_out):
            with torch.autocast(self.model.table.device.type, self.autocast, enabled=self.autocast is not None):
                (logits, target), *others = self._predict(batch)
            for fine_logits, fine_target in others:
                finer[fine_target.shape[1]] += float((fine_logits.softmax(-1) - fine_target).square().sum())
            log_p = logits.double().log_softmax(-1)
            target = target.double()
            error += float((log_p.exp() - target).square().sum())
            kl += float((torch.xlogy(target, target) - target * log_p).sum())
            top1 += float((log_p.argmax(-1) == target.argmax(-1)).sum())
        n = len(self.held_out)
        return {
            "held_out_error": error / n,
            "held_out_kl": kl / n,
            "held_out_top1": top1 / n,
            "trivial_error": self.trivial_error,
        } | {f"held_out_error_{k}": value / n for k, value in finer.items()}

    def cut(self, users: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Cut users into micro-batches."""
        return micro_batches(
            users,
            self.sequences.lengths[users],
            n_prompt_tokens=self.model.n_prompt_tokens,
            max_tokens=self.micro_batch_tokens,
            device=self.model.table.device,
            packed=self.model.packs,
        )

    def _predict(self, users: NDArray[np.int64]) -> list[tuple[Tensor, Tensor]]:
        """Logits and preferences of each grouping, float32 (B, K) both."""
        device = self.model.table.device
        preferences = [self.preferences[users], *(grouping.preferences(users) for grouping in self.finer)]
        targets = [torch.from_numpy(told).to(device) for told in preferences]
        logits, _ = self.model(*self.sequences.padded(users, device))
        return list(zip(logits.split([t.shape[1] for t in targets], dim=1), targets, strict=True))


def finetune(
    language_model: LanguageModel,
    prompt: Prompt,
    item_embeddings: NDArray[np.float32],
    trained: NDArray[np.bool_],
    items: NDArray[np.int32],
    offsets: NDArray[np.int64],
    preferences: NDArray[np.float32],
    *,
    finer: Sequence[Grouping] = (),
    lora_rank: int,
    lora_alpha: float,
    lora_dropout: float,
    lora_targets: Sequence[str] | None,
    learning_rate: float,
    warmup_fraction: float,
    max_grad_norm: float,
    batch_users: int,
    micro_batch_tokens: int,
    epochs: int,
    max_length: int,
    holdout_fraction: float,
    gradient_checkpointing: bool,
    seed: int,
    pooling: str,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
    shared_prefix: bool = True,
    checkpointer: Checkpointer | None = None,
    progress: Progress = silent,
) -> FinetuneResult:
    """Teach the language model to tell users' preferences from their items.

    Args:
        language_model: The language model, on ``device``; its weights are not changed.
        prompt: The text around the items.
        item_embeddings: Backbone embeddings e_v, float32 (N, d), row i of item_idx i + 1.
        trained: Which items have training interactions, bool (N,).
        items: item_idx of all users' training parts, int32 (interactions,).
        offsets: User u has ``items[offsets[u]:offsets[u + 1]]``, int64 (U + 1,).
        preferences: Normalised preference of every user, float32 (U, K); rows of users without items are not
            read.
        finer: Further groupings of the same items; the model has to tell users' preferences over them too. Empty is
            the paper's objective.
        lora_rank: Rank of the adapters.
        lora_alpha: The adapters' output is scaled by alpha / rank.
        lora_dropout: Dropout on the adapters' input.
        lora_targets: Names of the adapted layers; None means the query and value projections.
        learning_rate: Peak step size.
        warmup_fraction: Part of all steps over which the learning rate rises; it then falls as a cosine.
        max_grad_norm: Bound of the gradient's norm.
        batch_users: Users in one optimiser step.
        micro_batch_tokens: Tokens that go through the model at once; changes memory and speed only. Where a GPU's
            memory does not suffice for so many, half of them are tried.
        epochs: Passes over the users; the last state is kept.
        max_length: Most recent items of a user that are read.
        holdout_fraction: Part of the users that is not trained on but validated on.
        gradient_checkpointing: Whether activations are computed twice to save memory.
        seed: Seed of initial values, holdout, order and dropout.
        pooling: ``last`` or ``mean``.
        device: Where the language model is.
        autocast: Number format of activations, e.g. ``torch.bfloat16``; None leaves it to the weights.
        shared_prefix: Whether a causal model computes the instruction once per micro-batch.
        checkpointer: Where resumable state is kept.
        progress: Told after every step.

    Raises:
        DataError: Sequences, preferences and items do not fit each other, a preference is not finite, or no
            user has training items.
        ModelError: The item embeddings are unusable, the language model has too few positions, LoRA's targets
            match no layer, the loss is not finite, or a GPU's memory does not suffice for one user.

    Source: Liu et al. 2024, Eq. 2-4. Deviation: the loss is multiplied by K / 2, because the gradient of
    softmax and squared error is 2 / K of the cross-entropy's where predictions are uniform, as they are at
    the start; that leaves the optimum where it is and gives max_grad_norm the same meaning for every K.
    Reported errors are unscaled.
    """
    sequences = Sequences(items, offsets, max_length)
    _check_data(sequences, len(trained), preferences)
    training, held_out = split_users(sequences.lengths, holdout_fraction, seed)
    n_steps = epochs * math.ceil(len(training) / batch_users)
    settings = FitSettings(
        max_epochs=epochs,
        patience=None,
        metric=None,
        seed=seed,
        warmup_steps=round(warmup_fraction * n_steps),
        cosine=True,
        max_grad_norm=max_grad_norm,
        autocast=autocast,
    )
    longest = int(sequences.lengths.max())

    def attempt(micro_batch: int) -> tuple[FitResult, UserObjective]:
        """Fine-tune from the start or the last checkpoint; seeds make every attempt's steps the same."""
        model = PreferenceLanguageModel(
            language_model,
            prompt,
            item_embeddings,
            trained,
            n_outputs(preferences, finer),
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            lora_targets=lora_targets,
            pooling=pooling,
            shared_prefix=shared_prefix,
            gradient_checkpointing=gradient_checkpointing,
            seed=seed,
        )
        model.check_length(longest)
        objective = UserObjective(
            model, sequences, preferences, training, held_out, batch_users, micro_batch, seed, autocast, finer
        )
        groups = [ParameterGroup([p for p in model.parameters() if p.requires_grad], learning_rate)]
        fitted = fit(
            model,
            objective,
            groups,
            settings,
            device=torch.device(device),
            checkpointer=checkpointer,
            progress=progress,
        )
        return fitted, objective

    halved: list[str] = []
    (fitted, objective), _ = halving(
        attempt,
        micro_batch_tokens,
        least=min(micro_batch_tokens, longest + prompt.n_tokens),
        what="tokens at once (micro_batch_tokens)",
        told=halved.append,
    )
    return _result(fitted, objective, tuple(halved))


def n_outputs(preferences: NDArray[np.float32], finer: Sequence[Grouping]) -> int:
    """Clusters of all groupings, of which the model tells each.

    Args:
        preferences: Preferences over the first grouping, float32 (U, K).
        finer: The others.
    """
    n_clusters = sum(grouping.n_clusters for grouping in finer)
    return int(preferences.shape[1]) + n_clusters


def _result(fitted: FitResult, objective: UserObjective, halved: tuple[str, ...]) -> FinetuneResult:
    model, training = objective.model, objective.training
    n_tokens = int(objective.sequences.lengths[training].sum()) + len(training) * model.n_prompt_tokens
    scale = n_outputs(objective.preferences, objective.finer) / 2
    history = [
        (epoch, "train_error", value / scale) if name == "loss" else (epoch, name, value)
        for epoch, name, value in fitted.history
    ]
    return FinetuneResult(
        tensors={name: tensor.float().numpy() for name, tensor in fitted.tensors.items()},
        history=history,
        best_epoch=fitted.best_epoch,
        n_epochs=fitted.n_epochs,
        n_steps=fitted.n_steps,
        n_users=len(training),
        n_held_out=len(objective.held_out),
        n_skipped=int((objective.sequences.lengths == 0).sum()),
        n_untrained=model.n_untrained,
        n_tokens_per_epoch=n_tokens,
        n_trainable=sum(tensor.numel() for tensor in fitted.tensors.values()),
        resumed_at_step=fitted.resumed_at_step,
        notes=halved + fitted.notes,
    )


def split_users(
    lengths: NDArray[np.int64], holdout_fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Users to train on and users to validate on, both ascending; users without items are in neither.

    Args:
        lengths: Training items of each user, int64 (U,).
        holdout_fraction: Part of the users with items that is held out; above zero it is one user at least.
        seed: Seed of the choice.

    Raises:
        DataError: Nobody is left to train on.
    """
    users = np.flatnonzero(lengths > 0)
    n_held_out = max(1, round(holdout_fraction * len(users))) if holdout_fraction > 0 else 0
    if n_held_out >= len(users):
        raise DataError(
            f"{len(users)} users have training items, and {n_held_out} of them would be held out.",
            remedy="Give more users, or set holdout_fraction to 0.",
        )
    chosen = np.random.default_rng((seed, 0x686F6C64)).permutation(users)  # a stream apart from the epochs'
    return np.sort(chosen[n_held_out:]), np.sort(chosen[:n_held_out])


def _check_data(sequences: Sequences, n_items: int, preferences: NDArray[np.float32]) -> None:
    items, offsets = sequences.items, sequences.offsets
    bounds = offsets[0] == 0 and offsets[-1] == len(items) and bool((np.diff(offsets) >= 0).all())
    if not bounds or preferences.ndim != 2 or len(preferences) != len(offsets) - 1:
        raise DataError(
            f"{len(offsets)} offsets do not fit {len(items)} items and preferences {preferences.shape}.",
            remedy="Give one more offset than users, from 0 to the number of items, and one preference each.",
        )
    if len(items) and not (items.min() >= 1 and items.max() <= n_items):
        raise DataError(
            f"item_idx runs from {items.min()} to {items.max()}, and there are {n_items} items.",
            remedy="Use item_idx from 1 to the number of items.",
        )
    n_bad = int((~np.isfinite(preferences[sequences.lengths > 0])).any(axis=1).sum())
    if n_bad:
        raise DataError(f"{n_bad} preferences are not finite.", remedy="Compute the preferences again.")


__all__ = ["FinetuneResult", "UserObjective", "finetune", "n_outputs", "split_users"]
