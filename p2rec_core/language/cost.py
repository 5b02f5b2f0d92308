"""What the language model costs P2Rec and E4SRec: seconds of an epoch on one machine in one run (paper, RQ2).

Design choices:
- Both methods go through the same training loop, model class and micro-batching, on one language model.
- A part of an epoch is timed: examples drawn evenly over the order of their lengths, grouped into steps at random as
  in a real epoch. Seconds of an epoch follow from seconds per token.
- The methods take turns, and the turns' order is reversed each time, so that a machine that slows down slows both.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p2rec_core.language.e4srec import InstanceObjective
from p2rec_core.language.finetune import UserObjective
from p2rec_core.language.instances import LanguageModelWork, inference_lengths
from p2rec_core.language.knowledge import item_knowledge
from p2rec_core.language.next_item_model import e4srec_scores
from p2rec_core.progress import Progress, silent
from p2rec_core.ranking import SCORED_ROWS
from p2rec_core.sequences import RaggedSequences
from p2rec_core.training.adam import ParameterGroup
from p2rec_core.training.loop import FitSettings, fit

_LEARNING_RATE = 1e-5
"""Has no bearing on the time."""
_WARM_ROWS = 32
"""Rows of a call of inference that is not timed."""


@dataclass(frozen=True)
class PhaseCost:
    """The language model's work in one method's training or inference.

    Attributes:
        method: ``p2rec`` or ``e4srec``.
        phase: ``training`` (one epoch) or ``inference`` (everything once).
        level: What an example is: ``user``, ``instance`` or ``item``.
        step_size: Examples in an optimiser step; in inference, of a call at the most.
        n_instances: Examples of the whole.
        n_tokens: Tokens of the whole, without padding, the prompt counted in each example.
        n_tokens_measured: Those that were timed.
        seconds_measured: What they took.
    """

    method: str
    phase: str
    level: str
    step_size: int
    n_instances: int
    n_tokens: int
    n_tokens_measured: int
    seconds_measured: float

    @property
    def fraction(self) -> float:
        """Part of the whole that was timed; 1 is all of it."""
        return self.n_tokens_measured / self.n_tokens

    @property
    def seconds_per_token(self) -> float:
        """Mean seconds of a token."""
        return self.seconds_measured / self.n_tokens_measured

    @property
    def seconds_per_epoch(self) -> float:
        """Seconds of the whole, extrapolated by tokens."""
        return self.seconds_per_token * self.n_tokens


@dataclass(frozen=True)
class CostResult:
    """Costs of both methods and phases.

    Attributes:
        phases: Training of P2Rec and E4SRec, then inference of both.
        rounds: How often they took turns.
    """

    phases: tuple[PhaseCost, PhaseCost, PhaseCost, PhaseCost]
    rounds: int

    def ratios(self) -> dict[str, float]:
        """E4SRec's tokens and seconds over P2Rec's, by phase."""
        named = {(phase.method, phase.phase): phase for phase in self.phases}
        found: dict[str, float] = {}
        for name in ("training", "inference"):
            ours, theirs = named["p2rec", name], named["e4srec", name]
            found[f"{name}_tokens"] = theirs.n_tokens / ours.n_tokens
            found[f"{name}_seconds"] = theirs.seconds_per_epoch / ours.seconds_per_epoch
        return found


def measure_cost(
    users: UserObjective,
    instances: InstanceObjective,
    histories: RaggedSequences,
    *,
    sample_tokens: int | None,
    step_tokens: int | None,
    rounds: int,
    warmup_steps: int,
    item_batch_size: int,
    max_history: int | None,
    max_grad_norm: float,
    seed: int,
    device: torch.device,
    autocast: torch.dtype | None = None,
    progress: Progress = silent,
) -> CostResult:
    """Time the language model in both methods; the models are trained a little on the way.

    Args:
        users: P2Rec's training, at its batch size.
        instances: E4SRec's training, at its batch size.
        histories: What E4SRec reads of each user to recommend; a history may be empty.
        sample_tokens: Tokens to time in each method and phase, rounded up to whole steps; None times everything.
        step_tokens: Tokens of an optimiser step, on average, for both methods; None leaves each its batch size.
        rounds: How often the methods take turns.
        warmup_steps: Steps before each timed part that are not timed, at least 1.
        item_batch_size: Items that P2Rec embeds at once.
        max_history: Most recent items that E4SRec reads to recommend; None reads all.
        max_grad_norm: Bound of the gradient's norm.
        seed: Seed of the sample.
        device: Where the models are.
        autocast: Number format of activations; None leaves it to the weights.
        progress: Told after every turn.
    """
    rng = np.random.default_rng((seed, 0x636F7374))
    settings = FitSettings(1, None, None, seed, max_grad_norm=max_grad_norm, autocast=autocast)
    draw = _Draw(sample_tokens, step_tokens, rounds, rng)

    def embed(items: NDArray[np.int64]) -> None:
        item_knowledge(users.model, items + 1, batch_size=item_batch_size, autocast=autocast)

    def score(rows: NDArray[np.int64]) -> None:
        e4srec_scores(
            instances.model,
            histories,
            rows,
            max_history=max_history,
            micro_batch_tokens=instances.micro_batch_tokens,
            autocast=autocast,
        )

    ours, theirs = users.model.n_prompt_tokens, instances.model.n_prompt_tokens
    user_lengths, instance_lengths = users.sequences.lengths[users.training], instances.instances.lengths
    one_item = np.ones(users.model.n_items, np.int64)
    read = inference_lengths(histories.lengths, max_history=max_history)
    timed = [
        _Timed(
            *("p2rec", "training", "user"),
            draw.steps(user_lengths, ours, users.batch_users),
            lambda steps: _train(users, [users.training[step] for step in steps], warmup_steps, settings, device),
        ),
        _Timed(
            *("e4srec", "training", "instance"),
            draw.steps(instance_lengths, theirs, instances.batch_instances),
            lambda steps: _train(instances, steps, warmup_steps, settings, device),
        ),
        _Timed(
            *("p2rec", "inference", "item"),
            draw.calls(one_item, ours, item_batch_size),
            lambda steps: _infer(embed, steps, warmup_steps, device),
        ),
        _Timed(
            *("e4srec", "inference", "user"),
            draw.calls(read, theirs, SCORED_ROWS),
            lambda steps: _infer(score, steps, warmup_steps, device),
        ),
    ]
    done = 0
    for turn in range(rounds):
        for one in timed if turn % 2 == 0 else reversed(timed):
            one.take(turn, rounds)
            done += 1
            progress(done, rounds * len(timed), f"{one.method} {one.phase}: {one.seconds:.1f} s")
    first, second, third, fourth = (one.result() for one in timed)
    return CostResult((first, second, third, fourth), rounds)


@dataclass(frozen=True)
class _Sampled:
    """Examples of which a part is timed.

    Attributes:
        work: All examples.
        n_prompt_tokens: Tokens that each has beside its items.
        steps: Places of the sampled examples, step after step.
        step_size: Examples of a step at the most.
        sample: The sampled examples.
    """

    work: LanguageModelWork
    n_prompt_tokens: int
    steps: list[NDArray[np.int64]]
    step_size: int
    sample: LanguageModelWork


@dataclass(frozen=True)
class _Draw:
    """How samples are drawn; see ``measure_cost``."""

    sample_tokens: int | None
    step_tokens: int | None
    rounds: int
    rng: np.random.Generator

    def steps(self, lengths: NDArray[np.int64], n_prompt_tokens: int, step_size: int) -> _Sampled:
        """Optimiser steps, all of one size but for an epoch's last."""
        mean = n_prompt_tokens + lengths.mean()
        if self.step_tokens is not None:
            step_size = max(1, round(self.step_tokens / mean))
        n = self._wanted(len(lengths), mean)
        n = min(len(lengths), step_size * math.ceil(n / step_size))
        chosen = self.rng.permutation(spread_sample(lengths, n, self.rng))
        steps = [chosen[start : start + step_size] for start in range(0, n, step_size)]
        work, sample = LanguageModelWork.of(lengths), LanguageModelWork.of(lengths[chosen])
        return _Sampled(work, n_prompt_tokens, steps, step_size, sample)

    def calls(self, lengths: NDArray[np.int64], n_prompt_tokens: int, step_size: int) -> _Sampled:
        """Calls of inference of nearly one size, one in every round at the least."""
        n = self._wanted(len(lengths), n_prompt_tokens + lengths.mean())
        chosen = self.rng.permutation(spread_sample(lengths, n, self.rng))
        steps = np.array_split(chosen, max(math.ceil(n / step_size), min(self.rounds, n)))
        work, sample = LanguageModelWork.of(lengths), LanguageModelWork.of(lengths[chosen])
        return _Sampled(work, n_prompt_tokens, steps, max(map(len, steps)), sample)

    def _wanted(self, n: int, mean_tokens: float) -> int:
        return n if self.sample_tokens is None else min(n, math.ceil(self.sample_tokens / mean_tokens))


def spread_sample(lengths: NDArray[np.int64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Places of ``n`` examples, drawn evenly over the order of their lengths, so that all lengths are there.

    Args:
        lengths: int64 (instances,).
        n: From 1 to the number of examples.
        rng: Breaks ties of length and draws the start.
    """
    order = np.lexsort((rng.random(len(lengths)), lengths))
    chosen: NDArray[np.int64] = order[((np.arange(n) + rng.random()) * (len(lengths) / n)).astype(np.int64)]
    return chosen


@dataclass
class _Timed:
    """One method's phase while it is being timed."""

    method: str
    phase: str
    level: str
    sampled: _Sampled
    run: Callable[[list[NDArray[np.int64]]], float]
    seconds: float = 0.0

    def take(self, turn: int, rounds: int) -> None:
        """Time this turn's steps, if there are any."""
        n = len(self.sampled.steps)
        steps = self.sampled.steps[n * turn // rounds : n * (turn + 1) // rounds]
        if steps:
            self.seconds += self.run(steps)

    def result(self) -> PhaseCost:
        sampled = self.sampled
        return PhaseCost(
            self.method,
            self.phase,
            self.level,
            sampled.step_size,
            sampled.work.n_instances,
            sampled.work.n_tokens(sampled.n_prompt_tokens),
            sampled.sample.n_tokens(sampled.n_prompt_tokens),
            self.seconds,
        )


@dataclass
class _FixedSteps:
    """An objective whose steps are given; implements ``loop.Objective``."""

    objective: UserObjective | InstanceObjective
    given: list[list[NDArray[np.int64]]]

    def steps(self, epoch: int) -> Sequence[Sequence[NDArray[np.int64]]]:
        return self.given

    def weight(self, batch: NDArray[np.int64]) -> float:
        return self.objective.weight(batch)

    def loss(self, batch: NDArray[np.int64]) -> Tensor:
        return self.objective.loss(batch)

    def validate(self) -> dict[str, float]:
        return {}


def _train(
    objective: UserObjective | InstanceObjective,
    steps: list[NDArray[np.int64]],
    warmup_steps: int,
    settings: FitSettings,
    device: torch.device,
) -> float:
    """Seconds of the steps in the training loop, after some that are not timed."""
    cut = [objective.cut(step) for step in (*(steps[i % len(steps)] for i in range(warmup_steps)), *steps)]
    at: dict[int, float] = {}

    def clock(done: int, total: int, message: str) -> None:
        # the epoch's end is told too, after the last step
        if done not in at:
            at[done] = _now(device)

    parameters = [p for p in objective.model.parameters() if p.requires_grad]
    groups = [ParameterGroup(parameters, _LEARNING_RATE)]
    fit(objective.model, _FixedSteps(objective, cut), groups, settings, device=device, progress=clock)
    return at[len(cut)] - at[warmup_steps]


def _infer(
    call: Callable[[NDArray[np.int64]], None], steps: list[NDArray[np.int64]], warmup_steps: int, device: torch.device
) -> float:
    """Seconds of the calls, after some small ones that are not timed."""
    for i in range(warmup_steps):
        call(steps[i % len(steps)][:_WARM_ROWS])
    begun = _now(device)
    for step in steps:
        call(step)
    return _now(device) - begun


def _now(device: torch.device) -> float:
    """Seconds of the monotonic clock when the device has done all it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


__all__ = ["CostResult", "PhaseCost", "measure_cost", "spread_sample"]
