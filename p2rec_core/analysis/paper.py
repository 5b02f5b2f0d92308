"""The paper's own figures (Table 2), to stand beside ours."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from p2rec_core.analysis.results import Roles, canonical_method, method_order
from p2rec_core.analysis.significance import METRICS

LITERATURE = "literature"
"""Arm of the methods that the paper compares with and that are not built on a backbone."""

ARMS = ("base", "ci", "p2rec")

_TABLE = Path(__file__).with_name("paper_table2.csv")


@dataclass(frozen=True)
class PaperRow:
    """One method and arm on one dataset, as the paper reports it.

    Attributes:
        dataset: "beauty", "ml-1m" or "yelp".
        method: The backbone, or a method of the literature.
        arm: "base", "ci", "p2rec" or ``LITERATURE``.
        values: Metric → value.
        starred: Metrics that the paper marks as significantly better than the best baseline.
    """

    dataset: str
    method: str
    arm: str
    values: dict[str, float]
    starred: frozenset[str]


@cache
def paper_rows() -> tuple[PaperRow, ...]:
    """Every row of the paper's Table 2."""
    with _TABLE.open(encoding="utf-8", newline="") as file:
        lines = (line for line in file if not line.startswith("#"))
        return tuple(
            PaperRow(
                row["dataset"],
                row["method"],
                row["arm"],
                {metric: float(row[metric]) for metric in METRICS},
                frozenset(row["starred"].split()),
            )
            for row in csv.DictReader(lines)
        )


def paper_row(dataset: str, method: str, arm: str, roles: Roles | None = None) -> PaperRow | None:
    """The paper's row of one of our arms; None where the paper has none.

    Args:
        dataset: Our name of the dataset.
        method: Our name of the method.
        arm: Our name of the arm.
        roles: Which of our arms are the paper's; without it, arms are the paper's.
    """
    if roles is not None and method in roles.standalone:
        arm = LITERATURE
    elif roles is not None:
        arm = dict(zip(roles.main, ARMS, strict=True)).get(arm, "")
    wanted = (dataset, canonical_method(method), arm)
    return next((r for r in paper_rows() if (r.dataset, r.method, r.arm) == wanted), None)


def literature_rows(dataset: str) -> list[PaperRow]:
    """The paper's rows of methods without a backbone, by name."""
    rows = [row for row in paper_rows() if row.dataset == dataset and row.arm == LITERATURE]
    return sorted(rows, key=lambda row: method_order(row.method))


def paper_gain(dataset: str, method: str, arm: str, reference: str, metric: str) -> float | None:
    """Relative gain of an arm over another in the paper; None where the paper has not both."""
    row, other = paper_row(dataset, method, arm), paper_row(dataset, method, reference)
    return None if row is None or other is None else row.values[metric] / other.values[metric] - 1


def paper_gains(arm: str, reference: str, metric: str) -> Iterator[tuple[str, str, float]]:
    """(dataset, method, relative gain) of every cell of the paper's Table 2."""
    for row in paper_rows():
        gain = paper_gain(row.dataset, row.method, arm, reference, metric) if row.arm == arm else None
        if gain is not None:
            yield row.dataset, row.method, gain
