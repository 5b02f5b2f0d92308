"""Settings of item clustering."""

from pydantic import Field, field_validator

from p2rec_core.settings.base import Settings


class ClusterSettings(Settings):
    """k-means over the backbone's item embeddings (paper, Eq. 1)."""

    n_clusters: int = Field(50, ge=2, le=65_536)
    """K, the number of latent categories."""
    finer: tuple[int, ...] = (500,)
    """Numbers of clusters of further groupings whose preferences the language model tells beside; none is the
    paper's."""
    n_init: int = Field(4, ge=1, le=100)
    """Random starts; the one with the lowest inertia is kept."""
    max_iter: int = Field(300, ge=1)
    """Lloyd iterations per start at the most."""
    normalise: bool = True
    """Scale embeddings to unit length first, so that clusters follow direction and not popularity."""
    seed: int = Field(1, ge=0, lt=2**31)
    """Seed of the starts."""

    @field_validator("finer")
    @classmethod
    def _at_least_two(cls, finer: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(finer)) < len(finer) or any(k < 2 for k in finer):
            raise ValueError(f"finer groupings have distinct numbers of clusters from 2, not {list(finer)}")
        return finer
