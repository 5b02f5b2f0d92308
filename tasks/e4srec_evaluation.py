"""Full-ranking evaluation of E4SRec.

A module apart from the training's: an edit of how ranks are taken must not make anyone train anew.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

from p2rec_core.settings.language import E4SRecSettings, LanguageModelSettings
from p2rec_core.settings.pipeline import EvaluationSettings
from storage.artefacts import ArtefactRef
from tasks.arrays import vectors
from tasks.evaluation import evaluate, held_out_inputs
from tasks.language_model import language_model_source, open_language_model
from tasks.stage import StageCall, StageContext

if TYPE_CHECKING:
    from p2rec_core.ranking import Scorer
    from p2rec_core.sequences import RaggedSequences

METHOD, VARIANT = "e4srec", "llm"
"""How the tables name it."""

_READ = {
    *("instruction", "response", "pooling", "lora_rank", "lora_alpha", "lora_targets"),
    *("max_history", "micro_batch_tokens", "seed"),
}


def e4srec_evaluation_call(
    settings: EvaluationSettings,
    language_model: LanguageModelSettings,
    e4srec: E4SRecSettings,
    *,
    ingest: ArtefactRef,
    backbone: ArtefactRef,
    model: ArtefactRef,
) -> StageCall:
    """The evaluation of a trained E4SRec.

    Args:
        settings: Cut-offs.
        language_model: The language model it was trained on.
        e4srec: The settings it was trained with.
        ingest: Sequences, held-out items and the catalogue.
        backbone: Item embeddings it was trained with.
        model: What ``e4srec_call`` gave.

    Raises:
        ModelError: There is no such language model on this machine.
    """

    def compute(context: StageContext) -> dict[str, Any]:
        return _rank(context, settings, language_model, e4srec)

    return StageCall(
        stage="evaluation",
        module="tasks.e4srec_evaluation",
        settings=settings.model_dump(mode="json")
        | language_model.model_dump(mode="json", include={"dtype", "quantisation"})
        | e4srec.model_dump(mode="json", include=_READ)
        | {"method": METHOD, "variant": VARIANT},
        inputs=held_out_inputs(ingest) | {"embeddings": (backbone, "item_embeddings"), "adapter": (model, "adapter")},
        compute=compute,
        sources=language_model_source(language_model, seed=e4srec.seed),
    )


def _rank(
    context: StageContext, settings: EvaluationSettings, language_model: LanguageModelSettings, e4srec: E4SRecSettings
) -> dict[str, Any]:
    from p2rec_core.evaluation import held_out_ranks
    from p2rec_core.language.next_item_model import build_e4srec, e4srec_scorer

    opened = open_language_model(language_model, context.runtime, seed=e4srec.seed)
    embeddings = context.table("embeddings")
    model = build_e4srec(
        opened.language_model,
        opened.next_item_prompt(e4srec.instruction, e4srec.response),
        vectors(embeddings, "embedding"),
        embeddings.column("trained").to_numpy(),
        lora_rank=e4srec.lora_rank,
        lora_alpha=e4srec.lora_alpha,
        lora_targets=e4srec.lora_targets,
        pooling=e4srec.pooling,
        tensors=context.tensors("adapter"),
    ).to(opened.device)

    def scorer(history: "RaggedSequences") -> "Scorer":
        return e4srec_scorer(
            model,
            history,
            max_history=e4srec.max_history,
            micro_batch_tokens=e4srec.micro_batch_tokens,
            autocast=opened.autocast,
        )

    return opened.facts() | evaluate(context, settings, {(METHOD, VARIANT): partial(held_out_ranks, scorer)})
