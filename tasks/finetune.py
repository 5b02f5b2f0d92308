"""Stage 5: fine-tune the language model, one example per user."""

from typing import Any

from p2rec_core.settings.language import FinetuneSettings, LanguageModelSettings
from storage.artefacts import ArtefactRef
from tasks.arrays import learning_curve, ragged, vectors
from tasks.language_model import NOT_READ_WITH_ITEMS, language_model_source, open_language_model, read_items
from tasks.preferences import finer_groupings
from tasks.stage import StageCall, StageContext


def finetune_call(
    language_model: LanguageModelSettings,
    settings: FinetuneSettings,
    *,
    ingest: ArtefactRef,
    backbone: ArtefactRef,
    clusters: ArtefactRef,
    preferences: ArtefactRef,
    text: ArtefactRef | None = None,
) -> StageCall:
    """The user-level fine-tuning.

    Args:
        language_model: The language model.
        settings: How it is tuned.
        ingest: Sequences.
        backbone: Item embeddings.
        clusters: The finer groupings, whose preferences are told beside.
        preferences: Users' preferences.
        text: Embeddings of the items' texts, read beside the backbone's; None where there are none.

    Raises:
        ModelError: There is no such language model on this machine.
    """

    def compute(context: StageContext) -> dict[str, Any]:
        return _finetune(context, language_model, settings)

    return StageCall(
        stage="finetune",
        module="tasks.finetune",
        # the weights count, not where they lie
        settings=language_model.model_dump(mode="json", exclude=NOT_READ_WITH_ITEMS) | settings.model_dump(mode="json"),
        inputs={
            "sequences": (ingest, "sequences"),
            "embeddings": (backbone, "item_embeddings"),
            "preferences": (preferences, "user_preferences"),
            "finer": (clusters, "finer_clusters"),
            **({} if text is None else {"texts": (text, "item_texts")}),
        },
        compute=compute,
        sources=language_model_source(language_model, seed=settings.seed),
    )


def _finetune(
    context: StageContext, language_model: LanguageModelSettings, settings: FinetuneSettings
) -> dict[str, Any]:
    from p2rec_core.language.finetune import finetune
    from p2rec_core.training.checkpoint import Checkpointer

    opened = open_language_model(language_model, context.runtime, seed=settings.seed)
    preferences = vectors(context.table("preferences"), "preference")
    sequences = ragged(context.table("sequences"))
    result = finetune(
        opened.language_model,
        opened.preference_prompt(language_model, preferences.shape[1]),
        *read_items(context),
        sequences.items,
        sequences.offsets,
        preferences,
        finer=finer_groupings(context, sequences),
        **settings.model_dump(),
        pooling=language_model.pooling,
        device=opened.device,
        autocast=opened.autocast,
        checkpointer=Checkpointer(context.workspace, every_s=context.runtime.checkpoint_every_s),
        progress=context.progress,
    )
    context.writer.tensors("adapter", result.tensors, {"language_model": opened.language_model.label})
    context.writer.table("finetune_history", learning_curve(result.history))
    last = {metric: value for epoch, metric, value in result.history if epoch == result.n_epochs}
    return opened.facts() | {
        "item_text": "texts" in context.inputs,
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
