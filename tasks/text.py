"""The items' texts through the language model as it came; read by the fine-tuning beside the backbone's embeddings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from p2rec_core.settings.language import LanguageModelSettings
from storage.artefacts import ArtefactRef
from tasks.arrays import numbering, vector_array
from tasks.language_model import language_model_source, open_language_model
from tasks.stage import StageCall, StageContext


def text_call(
    language_model: LanguageModelSettings,
    source: Path,
    columns: Sequence[str] | None,
    *,
    ingest: ArtefactRef,
    seed: int,
) -> StageCall:
    """The embeddings of the items' texts.

    Args:
        language_model: The language model.
        source: The file of item texts; its content enters the key, its path does not.
        columns: Columns that make the text; None takes all but the identifier.
        ingest: The catalogue.
        seed: Seed of a built-in random language model.

    Raises:
        DataError: The file cannot be read.
        ModelError: There is no such language model on this machine.
    """
    from storage.ingest.source import sha256_of

    def compute(context: StageContext) -> dict[str, Any]:
        return _embed(context, language_model, source, columns, seed)

    return StageCall(
        stage="text",
        module="tasks.text",
        settings=language_model.model_dump(mode="json", include={"dtype", "quantisation", "max_text_tokens"})
        | {"columns": None if columns is None else list(columns), "seed": seed},
        inputs={"items": (ingest, "items")},
        compute=compute,
        sources=language_model_source(language_model, seed=seed) | {"item-texts-file": sha256_of(source)},
        files={"item-texts-file": source},
    )


def _embed(
    context: StageContext, language_model: LanguageModelSettings, source: Path, columns: Sequence[str] | None, seed: int
) -> dict[str, Any]:
    from p2rec_core.language.text import embed_texts
    from storage.ingest.item_text import read_item_texts

    item_ids = context.table("items", ["item_id"]).column("item_id").to_pylist()
    read = read_item_texts(source, item_ids, columns)
    opened = open_language_model(language_model, context.runtime, seed=seed)
    vectors = embed_texts(
        opened.language_model,
        read.texts,
        max_tokens=language_model.max_text_tokens,
        batch_size=context.runtime.knowledge_batch_size,
        device=opened.device,
        autocast=opened.autocast,
        progress=context.progress,
    )
    context.writer.table(
        "item_texts",
        pa.table(
            {
                "item_idx": numbering(len(item_ids)),
                "text": pa.array(read.texts, pa.string()),
                "embedding": vector_array(vectors),
            }
        ),
    )
    return opened.facts() | {
        "n_items": len(item_ids),
        "width": int(vectors.shape[1]),
        "n_without_text": read.n_missing,
        "n_unknown_items": read.n_unknown,
    }
