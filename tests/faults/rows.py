"""What came of injections, counted, and the table that is printed of it."""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Fate(StrEnum):
    """What came of an injection."""

    DETECTED = "detected"
    """Refused, or passed over with a note, and the file is named."""
    HARMLESS = "harmless"
    """Everything that a reader sees is right, as if nothing had been injected."""
    LOST = "lost"
    """Something that was published before cannot be read any more."""
    WRONG = "silently wrong"
    """A reader sees something that was never published."""


@dataclass
class Row:
    """One kind of injection.

    Attributes:
        part: The part of the suite.
        what: What was injected.
        counts: How often, by what came of it.
        problems: What went wrong where something was lost or silently wrong, or a promise was not kept.
        facts: Other figures, such as the longest wait for a lock.
        wall_s: Seconds that it took.
    """

    part: str
    what: str
    counts: dict[Fate, int] = field(default_factory=lambda: dict.fromkeys(Fate, 0))
    problems: list[str] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)
    wall_s: float = 0.0

    @property
    def n(self) -> int:
        """Injections in all."""
        return sum(self.counts.values())

    def add(self, fate: Fate, problem: str = "", n: int = 1) -> None:
        """Count what came of injections; ``problem`` says what was not as it should be."""
        self.counts[fate] += n
        if problem:
            self.problems.append(problem)

    def most(self, name: str, value: float) -> None:
        """Keep the largest value of a figure."""
        self.facts[name] = max(value, self.facts.get(name, value))

    @property
    def kept(self) -> bool:
        """Whether all that is promised was kept."""
        return self.n > 0 and not (self.counts[Fate.LOST] or self.counts[Fate.WRONG] or self.problems)

    def to_json(self) -> dict[str, Any]:
        """The row as JSON values."""
        counts = {str(fate): n for fate, n in self.counts.items()}
        return asdict(self) | {"counts": counts, "n": self.n, "kept": self.kept}


class Timed:
    """Notes the seconds of a block in a row."""

    def __init__(self, row: Row) -> None:
        self.row = row

    def __enter__(self) -> Row:
        self._begun = time.monotonic()
        return self.row

    def __exit__(self, *error: object) -> None:
        self.row.wall_s = time.monotonic() - self._begun


def table(rows: Iterable[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| part | injected | how often | detected | harmless | lost | silently wrong | seconds | more |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        counts = " | ".join(f"{row.counts[fate]:,}" for fate in (Fate.DETECTED, Fate.HARMLESS, Fate.LOST, Fate.WRONG))
        facts = "; ".join(f"{name} {value:,.3g}" for name, value in row.facts.items())
        facts += "" if row.kept else f" NOT KEPT: {row.problems[0] if row.problems else 'nothing was injected'}"
        lines.append(f"| {row.part} | {row.what} | {row.n:,} | {counts} | {row.wall_s:.1f} | {facts} |")
    return "\n".join(lines)
