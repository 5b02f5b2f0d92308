"""Stage 6: every item through the fine-tuned language model."""

from typing import Any

import pyarrow as pa

from p2rec_core.settings.language import Dtype, FinetuneSettings, LanguageModelSettings
from storage.artefacts import ArtefactRef
from tasks.arrays import numbering, vector_array, vectors
from tasks.stage import StageCall, StageContext


def knowledge_call(
    language_model: LanguageModelSettings,
    settings: FinetuneSettings,
    *,
    backbone: ArtefactRef,
    clusters: ArtefactRef,
    adapter: ArtefactRef,
) -> StageCall:
    """The knowledge embeddings of all items.

    Raises:
        ModelError: There is no such language model on this machine.
    """
    from p2rec_core.language.identity import model_identity

    identity = model_identity(language_model.name_or_path, language_model.revision, seed=settings.seed)
    lora = settings.model_dump(mode="json", include={"lora_rank", "lora_alpha", "lora_targets", "seed"})

    def compute(context: StageContext) -> dict[str, Any]:
        return _embed(context, language_model, settings)

    return StageCall(
        stage="knowledge",
        module="tasks.knowledge",
        settings=language_model.model_dump(mode="json", exclude={"name_or_path", "revision"}) | lora,
        inputs={
            "embeddings": (backbone, "item_embeddings"),
            "clusters": (clusters, "item_clusters"),
            "centroids": (clusters, "centroids"),
            "adapter": (adapter, "adapter"),
        },
        compute=compute,
        sources={"language-model": identity},
    )


def _embed(context: StageContext, language_model: LanguageModelSettings, settings: FinetuneSettings) -> dict[str, Any]:
    import torch

    from p2rec_core.language.agreement import category_agreement
    from p2rec_core.language.knowledge import build_model, item_knowledge
    from p2rec_core.language.loading import load_language_model
    from p2rec_core.language.prompt import build_prompt
    from p2rec_core.runtime import prepared_device

    runtime = context.runtime
    device = prepared_device(runtime.device, runtime.threads)
    loaded = load_language_model(
        language_model.name_or_path,
        revision=language_model.revision,
        dtype=language_model.dtype,
        quantisation=language_model.quantisation,
        device=device,
        seed=settings.seed,
    )
    n_clusters = context.table("centroids", ["cluster"]).num_rows
    embeddings = context.table("embeddings")
    model = build_model(
        loaded,
        build_prompt(
            loaded.tokenizer,
            language_model.instruction,
            language_model.response,
            n_clusters=n_clusters,
            causal=loaded.causal,
        ),
        vectors(embeddings, "embedding"),
        embeddings.column("trained").to_numpy(),
        n_clusters,
        lora_rank=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_targets=settings.lora_targets,
        pooling=language_model.pooling,
        tensors=context.tensors("adapter"),
    ).to(device)
    result = item_knowledge(
        model,
        batch_size=runtime.knowledge_batch_size,
        autocast=torch.bfloat16 if language_model.dtype is Dtype.BFLOAT16 else None,
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
    return {
        "language_model": loaded.label,
        "random_init": loaded.random_init,
        "n_items": n_items,
        "width": int(result.knowledge.shape[1]),
        "n_untrained_items": result.n_untrained,
        "category_agreement": category_agreement(result.category_distribution, cluster),
    }
