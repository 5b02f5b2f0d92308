"""What a benchmark leaves: rows of ratios as Markdown, JSON and a picture, and a line of history."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from processes import BenchmarkError

from p2rec_core.errors import P2RecError

GIB = 1 << 30


@dataclass(frozen=True)
class Row:
    """One line of the table; the fewer seconds or bytes, the better.

    Attributes:
        quantity: What was measured.
        dataset: Data, in words.
        model: Backbone or language model; empty where there is none.
        unit: ``s`` or ``GiB``.
        peer: The other side's values, one per pair of runs side by side; empty where nothing is compared.
        ours: P2Rec's values, likewise; None where a run did not get there.
        wanted: Ratio to reach; None where there is none for this.
        note: What a reader should know.
        gflop: Multiplications and additions of matrix products in one run of ours, in 1e9; None where the work is
            something else.
    """

    quantity: str
    dataset: str
    model: str
    unit: str
    peer: Sequence[float]
    ours: Sequence[float | None]
    wanted: float | None = None
    note: str = ""
    gflop: float | None = None

    @property
    def ratios(self) -> list[float]:
        """The other side's value over P2Rec's, of the pairs where both have one."""
        if not self.peer:
            return []
        return [peer / ours for peer, ours in zip(self.peer, self.ours, strict=True) if ours is not None]

    @property
    def met(self) -> bool | None:
        """Whether the median ratio is the wanted one or more; None where nothing is wanted.

        A run that did not get there counts against it.
        """
        if self.wanted is None:
            return None
        return None not in self.ours and statistics.median(self.ratios) >= self.wanted

    def share(self, f32_gflops: float | None) -> float | None:
        """The part of the machine's rate of float32 matrix multiplication that P2Rec reaches; None if unknown."""
        ours = [value for value in self.ours if value is not None]
        if self.gflop is None or not f32_gflops or not ours:
            return None
        return self.gflop / statistics.median(ours) / f32_gflops

    def cells(self, f32_gflops: float | None) -> list[str]:
        """The row as text: quantity, data, model, other side, P2Rec, ratio, spread, share of the limit, wanted."""
        ours = [value for value in self.ours if value is not None]
        missing = len(self.ours) - len(ours)
        ratio = f"{statistics.median(self.ratios):.3g}" if self.ratios else "-"
        spread = f"{min(self.ratios):.3g} to {max(self.ratios):.3g}" if self.ratios else "-"
        share = self.share(f32_gflops)
        wanted = "" if self.wanted is None else f"{self.wanted:g} ({'met' if self.met else 'not met'})"
        return [
            self.quantity,
            self.dataset,
            self.model,
            _shown(self.peer, self.unit),
            _shown(ours, self.unit) + (f", {missing} of {len(self.ours)} not reached" if missing else ""),
            ratio,
            spread,
            "" if share is None else f"{share:.0%}",
            wanted,
        ]


def _shown(values: Sequence[float], unit: str) -> str:
    return f"{statistics.median(values):.4g} {unit}" if values else "-"


@dataclass(frozen=True)
class Report:
    """Everything that is known of a run.

    Attributes:
        name: Name of its files, such as ``peers``.
        title: Heading.
        peer_title: What the other side is called.
        facts: Command, machine, versions, threads, settings.
        limits: What ``machine_limits.limits`` gave; None if it was not asked for.
        rows: The table.
        runs: The raw results behind it, by part.
    """

    name: str
    title: str
    peer_title: str
    facts: dict[str, Any]
    limits: dict[str, float | int | None] | None
    rows: list[Row]
    runs: dict[str, Any]

    @property
    def f32_gflops(self) -> float | None:
        """The machine's rate of float32 matrix multiplication; None if it was not measured."""
        return None if self.limits is None else self.limits["f32_gflops"]

    def markdown(self) -> str:
        """The table, the machine's limits and where it comes from."""
        header = ["", "data", "model", self.peer_title, "P2Rec", "ratio", "spread", "of f32 limit", "wanted"]
        lines = [f"# {self.title}", ""]
        if self.rows:
            cells = [row.cells(self.f32_gflops) for row in self.rows]
            lines += [_line(header), _line(["---"] * 3 + ["---:"] * 6), *map(_line, cells), ""]
            lines += [
                f"A ratio is {self.peer_title}'s value over P2Rec's. Values and ratios are medians of the runs.",
                "",
            ]
        notes = [
            f"- {', '.join(filter(None, (r.quantity, r.model, r.dataset)))}: {r.note}" for r in self.rows if r.note
        ]
        lines += [*notes, ""] if notes else []
        if self.limits is not None:
            bf16 = self.limits["bf16_gflops"]
            lines += [
                f"Limits of the machine with {self.limits['threads']} threads: matrix multiplication "
                f"{self.limits['f32_gflops']:.0f} GFLOP/s in float32 and "
                + ("no bfloat16 in hardware" if bf16 is None else f"{bf16:.0f} GFLOP/s in bfloat16")
                + f"; copying in memory {self.limits['copy_gb_per_s']:.1f} GB/s.",
                "",
            ]
        lines += [f"- {name}: {_told(value)}" for name, value in self.facts.items()]
        return "\n".join(lines) + "\n"

    def save(self, folder: Path) -> None:
        """Write ``NAME.md``, ``NAME.json`` and, where there are ratios, ``NAME.png``.

        Args:
            folder: Where to; made if needed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            asdict(row) | {"ratios": row.ratios, "met": row.met, "share_of_limit": row.share(self.f32_gflops)}
            for row in self.rows
        ]
        content = {"facts": self.facts, "limits": self.limits, "rows": rows, "runs": self.runs}
        (folder / f"{self.name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (folder / f"{self.name}.md").write_text(self.markdown(), encoding="utf-8")
        if any(row.ratios for row in self.rows):
            _plot(self, folder / f"{self.name}.png")

    def history_line(self, date: str) -> str:
        """The run as one line of JSON, without the raw results.

        Args:
            date: When it was, ISO 8601.
        """
        rows = [
            {
                "quantity": row.quantity,
                "dataset": row.dataset,
                "model": row.model,
                "unit": row.unit,
                "peer": statistics.median(row.peer) if row.peer else None,
                "ours": statistics.median(ours) if (ours := [v for v in row.ours if v is not None]) else None,
                "ratio": statistics.median(row.ratios) if row.ratios else None,
                "spread": [min(row.ratios), max(row.ratios)] if row.ratios else None,
                "wanted": row.wanted,
                "met": row.met,
            }
            for row in self.rows
        ]
        kept = {"date": date, "name": self.name, "facts": self.facts, "limits": self.limits, "rows": rows}
        return json.dumps(kept, ensure_ascii=False)

    def remember(self, history: Path, date: str) -> None:
        """Append the run to a file of history.

        Args:
            history: The file, one JSON value a line; made if needed.
            date: When it was, ISO 8601.
        """
        history.parent.mkdir(parents=True, exist_ok=True)
        with history.open("a", encoding="utf-8", newline="\n") as file:
            file.write(self.history_line(date) + "\n")

    def finish(self, folder: Path, history: Path | None, wall_s: float, now: datetime) -> None:
        """Save, append to the history where one is named, and print.

        Args:
            folder: Where to save.
            history: File of history; None keeps none.
            wall_s: Seconds that the run took.
            now: When it ended.
        """
        self.facts["wall"] = f"{wall_s / 60:.1f} minutes"
        self.save(folder)
        if history is not None:
            self.remember(history, now.isoformat(timespec="seconds"))
        print(f"\n{self.markdown()}\nkept in {folder / self.name}.md, .json and .png")


def measured(measure: Callable[[argparse.Namespace], Report], options: argparse.Namespace) -> int:
    """Measure, save and print, or say why not.

    Args:
        measure: Makes the report.
        options: Has ``out`` and ``history``.

    Returns:
        The exit status of the benchmark.
    """
    begun = time.perf_counter()
    try:
        report = measure(options)
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    except P2RecError as error:
        print(error.problem, error.remedy, file=sys.stderr)
        return error.exit_status
    report.finish(options.out, options.history, time.perf_counter() - begun, datetime.now(UTC))
    return 0


def _plot(report: Report, path: Path) -> None:
    """Ratios with their spread on a logarithmic axis, and the ratios to reach."""
    from matplotlib.figure import Figure

    rows = [row for row in report.rows if row.ratios][::-1]
    figure = Figure(figsize=(8, 1 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        axes.plot([min(row.ratios), max(row.ratios)], [place, place], color="tab:blue", linewidth=2)
        axes.plot(statistics.median(row.ratios), place, "o", color="tab:blue")
        if row.wanted is not None:
            axes.plot(row.wanted, place, "|", color="tab:red", markersize=12)
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [", ".join(filter(None, (r.quantity, r.model, r.dataset))) for r in rows])
    axes.set_xlabel(f"{report.peer_title} / P2Rec; the line is the spread, the red mark is the ratio to reach")
    figure.savefig(path, dpi=120)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _told(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_told(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(map(_told, value))
    return f"`{value}`" if isinstance(value, str) and value.startswith("python ") else str(value)
