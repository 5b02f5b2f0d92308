"""Settings of sequential recommenders: the encoder, its training and what its item table is made of."""

from enum import StrEnum

from pydantic import Field, model_validator

from p2rec_core.settings.base import Settings


class Variant(StrEnum):
    """What a recommender knows of an item beside its id (paper, section 5.2)."""

    BASE = "base"
    """A learnable embedding per item."""
    CI = "ci"
    """Base plus a learnable embedding of the item's cluster."""
    P2REC = "p2rec"
    """A gate of the ID embedding and the projected knowledge embedding."""


class Backbone(StrEnum):
    """The sequence encoders of the registry."""

    SASREC = "sasrec"


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
    """The sequence encoder."""

    backbone: Backbone = Backbone.SASREC
    """Which sequence encoder."""
    hidden_size: int = Field(64, ge=1, le=4096)
    """Width d of item embeddings and hidden states."""
    n_layers: int = Field(2, ge=1, le=64)
    """Number of blocks."""
    n_heads: int = Field(2, ge=1, le=64)
    """Attention heads; has to divide hidden_size."""
    inner_size: int = Field(256, ge=1, le=65536)
    """Width of the feed-forward layer."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout of embeddings, hidden states and attention."""
    max_length: int = Field(50, ge=2, le=10_000)
    """Longest sequence, in items, that the encoder reads; older items are cut off at prediction."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "EncoderSettings":
        if self.hidden_size % self.n_heads:
            raise ValueError(f"n_heads = {self.n_heads} does not divide hidden_size = {self.hidden_size}")
        return self


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
    batch_positions: int = Field(2048, ge=1)
    """Positions (users x padded length) in one optimiser step."""
    max_epochs: int = Field(30, ge=1)
    """Passes over the training sequences at the most."""
    patience: int | None = Field(10, ge=1)
    """Epochs without a better validation NDCG@10 before training ends; null trains max_epochs and keeps the
    last, and then validation targets are not read at all."""
    bf16: bool = False
    """Activations in bfloat16; for GPUs."""
    seed: int = Field(1, ge=0, lt=2**31)
    """Seed of initialisation, order and dropout."""


class FusionSettings(Settings):
    """How knowledge embeddings enter the item table (+P2Rec)."""

    whitening: Whitening = Whitening.PCA
    """Treatment of the knowledge embeddings before projection."""
    n_components: int = Field(64, ge=1)
    """Principal components kept (whitening = pca)."""


class RecommenderSettings(Settings):
    """A sequential recommender: encoder and training."""

    encoder: EncoderSettings = EncoderSettings()
    training: TrainingSettings = TrainingSettings()
