"""The baseline E4SRec: train a language model that reads item vectors and scores the catalogue."""

import time
from typing import Any

from p2rec_core.settings.language import E4SRecSettings, LanguageModelSettings
from storage.artefacts import ArtefactRef
from tasks.arrays import learning_curve, ragged, targets, vectors
from tasks.language_model import language_model_source, open_language_model
from tasks.stage import StageCall, StageContext

_FORMAT = {"dtype", "quantisation"}
"""What E4SRec reads of the language model's settings beside its weights; prompt and pooling are its own."""


def e4srec_call(
    language_model: LanguageModelSettings,
    settings: E4SRecSettings,
    *,
    ingest: ArtefactRef,
    backbone: ArtefactRef,
) -> StageCall:
    """The training of E4SRec.

    Args:
        language_model: The language model; its prompt and pooling are not read.
        settings: E4SRec's own prompt, pooling and training.
        ingest: Sequences, and validation items if there is patience.
        backbone: Item embeddings, which stay as they are.

    Raises:
        ModelError: There is no such language model on this machine.
    """
    inputs = {"sequences": (ingest, "sequences"), "embeddings": (backbone, "item_embeddings")}
    if settings.patience is not None:
        inputs["validation"] = (ingest, "validation")

    def compute(context: StageContext) -> dict[str, Any]:
        return _train(context, language_model, settings)

    return StageCall(
        stage="e4srec",
        module="tasks.e4srec",
        settings=language_model.model_dump(mode="json", include=_FORMAT) | settings.model_dump(mode="json"),
        inputs=inputs,
        compute=compute,
        sources=language_model_source(language_model, seed=settings.seed),
    )


def _train(context: StageContext, language_model: LanguageModelSettings, settings: E4SRecSettings) -> dict[str, Any]:
    from p2rec_core.language.e4srec import train_e4srec
    from p2rec_core.training.checkpoint import Checkpointer

    opened = open_language_model(language_model, context.runtime, seed=settings.seed)
    embeddings = context.table("embeddings")
    sequences = ragged(context.table("sequences"))
    validation = targets(context.table("validation"), len(sequences)) if "validation" in context.inputs else None
    begun = time.monotonic()
    result = train_e4srec(
        opened.language_model,
        opened.next_item_prompt(settings.instruction, settings.response),
        vectors(embeddings, "embedding"),
        embeddings.column("trained").to_numpy(),
        sequences,
        validation,
        **settings.model_dump(exclude={"instruction", "response"}),
        device=opened.device,
        autocast=opened.autocast,
        checkpointer=Checkpointer(context.workspace, every_s=context.runtime.checkpoint_every_s),
        progress=context.progress,
    )
    train_s = time.monotonic() - begun
    context.writer.tensors("adapter", result.tensors, {"language_model": opened.language_model.label})
    context.writer.table("finetune_history", learning_curve(result.history))
    best = {metric: value for epoch, metric, value in result.history if epoch == result.best_epoch}
    return opened.facts() | {
        "n_epochs": result.n_epochs,
        "best_epoch": result.best_epoch,
        "best": best,
        "n_steps": result.n_steps,
        "n_steps_per_epoch": result.n_steps_per_epoch,
        "max_steps": settings.max_steps,
        "resumed_at_step": result.resumed_at_step,
        "train_s": train_s,
        "n_instances": result.n_instances,
        "n_instances_trained": result.n_instances_trained,
        "n_empty_histories": result.n_empty,
        "n_untrained_items": result.n_untrained,
        "n_prompt_tokens": result.n_prompt_tokens,
        "n_tokens_per_epoch": result.n_tokens_per_epoch,
        "n_trainable": result.n_trainable,
        "notes": list(result.notes),
    }
