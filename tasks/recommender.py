"""Stages 2 and 7: train a sequential recommender.

Stage 2, the pre-trained backbone, and stage 7's Base are the same computation: with the same settings they are the
same artefact, trained once.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from p2rec_core.backbones.registry import encoder_entry
from p2rec_core.settings.sequence_model import (
    FusionSettings,
    KnowledgeSource,
    RecommenderSettings,
    Schedule,
    TrainingSettings,
    Variant,
    Whitening,
)
from storage.artefacts import ArtefactRef
from tasks.arrays import learning_curve, numbering, ragged, targets, vector_array, vectors
from tasks.stage import StageCall, StageContext

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from p2rec_core.training.recommender import Knowledge, NextItemTraining, TrainedRecommender


KNOWLEDGE_TABLES = {
    KnowledgeSource.TUNED: ("item_knowledge", "knowledge"),
    KnowledgeSource.UNTUNED: ("item_knowledge", "knowledge"),
    KnowledgeSource.TEXT: ("item_texts", "embedding"),
    KnowledgeSource.BACKBONE: ("item_embeddings", "embedding"),
    KnowledgeSource.CATEGORIES: ("item_knowledge", "category_distribution"),
}
"""Table and column of each source of knowledge."""


def recommender_call(
    settings: RecommenderSettings,
    variant: Variant,
    fusion: FusionSettings,
    *,
    ingest: ArtefactRef,
    clusters: ArtefactRef | None = None,
    knowledge: ArtefactRef | None = None,
    text: ArtefactRef | None = None,
) -> StageCall:
    """The training of one recommender.

    Args:
        settings: Encoder and training.
        variant: Base, +CI (needs ``clusters``) or +P2Rec (needs ``knowledge``).
        fusion: How knowledge enters; read by +P2Rec only.
        ingest: Sequences, validation items and the catalogue.
        clusters: Item clusters.
        knowledge: The artefact of ``fusion.source``; None where that is noise.
        text: Embeddings of the items' texts that stand beside it; None where none do.
    """
    inputs = {"sequences": (ingest, "sequences"), "items": (ingest, "items")}
    if settings.training.patience is not None:
        inputs["validation"] = (ingest, "validation")
    chosen: dict[str, Any] = settings.model_dump(mode="json") | {"variant": str(variant)}
    if variant is Variant.CI:
        assert clusters is not None
        inputs["clusters"] = (clusters, "item_clusters")
    elif variant is Variant.P2REC:
        inputs |= knowledge_inputs(fusion, knowledge, text)
        chosen["fusion"] = fusion.model_dump(mode="json") | {"item_text": text is not None}

    def compute(context: StageContext) -> dict[str, Any]:
        return _train(context, settings, fusion if variant is Variant.P2REC else None)

    return StageCall(
        stage="backbone" if variant is Variant.BASE else "recommender",
        module="tasks.recommender",
        settings=chosen,
        inputs=inputs,
        compute=compute,
        extra_modules=(encoder_entry(settings.encoder.backbone).module,),
    )


def _train(context: StageContext, settings: RecommenderSettings, fusion: FusionSettings | None) -> dict[str, Any]:
    from p2rec_core.training.recommender import train_recommender

    n_train = context.table("items", ["n_train"]).column("n_train").to_numpy()
    knowledge = None
    if fusion is not None:
        knowledge = prepared_knowledge(context, fusion, len(n_train), settings.training.seed)
    trained = train_recommender(
        **training_inputs(context, settings, len(n_train)),
        training=next_item_training(settings.training),
        knowledge=knowledge,
    )
    return write_trained(context, settings, trained, n_train)


def knowledge_inputs(
    fusion: FusionSettings, knowledge: ArtefactRef | None, text: ArtefactRef | None, prefix: str = ""
) -> dict[str, tuple[ArtefactRef, str]]:
    """What ``prepared_knowledge`` reads, as inputs of a stage.

    Args:
        fusion: The source.
        knowledge: Its artefact; None where it is noise.
        text: Embeddings of the items' texts that stand beside it; None where none do.
        prefix: Before the inputs' names.
    """
    inputs = {}
    if fusion.source is not KnowledgeSource.RANDOM:
        assert knowledge is not None
        inputs[f"{prefix}knowledge"] = (knowledge, KNOWLEDGE_TABLES[fusion.source][0])
    if text is not None:
        inputs[f"{prefix}texts"] = (text, KNOWLEDGE_TABLES[KnowledgeSource.TEXT][0])
    return inputs


def training_inputs(context: StageContext, settings: RecommenderSettings, n_items: int) -> dict[str, Any]:
    """What every training of a recommender reads, as arguments of ``train_recommender``.

    Args:
        context: Has the inputs ``sequences`` and, where they are read, ``validation`` and ``clusters``.
        settings: Encoder and training.
        n_items: N.
    """
    from p2rec_core.runtime import prepared_device
    from p2rec_core.training.checkpoint import Checkpointer
    from p2rec_core.training.recommender import EncoderShape

    runtime = context.runtime
    sequences = ragged(context.table("sequences"))
    validation = targets(context.table("validation"), len(sequences)) if "validation" in context.inputs else None
    clusters = n_clusters = None
    if "clusters" in context.inputs:
        clusters = context.table("clusters").column("cluster").to_numpy()
        n_clusters = int(clusters.max()) + 1
    return {
        "sequences": sequences,
        "validation": validation,
        "n_items": n_items,
        "encoder": EncoderShape(settings.encoder.backbone, settings.encoder.options()),
        "clusters": clusters,
        "n_clusters": n_clusters,
        "device": prepared_device(runtime.device, runtime.threads),
        "checkpointer": Checkpointer(context.workspace, every_s=runtime.checkpoint_every_s),
        "progress": context.progress,
    }


def next_item_training(settings: TrainingSettings, **changed: Any) -> "NextItemTraining":
    """The settings of a training as the core takes them, some of them changed."""
    from p2rec_core.training.recommender import NextItemTraining

    values = settings.model_dump(exclude={"schedule"}) | changed
    return NextItemTraining(**values, cosine=settings.schedule is Schedule.COSINE)


def write_trained(
    context: StageContext,
    settings: RecommenderSettings,
    trained: "TrainedRecommender",
    n_train: "NDArray[np.integer[Any]]",
) -> dict[str, Any]:
    """Write a trained recommender's model, learning curve and item embeddings.

    Args:
        context: Where to write.
        settings: What it was trained with.
        trained: The recommender.
        n_train: int (N,) training interactions of each item.

    Returns:
        What the manifest says of it.
    """
    n_items = len(n_train)
    context.writer.tensors("model", trained.tensors, {"encoder": settings.encoder.model_dump_json()})
    context.writer.table("history", learning_curve(trained.fit.history))
    context.writer.table(
        "item_embeddings",
        pa.table(
            {
                "item_idx": numbering(n_items),
                "source": pa.array([settings.encoder.backbone] * n_items),
                "trained": pa.array(n_train > 0),
                "embedding": vector_array(trained.tensors["item_vectors"]),
            }
        ),
    )
    fit = trained.fit
    return {
        "best_epoch": fit.best_epoch,
        "n_epochs": fit.n_epochs,
        "n_steps": fit.n_steps,
        "resumed_at_step": fit.resumed_at_step,
        "best": {metric: value for epoch, metric, value in fit.history if epoch == fit.best_epoch},
        "n_untrained_items": int((n_train == 0).sum()),
        "item_text": "texts" in context.inputs,
        "n_parameters": int(sum(np.prod(t.shape) for n, t in trained.tensors.items() if n != "item_vectors")),
        "notes": list(fit.notes),
    }


def prepared_knowledge(context: StageContext, fusion: FusionSettings, n_items: int, seed: int) -> "Knowledge":
    """The knowledge embeddings, prepared for the item table.

    Args:
        context: Has the inputs of ``knowledge_inputs``.
        fusion: Source and preparation.
        n_items: N.
        seed: Seed of the recommender's training, which noise is drawn from.

    Raises:
        DataError: More components are asked for than the embeddings have rank.
    """
    from p2rec_core.training.recommender import Knowledge
    from p2rec_core.whitening import pca_whitened, side_by_side, standardised

    if fusion.source is KnowledgeSource.RANDOM:
        rng = np.random.default_rng((seed, 0x6E6F697365))
        embeddings = rng.standard_normal((n_items, fusion.n_components)).astype(np.float32)
    else:
        embeddings = vectors(context.table("knowledge"), KNOWLEDGE_TABLES[fusion.source][1])
    if "texts" in context.inputs:
        embeddings = side_by_side(embeddings, vectors(context.table("texts", ["embedding"]), "embedding"))
    if fusion.whitening is Whitening.PCA:
        embeddings = pca_whitened(embeddings, fusion.n_components)
    elif fusion.whitening is Whitening.STANDARDISE:
        embeddings = standardised(embeddings)
    return Knowledge(
        embeddings,
        str(fusion.kind),
        fusion.trainable,
        fusion.smoothing,
        fusion.n_neighbours,
        fusion.temperature,
    )
