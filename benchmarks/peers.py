"""P2Rec beside RecBole, and its ingest beside pandas, in one run.

    python benchmarks/peers.py --out DIRECTORY            hours: the other side trains ten epochs of every backbone
    python benchmarks/peers.py --out DIRECTORY --quick    minutes: the synthetic sample, small

Every measurement is a process of its own, both sides read the same file and have the same cores and threads. A ratio
is the other side's seconds or bytes over P2Rec's, so above 1 P2Rec needs less. The order of the sides alternates, so
that a machine that slows down or speeds up favours neither. See docs/how-to/benchmark.md.
"""

import argparse
import itertools
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from interactions import datasets_directory, drawn, written
from machine_limits import limits
from peer_environment import LOCK, peer_python
from peer_options import parsed
from peer_rows import EVALUATE_REPEATS, PEER_BATCH, Sides, evaluate_row, ingest_rows, load_row, pace_rows, train_rows
from report import Report, Row, measured
from run_facts import keep_to, run_facts

from storage.datasets import DIRECTORY_VARIABLE

SHOWN = (
    "parts",
    "backbones",
    "dataset",
    "load_dataset",
    "users",
    "epochs",
    "our_epochs",
    "rounds",
    "train_rounds",
    "caser_length",
    "width",
    "pace_widths",
    "pace_seconds",
    "ingest_millions",
    "clock",
    "threads",
)
"""Options that decide what is measured."""


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """What a reader of the numbers has to know."""
    pins = dict(line.split("==") for line in LOCK.read_text().splitlines() if "==" in line and line[0] != "#")
    return run_facts("peers.py", options, SHOWN) | {
        "the other side": {"RecBole": pins["recbole"], "pandas": pins["pandas"], "torch": pins["torch"]},
        "RecBole's settings": f"batch {PEER_BATCH}, Adam, cross-entropy, shape and dropout as P2Rec's; else its own",
        "P2Rec's settings": "its default recipe for the data set; time to NDCG is read off the curve",
    }


def measure(options: argparse.Namespace) -> Report:
    """Measure everything that was asked for; the report is saved after every part."""
    if not options.quick and datasets_directory() is None:
        print(f"{DIRECTORY_VARIABLE} is not set: measuring the synthetic sample, which says little of real data.")
    keep_to(options.threads)
    report = Report("peers", "P2Rec beside RecBole and pandas", "the other side", facts(options), None, [], {})
    if "limits" in options.parts:
        report = replace(report, limits=limits(options.threads))
    report.save(options.out)
    wanted = [part for part in options.parts if part != "limits"]
    if not wanted:
        return report
    python = peer_python(options.peer_environment, base_python=options.peer_python).absolute()
    sides = Sides(
        python, options.threads, options.caser_length, options.width, options.our_epochs, options.pace_seconds
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = written(options.dataset, folder, max_users=options.users)
        loaded = written(options.load_dataset, folder, max_users=options.users)
        report.facts["data"] = [data.facts(), loaded.facts()]
        if "ingest" in wanted:
            for millions in options.ingest_millions:
                print(f"ingest: {millions} million interactions", flush=True)
                file = drawn(folder, round(float(millions) * 1e6))
                _keep(report, f"ingest {millions}", options.out, *ingest_rows(sides, file, options.rounds))
        if "load" in wanted:
            print(f"load: {loaded.title}", flush=True)
            _keep(report, "load", options.out, *load_row(sides, loaded, options.rounds))
        if "evaluate" in wanted:
            print(f"evaluate: {data.title}", flush=True)
            _keep(report, "evaluate", options.out, *evaluate_row(sides, data, options.rounds, EVALUATE_REPEATS))
        if "pace" in wanted:
            for taken, width in itertools.product(dict.fromkeys((data, loaded)), options.pace_widths):
                print(f"pace: {taken.title}, d {width}", flush=True)
                for backbone in options.backbones:
                    rows, runs = pace_rows(replace(sides, width=int(width)), taken, backbone, options.train_rounds)
                    _keep(report, f"pace {taken.title} {backbone} {width}", options.out, rows, runs)
        if "train" in wanted:
            for backbone in options.backbones:
                print(f"train: {data.title}", flush=True)
                rows, runs = train_rows(sides, data, backbone, options.train_rounds, options.epochs)
                _keep(report, f"train {backbone}", options.out, rows, runs)
    return report


def _keep(report: Report, part: str, folder: Path, rows: Row | list[Row], runs: list[Any]) -> None:
    report.rows.extend([rows] if isinstance(rows, Row) else rows)
    report.runs[part] = runs
    report.save(folder)


if __name__ == "__main__":
    sys.exit(measured(measure, parsed()))
