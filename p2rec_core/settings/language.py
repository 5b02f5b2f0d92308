"""Settings of the language model, its fine-tuning and the item knowledge."""

from enum import StrEnum

from pydantic import Field

from p2rec_core.language.identity import MINILM, RANDOM_MODELS
from p2rec_core.settings.base import Settings


class Dtype(StrEnum):
    """Number format of the language model's frozen weights and activations; on a CPU of its linear layers' weights and
    products alone."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Quantisation(StrEnum):
    """Width of the language model's frozen weights (CUDA only, needs bitsandbytes)."""

    NONE = "none"
    INT8 = "int8"
    NF4 = "nf4"


class Pooling(StrEnum):
    """Which hidden states become the knowledge embedding h."""

    LAST = "last"
    """The state of the last response token (the paper's choice; natural for causal models)."""
    MEAN = "mean"
    """The mean over the items' and the response's tokens (natural for encoders)."""


class LanguageModelSettings(Settings):
    """Which language model is used and how it is addressed."""

    name_or_path: str = Field(
        MINILM,
        min_length=1,
        description=f"A built-in name (``{MINILM}``; with weights drawn at random ``{'``, ``'.join(RANDOM_MODELS)}``), "
        "a directory with safetensors weights, or the name of a model in the local Hugging Face cache.",
    )
    revision: str | None = None
    """Commit of the model repository; only for names."""
    dtype: Dtype = Dtype.FLOAT32
    """Number format of the frozen weights and activations; on a CPU of linear layers' weights and products alone, which
    is faster where it has avx512_bf16 or AMX, and much slower where not."""
    quantisation: Quantisation = Quantisation.NONE
    """Width of the frozen weights (CUDA only, needs bitsandbytes)."""
    instruction: str = "User's purchases:"
    """Text before the items; ``{n_clusters}`` stands for K (paper, section 4.1.2)."""
    response: str = "Preferences:"
    """Text after the items."""
    pooling: Pooling = Pooling.MEAN
    """Which hidden states become the knowledge embedding h."""
    item_text: bool = True
    """Whether the language model reads the items' texts beside the backbone's embeddings, where the dataset has texts;
    the paper's does not."""
    max_text_tokens: int = Field(64, ge=4, le=8192)
    """Tokens of an item's text that are read."""


class FinetuneSettings(Settings):
    """User-level supervised fine-tuning (paper, Eq. 2-4)."""

    lora_rank: int = Field(8, ge=1, le=1024)
    """Rank of the LoRA matrices."""
    lora_alpha: float = Field(16, gt=0)
    """Scale of the LoRA matrices, before it is divided by the rank."""
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    """Dropout of what the LoRA matrices read."""
    lora_targets: tuple[str, ...] | None = None
    """Names of the linear layers that LoRA adapts; null adapts the attention's query and value projections."""
    learning_rate: float = Field(2e-3, gt=0, le=1)
    """Peak step size of LoRA matrices, projector and head."""
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    """Part of all steps over which the learning rate rises; it then falls as a cosine."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Norm that a step's gradient is cut to."""
    batch_users: int = Field(64, ge=1)
    """Users in one optimiser step."""
    micro_batch_tokens: int = Field(8192, ge=64)
    """Tokens that go through the model at once; changes memory and speed, not the objective."""
    epochs: int = Field(3, ge=1)
    """Passes over all users."""
    max_length: int = Field(50, ge=1)
    """Most recent training items of a user that the language model reads."""
    holdout_fraction: float = Field(0.02, ge=0, lt=0.5)
    """Part of the users whose preferences are not trained on; the reconstruction error is reported on them."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass, to save memory."""
    seed: int = Field(1, ge=0, lt=2**31)
    """Seed of initialisation, order and dropout."""


class E4SRecSettings(Settings):
    """E4SRec (Li et al. 2023): a language model that reads item vectors and scores the whole catalogue.

    Defaults are those of the released code, but for the two that concern histories.
    """

    instruction: str = (
        "Below is an instruction that describes a task, together with an input that gives it context."
        " Write a response that completes the request appropriately.\n\n"
        "### Instruction:\nGiven the user's purchase history, predict next possible item to be purchased.\n\n"
        "### Input:\n"
    )
    """Text before the items."""
    response: str = "\n### Response:\n"
    """Text after the items."""
    pooling: Pooling = Pooling.LAST
    """Which hidden states the head reads; an encoder's last is that of ``[SEP]``."""
    lora_rank: int = Field(16, ge=1, le=1024)
    """Rank of the LoRA matrices."""
    lora_alpha: float = Field(16, gt=0)
    """Scale of the LoRA matrices, before it is divided by the rank."""
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    """Dropout of what the LoRA matrices read."""
    lora_targets: tuple[str, ...] | None = None
    """Names of the linear layers that LoRA adapts; null adapts all projections of the feed-forward networks."""
    learning_rate: float = Field(3e-4, gt=0, le=1)
    """Peak step size of LoRA matrices, projector and head."""
    warmup_steps: int = Field(100, ge=0)
    """Steps over which the learning rate rises; it then falls as a cosine."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Norm that a step's gradient is cut to."""
    batch_instances: int = Field(16, ge=1)
    """Instances in one optimiser step."""
    micro_batch_tokens: int = Field(8192, ge=64)
    """Tokens that go through the model at once; changes memory and speed, not the objective."""
    epochs: int = Field(3, ge=1)
    """Passes over the instances."""
    max_steps: int | None = Field(None, ge=1)
    """Bound of the optimiser steps, for a limited budget; null trains all epochs."""
    patience: int | None = Field(None, ge=1)
    """Epochs without a better validation NDCG@10 before training ends; null validates nothing, trains all epochs
    and keeps the last state, as released."""
    n_last_targets: int | None = Field(50, ge=1)
    """Most recent training items of a user that are targets; null takes all."""
    max_history: int | None = Field(50, ge=1)
    """Most recent items before a target that are read; null reads all, as released."""
    drop_empty_history: bool = True
    """Leave out targets with nothing before them; the released code trains on them too."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass, to save memory."""
    seed: int = Field(1, ge=0, lt=2**31)
    """Seed of initialisation, order and dropout."""


class CostSettings(Settings):
    """The measurement of what the language model costs P2Rec and E4SRec (paper, RQ2)."""

    sample_tokens: int | None = Field(100_000, ge=1)
    """Tokens of an epoch that are timed, for each method and phase; null times the whole epoch."""
    step_tokens: int | None = Field(None, ge=1)
    """Tokens of an optimiser step, on average, for both methods; null leaves each its own batch size."""
    rounds: int = Field(4, ge=1, le=1000)
    """How often the methods take turns."""
    warmup_steps: int = Field(1, ge=1)
    """Steps before each timed part that are not timed."""
    shared_prefix: bool = True
    """Whether a causal model computes the instruction once per micro-batch, in both methods."""
    seed: int = Field(1, ge=0, lt=2**31)
    """Seed of the sample."""
