"""The items' texts in a refresh: only new texts go through the language model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from p2rec_core.settings.language import LanguageModelSettings
from storage.artefacts import ArtefactRef
from tasks.arrays import vectors
from tasks.language_model import language_model_source, open_language_model
from tasks.stage import StageCall, StageContext
from tasks.text import embedded_texts, read_texts, text_settings, write_texts

if TYPE_CHECKING:
    from storage.ingest.item_text import ItemTexts


def renewed_text_call(
    language_model: LanguageModelSettings,
    source: Path,
    columns: Sequence[str] | None,
    *,
    ingest: ArtefactRef,
    previous: ArtefactRef,
    seed: int,
    normalise_ids: bool = False,
) -> StageCall:
    """The embeddings of the items' texts; those of texts that are what they were are copied.

    Args:
        language_model: The language model.
        source: The file of item texts; its content enters the key, its path does not.
        columns: Columns that make the text; None takes all but the identifier.
        ingest: The catalogue, in the numbering that ``previous`` knows.
        previous: The current snapshot's texts.
        seed: Seed of a built-in random language model.
        normalise_ids: Whether identifiers are brought into composed form, as the catalogue's were.

    Raises:
        DataError: The file cannot be read.
        ModelError: There is no such language model on this machine.
    """
    from storage.ingest.source import sha256_of

    def compute(context: StageContext) -> dict[str, Any]:
        read = read_texts(context, source, columns, normalise_ids)
        return _renew(context, language_model, read, seed)

    return StageCall(
        stage="text",
        module="tasks.refresh.text",
        settings=text_settings(language_model, columns, seed, normalise_ids),
        inputs={"items": (ingest, "items"), "previous": (previous, "item_texts")},
        compute=compute,
        sources=language_model_source(language_model, seed=seed) | {"item-texts-file": sha256_of(source)},
        files={"item-texts-file": source},
    )


def _renew(
    context: StageContext, language_model: LanguageModelSettings, read: "ItemTexts", seed: int
) -> dict[str, Any]:
    from p2rec_core.language.renewal import with_renewed_rows

    before = context.table("previous")
    known = before.column("text").to_pylist()
    renewed = [place for place, text in enumerate(read.texts) if place >= len(known) or text != known[place]]
    opened = open_language_model(language_model, context.runtime, seed=seed)
    texts = [read.texts[place] for place in renewed]
    rows = embedded_texts(context, opened, texts, language_model.max_text_tokens)
    places = np.array(renewed, np.int64) + 1
    embeddings = with_renewed_rows(vectors(before, "embedding"), places, rows, len(read.texts))
    return opened.facts() | write_texts(context, read, embeddings) | {"n_embedded": len(renewed)}
