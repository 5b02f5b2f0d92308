"""The language model's two hot paths beside plain loops of transformers and peft."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from processes import BenchmarkError
from report import Row
from timing import in_turn
from torch import Tensor, nn

from p2rec_core.language.batching import Sequences
from p2rec_core.language.finetune import FinetuneResult, UserObjective, finetune, split_users
from p2rec_core.language.knowledge import item_knowledge
from p2rec_core.language.loading import LanguageModel, load_language_model
from p2rec_core.language.preference_model import PreferenceLanguageModel
from p2rec_core.language.prompt import Prompt, build_prompt
from p2rec_core.sequences import RaggedSequences
from p2rec_core.settings.language import FinetuneSettings
from p2rec_core.settings.pipeline import Recipe, pipeline_settings

MODELS = ("all-MiniLM-L6-v2", "random-llama-small")
N_CLUSTERS = 50
WIDTH = 64
"""Width of the item embeddings."""
PLAIN_BATCH = 32
"""Items in one forward pass of the plain loop."""
CURVE_TOLERANCE = 1e-3
"""Largest relative difference of the two mean training errors: float32 sums in another order, over all steps."""
NARROW_TOLERANCE = 0.05
"""The same in bfloat16, where autocast rounds what passes between the plain loop's layers too."""
WANTED_FINETUNE, WANTED_KNOWLEDGE = 3.5, 5


@dataclass(frozen=True)
class Case:
    """One language model with users to tune it on.

    Attributes:
        name: The language model's, and its number format where that is not float32.
        language_model: It, in float32; the plain loops' under autocast where it is narrow.
        own: The same as P2Rec reads it.
        narrow: Whether both sides multiply in bfloat16.
        prompt: The text around the items: the default one for an encoder, the paper's for a causal model.
        pooling: The default one, ``last`` for a causal model.
        embeddings: float32 (N, WIDTH) item embeddings.
        sequences: Training parts of the users.
        preferences: float32 (users, N_CLUSTERS).
        settings: How it is tuned: one epoch, no dropout, since the two sides would draw it differently.
    """

    name: str
    language_model: LanguageModel
    own: LanguageModel
    narrow: bool
    prompt: Prompt
    pooling: str
    embeddings: NDArray[np.float32]
    sequences: RaggedSequences
    preferences: NDArray[np.float32]
    settings: FinetuneSettings

    @property
    def device(self) -> torch.device:
        """Where both sides compute."""
        return torch.device(self.own.model.device)

    @property
    def autocast(self) -> torch.dtype | None:
        """Number format of P2Rec's activations, as the stages choose it; None leaves it to the weights."""
        return torch.bfloat16 if self.narrow and self.device.type == "cuda" else None

    def model(self, *, packed: bool = True) -> PreferenceLanguageModel:
        """The untuned model.

        Args:
            packed: See ``ItemLanguageModel``; False is the plain loops' model, which pads.
        """
        chosen = self.settings.model_dump(include={"lora_rank", "lora_alpha", "lora_dropout", "seed"})
        trained = np.ones(len(self.embeddings), bool)
        return PreferenceLanguageModel(
            self.own if packed else self.language_model,
            self.prompt,
            self.embeddings,
            trained,
            N_CLUSTERS,
            pooling=self.pooling,
            packed=packed,
            **chosen,
        )

    @property
    def n_weights(self) -> int:
        """Numbers in the matrices that a token's vector is multiplied with."""
        named = self.language_model.model.named_parameters()
        return sum(p.numel() for name, p in named if p.ndim == 2 and "embed" not in name)


def case(name: str, sequences: RaggedSequences, n_items: int, n_users: int, *, narrow: bool = False) -> Case:
    """A language model by its name, on the CPU; see ``case_of``."""
    language_model = load_language_model(name, seed=1)
    own = load_language_model(name, dtype="bfloat16", seed=1) if narrow else language_model
    title = f"{name}, bf16" if narrow else name
    return case_of(title, language_model, own, sequences, n_items, n_users, narrow=narrow)


def case_of(
    name: str,
    language_model: LanguageModel,
    own: LanguageModel,
    sequences: RaggedSequences,
    n_items: int,
    n_users: int,
    *,
    narrow: bool,
    **settings: Any,
) -> Case:
    """A language model and ``n_users`` users, with users, embeddings and preferences drawn at random.

    Args:
        name: What to call it.
        language_model: The plain loops' model.
        own: The same as P2Rec reads it.
        sequences: Training parts.
        n_items: N.
        n_users: Users to take.
        narrow: Whether both sides multiply in bfloat16.
        settings: Of the fine-tuning, where they are not the defaults.
    """
    recipe = Recipe.PAPER if language_model.causal else Recipe.DEFAULT
    chosen = pipeline_settings(dataset="sample", recipe=recipe).language_model
    prompt = build_prompt(
        language_model.tokenizer,
        chosen.instruction,
        chosen.response,
        n_clusters=N_CLUSTERS,
        causal=language_model.causal,
    )
    n_users = min(n_users, len(sequences))
    rng = np.random.default_rng(1)
    users = np.sort(rng.choice(len(sequences), n_users, replace=False))
    parts = [sequences.items[sequences.offsets[user] : sequences.offsets[user + 1]] for user in users]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return Case(
        name,
        language_model,
        own,
        narrow,
        prompt,
        chosen.pooling,
        rng.normal(size=(n_items, WIDTH)).astype(np.float32),
        RaggedSequences(np.concatenate(parts), offsets),
        rng.dirichlet(np.full(N_CLUSTERS, 0.1), size=n_users).astype(np.float32),
        FinetuneSettings(epochs=1, lora_dropout=0.0, holdout_fraction=0.0, **settings),
    )


def finetune_row(case: Case, dataset: str, rounds: int) -> Row:
    """Seconds of one epoch over the same users, from the untuned model on.

    Raises:
        BenchmarkError: The mean errors differ by more than rounding.
    """
    errors: dict[str, float] = {}

    def ours() -> None:
        errors["ours"] = next(value for _, metric, value in tuned(case).history if metric == "train_error")

    def plain() -> None:
        with torch.autocast(case.device.type, torch.bfloat16, enabled=case.narrow):
            errors["plain"] = plain_finetune(case)

    timed = in_turn(ours, plain, rounds)
    tolerance = NARROW_TOLERANCE if case.narrow else CURVE_TOLERANCE
    if abs(errors["ours"] - errors["plain"]) > tolerance * errors["plain"]:
        raise BenchmarkError(
            f"{case.name}: P2Rec's training error is {errors['ours']}, the plain loop's {errors['plain']}."
        )
    n_users = len(case.preferences)
    lengths = np.minimum(case.sequences.lengths, case.settings.max_length)
    n_tokens = int(lengths.sum()) + n_users * case.prompt.n_tokens
    apart = f"{abs(errors['ours'] / errors['plain'] - 1):.0e}"
    agreement = f"mean training errors {apart} apart" if case.narrow else f"the same mean training error to {apart}"
    note = f"{n_users} users, {n_tokens:,} tokens without padding; {agreement}"
    # forward and gradients of the states; the weights' own gradients are not needed
    gflop = 4e-9 * case.n_weights * n_tokens
    return Row(
        "LM fine-tuning, one epoch", dataset, case.name, "s", timed.peer, timed.ours, WANTED_FINETUNE, note, gflop
    )


def tuned(case: Case) -> FinetuneResult:
    """One epoch of P2Rec's fine-tuning."""
    return finetune(
        case.own,
        case.prompt,
        case.embeddings,
        np.ones(len(case.embeddings), bool),
        case.sequences.items,
        case.sequences.offsets,
        case.preferences,
        **case.settings.model_dump(),
        pooling=case.pooling,
        device=case.device,
        autocast=case.autocast,
    )


def plain_finetune(case: Case) -> float:
    """One epoch as one would write it with transformers and peft: every user a row, padded to the step's longest.

    Initial values, users of every step, learning rate and clipping are those of ``finetune``.

    Returns:
        Mean squared error summed over clusters, seen while training.
    """
    settings = case.settings
    model = case.model(packed=False).train()
    sequences = Sequences(case.sequences.items, case.sequences.offsets, settings.max_length)
    training, held_out = split_users(sequences.lengths, 0.0, settings.seed)
    steps = UserObjective(
        model, sequences, case.preferences, training, held_out, settings.batch_users, 1 << 30, settings.seed
    ).steps(0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    device = case.device
    warm_up = round(settings.warmup_fraction * len(steps))
    total = 0.0
    for number, step in enumerate(steps):
        users = np.concatenate(step)
        rate = (number + 1) / (warm_up + 1) if number < warm_up else 0.5 * (1 + np.cos(np.pi * number / len(steps)))
        optimiser.param_groups[0]["lr"] = settings.learning_rate * rate
        target = torch.from_numpy(case.preferences[users]).to(device)
        own = [sequences.items[_place(sequences, user)].astype(np.int64) for user in users]
        rows = [torch.from_numpy(items).to(device) for items in own]
        error = (plain_forward(model, rows).softmax(-1) - target).square().sum()
        torch.autograd.backward(N_CLUSTERS / 2 * error / len(users))
        nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimiser.step()
        optimiser.zero_grad()
        total += error.item()
    return total / len(training)


def _place(sequences: Sequences, user: int) -> slice:
    end = int(sequences.offsets[user + 1])
    return slice(max(int(sequences.offsets[user]), end - sequences.max_length), end)


def plain_forward(model: PreferenceLanguageModel, rows: list[Tensor]) -> Tensor:
    """Logits over clusters: instruction, items and response of every row, padded and masked.

    Args:
        model: Has the peft model, projector, head and prompt.
        rows: int64 items of every sequence.
    """
    texts = [
        torch.cat([model.instruction, model.linear_proj(model.table[row]) * model.item_scale, model.response])
        for row in rows
    ]
    lengths = torch.tensor([len(text) for text in texts], device=texts[0].device)
    inputs = nn.utils.rnn.pad_sequence(texts, batch_first=True)
    place = torch.arange(inputs.shape[1], device=inputs.device)[None]
    mask = place < lengths[:, None]
    inputs = inputs.to(model.dtype)
    states = model.lm(inputs_embeds=inputs, attention_mask=mask.long(), use_cache=False).last_hidden_state.float()
    read = (mask & (place >= len(model.instruction)))[..., None]
    last = states[torch.arange(len(rows), device=states.device), lengths - 1]
    logits: Tensor = model.head(last if model.pooling == "last" else (states * read).sum(1) / read.sum(1))
    return logits


def knowledge_row(case: Case, n_items: int, rounds: int, *, batch_size: int = 512) -> Row:
    """Seconds of embedding items, each a history of one item.

    Args:
        case: The language model.
        n_items: Items to embed.
        rounds: Rounds that count.
        batch_size: Items that go through P2Rec's model at once.
    """
    model, plain_model = case.model().eval(), case.model(packed=False).eval()
    n_items = min(n_items, len(case.embeddings))
    items = np.arange(1, n_items + 1)

    @torch.inference_mode()
    def plain() -> None:
        with torch.autocast(case.device.type, torch.bfloat16, enabled=case.narrow):
            for start in range(0, n_items, PLAIN_BATCH):
                batch = items[start : start + PLAIN_BATCH]
                rows = [torch.tensor([item], device=case.device) for item in batch]
                plain_forward(plain_model, rows).softmax(-1).cpu()

    def ours() -> None:
        item_knowledge(model, items, batch_size=batch_size, autocast=case.autocast)

    timed = in_turn(ours, plain, rounds)
    n_prompt = case.prompt.n_tokens
    computed = n_items * (1 + n_prompt)
    if model.shares_prefix:
        computed = n_items * (1 + len(case.prompt.response)) + len(case.prompt.instruction)
    note = f"{n_items:,} items, prompt of {n_prompt} tokens"
    note += ", the instruction computed once" if model.shares_prefix else ", an encoder: nothing can be shared"
    wanted = WANTED_KNOWLEDGE if model.shares_prefix else None
    gflop = 2e-9 * case.n_weights * computed
    return Row("item knowledge", "random vectors", case.name, "s", timed.peer, timed.ours, wanted, note, gflop)
