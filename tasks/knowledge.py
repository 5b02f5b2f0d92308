"""Stage 6: every item through the fine-tuned language model, or through one that was never tuned."""

from typing import Any

import pyarrow as pa

from p2rec_core.settings.language import FinetuneSettings, LanguageModelSettings
from storage.artefacts import ArtefactRef
from tasks.arrays import numbering, vector_array
from tasks.language_model import NOT_READ_WITH_ITEMS, language_model_source, open_language_model, read_items
from tasks.stage import StageCall, StageContext


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
    from p2rec_core.language.agreement import category_agreement
    from p2rec_core.language.knowledge import build_model, item_knowledge

    opened = open_language_model(language_model, context.runtime, seed=settings.seed)
    n_clusters = context.table("centroids", ["cluster"]).num_rows
    finer = set(context.table("finer", ["n_clusters"]).column("n_clusters").to_pylist())
    model = build_model(
        opened.language_model,
        opened.preference_prompt(language_model, n_clusters),
        *read_items(context),
        n_clusters + sum(finer),
        lora_rank=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_targets=settings.lora_targets,
        pooling=language_model.pooling,
        seed=settings.seed,
        tensors=context.tensors("adapter") if "adapter" in context.inputs else None,
    ).to(opened.device)
    result = item_knowledge(
        model,
        n_categories=n_clusters,
        batch_size=context.runtime.knowledge_batch_size,
        autocast=opened.autocast,
        progress=context.progress,
    )
    n_items = len(result.knowledge)
    context.writer.table(
        "item_knowledge",
        pa.table(
            {
                "item_idx": numbering(n_items),
                "knowledge": vector_array(result.knowledge),
                "category_distribution": vector_array(result.category_distribution),
            }
        ),
    )
    cluster = context.table("clusters").column("cluster").to_numpy()
    return opened.facts() | {
        "item_text": "texts" in context.inputs,
        "fine_tuned": "adapter" in context.inputs,
        "n_items": n_items,
        "width": int(result.knowledge.shape[1]),
        "n_untrained_items": result.n_untrained,
        "category_agreement": category_agreement(result.category_distribution, cluster),
        "notes": list(result.notes),
    }
