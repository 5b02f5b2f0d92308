"""Item knowledge: every item as a one-item sequence through the fine-tuned model (paper, section 4.2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p2rec_core.language.loading import LanguageModel
from p2rec_core.language.memory import halving
from p2rec_core.language.preference_model import PreferenceLanguageModel
from p2rec_core.language.prompt import Prompt
from p2rec_core.progress import Progress, silent


@dataclass(frozen=True)
class ItemKnowledge:
    """What the language model knows of items; row i is item_idx i + 1 where all were embedded.

    Attributes:
        knowledge: Knowledge-enhanced embedding h_v, float32 (N, E).
        category_distribution: Inferred distribution over clusters, float32 (N, K); rows sum to 1.
        n_untrained: Items without training interactions; they all have the row of the mean embedding.
        notes: What a person should know of the device's memory.
    """

    knowledge: NDArray[np.float32]
    category_distribution: NDArray[np.float32]
    n_untrained: int
    notes: tuple[str, ...] = ()


def build_model(
    language_model: LanguageModel,
    prompt: Prompt,
    item_embeddings: NDArray[np.float32],
    trained: NDArray[np.bool_],
    n_clusters: int,
    *,
    lora_rank: int,
    lora_alpha: float,
    lora_targets: Sequence[str] | None = None,
    pooling: str,
    seed: int = 0,
    tensors: Mapping[str, Tensor | NDArray[np.float32]] | None,
) -> PreferenceLanguageModel:
    """Rebuild a fine-tuned model from its saved tensors, or build one that was never tuned, in evaluation mode.

    Args:
        language_model: The language model it was tuned on.
        prompt: The prompt it was tuned with.
        item_embeddings: Backbone embeddings, float32 (N, d).
        trained: Which items have training interactions, bool (N,).
        n_clusters: Number of clusters K.
        lora_rank: Rank of the adapters.
        lora_alpha: The adapters' output is scaled by alpha / rank.
        lora_targets: Names of the adapted layers; None means the query and value projections.
        pooling: ``last`` or ``mean``.
        seed: Seed of the initial values; without effect where there are tensors.
        tensors: ``FinetuneResult.tensors``; None leaves the initial values: adapters that change nothing, a
            random projector and a random head (the ablation without fine-tuning).

    Raises:
        ModelError: The tensors do not fit, or the embeddings are unusable.
    """
    model = PreferenceLanguageModel(
        language_model,
        prompt,
        item_embeddings,
        trained,
        n_clusters,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lora_targets=lora_targets,
        pooling=pooling,
        seed=seed,
    )
    if tensors is not None:
        model.load_trainable(tensors)
    return model.eval()


@torch.inference_mode()
def item_knowledge(
    model: PreferenceLanguageModel,
    items: NDArray[np.int64] | None = None,
    *,
    n_categories: int | None = None,
    batch_size: int = 512,
    autocast: torch.dtype | None = None,
    progress: Progress = silent,
) -> ItemKnowledge:
    """Embed every item, or those that are named.

    A causal model computes the instruction once for all items.

    Args:
        model: The fine-tuned model.
        items: item_idx of the items to embed, int64; None embeds all, in order.
        n_categories: Clusters of the distribution, the head's first; None takes all outputs of the head.
        batch_size: Items that go through the model at once; changes memory and speed only. Where a
            GPU's memory does not suffice for so many, half of them are tried.
        autocast: Number format of activations, e.g. ``torch.bfloat16``; None leaves it to the weights.
        progress: Told after every batch.

    Raises:
        ModelError: A GPU's memory does not suffice for one item.

    Source: Liu et al. 2024, section 4.2.
    """
    model.eval()
    device = model.table.device
    wanted = np.arange(1, model.n_items + 1) if items is None else items
    knowledge = np.empty((len(wanted), model.hidden_size), np.float32)
    notes: list[str] = []
    distribution = np.empty((len(wanted), n_categories or model.n_clusters), np.float32)
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        prefix = model.encode_prefix() if model.shares_prefix else None

        def embed(n_items: int) -> int:
            """Embed the next so many items, and tell where the ones after them begin."""
            stop = min(start + n_items, len(wanted))
            batch = torch.from_numpy(wanted[start:stop]).to(device)[:, None]
            logits, h = model(batch, torch.ones(len(batch), dtype=torch.int64, device=device), prefix=prefix)
            knowledge[start:stop] = h.cpu().numpy()
            distribution[start:stop] = logits[:, :n_categories].softmax(-1).cpu().numpy()
            return stop

        start = 0
        while start < len(wanted):
            start, batch_size = halving(embed, batch_size, least=1, what="items at once", told=notes.append)
            progress(start, len(wanted), f"{start} of {len(wanted)} items")
    return ItemKnowledge(knowledge, distribution, model.n_untrained, tuple(notes))


__all__ = ["ItemKnowledge", "build_model", "item_knowledge"]
