"""Settings of item clustering."""

from pydantic import Field

from p2rec_core.settings.base import Settings


class ClusterSettings(Settings):
    """k-means over the backbone's item embeddings (paper, Eq. 1)."""

    n_clusters: int = Field(50, ge=2, le=65_536)
    """K, the number of latent categories."""
    n_init: int = Field(4, ge=1, le=100)
    """Random starts; the one with the lowest inertia is kept."""
    max_iter: int = Field(300, ge=1)
    """Lloyd iterations per start at the most."""
    normalise: bool = True
    """Scale embeddings to unit length first, so that clusters follow direction and not popularity."""
    seed: int = Field(1, ge=0, lt=2**31)
    """Seed of the starts."""
