"""The language model that reads items and tells a distribution over clusters (paper, Eq. 2-3)."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p2rec_core.language.item_model import ItemLanguageModel, Prefix
from p2rec_core.language.loading import LanguageModel
from p2rec_core.language.prompt import Prompt


class PreferenceLanguageModel(ItemLanguageModel):
    """Instruction, projected items and response through a language model to a distribution over clusters.

    Args:
        language_model: The frozen language model.
        prompt: The text around the items.
        item_embeddings: Backbone embeddings e_v, float32 (N, d), row i of item_idx i + 1.
        trained: Which items have training interactions, bool (N,).
        n_clusters: Number of clusters K.
        lora_rank: Rank of the adapters.
        lora_alpha: The adapters' output is scaled by alpha / rank.
        lora_dropout: Dropout on the adapters' input while training.
        lora_targets: Names of the linear layers to adapt; None means the query and value projections.
        pooling: ``last`` or ``mean``, as the others in ``ItemLanguageModel``.
        shared_prefix: Whether a causal model computes the instruction once per batch.
        packed: Whether an encoder may read its sequences end to end.
        gradient_checkpointing: Whether activations are computed twice to save memory.
        seed: Seed of the initial values.

    Raises:
        ModelError: Item embeddings are not finite, do not fit ``trained``, or no item is trained; or LoRA's
            targets match no layer.

    Source: Liu et al. 2024, Eq. 2-3.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        prompt: Prompt,
        item_embeddings: NDArray[np.float32],
        trained: NDArray[np.bool_],
        n_clusters: int,
        *,
        lora_rank: int = 8,
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
            n_clusters,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            lora_targets=lora_targets,
            pooling=pooling,
            shared_prefix=shared_prefix,
            packed=packed,
            gradient_checkpointing=gradient_checkpointing,
            seed=seed,
        )
        self.n_clusters = n_clusters

    def forward(self, items: Tensor, lengths: Tensor, *, prefix: Prefix | None = None) -> tuple[Tensor, Tensor]:
        """Read sequences and tell their preferences.

        Args:
            items: item_idx, int64 (B, L), padded with 0 on either side.
            lengths: Number of items of each sequence, int64 (B,), at least 1.
            prefix: See ``read``.

        Returns:
            Logits over clusters, float32 (B, K), and h, float32 (B, E).

        Raises:
            ModelError: ``lengths`` is not the number of items in ``items``, or a sequence has none.
        """
        h = self.read(items, lengths, prefix=prefix)
        with torch.autocast(h.device.type, enabled=False):
            return self.head(h), h


__all__ = ["PreferenceLanguageModel"]
