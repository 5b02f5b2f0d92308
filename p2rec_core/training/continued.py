"""Training that goes on from a recommender's weights, on a catalogue that has grown."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p2rec_core.errors import ModelError
from p2rec_core.progress import Progress, silent
from p2rec_core.recommender import Recommender
from p2rec_core.sequences import RaggedSequences
from p2rec_core.training.checkpoint import Checkpointer
from p2rec_core.training.recommender import (
    EncoderShape,
    Knowledge,
    NextItemTraining,
    TrainedRecommender,
    new_recommender,
    trained_recommender,
)

_PER_ITEM = ("embedding", "knowledge")
"""Last names of the parameters that have a row per item."""


def continue_recommender(
    sequences: RaggedSequences,
    validation: NDArray[np.int32] | None,
    previous: Mapping[str, NDArray[np.float32]],
    learned: NDArray[np.bool_],
    *,
    n_items: int,
    encoder: EncoderShape,
    training: NextItemTraining,
    clusters: NDArray[np.int32] | None = None,
    n_clusters: int | None = None,
    knowledge: Knowledge | None = None,
    device: torch.device,
    checkpointer: Checkpointer | None = None,
    progress: Progress = silent,
) -> TrainedRecommender:
    """Train a recommender that starts from another one of the same kind.

    Rows of items that the other one has learned are copied; all other rows start as those of a new recommender, and
    so do the optimiser's moments.

    Args:
        sequences: Training parts.
        validation: int32 (users,) validation items, 0 = none; needed for early stopping.
        previous: Tensors of the other recommender, see ``TrainedRecommender``.
        learned: bool (M,), M <= N, which of its items it has learned something of.
        n_items: N.
        encoder: The encoder's shape.
        training: How to train.
        clusters: int32 (N,) cluster of each item (+CI); clusters mean what they meant to the other recommender.
        n_clusters: K.
        knowledge: Prepared knowledge embeddings (+P2Rec), on the axes of the other recommender's.
        device: Where to train.
        checkpointer: Resumable state.
        progress: Told after every step.

    Raises:
        ModelError: The other recommender is of another kind, or the loss is not finite.
        DataError: There is nothing to train on.
        ResourceError: The item table does not fit into memory.
    """
    model = new_recommender(
        n_items, encoder, training, clusters=clusters, n_clusters=n_clusters, knowledge=knowledge, device=device
    )
    copy_weights(model, previous, learned)
    return trained_recommender(
        model,
        sequences,
        validation,
        max_length=encoder.max_length,
        training=training,
        device=device,
        checkpointer=checkpointer,
        progress=progress,
    )


@torch.no_grad()
def copy_weights(model: Recommender, previous: Mapping[str, NDArray[np.float32]], learned: NDArray[np.bool_]) -> None:
    """Copy a recommender's weights into another of the same kind with more items.

    Args:
        model: Takes the weights, on the CPU.
        previous: ``encoder.*``, ``item_table.*`` and, where repeats are learned, ``own_bias``; ``item_vectors`` is not
            read.
        learned: bool (M,), the items whose rows are copied.

    Raises:
        ModelError: A tensor is missing, one too many or of another shape.
    """
    weights = {name: array for name, array in previous.items() if name != "item_vectors"}
    parameters = dict(model.named_parameters())
    if weights.keys() != parameters.keys():
        odd = ", ".join(sorted(weights.keys() ^ parameters.keys()))
        raise _misfit(f"only one of the two has {odd}")
    rows = torch.from_numpy(np.flatnonzero(learned))
    for name, parameter in parameters.items():
        source = torch.from_numpy(weights[name].copy())
        per_item = name.startswith("item_table.") and name.rpartition(".")[2] in _PER_ITEM
        if per_item and source.shape[1:] == parameter.shape[1:] and len(learned) == len(source) <= len(parameter):
            parameter[rows] = source[rows]
        elif not per_item and source.shape == parameter.shape:
            parameter.copy_(source)
        else:
            raise _misfit(f"{name} was {_shape(source)} and is {_shape(parameter)}")


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _misfit(what: str) -> ModelError:
    return ModelError(
        f"The current recommender's weights cannot be continued: {what}.",
        remedy="Compute a snapshot with these settings with `p2rec run`.",
    )
