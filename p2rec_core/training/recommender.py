"""Training and reloading a sequential recommender: arrays in, arrays out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from p2rec_core.backbones.base import INIT_STD, SequenceEncoder, make_encoder
from p2rec_core.errors import ModelError
from p2rec_core.fusion import ClusterTable, IdTable, SmoothedTable, knowledge_table, nearest_items
from p2rec_core.memory import check_item_table
from p2rec_core.progress import Progress, silent
from p2rec_core.recommender import OWN_EARLIER, OWN_LAST, NextItemObjective, Recommender
from p2rec_core.seeds import Initial, initial_seed
from p2rec_core.sequences import RaggedSequences
from p2rec_core.training.adam import ParameterGroup
from p2rec_core.training.checkpoint import Checkpointer
from p2rec_core.training.loop import FitResult, FitSettings, fit

OWN_BIAS = "own_bias"
"""Name of the tensor of ``Recommender.own_bias``, where there is one."""

_OWN_BIAS_RATE = 25.0
"""Learning rate of ``own_bias`` in that of all else: it has some ten nats to go, and Adam goes one rate a step."""


@dataclass(frozen=True)
class EncoderShape:
    """What it takes to build an encoder.

    Attributes:
        backbone: Name in the registry.
        options: Everything that this encoder takes, by name; ``hidden_size`` and ``max_length`` are among them.
    """

    backbone: str
    options: Mapping[str, Any]

    @property
    def hidden_size(self) -> int:
        """Width d."""
        return int(self.options["hidden_size"])

    @property
    def max_length(self) -> int:
        """Longest sequence."""
        return int(self.options["max_length"])

    def build(self) -> SequenceEncoder:
        """A freshly initialised encoder.

        Raises:
            SettingsError: There is no such backbone.
        """
        return make_encoder(self.backbone, **self.options)


@dataclass(frozen=True)
class NextItemTraining:
    """How a recommender is trained; see ``FitSettings`` for the shared fields.

    Attributes:
        learning_rate: Adam's peak step size.
        weight_decay: Decoupled weight decay.
        batch_positions: Bound of the positions that one optimiser step predicts from, see ``NextItemObjective``.
        n_negatives: Items sampled for the softmax; None takes the catalogue.
        max_epochs: Epochs at the most.
        patience: Epochs without a better validation NDCG@10; None trains max_epochs and validates nothing.
        warmup_steps: Steps of linear warm-up.
        cosine: Whether the rate falls as a half cosine.
        seed: Seed of initialisation, order and dropout.
        bf16: Whether activations are bfloat16.
        learn_repeats: Whether the scores of own items get a learned bias, see ``Recommender``.
        item_std: Standard deviation of what the item table starts from, noise or knowledge.
    """

    learning_rate: float
    weight_decay: float
    batch_positions: int
    n_negatives: int | None
    max_epochs: int
    patience: int | None
    warmup_steps: int
    cosine: bool
    seed: int
    bf16: bool = False
    learn_repeats: bool = False
    item_std: float = INIT_STD


@dataclass(frozen=True)
class Knowledge:
    """What +P2Rec's item table is given.

    Attributes:
        vectors: float32 (N, D) prepared knowledge embeddings.
        fusion: One of ``fusion.FUSIONS``.
        trainable: Whether the vectors are fine-tuned.
        smoothing: Part of an item's vector that comes from its nearest items by knowledge.
        n_neighbours: How many those are.
        temperature: Of the softmax over their cosines.
    """

    vectors: NDArray[np.float32]
    fusion: str
    trainable: bool = False
    smoothing: float = 0.0
    n_neighbours: int = 10
    temperature: float = 0.1

    def item_table(self, hidden_size: int, *, std: float) -> nn.Module:
        """The item table of +P2Rec, d = ``hidden_size``, embeddings and knowledge starting with deviation ``std``.

        Raises:
            SettingsError: There is no such fusion.
        """
        table = knowledge_table(self.fusion, self.vectors, hidden_size, std=std, trainable=self.trainable)
        if not self.smoothing or len(self.vectors) < 2:
            return table
        neighbours, weights = nearest_items(self.vectors, self.n_neighbours, temperature=self.temperature)
        return SmoothedTable(table, neighbours, weights, smoothing=self.smoothing)


@dataclass(frozen=True)
class TrainedRecommender:
    """A trained recommender, ready to be stored.

    Attributes:
        tensors: float32 arrays by name: ``item_vectors`` (N, d), the fused item table without PAD; ``encoder.*``,
            the encoder; ``item_table.*``, the table's trainable parts; ``own_bias`` (2,), where repeats are learned.
        fit: Learning curve and cursor of the training.
    """

    tensors: dict[str, NDArray[np.float32]]
    fit: FitResult


class FixedTable(nn.Module):
    """An item table that is no longer learned.

    Args:
        item_vectors: (N, d), without PAD.
    """

    table: Tensor

    def __init__(self, item_vectors: Tensor) -> None:
        super().__init__()
        padding = item_vectors.new_zeros(1, item_vectors.shape[1])
        self.register_buffer("table", torch.cat([padding, item_vectors]), persistent=False)

    def forward(self) -> Tensor:
        """(N + 1, d) item vectors, row 0 = PAD."""
        return self.table


def train_recommender(
    sequences: RaggedSequences,
    validation: NDArray[np.int32] | None,
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
    """Train Base, +CI (``clusters`` and ``n_clusters`` given) or +P2Rec (``knowledge`` given).

    Args:
        sequences: Training parts.
        validation: int32 (users,) validation items, 0 = none; needed for early stopping.
        n_items: N.
        encoder: The encoder's shape.
        training: How to train.
        clusters: int32 (N,) cluster of each item.
        n_clusters: K.
        knowledge: Prepared knowledge embeddings and how they enter the item table.
        device: Where to train.
        checkpointer: Resumable state.
        progress: Told after every step.

    Raises:
        SettingsError: There is no such backbone.
        DataError: There is nothing to train on.
        ModelError: The loss is not finite.
        ResourceError: The item table does not fit into memory.
    """
    model = new_recommender(
        n_items, encoder, training, clusters=clusters, n_clusters=n_clusters, knowledge=knowledge, device=device
    )
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


def new_recommender(
    n_items: int,
    encoder: EncoderShape,
    training: NextItemTraining,
    *,
    clusters: NDArray[np.int32] | None,
    n_clusters: int | None,
    knowledge: Knowledge | None,
    device: torch.device,
) -> Recommender:
    """A recommender that has learned nothing yet, on the CPU; arguments and errors as of ``train_recommender``."""
    check_item_table(n_items, encoder.hidden_size, device)
    torch.manual_seed(initial_seed(training.seed, Initial.RECOMMENDER))
    built = encoder.build()
    table: nn.Module
    if knowledge is not None:
        table = knowledge.item_table(encoder.hidden_size, std=training.item_std)
    elif clusters is not None and n_clusters is not None:
        table = ClusterTable(clusters, n_clusters, encoder.hidden_size, std=training.item_std)
    else:
        table = IdTable(n_items, encoder.hidden_size, std=training.item_std)
    return Recommender(table, built, learn_repeats=training.learn_repeats)


def trained_recommender(
    model: Recommender,
    sequences: RaggedSequences,
    validation: NDArray[np.int32] | None,
    *,
    max_length: int,
    training: NextItemTraining,
    device: torch.device,
    checkpointer: Checkpointer | None,
    progress: Progress,
) -> TrainedRecommender:
    """Train a recommender from where it stands; arguments and errors as of ``train_recommender``."""
    model = model.to(device)
    objective = NextItemObjective(
        model,
        sequences,
        validation if training.patience is not None else None,
        max_length=max_length,
        batch_positions=training.batch_positions,
        n_negatives=training.n_negatives,
        seed=training.seed,
        device=device,
    )
    shared = [parameter for name, parameter in model.named_parameters() if name != OWN_BIAS]
    groups = [ParameterGroup(shared, training.learning_rate, training.weight_decay)]
    if model.own_bias is not None:
        groups.append(ParameterGroup([model.own_bias], training.learning_rate * _OWN_BIAS_RATE))
    result = fit(
        model,
        objective,
        groups,
        FitSettings(
            max_epochs=training.max_epochs,
            patience=training.patience,
            metric=None if training.patience is None else "NDCG@10",
            seed=training.seed,
            warmup_steps=training.warmup_steps,
            cosine=training.cosine,
            autocast=torch.bfloat16 if training.bf16 else None,
        ),
        device=device,
        checkpointer=checkpointer,
        progress=progress,
    )
    tensors = {name: tensor.numpy() for name, tensor in result.tensors.items()}
    if model.own_bias is not None and objective.targets is not None:
        found = objective.observed_repeats(objective.targets).fit()
        added = np.zeros(2, np.float32)
        added[OWN_LAST], added[OWN_EARLIER] = found.last, found.earlier
        tensors[OWN_BIAS] = tensors[OWN_BIAS] + added
    with torch.no_grad():
        item_vectors = model.item_table()[1:].float().cpu()
    return TrainedRecommender({"item_vectors": item_vectors.numpy(), **tensors}, result)


def load_recommender(
    tensors: Mapping[str, NDArray[np.float32]], encoder: EncoderShape, device: torch.device
) -> Recommender:
    """Rebuild a trained recommender for scoring.

    Args:
        tensors: What ``TrainedRecommender.tensors`` was.
        encoder: The shape it was trained with.
        device: Where to put it.

    Raises:
        ModelError: The tensors do not fit the shape.
    """
    built = encoder.build()
    weights = {
        name.removeprefix("encoder."): torch.from_numpy(array.copy())
        for name, array in tensors.items()
        if name.startswith("encoder.")
    }
    try:
        built.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(
            f"The stored weights do not fit a {encoder.backbone} of hidden_size {encoder.hidden_size}: {error}.",
            remedy="Load them with the settings in the artefact's manifest.",
        ) from error
    table = FixedTable(torch.from_numpy(tensors["item_vectors"].copy()))
    model = Recommender(table, built, learn_repeats=OWN_BIAS in tensors)
    if model.own_bias is not None:
        with torch.no_grad():
            model.own_bias.copy_(torch.from_numpy(tensors[OWN_BIAS].copy()))
    return model.to(device).eval()
