"""The items' texts through the language model as it came; read by the fine-tuning beside the backbone's embeddings."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from p2rec_core.settings.language import LanguageModelSettings
from storage.artefacts import ArtefactRef
from tasks.arrays import numbering, vector_array
from tasks.language_model import OpenedModel, language_model_source, open_language_model
from tasks.stage import StageCall, StageContext

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from storage.ingest.item_text import ItemTexts


def text_call(
    language_model: LanguageModelSettings,
    source: Path,
    columns: Sequence[str] | None,
    *,
    ingest: ArtefactRef,
    seed: int,
    normalise_ids: bool = False,
) -> StageCall:
    """The embeddings of the items' texts.

    Args:
        language_model: The language model.
        source: The file of item texts; its content enters the key, its path does not.
        columns: Columns that make the text; None takes all but the identifier.
        ingest: The catalogue.
        seed: Seed of a built-in random language model.
        normalise_ids: Whether identifiers are brought into composed form, as the catalogue's were.

    Raises:
        DataError: The file cannot be read.
        ModelError: There is no such language model on this machine.
    """
    from storage.ingest.source import sha256_of

    def compute(context: StageContext) -> dict[str, Any]:
        read = read_texts(context, source, columns, normalise_ids)
        return _embed(context, language_model, read, seed)

    return StageCall(
        stage="text",
        module="tasks.text",
        settings=text_settings(language_model, columns, seed, normalise_ids),
        inputs={"items": (ingest, "items")},
        compute=compute,
        sources=language_model_source(language_model, seed=seed) | {"item-texts-file": sha256_of(source)},
        files={"item-texts-file": source},
    )


def text_settings(
    language_model: LanguageModelSettings, columns: Sequence[str] | None, seed: int, normalise_ids: bool
) -> dict[str, Any]:
    """What an embedding of texts reads of the settings."""
    values = language_model.model_dump(mode="json", include={"dtype", "quantisation", "max_text_tokens"})
    values |= {"columns": None if columns is None else list(columns), "seed": seed}
    # left out where it does nothing, so that a refresh goes on from what was made before there was the setting
    return values | ({"normalise_ids": True} if normalise_ids else {})


def _embed(
    context: StageContext, language_model: LanguageModelSettings, read: "ItemTexts", seed: int
) -> dict[str, Any]:
    opened = open_language_model(language_model, context.runtime, seed=seed)
    vectors = embedded_texts(context, opened, read.texts, language_model.max_text_tokens)
    return opened.facts() | write_texts(context, read, vectors)


def read_texts(context: StageContext, source: Path, columns: Sequence[str] | None, normalise_ids: bool) -> "ItemTexts":
    """The texts of the items in the input ``items``, from a file."""
    from storage.ingest.item_text import read_item_texts

    item_ids = context.table("items", ["item_id"]).column("item_id").to_pylist()
    return read_item_texts(source, item_ids, columns, normalise_ids=normalise_ids)


def embedded_texts(
    context: StageContext, opened: OpenedModel, texts: Sequence[str], max_tokens: int
) -> "NDArray[np.float32]":
    """Texts through the language model: float32 (texts, width)."""
    from p2rec_core.language.text import embed_texts

    return embed_texts(
        opened.language_model,
        texts,
        max_tokens=max_tokens,
        batch_size=context.runtime.knowledge_batch_size,
        device=opened.device,
        autocast=opened.autocast,
        progress=context.progress,
    )


def write_texts(context: StageContext, read: "ItemTexts", embeddings: "NDArray[np.float32]") -> dict[str, Any]:
    """Write the items' texts and their embeddings; what the manifest says of them."""
    n_items = len(read.texts)
    columns = {"item_idx": numbering(n_items), "text": pa.array(read.texts, pa.string())}
    context.writer.table("item_texts", pa.table(columns | {"embedding": vector_array(embeddings)}))
    return {
        "n_items": n_items,
        "width": int(embeddings.shape[1]),
        "n_without_text": read.n_missing,
        "n_unknown_items": read.n_unknown,
    }
