"""Settings of the language model, its fine-tuning and the item knowledge."""

from enum import StrEnum

from pydantic import Field

from p2rec_core.settings.base import Settings


class Dtype(StrEnum):
    """Number format of the language model's frozen weights and activations."""

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

    name_or_path: str = Field("all-MiniLM-L6-v2", min_length=1)
    """A built-in name (``all-MiniLM-L6-v2``, ``random-llama-small``), a directory with safetensors weights,
    or the name of a model in the local Hugging Face cache."""
    revision: str | None = None
    """Commit of the model repository; only for names."""
    dtype: Dtype = Dtype.FLOAT32
    quantisation: Quantisation = Quantisation.NONE
    instruction: str = (
        "Given the user's purchase history, predict the user's distribution among {n_clusters} purchase preferences."
    )
    """Text before the items; ``{n_clusters}`` stands for K (paper, section 4.1.2)."""
    response: str = "Response:"
    """Text after the items."""
    pooling: Pooling = Pooling.MEAN


class FinetuneSettings(Settings):
    """User-level supervised fine-tuning (paper, Eq. 2-4)."""

    lora_rank: int = Field(8, ge=1, le=1024)
    lora_alpha: float = Field(16, gt=0)
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    lora_targets: tuple[str, ...] | None = None
    """Names of the linear layers that LoRA adapts; null adapts the attention's query and value projections."""
    learning_rate: float = Field(1e-3, gt=0, le=1)
    """Peak step size of LoRA matrices, projector and head."""
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    """Part of all steps over which the learning rate rises; it then falls as a cosine."""
    max_grad_norm: float = Field(1.0, gt=0)
    batch_users: int = Field(128, ge=1)
    """Users in one optimiser step."""
    micro_batch_tokens: int = Field(8192, ge=64)
    """Tokens that go through the model at once; changes memory and speed, not the objective."""
    epochs: int = Field(2, ge=1)
    max_length: int = Field(50, ge=1)
    """Most recent training items of a user that the language model reads."""
    holdout_fraction: float = Field(0.02, ge=0, lt=0.5)
    """Part of the users whose preferences are not trained on; the reconstruction error is reported on them."""
    gradient_checkpointing: bool = False
    seed: int = Field(1, ge=0, lt=2**31)
