"""Settings for a dataset of one's own, by its size.

The general defaults are those of Amazon Beauty (12,101 items, 198,502 interactions) and the paper; the embedded sample
(480 items, 10,985 interactions) has others. What lies between goes by the number of items or interactions.
"""

from dataclasses import dataclass
from typing import Any

from p2rec_core.settings.pipeline import PipelineSettings

ITEMS_PER_CLUSTER = 40
"""The sample has 480 items in 12 clusters."""
ITEMS_PER_FINER_CLUSTER = 8
ITEMS_PER_COMPONENT = 15
FEW_INTERACTIONS = 50_000
"""Below, a step of the general batch size would be too large a part of an epoch."""
LONGEST = 200
_FEW = {"batch_positions": 512, "learning_rate": 5e-3, "max_epochs": 12}
"""The sample's training."""


@dataclass(frozen=True)
class DataSizes:
    """How large a dataset is, after its filter.

    Attributes:
        n_users: Users.
        n_items: Items.
        n_interactions: Interactions.
        longest: Length that nine of ten users' sequences do not exceed.
    """

    n_users: int
    n_items: int
    n_interactions: int
    longest: int


@dataclass(frozen=True)
class Proposal:
    """A value for a setting.

    Attributes:
        name: Its dotted name.
        value: JSON value.
        why: Why this one, in a few words; empty where there is nothing to say.
    """

    name: str
    value: Any
    why: str


def proposals(sizes: DataSizes) -> list[Proposal]:
    """Values that suit a dataset of this size; what is not among them has the general default.

    Args:
        sizes: How large the dataset is.
    """
    defaults = PipelineSettings()
    items = f"{sizes.n_items:,} items"
    n_clusters = max(2, min(defaults.clusters.n_clusters, sizes.n_items // ITEMS_PER_CLUSTER))
    n_finer = min(defaults.clusters.finer[0], sizes.n_items // ITEMS_PER_FINER_CLUSTER)
    n_components = max(1, min(defaults.fusion.n_components, sizes.n_items // ITEMS_PER_COMPONENT))
    found = [
        Proposal("clusters.n_clusters", n_clusters, f"{items}, about {ITEMS_PER_CLUSTER} or more in each"),
        Proposal("clusters.finer", [n_finer] if n_finer > n_clusters else [], items),
        Proposal("fusion.n_components", n_components, items),
    ]
    for section in ("backbone", "recommender"):
        found += _of_a_recommender(section, sizes, defaults)
    return found


def _of_a_recommender(section: str, sizes: DataSizes, defaults: PipelineSettings) -> list[Proposal]:
    """Length and training of the sequential recommender of a section, where the general ones do not suit.

    What suits is left to the backbone, which may have defaults of its own.
    """
    found = []
    general = defaults.recommender.encoder.max_length
    if sizes.longest > general:
        length = min(LONGEST, -(-sizes.longest // general) * general)
        why = f"nine of ten users have {sizes.longest} items at the most"
        found.append(Proposal(f"{section}.encoder.max_length", length, why))
    if sizes.n_interactions < FEW_INTERACTIONS:
        why = f"{sizes.n_interactions:,} interactions"
        found += [Proposal(f"{section}.training.{name}", value, why) for name, value in _FEW.items()]
    return found
