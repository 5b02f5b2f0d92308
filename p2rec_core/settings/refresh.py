"""Settings of the nightly refresh: how much is computed anew, and what the new snapshot has to hold."""

from enum import StrEnum

from pydantic import Field

from p2rec_core.settings.base import Settings


class FinetunePolicy(StrEnum):
    """When a refresh fine-tunes the language model anew."""

    ALWAYS = "always"
    NEVER = "never"
    ON_DRIFT = "on_drift"
    """When what the model was tuned on has changed by more than a threshold since."""


class GateMetric(StrEnum):
    """A metric that recommenders are compared by."""

    NDCG = "NDCG"
    HR = "HR"


class GateSeen(StrEnum):
    """What the comparison does with items that the user had already."""

    KEEP = "keep"
    MASK = "mask"


class RefreshSettings(Settings):
    """The nightly refresh; an ordinary run reads none of these."""

    epochs: int = Field(8, ge=1)
    """Epochs at the most of a recommender that starts from the current one's weights."""
    learning_rate_scale: float = Field(1.0, gt=0, le=1)
    """Its learning rate, as a part of the ordinary one."""
    knowledge_tolerance: float = Field(0.2, ge=0, le=10)
    """An item goes through the language model again if what the model reads of it moved by more than this part of its
    length; without effect where the language model was tuned anew."""

    finetune: FinetunePolicy = FinetunePolicy.ON_DRIFT
    """When the language model is fine-tuned anew; otherwise the current adapter is used again."""
    tune_at_preference_drift: float = Field(0.7, ge=0)
    """Summed mean total variation between users' preferences since the last fine-tuning (finetune = on_drift)."""
    tune_at_moved_items: float = Field(1.0, ge=0)
    """Summed share of items that changed their cluster since the last fine-tuning (finetune = on_drift)."""
    tune_at_new_items: float = Field(0.25, ge=0)
    """Summed share of items that are new since the last fine-tuning (finetune = on_drift)."""

    gate_metric: GateMetric = GateMetric.NDCG
    """What the current recommenders and the new ones are compared by, on the new hold-out."""
    gate_k: int = Field(10, ge=1)
    """Cut-off of the metric."""
    gate_seen: GateSeen = GateSeen.KEEP
    """What the comparison does with items that the user had already."""
    max_metric_drop: float = Field(0.05, ge=0, le=1)
    """How much worse a new recommender may be, as a part of the current one's metric."""
    max_hold_out_drop: float = Field(0.3, ge=0, le=1)
    """How much worse the current recommenders may be on the new hold-out than on their own: more means that the new
    interactions are not like the old ones."""
    max_rows_lost: float = Field(0.01, ge=0, le=1)
    """Share of the current snapshot's interactions that may be missing."""
    max_rewritten_users: float = Field(0.1, ge=0, le=1)
    """Share of known users whose new history may be other than the old one and what followed."""
    max_vanished: float = Field(0.02, ge=0, le=1)
    """Share of known users, and of known items, that may be left without interactions."""
    max_preference_drift: float = Field(0.5, ge=0, le=1)
    """Mean total variation that there may be between users' preferences of the two nights."""
    min_cluster_agreement: float = Field(0.3, ge=0, le=1)
    """Share of known items that have to keep their cluster."""
    min_coverage: float = Field(0.5, ge=0, le=1)
    """Least number of different items in the lists of a new recommender, as a part of the current one's."""
