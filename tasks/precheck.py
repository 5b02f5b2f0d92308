"""What a pipeline asks for that would be missed only after hours: looked at before anything is trained."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from p2rec_core.errors import DataError
from p2rec_core.settings.language import LanguageModelSettings
from p2rec_core.settings.pipeline import PipelineSettings
from p2rec_core.settings.sequence_model import Variant, Whitening
from tasks.stage import StageCall, StageContext

LANGUAGE_MODEL_STAGES = frozenset({"text", "finetune", "knowledge"})
"""Stages that read the language model."""


def check_language_model(settings: LanguageModelSettings, stages: Iterable[str]) -> None:
    """Make sure that the language model is on this machine, where a stage reads it.

    Args:
        settings: Its name.
        stages: Of the pipeline.

    Raises:
        ModelError: There is no such language model.
    """
    from p2rec_core.language.identity import RANDOM_MODELS, resolve_model

    if settings.name_or_path not in RANDOM_MODELS and not LANGUAGE_MODEL_STAGES.isdisjoint(stages):
        resolve_model(settings.name_or_path, settings.revision)


def check_item_counts(settings: PipelineSettings, n_train: NDArray[np.integer]) -> None:
    """Make sure that there are as many items as the pipeline's groups and components need.

    Args:
        settings: Of the pipeline.
        n_train: int (N,), each item's interactions in the training part.

    Raises:
        DataError: There are fewer.
    """
    n_trained = int((n_train > 0).sum())
    for name, n_clusters in (
        ("clusters.n_clusters", settings.clusters.n_clusters),
        *(("clusters.finer", n_clusters) for n_clusters in settings.clusters.finer),
    ):
        if n_clusters > n_trained:
            raise DataError(
                f"{name} = {n_clusters}, but only {n_trained} items have training interactions.",
                remedy=f"Set {name} to {n_trained} or less; `p2rec init` proposes settings for the file's size.",
            )
    fusion = settings.fusion
    n_axes = len(n_train) - 1  # of what is centred
    if Variant.P2REC in settings.variants and fusion.whitening is Whitening.PCA and fusion.n_components > n_axes:
        raise DataError(
            f"fusion.n_components = {fusion.n_components}, but {len(n_train)} items span {n_axes} components at most.",
            remedy=f"Set fusion.n_components to {n_axes} or less; `p2rec init` proposes settings for the file's size.",
        )


def counted_first(call: StageCall, settings: PipelineSettings) -> StageCall:
    """The training of a pipeline's backbone, begun only where there are items enough for what comes after it.

    The key is the training's: what comes after it does not change what it computes.

    Args:
        call: The training; reads ``items``.
        settings: Of the pipeline.
    """

    def compute(context: StageContext) -> dict[str, object]:
        check_item_counts(settings, context.table("items", ["n_train"]).column("n_train").to_numpy())
        return call.compute(context)

    return replace(call, compute=compute)
