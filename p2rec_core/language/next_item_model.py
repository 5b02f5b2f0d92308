"""E4SRec's language model: it reads items and scores the catalogue (Li et al. 2023)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p2rec_core.language.batching import micro_batches
from p2rec_core.language.item_model import ItemLanguageModel, Prefix
from p2rec_core.language.loading import LanguageModel
from p2rec_core.language.prompt import Prompt
from p2rec_core.ranking import Scorer
from p2rec_core.sequences import RaggedSequences, tail_windows


class NextItemLanguageModel(ItemLanguageModel):
    """Instruction, projected items and response through a language model to scores of the next item.

    A sequence may be empty: the model then reads the prompt alone.

    Args:
        language_model: The frozen language model.
        prompt: The text around the items.
        item_embeddings: Backbone embeddings e_v, float32 (N, d), row i of item_idx i + 1; they stay as they are.
        trained: Which items have training interactions, bool (N,).
        lora_rank: Rank of the adapters.
        lora_alpha: The adapters' output is scaled by alpha / rank.
        lora_dropout: Dropout on the adapters' input while training.
        lora_targets: Names of the linear layers to adapt; None means the feed-forward networks' projections.
        pooling: ``last`` (E4SRec's) or ``mean``.
        shared_prefix: Whether a causal model computes the instruction once per batch.
        packed: Whether an encoder may read its sequences end to end.
        gradient_checkpointing: Whether activations are computed twice to save memory.
        seed: Seed of the initial values.

    Raises:
        ModelError: Item embeddings are not finite, do not fit ``trained``, or no item is trained; or LoRA's
            targets match no layer.

    Source: Li et al. 2023, E4SRec, section 3, and its released code. Deviations: the head has no class for the
    padding index, which is never a target; items stand directly behind the instruction, and no position is spent on
    padding; item vectors are standardised and scaled (see ``ItemLanguageModel``).
    """

    least_items: ClassVar[int] = 0

    def __init__(
        self,
        language_model: LanguageModel,
        prompt: Prompt,
        item_embeddings: NDArray[np.float32],
        trained: NDArray[np.bool_],
        *,
        lora_rank: int = 16,
        lora_alpha: float = 16.0,
        lora_dropout: float = 0.0,
        lora_targets: Sequence[str] | None = None,
        pooling: str = "last",
        shared_prefix: bool = True,
        packed: bool = True,
        gradient_checkpointing: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(
            language_model,
            prompt,
            item_embeddings,
            trained,
            len(trained),
            head_bias=False,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            lora_targets=lora_targets,
            lora_part="mlp",
            pooling=pooling,
            shared_prefix=shared_prefix,
            packed=packed,
            gradient_checkpointing=gradient_checkpointing,
            seed=seed,
        )

    def forward(self, items: Tensor, lengths: Tensor, *, prefix: Prefix | None = None) -> Tensor:
        """Read sequences and score every item as the next one.

        Args:
            items: item_idx, int64 (B, L), padded with 0 on either side; L may be 0.
            lengths: Number of items of each sequence, int64 (B,).
            prefix: See ``read``.

        Returns:
            Logits over items without PAD, float32 (B, N).

        Raises:
            ModelError: ``lengths`` is not the number of items in ``items``.
        """
        h = self.read(items, lengths, prefix=prefix)
        with torch.autocast(h.device.type, enabled=False):
            logits: Tensor = self.head(h)
        return logits


def build_e4srec(
    language_model: LanguageModel,
    prompt: Prompt,
    item_embeddings: NDArray[np.float32],
    trained: NDArray[np.bool_],
    *,
    lora_rank: int,
    lora_alpha: float,
    lora_targets: Sequence[str] | None = None,
    pooling: str,
    tensors: Mapping[str, Tensor | NDArray[np.float32]],
) -> NextItemLanguageModel:
    """Rebuild a trained model from its saved tensors, in evaluation mode.

    Args:
        language_model: The language model it was trained on.
        prompt: The prompt it was trained with.
        item_embeddings: Backbone embeddings, float32 (N, d).
        trained: Which items have training interactions, bool (N,).
        lora_rank: Rank of the adapters.
        lora_alpha: The adapters' output is scaled by alpha / rank.
        lora_targets: Names of the adapted layers; None means the feed-forward networks' projections.
        pooling: ``last`` or ``mean``.
        tensors: ``E4SRecResult.tensors``.

    Raises:
        ModelError: The tensors do not fit, or the embeddings are unusable.
    """
    model = NextItemLanguageModel(
        language_model,
        prompt,
        item_embeddings,
        trained,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lora_targets=lora_targets,
        pooling=pooling,
    )
    model.load_trainable(tensors)
    return model.eval()


@torch.no_grad()
def e4srec_scores(
    model: NextItemLanguageModel,
    histories: RaggedSequences,
    rows: NDArray[np.int64] | None = None,
    *,
    max_history: int | None = 50,
    micro_batch_tokens: int = 8192,
    autocast: torch.dtype | None = None,
    prefix: Prefix | None = None,
) -> Tensor:
    """Score every item as the next one.

    Args:
        model: The model, in evaluation mode.
        histories: What is known of each user; a history may be empty.
        rows: Rows of ``histories`` to score, int64 (B,); None scores all.
        max_history: Most recent items that are read; None reads all.
        micro_batch_tokens: Tokens that go through the model at once; changes memory and speed only.
        autocast: Number format of activations, e.g. ``torch.bfloat16``; None leaves it to the weights.
        prefix: What ``encode_prefix`` returned, to use it for several calls.

    Returns:
        float32 (B, N) on the model's device, column i for item_idx i + 1.

    Raises:
        ModelError: The language model has too few positions.
    """
    rows = np.arange(len(histories)) if rows is None else rows
    windows = tail_windows(histories, len(histories.items) if max_history is None else max_history)
    device = model.table.device
    lengths = windows.lengths[rows]
    model.check_length(int(lengths.max(initial=0)), setting="max_history")
    scores = torch.empty(len(rows), model.n_items, device=device)
    cut = micro_batches(
        np.arange(len(rows)),
        lengths,
        n_prompt_tokens=model.n_prompt_tokens,
        max_tokens=micro_batch_tokens,
        device=device,
        packed=model.packs,
    )
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        if prefix is None and model.shares_prefix:
            prefix = model.encode_prefix()
        for part in cut:
            items = torch.from_numpy(windows.padded(rows[part])).to(device)
            logits = model(items, torch.from_numpy(lengths[part]).to(device), prefix=prefix)
            scores[torch.from_numpy(part).to(device)] = logits
    return scores


@torch.no_grad()
def e4srec_scorer(
    model: NextItemLanguageModel,
    histories: RaggedSequences,
    *,
    max_history: int | None = 50,
    micro_batch_tokens: int = 8192,
    autocast: torch.dtype | None = None,
) -> Scorer:
    """E4SRec as what ranks are computed from.

    Args:
        model: The model, in evaluation mode.
        histories: What is known of each user.
        max_history: Most recent items that are read; None reads all.
        micro_batch_tokens: Tokens that go through the model at once; changes memory and speed only.
        autocast: Number format of activations; None leaves it to the weights.

    Returns:
        A scorer whose ``score`` raises ModelError where the language model has too few positions.
    """
    with torch.autocast(model.table.device.type, autocast, enabled=autocast is not None):
        prefix = model.encode_prefix() if model.shares_prefix else None

    def score(rows: NDArray[np.int64]) -> Tensor:
        return e4srec_scores(
            model,
            histories,
            rows,
            max_history=max_history,
            micro_batch_tokens=micro_batch_tokens,
            autocast=autocast,
            prefix=prefix,
        )

    return Scorer(histories, score, histories.lengths)


__all__ = ["NextItemLanguageModel", "build_e4srec", "e4srec_scorer", "e4srec_scores"]
