"""Stage 5: fine-tune the language model, one example per user."""

from typing import Any

from p2rec_core.settings.language import Dtype, FinetuneSettings, LanguageModelSettings
from storage.artefacts import ArtefactRef
from tasks.arrays import learning_curve, ragged, vectors
from tasks.stage import StageCall, StageContext


def finetune_call(
    language_model: LanguageModelSettings,
    settings: FinetuneSettings,
    *,
    ingest: ArtefactRef,
    backbone: ArtefactRef,
    preferences: ArtefactRef,
) -> StageCall:
    """The user-level fine-tuning.

    Raises:
        ModelError: There is no such language model on this machine.
    """
    from p2rec_core.language.identity import model_identity

    identity = model_identity(language_model.name_or_path, language_model.revision, seed=settings.seed)

    def compute(context: StageContext) -> dict[str, Any]:
        return _finetune(context, language_model, settings)

    return StageCall(
        stage="finetune",
        module="tasks.finetune",
        # the weights count, not where they lie
        settings=language_model.model_dump(mode="json", exclude={"name_or_path", "revision"})
        | settings.model_dump(mode="json"),
        inputs={
            "sequences": (ingest, "sequences"),
            "embeddings": (backbone, "item_embeddings"),
            "preferences": (preferences, "user_preferences"),
        },
        compute=compute,
        sources={"language-model": identity},
    )


def _finetune(
    context: StageContext, language_model: LanguageModelSettings, settings: FinetuneSettings
) -> dict[str, Any]:
    import torch

    from p2rec_core.language.finetune import finetune
    from p2rec_core.language.loading import load_language_model
    from p2rec_core.language.prompt import build_prompt
    from p2rec_core.runtime import prepared_device
    from p2rec_core.training.checkpoint import Checkpointer

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
    embeddings = context.table("embeddings")
    preferences = vectors(context.table("preferences"), "preference")
    sequences = ragged(context.table("sequences"))
    prompt = build_prompt(
        loaded.tokenizer,
        language_model.instruction,
        language_model.response,
        n_clusters=preferences.shape[1],
        causal=loaded.causal,
    )
    result = finetune(
        loaded,
        prompt,
        vectors(embeddings, "embedding"),
        embeddings.column("trained").to_numpy(),
        sequences.items,
        sequences.offsets,
        preferences,
        **settings.model_dump(),
        pooling=language_model.pooling,
        device=device,
        autocast=torch.bfloat16 if language_model.dtype is Dtype.BFLOAT16 else None,
        checkpointer=Checkpointer(context.workspace, every_s=runtime.checkpoint_every_s),
        progress=context.progress,
    )
    context.writer.tensors("adapter", result.tensors, {"language_model": loaded.label})
    context.writer.table("finetune_history", learning_curve(result.history))
    last = {metric: value for epoch, metric, value in result.history if epoch == result.n_epochs}
    return {
        "language_model": loaded.label,
        "random_init": loaded.random_init,
        "n_epochs": result.n_epochs,
        "n_steps": result.n_steps,
        "resumed_at_step": result.resumed_at_step,
        "n_users": result.n_users,
        "n_held_out": result.n_held_out,
        "n_skipped_users": result.n_skipped,
        "n_untrained_items": result.n_untrained,
        "n_tokens_per_epoch": result.n_tokens_per_epoch,
        "last": last,
        "notes": list(result.notes),
    }
