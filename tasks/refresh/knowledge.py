"""Stage 6 of a refresh with the current adapter: only items that are new or have moved go through the language model.

The artefact also holds what the model read of every item when it embedded it, so that small steps of many nights add
up to one that is noticed.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from p2rec_core.settings.language import FinetuneSettings, LanguageModelSettings
from storage.artefacts import ArtefactRef
from tasks.arrays import vectors
from tasks.knowledge import preference_model, through_the_model, write_knowledge
from tasks.language_model import (
    NOT_READ_WITH_ITEMS,
    OpenedModel,
    language_model_source,
    open_language_model,
    read_items,
)
from tasks.stage import StageCall, StageContext

if TYPE_CHECKING:
    from numpy.typing import NDArray

READ = "read"
"""File of what the language model read: ``features`` (N, D) tonight, ``embedded`` (N, D) on each item's own night."""


def renewed_knowledge_call(
    language_model: LanguageModelSettings,
    settings: FinetuneSettings,
    tolerance: float,
    *,
    backbone: ArtefactRef,
    clusters: ArtefactRef,
    adapter: ArtefactRef,
    previous: ArtefactRef,
    previous_backbone: ArtefactRef,
    text: ArtefactRef | None = None,
    previous_text: ArtefactRef | None = None,
) -> StageCall:
    """The knowledge embeddings of all items, most of them copied.

    Args:
        language_model: The language model.
        settings: LoRA's shape and the seed.
        tolerance: Movement of an item's input that is let pass, as a part of its length.
        backbone: Item embeddings.
        clusters: Item clusters, numbered as those that the adapter was tuned with.
        adapter: The adapter that ``previous`` was computed with.
        previous: The current snapshot's knowledge.
        previous_backbone: The item embeddings that it was computed from, unless it says so itself.
        text: Embeddings of the items' texts, read beside the backbone's; None where there are none.
        previous_text: Those that ``previous`` was computed from.

    Raises:
        ModelError: There is no such language model on this machine.
    """
    inputs = {
        "embeddings": (backbone, "item_embeddings"),
        "clusters": (clusters, "item_clusters"),
        "centroids": (clusters, "centroids"),
        "finer": (clusters, "finer_clusters"),
        "adapter": (adapter, "adapter"),
        "previous": (previous, "item_knowledge"),
    }
    if text is not None:
        inputs["texts"] = (text, "item_texts")
    if READ in previous.files:
        inputs["previous_read"] = (previous, READ)
    else:
        inputs["previous_embeddings"] = (previous_backbone, "item_embeddings")
        if previous_text is not None:
            inputs["previous_texts"] = (previous_text, "item_texts")

    def compute(context: StageContext) -> dict[str, Any]:
        return _renew(context, language_model, settings, tolerance)

    return StageCall(
        stage="knowledge",
        module="tasks.refresh.knowledge",
        settings=language_model.model_dump(mode="json", exclude=NOT_READ_WITH_ITEMS)
        | settings.model_dump(mode="json", include={"lora_rank", "lora_alpha", "lora_targets", "seed"})
        | {"refresh": {"knowledge_tolerance": tolerance}},
        inputs=inputs,
        compute=compute,
        sources=language_model_source(language_model, seed=settings.seed),
    )


def _renew(
    context: StageContext, language_model: LanguageModelSettings, settings: FinetuneSettings, tolerance: float
) -> dict[str, Any]:
    from p2rec_core.language.renewal import outdated_items, with_renewed_rows

    opened = open_language_model(language_model, context.runtime, seed=settings.seed)
    before = context.table("previous")
    features, described, embedded = _features(context, opened, language_model, settings)
    model = preference_model(context, opened, language_model, settings, features, described)
    read = model.table[1:].cpu().numpy()
    items = outdated_items(read, embedded, tolerance)
    n_items = len(read)
    context.progress(0, len(items), f"{len(items)} of {n_items} items are new or have moved")
    result = through_the_model(context, opened, model, items)

    def renewed(column: str, rows: "NDArray[np.float32]") -> "NDArray[np.float32]":
        return with_renewed_rows(vectors(before, column), items, rows, n_items)

    written = write_knowledge(
        context,
        renewed("knowledge", result.knowledge),
        renewed("category_distribution", result.category_distribution),
    )
    seen = with_renewed_rows(embedded, items, read[items - 1], n_items)
    context.writer.tensors(READ, {"features": np.ascontiguousarray(features), "embedded": seen})
    more = {"n_untrained_items": result.n_untrained, "n_embedded": len(items), "n_copied": n_items - len(items)}
    return opened.facts() | written | more


def _features(
    context: StageContext, opened: OpenedModel, language_model: LanguageModelSettings, settings: FinetuneSettings
) -> "tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]":
    """Tonight's features, which items have any, and what each known item's knowledge was computed from."""
    from p2rec_core.alignment import turned_like

    features, described = read_items(context)
    width = vectors(context.table("embeddings", ["embedding"]), "embedding").shape[1]
    if "previous_read" in context.inputs:
        tensors = context.tensors("previous_read")
        old, embedded = tensors["features"], tensors["embedded"]
    else:
        inputs = {
            name: context.inputs[f"previous_{name}"]
            for name in ("embeddings", "texts")
            if f"previous_{name}" in context.inputs
        }
        old, old_described = read_items(dataclasses.replace(context, inputs=inputs))
        embedded = (
            preference_model(context, opened, language_model, settings, old, old_described).table[1:].cpu().numpy()
        )
    if features.shape[1] > width:
        # the principal components of the texts are on axes of their own every night
        words = turned_like(features[:, width:], old[:, width:])
        features = np.concatenate([features[:, :width], words], axis=1)
    return features, described, embedded
