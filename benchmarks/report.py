"""What a benchmark leaves: rows of ratios as Markdown, JSON and a picture, and a line of history.

A run of hours is saved after every part, and one that is broken off goes on where it was: see ``Report.opened``.
"""

import argparse
import itertools
import json
import os
import signal
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from processes import BenchmarkError

from p2rec_core.errors import P2RecError
from storage.disk import replace_durably

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
class Part:
    """What was measured at one go, both sides in turn.

    Attributes:
        rows: Its lines of the table.
        runs: The raw results behind them.
    """

    rows: Sequence[Row]
    runs: Sequence[Any] = ()


@dataclass
class Report:
    """Everything that is known of a run.

    Attributes:
        folder: Where it is saved.
        name: Name of its files, such as ``peers``.
        title: Heading.
        peer_title: What the other side is called.
        facts: Command, machine, versions, sources, settings.
        limits: What ``machine_limits.limits`` gave; None if it was not asked for.
        parts: What is measured, by name.
        sittings: When the run was begun or gone on with, the load then and the minutes that it took.
        ended: When it ended, ISO 8601; None as long as it has not.
    """

    folder: Path
    name: str
    title: str
    peer_title: str
    facts: dict[str, Any]
    limits: dict[str, float | int | None] | None = None
    parts: dict[str, Part] = field(default_factory=dict)
    sittings: list[dict[str, Any]] = field(default_factory=list)
    ended: str | None = None

    @classmethod
    def opened(
        cls, options: argparse.Namespace, name: str, title: str, peer_title: str, facts: dict[str, Any]
    ) -> "Report":
        """A new report, or the one that is in the folder if all facts are the same.

        Every ratio is of runs side by side within one part, and a part that was broken off is measured again.

        Args:
            options: Has ``out``, the folder, and ``anew``, which takes nothing that is there.
            name: Name of its files.
            title: Heading.
            peer_title: What the other side is called.
            facts: Decide what is measured, and on what.

        Raises:
            BenchmarkError: What is in the folder under this name is no report.
        """
        report = cls(options.out, name, title, peer_title, facts)
        content = None if options.anew else _saved(report.path("json"))
        # as the file has it, with lists for tuples
        told = json.loads(json.dumps(facts))
        others = [fact for fact, value in told.items() if content and content["facts"].get(fact) != value]
        if others:
            print(f"{report.path('json')} has other {', '.join(others)}: beginning anew.", flush=True)
        elif content:
            report.facts, report.limits, report.sittings = (content[n] for n in ("facts", "limits", "sittings"))
            for part, runs in content["runs"].items():
                report.parts[part] = Part([_read_row(row) for row in content["rows"] if row["part"] == part], runs)
            report.ended = content["ended"]
        if report.ended is None:
            report._sit_down()
        return report

    def path(self, suffix: str) -> Path:
        """One of its files."""
        return self.folder / f"{self.name}.{suffix}"

    def _sit_down(self) -> None:
        if self.sittings:
            there = ", ".join(self.parts) or "nothing"
            print(f"{self.path('json')} was broken off; going on. Measured already: {there}.", flush=True)
        self.sittings.append(
            {
                "begun": datetime.now(UTC).isoformat(timespec="seconds"),
                "load average": ", ".join(f"{value:.2f}" for value in os.getloadavg()),
                "minutes": 0.0,
            }
        )
        self.save()

    def measure(self, part: str, measure: Callable[[], Part]) -> None:
        """Measure a part and save, unless it is there from a run that was broken off.

        Args:
            part: Its name.
            measure: Does it.
        """
        if part not in self.parts:
            print(f"{part} …", flush=True)
            self.parts[part] = measure()
            self.save()

    @property
    def rows(self) -> list[Row]:
        """The table."""
        return list(itertools.chain.from_iterable(part.rows for part in self.parts.values()))

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
        lines += [f"- {name}: {_told(value)}" for name, value in {**self.facts, "sittings": self.sittings}.items()]
        return "\n".join(lines) + "\n"

    def save(self) -> None:
        """Write ``NAME.json``, ``NAME.md`` and, where there are ratios, ``NAME.png``."""
        sitting = self.sittings[-1]
        sat = datetime.now(UTC) - datetime.fromisoformat(sitting["begun"])
        sitting["minutes"] = round(sat.total_seconds() / 60, 1)
        rows = [
            {"part": name}
            | asdict(row)
            | {"ratios": row.ratios, "met": row.met, "share_of_limit": row.share(self.f32_gflops)}
            for name, part in self.parts.items()
            for row in part.rows
        ]
        content = {
            "ended": self.ended,
            "facts": self.facts,
            "sittings": self.sittings,
            "limits": self.limits,
            "rows": rows,
            "runs": {name: list(part.runs) for name, part in self.parts.items()},
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in (("json", json.dumps(content, indent=1) + "\n"), ("md", self.markdown())):
            replace_durably(self.path(suffix), text.encode(), scratch=self.folder)
        if any(row.ratios for row in self.rows):
            _plot(self, self.path("png"))

    def history_line(self) -> str:
        """The run as one line of JSON, without the raw results."""
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
        kept = {
            "date": self.ended,
            "name": self.name,
            "facts": self.facts,
            "sittings": self.sittings,
            "limits": self.limits,
            "rows": rows,
        }
        return json.dumps(kept, ensure_ascii=False)

    def finish(self, history: Path | None) -> None:
        """Save as ended, and append to the history where one is named.

        Args:
            history: File of history, one JSON value a line; made if needed. None keeps none.
        """
        self.ended = datetime.now(UTC).isoformat(timespec="seconds")
        self.save()
        if history is not None:
            history.parent.mkdir(parents=True, exist_ok=True)
            with history.open("a", encoding="utf-8", newline="\n") as file:
                file.write(self.history_line() + "\n")


def _saved(path: Path) -> dict[str, Any] | None:
    """The report in a file, if there is one.

    Raises:
        BenchmarkError: The file is no report.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        _ = content["ended"], content["sittings"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(
            f"{path} is no report of this version ({error!r}). Name another --out, or replace it with --anew."
        ) from error
    return content


def _read_row(values: Mapping[str, Any]) -> Row:
    """A row as ``Report.save`` wrote it."""
    return Row(**{each.name: values[each.name] for each in fields(Row)})


def measured(
    opened: Callable[[argparse.Namespace], Report],
    measure: Callable[[argparse.Namespace, Report], None],
    options: argparse.Namespace,
) -> int:
    """Measure what is not there yet, save and print, or say why not.

    Args:
        opened: Gives the report.
        measure: Measures its parts.
        options: Has ``out``, ``anew`` and ``history``.

    Returns:
        The exit status of the benchmark.
    """
    # what a part has started ends with it, as after Ctrl-C
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        report = opened(options)
        there = report.ended is not None
        if not there:
            measure(options, report)
            report.finish(options.history)
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    except P2RecError as error:
        print(error.problem, error.remedy, file=sys.stderr)
        return error.exit_status
    finally:
        signal.signal(signal.SIGTERM, before)
    print(f"\n{report.markdown()}\nkept in {report.path('md')}, .json and .png")
    if there:
        print(f"All of it was measured before, until {report.ended}, with the same sources; --anew measures again.")
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
