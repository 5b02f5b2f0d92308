"""What a run did, as a value that travels between processes."""

from dataclasses import dataclass
from typing import Any

from tasks.stage import StageResult


@dataclass(frozen=True)
class RunReport:
    """What a flow run did.

    Attributes:
        dataset: The dataset.
        synthetic: Whether its data was drawn by a program.
        results: What became of each slot, in order.
        snapshot: Number of the dataset's current snapshot; None where the run did not publish one.
        wall_s: Seconds of the whole run.
        pushed: Where the snapshot was copied to, in words; None where that was not asked for.
        before: Number of the snapshot that was the current one before; None where there was none, or it still is.
    """

    dataset: str
    synthetic: bool
    results: dict[str, StageResult]
    snapshot: int | None
    wall_s: float
    pushed: str | None = None
    before: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "dataset": self.dataset,
            "synthetic": self.synthetic,
            "results": {name: result.to_json() for name, result in self.results.items()},
            "snapshot": self.snapshot,
            "wall_s": self.wall_s,
            "pushed": self.pushed,
            "before": self.before,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "RunReport":
        """The inverse of ``to_json``."""
        results = {name: StageResult.from_json(result) for name, result in values["results"].items()}
        return cls(**(values | {"results": results}))
