"""Items' texts through the language model as it came: one vector per item, computed once."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from p2rec_core.errors import ModelError
from p2rec_core.language.loading import LanguageModel
from p2rec_core.progress import Progress, silent
from p2rec_core.whitening import leading_components, standardised


@torch.inference_mode()
def embed_texts(
    language_model: LanguageModel,
    texts: Sequence[str],
    *,
    max_tokens: int,
    batch_size: int = 256,
    device: torch.device,
    autocast: torch.dtype | None = None,
    progress: Progress = silent,
) -> NDArray[np.float32]:
    """Mean of the last states over a text's tokens, special ones included.

    Args:
        language_model: The language model, on ``device``.
        texts: One per item; an empty one gives zeros.
        max_tokens: Tokens of a text that are read, special ones included.
        batch_size: Texts that go through the model at once; changes memory and speed only.
        device: Where the model is.
        autocast: Number format of activations; None leaves it to the weights.
        progress: Told after every batch.

    Returns:
        float32 (N, E).

    Raises:
        ModelError: The language model has positions for fewer tokens.

    Source: mean pooling as in Reimers and Gurevych (2019), Sentence-BERT, section 3.
    """
    tokenizer, model, bound = language_model.tokenizer, language_model.model, language_model.n_positions
    if bound is not None and max_tokens > bound:
        raise ModelError(
            f"language_model.max_text_tokens = {max_tokens}, and {language_model.label} has {bound} positions.",
            remedy=f"Lower it to {bound} or less.",
        )
    present = [i for i, text in enumerate(texts) if text]
    encoded = {i: tokenizer.encode(texts[i], truncation=True, max_length=max_tokens) for i in present}
    vectors = np.zeros((len(texts), language_model.hidden_size), np.float32)
    order = sorted((i for i in present if encoded[i]), key=lambda i: (len(encoded[i]), i))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        lengths = torch.tensor([len(encoded[i]) for i in rows], device=device)
        ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
        for row, i in enumerate(rows):
            ids[row, : len(encoded[i])] = torch.tensor(encoded[i])
        mask = torch.arange(ids.shape[1], device=device)[None] < lengths[:, None]  # (B, T)
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            states = model(input_ids=ids.to(device), attention_mask=mask.long()).last_hidden_state
        pooled = (states.float() * mask[..., None]).sum(1) / lengths[:, None]
        vectors[rows] = pooled.cpu().numpy()
        progress(start + len(rows), len(order), f"{start + len(rows)} of {len(order)} texts")
    return vectors


def item_features(
    item_embeddings: NDArray[np.float32],
    trained: NDArray[np.bool_],
    text: NDArray[np.float32] | None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """What the language model reads of an item: the backbone's embedding and, where there are texts, the text's.

    Args:
        item_embeddings: Backbone embeddings e_v, float32 (N, d).
        trained: Items with training interactions, bool (N,); the others' e_v says nothing.
        text: Text embeddings, float32 (N, E), zero rows where an item has no text; None if there are none.

    Returns:
        float32 (N, d) without texts. With texts (N, 2d): the embedding, standardised, and the d leading principal
        components of the text (fewer where its rank is smaller), whitened; each over the items that have it, zero for
        the others. And whether an item has any of the two, bool (N,).
    """
    if text is None:
        return item_embeddings, trained
    described = (text != 0).any(axis=1)
    if not described.any():
        return item_embeddings, trained
    # as many dimensions as the embedding has, so that neither drowns the other
    components = leading_components(text[described], item_embeddings.shape[1], tolerance=1e-8)
    words = np.zeros((len(text), components.shape[1]), np.float32)
    words[described] = components
    known = np.zeros(item_embeddings.shape, np.float32)
    known[trained] = standardised(item_embeddings[trained])
    return np.concatenate([known, words], axis=1), trained | described


__all__ = ["embed_texts", "item_features"]
