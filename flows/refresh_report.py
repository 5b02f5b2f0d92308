"""What a refresh did, as a value that travels between processes and is kept with the snapshot."""

from dataclasses import dataclass
from typing import Any

from flows.report import RunReport
from p2rec_core.gate import Check


@dataclass(frozen=True)
class RefreshReport:
    """What a refresh did.

    Attributes:
        run: Its slots; ``snapshot`` is the current snapshot afterwards.
        base: Number of the snapshot that it went on from.
        made: Number of the snapshot that it made; None where there was nothing new.
        tuning: Why the language model was tuned anew, or was not.
        tuned: Whether it was.
        changes: What is different from the base, by measure; see the table ``changes``.
        checks: The quality gate.
        refused: Why the snapshot did not become the current one; empty where it did.
    """

    run: RunReport
    base: int
    made: int | None
    tuning: str
    tuned: bool
    changes: dict[str, float]
    checks: tuple[Check, ...]
    refused: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "run": self.run.to_json(),
            "base": self.base,
            "made": self.made,
            "tuning": self.tuning,
            "tuned": self.tuned,
            "changes": self.changes,
            "checks": [check.to_json() for check in self.checks],
            "refused": list(self.refused),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "RefreshReport":
        """The inverse of ``to_json``."""
        return cls(
            **values
            | {
                "run": RunReport.from_json(values["run"]),
                "checks": tuple(Check(**check) for check in values["checks"]),
                "refused": tuple(values["refused"]),
            }
        )


def check_rows(report: RefreshReport) -> list[dict[str, Any]]:
    """The quality gate, a row per check."""
    return [
        {
            "check": check.name.rstrip(","),
            "found": "not measurable" if check.value is None else round(check.value, 4),
            "allowed": f"{'≤' if check.at_most else '≥'} {check.bound:g}",
            "holds": "yes" if check.passed else "NO",
            "setting": f"refresh.{check.setting}",
        }
        for check in report.checks
    ]


def change_rows(report: RefreshReport) -> list[dict[str, Any]]:
    """What is different, a row per measure."""
    return [{"measure": name, "value": round(value, 4)} for name, value in report.changes.items()]


def renewed(report: RefreshReport) -> str:
    """How many items went through the language model; empty where nothing was computed."""
    if "knowledge" not in report.run.results:
        return ""
    info = report.run.results["knowledge"].info
    n_embedded = info.get("n_embedded", info["n_items"])
    return f"{n_embedded} of {info['n_items']} items were embedded by the language model"


def conclusion(report: RefreshReport) -> str:
    """What became of it, in a sentence."""
    if report.made is None:
        return f"Nothing new since snapshot {report.base}: it stays the current one."
    if report.refused:
        return f"Snapshot {report.made} was made and refused; snapshot {report.run.snapshot} stays the current one."
    return f"Snapshot {report.made} is the current one now; before it was {report.base}."
