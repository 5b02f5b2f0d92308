"""Stage 6: every item through the fine-tuned language model, or through one that was never tuned."""

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from p2rec_core.settings.language import FinetuneSettings, LanguageModelSettings
from storage.artefacts import ArtefactRef
from tasks.arrays import numbering, vector_array
from tasks.language_model import (
    NOT_READ_WITH_ITEMS,
    OpenedModel,
    language_model_source,
    open_language_model,
    read_items,
)
from tasks.stage import StageCall, StageContext

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from p2rec_core.language.knowledge import ItemKnowledge
    from p2rec_core.language.preference_model import PreferenceLanguageModel


def knowledge_call(
    language_model: LanguageModelSettings,
    settings: FinetuneSettings,
    *,
    backbone: ArtefactRef,
    clusters: ArtefactRef,
    adapter: ArtefactRef | None,
    text: ArtefactRef | None = None,
) -> StageCall:
    """The knowledge embeddings of all items.

    Args:
        language_model: The language model.
        settings: LoRA's shape and the seed; no other setting of the fine-tuning is read here.
        backbone: Item embeddings.
        clusters: Item clusters.
        adapter: What the fine-tuning gave; None leaves the language model as it is, with a random projector and a
            random head (ablation).
        text: Embeddings of the items' texts, read beside the backbone's; None where there are none.

    Raises:
        ModelError: There is no such language model on this machine.
    """
    # an adapter at its initial values changes nothing, whatever its shape
    read = {"seed"} if adapter is None else {"lora_rank", "lora_alpha", "lora_targets", "seed"}
    inputs = {
        "embeddings": (backbone, "item_embeddings"),
        "clusters": (clusters, "item_clusters"),
        "centroids": (clusters, "centroids"),
        "finer": (clusters, "finer_clusters"),
    }
    if adapter is not None:
        inputs["adapter"] = (adapter, "adapter")
    if text is not None:
        inputs["texts"] = (text, "item_texts")

    def compute(context: StageContext) -> dict[str, Any]:
        return _embed(context, language_model, settings)

    return StageCall(
        stage="knowledge",
        module="tasks.knowledge",
        settings=language_model.model_dump(mode="json", exclude=NOT_READ_WITH_ITEMS)
        | settings.model_dump(mode="json", include=read),
        inputs=inputs,
        compute=compute,
        sources=language_model_source(language_model, seed=settings.seed),
    )


def _embed(context: StageContext, language_model: LanguageModelSettings, settings: FinetuneSettings) -> dict[str, Any]:
    opened = open_language_model(language_model, context.runtime, seed=settings.seed)
    model = preference_model(context, opened, language_model, settings, *read_items(context))
    result = through_the_model(context, opened, model)
    written = write_knowledge(context, result.knowledge, result.category_distribution)
    more = {"n_untrained_items": result.n_untrained, "notes": list(result.notes)}
    return opened.facts() | written | more


def preference_model(
    context: StageContext,
    opened: OpenedModel,
    language_model: LanguageModelSettings,
    settings: FinetuneSettings,
    features: "NDArray[np.float32]",
    described: "NDArray[np.bool_]",
) -> "PreferenceLanguageModel":
    """The language model with a table of items, tuned where the context has the input ``adapter``.

    Args:
        context: Has the inputs ``centroids`` and ``finer`` too.
        opened: The language model.
        language_model: Its settings.
        settings: LoRA's shape and the seed.
        features: float32 (N, D), what the model reads of each item.
        described: bool (N,), which items have any.
    """
    from p2rec_core.language.knowledge import build_model

    n_clusters = context.table("centroids", ["cluster"]).num_rows
    finer = set(context.table("finer", ["n_clusters"]).column("n_clusters").to_pylist())
    return build_model(
        opened.language_model,
        opened.preference_prompt(language_model, n_clusters),
        features,
        described,
        n_clusters + sum(finer),
        lora_rank=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_targets=settings.lora_targets,
        pooling=language_model.pooling,
        seed=settings.seed,
        tensors=context.tensors("adapter") if "adapter" in context.inputs else None,
    ).to(opened.device)


def through_the_model(
    context: StageContext,
    opened: OpenedModel,
    model: "PreferenceLanguageModel",
    items: "NDArray[np.int64] | None" = None,
) -> "ItemKnowledge":
    """Items through the language model; None takes all of them."""
    from p2rec_core.language.knowledge import item_knowledge

    return item_knowledge(
        model,
        items,
        n_categories=context.table("centroids", ["cluster"]).num_rows,
        batch_size=context.runtime.knowledge_batch_size,
        autocast=opened.autocast,
        progress=context.progress,
    )


def write_knowledge(
    context: StageContext, knowledge: "NDArray[np.float32]", distribution: "NDArray[np.float32]"
) -> dict[str, Any]:
    """Write the knowledge embeddings of all items; what the manifest says of them.

    Args:
        context: Has the input ``clusters`` too.
        knowledge: float32 (N, width).
        distribution: float32 (N, K).
    """
    from p2rec_core.language.agreement import category_agreement

    columns = {
        "item_idx": numbering(len(knowledge)),
        "knowledge": vector_array(knowledge),
        "category_distribution": vector_array(distribution),
    }
    context.writer.table("item_knowledge", pa.table(columns))
    return {
        "item_text": "texts" in context.inputs,
        "fine_tuned": "adapter" in context.inputs,
        "n_items": len(knowledge),
        "width": int(knowledge.shape[1]),
        "category_agreement": category_agreement(distribution, context.table("clusters").column("cluster").to_numpy()),
    }
