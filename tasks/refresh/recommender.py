"""Stages 2 and 7 of a refresh: a recommender that starts from the current snapshot's.

As in an ordinary run, the pre-trained backbone and Base are the same artefact where their settings are the same.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

from p2rec_core.backbones.registry import encoder_entry
from p2rec_core.settings.refresh import RefreshSettings
from p2rec_core.settings.sequence_model import FusionSettings, RecommenderSettings, Variant
from storage.artefacts import ArtefactRef
from tasks.recommender import (
    knowledge_inputs,
    next_item_training,
    prepared_knowledge,
    training_inputs,
    write_trained,
)
from tasks.stage import StageCall, StageContext

if TYPE_CHECKING:
    from p2rec_core.training.recommender import Knowledge

PREPARED = "prepared"
"""File of the prepared knowledge, on the axes that the recommender's weights read."""


def continued_recommender_call(
    settings: RecommenderSettings,
    variant: Variant,
    fusion: FusionSettings,
    refresh: RefreshSettings,
    *,
    ingest: ArtefactRef,
    previous: ArtefactRef,
    clusters: ArtefactRef | None = None,
    knowledge: ArtefactRef | None = None,
    previous_knowledge: ArtefactRef | None = None,
    text: ArtefactRef | None = None,
    previous_text: ArtefactRef | None = None,
) -> StageCall:
    """The training of a recommender that starts from another one of the same settings.

    Args:
        settings: Encoder and training.
        variant: Base, +CI (needs ``clusters``) or +P2Rec (needs ``knowledge`` and ``previous_knowledge``).
        fusion: How knowledge enters; read by +P2Rec only.
        refresh: Epochs and learning rate.
        ingest: Sequences, validation items and the catalogue, in the numbering that ``previous`` knows.
        previous: The recommender to start from.
        clusters: Item clusters, numbered as those that ``previous`` was trained with.
        knowledge: The artefact of ``fusion.source``; None where that is noise.
        previous_knowledge: The one that ``previous`` was trained with.
        text: Embeddings of the items' texts that stand beside the knowledge; None where none do.
        previous_text: Those that ``previous`` was trained with.
    """
    inputs = {
        "sequences": (ingest, "sequences"),
        "items": (ingest, "items"),
        "previous_model": (previous, "model"),
        "previous_embeddings": (previous, "item_embeddings"),
    }
    if settings.training.patience is not None:
        inputs["validation"] = (ingest, "validation")
    chosen: dict[str, Any] = settings.model_dump(mode="json") | {
        "variant": str(variant),
        "refresh": refresh.model_dump(mode="json", include={"epochs", "learning_rate_scale"}),
    }
    if variant is Variant.CI:
        assert clusters is not None
        inputs["clusters"] = (clusters, "item_clusters")
    elif variant is Variant.P2REC:
        inputs |= knowledge_inputs(fusion, knowledge, text)
        inputs |= knowledge_inputs(fusion, previous_knowledge, previous_text, "previous_")
        if PREPARED in previous.files:
            inputs["previous_prepared"] = (previous, PREPARED)
        chosen["fusion"] = fusion.model_dump(mode="json") | {"item_text": text is not None}

    def compute(context: StageContext) -> dict[str, Any]:
        return _train(context, settings, fusion if variant is Variant.P2REC else None, refresh)

    return StageCall(
        stage="backbone" if variant is Variant.BASE else "recommender",
        module="tasks.refresh.recommender",
        settings=chosen,
        inputs=inputs,
        compute=compute,
        extra_modules=(encoder_entry(settings.encoder.backbone).module,),
    )


def _train(
    context: StageContext, settings: RecommenderSettings, fusion: FusionSettings | None, refresh: RefreshSettings
) -> dict[str, Any]:
    from p2rec_core.training.continued import continue_recommender

    n_train = context.table("items", ["n_train"]).column("n_train").to_numpy()
    knowledge = None
    if fusion is not None:
        knowledge = _turned_knowledge(context, fusion, len(n_train), settings.training.seed)
        context.writer.tensors(PREPARED, {"vectors": knowledge.vectors})
    learned = context.table("previous_embeddings", ["trained"]).column("trained").to_numpy()
    training = settings.training
    trained = continue_recommender(
        **training_inputs(context, settings, len(n_train)),
        previous=context.tensors("previous_model"),
        learned=learned,
        # the ordinary training, shorter and with smaller steps
        training=next_item_training(
            training,
            max_epochs=min(refresh.epochs, training.max_epochs),
            learning_rate=training.learning_rate * refresh.learning_rate_scale,
        ),
        knowledge=knowledge,
    )
    return write_trained(context, settings, trained, n_train) | {"n_copied_items": int(learned.sum())}


def _turned_knowledge(context: StageContext, fusion: FusionSettings, n_items: int, seed: int) -> "Knowledge":
    """The knowledge embeddings, prepared, on the axes of those that the current recommender was trained with."""
    from p2rec_core.alignment import turned_like

    prepared = prepared_knowledge(context, fusion, n_items, seed)
    if "previous_prepared" in context.inputs:
        before = context.tensors("previous_prepared")["vectors"]
    else:
        n_before = context.table("previous_embeddings", ["item_idx"]).num_rows
        read = [name for name in ("knowledge", "texts") if name in context.inputs]
        inputs = {name: context.inputs[f"previous_{name}"] for name in read}
        before = prepared_knowledge(dataclasses.replace(context, inputs=inputs), fusion, n_before, seed).vectors
    return dataclasses.replace(prepared, vectors=turned_like(prepared.vectors, before))
