"""Settings of sequential recommenders: the encoder, its training and what its item table is made of."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from p2rec_core.backbones.registry import DEFAULT_BACKBONE, ENCODERS, encoder_entry
from p2rec_core.errors import SettingsError
from p2rec_core.settings.base import Settings

BACKBONES = tuple(ENCODERS)
"""Names of the sequence encoders that there are."""


class Variant(StrEnum):
    """What a recommender knows of an item beside its id (paper, section 5.2)."""

    BASE = "base"
    """A learnable embedding per item."""
    CI = "ci"
    """Base plus a learnable embedding of the item's cluster."""
    P2REC = "p2rec"
    """A gate of the ID embedding and the projected knowledge embedding."""


class Whitening(StrEnum):
    """What is done to knowledge embeddings before they are projected."""

    NONE = "none"
    STANDARDISE = "standardise"
    """Zero mean and unit variance per dimension."""
    PCA = "pca"
    """Rotated to principal axes, cut to ``n_components`` and scaled to unit variance."""


class Schedule(StrEnum):
    """How the learning rate goes over the epochs."""

    CONSTANT = "constant"
    COSINE = "cosine"


class EncoderSettings(Settings):
    """The sequence encoder.

    The registry says which fields a backbone reads. These are filled with the backbone's defaults; the others are
    null, and giving one a value is an error.
    """

    backbone: str = Field(DEFAULT_BACKBONE, json_schema_extra={"enum": list(BACKBONES)})
    """Which sequence encoder. The settings beside it have this encoder's defaults; those that it does not read are
    null."""
    hidden_size: int = Field(64, ge=1, le=4096)
    """Width d of item embeddings and states."""
    n_layers: int | None = Field(None, ge=1, le=64)
    """Number of blocks."""
    n_heads: int | None = Field(None, ge=1, le=64)
    """Attention heads; has to divide hidden_size."""
    inner_size: int | None = Field(None, ge=1, le=65536)
    """Width of the feed-forward layer, or of GRU4Rec's recurrent state."""
    window: int | None = Field(None, ge=1, le=200)
    """Latest items that a state is computed from; at most max_length."""
    n_horizontal: int | None = Field(None, ge=1, le=4096)
    """Convolution filters of each height from 1 to window."""
    n_vertical: int | None = Field(None, ge=1, le=4096)
    """Convolution filters along time."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout of embeddings, hidden states, attention and what filters give."""
    max_length: int = Field(50, ge=2, le=10_000)
    """Longest sequence, in items, that the encoder reads; older items are cut off at prediction."""

    def options(self) -> dict[str, Any]:
        """What the backbone reads, by name: the arguments of its constructor."""
        return {name: getattr(self, name) for name in encoder_entry(self.backbone).defaults}

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        backbone = values.get("backbone", DEFAULT_BACKBONE)
        if not isinstance(backbone, str) or backbone not in ENCODERS:
            return values  # the field's own check says so
        defaults = ENCODERS[backbone].defaults
        return {**values, **{name: value for name, value in defaults.items() if values.get(name) is None}}

    @field_validator("backbone")
    @classmethod
    def _registered(cls, backbone: str) -> str:
        try:
            encoder_entry(backbone)
        except SettingsError as error:
            raise ValueError(f"{error.problem.rstrip('.')}; known: {', '.join(sorted(ENCODERS))}") from error
        return backbone

    @field_validator("*")
    @classmethod
    def _read_by_the_backbone(cls, value: Any, info: ValidationInfo) -> Any:
        backbone = info.data.get("backbone")
        if value is None or backbone is None or info.field_name in ENCODERS[backbone].defaults:
            return value
        raise ValueError(f"{backbone} does not read this; it reads {', '.join(sorted(ENCODERS[backbone].defaults))}")

    @model_validator(mode="after")
    def _fit_together(self) -> "EncoderSettings":
        if self.n_heads is not None and self.hidden_size % self.n_heads:
            raise ValueError(f"n_heads = {self.n_heads} does not divide hidden_size = {self.hidden_size}")
        if self.window is not None and self.window > self.max_length:
            raise ValueError(f"window = {self.window} is longer than max_length = {self.max_length}")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_read(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if value is not None}


class TrainingSettings(Settings):
    """The training of a sequential recommender."""

    learning_rate: float = Field(2e-3, gt=0, le=1)
    """Adam's step size (the peak, if a schedule is set)."""
    schedule: Schedule = Schedule.COSINE
    """Course of the learning rate after warm-up."""
    warmup_steps: int = Field(0, ge=0)
    """Optimiser steps over which the learning rate rises from zero."""
    weight_decay: float = Field(0.0, ge=0, le=1)
    """Decoupled weight decay (AdamW)."""
    batch_positions: int = Field(1024, ge=1)
    """Positions that one optimiser step predicts from: users x padded length, or prefixes where the backbone is not
    causal."""
    n_negatives: int | None = Field(None, ge=1)
    """Items, drawn anew at every step, that stand for the catalogue in the softmax; null takes all of it."""
    max_epochs: int = Field(30, ge=1)
    """Passes over the training sequences at the most."""
    patience: int | None = Field(10, ge=1)
    """Epochs without a better validation NDCG@10 before training ends; null trains max_epochs and keeps the
    last, and then validation targets are not read at all."""
    learn_repeats: bool = True
    """Whether two learned numbers are added to the scores of a sequence's last item and of the items before it, so that
    the model can tell whether people come back to items; validation items, if read, then move them to where these rank
    best. The paper's backbones do not have it."""
    item_std: float = Field(0.02, gt=0, le=10)
    """Standard deviation of what the item table starts from: of the ID embeddings' noise, of the clusters' and of
    (projected) knowledge. Encoders that normalise what they read want it small, others larger."""
    bf16: bool = False
    """Activations in bfloat16; for GPUs, and for CPUs with avx512_bf16 or AMX."""
    seed: int = Field(1, ge=0, lt=2**31)
    """Seed of initialisation, order and dropout."""


class Fusion(StrEnum):
    """How knowledge embeddings enter the item table."""

    GATE = "gate"
    """The paper's: an element-wise gate between the ID embedding and the projected knowledge."""
    SUM = "sum"
    """The ID embedding plus the projected knowledge."""
    CONCAT = "concat"
    """A projection of the two side by side."""
    INIT = "init"
    """The ID embedding starts from the knowledge instead of noise."""


class KnowledgeSource(StrEnum):
    """What +P2Rec's item table is given; all but ``tuned`` are ablations."""

    TUNED = "tuned"
    """h_v, the fine-tuned language model's state of the item."""
    UNTUNED = "untuned"
    """The same language model's state without fine-tuning: adapters that change nothing, a random projector."""
    TEXT = "text"
    """The language model's embedding of the item's text, as it came."""
    BACKBONE = "backbone"
    """The pre-trained backbone's own item embeddings."""
    CATEGORIES = "categories"
    """The distribution over clusters that the fine-tuned language model tells for the item."""
    RANDOM = "random"
    """Noise."""


class FusionSettings(Settings):
    """How knowledge embeddings enter the item table (+P2Rec)."""

    kind: Fusion = Fusion.INIT
    """How they enter."""
    source: KnowledgeSource = KnowledgeSource.TUNED
    """Which embeddings enter."""
    item_text: bool = False
    """Whether the language model's embedding of an item's text, as it came, stands beside them, where the dataset has
    texts (not beside source = text or random). Worth trying where items have few interactions."""
    whitening: Whitening = Whitening.PCA
    """Treatment of the knowledge embeddings before projection."""
    n_components: int = Field(64, ge=1)
    """Principal components kept (whitening = pca)."""
    trainable: bool = False
    """Whether the knowledge embeddings are fine-tuned with the recommender (kind = gate, sum, concat)."""
    smoothing: float = Field(0.0, ge=0, le=1)
    """Part of an item's vector that comes from the vectors of its nearest items by knowledge; 0 is the paper's. Worth
    trying where items have few interactions."""
    n_neighbours: int = Field(10, ge=1)
    """How many nearest items these are (smoothing > 0)."""
    temperature: float = Field(0.1, gt=0)
    """Their weights are a softmax of cosine / temperature (smoothing > 0)."""

    @model_validator(mode="after")
    def _starts_from_what_tells_most(self) -> "FusionSettings":
        if self.kind is Fusion.INIT and self.whitening is not Whitening.PCA:
            raise ValueError(
                "kind = init starts from the first dimensions, and these tell most only with whitening = pca, not with"
                f" {self.whitening}; take that, or kind = gate, sum or concat"
            )
        return self


class RecommenderSettings(Settings):
    """A sequential recommender: encoder and training."""

    encoder: EncoderSettings = EncoderSettings()
    training: TrainingSettings = TrainingSettings()
