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
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from interactions import Interactions, datasets_directory, written
from machine_limits import limits
from peer_environment import LOCK, peer_python
from peer_options import parsed
from peer_parts import EVALUATE_REPEATS, PEER_BATCH, Sides, evaluate_part, ingest_part, load_part, pace_part, train_part
from report import Part, Report, measured
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


def opened(options: argparse.Namespace) -> Report:
    """The report of what was asked for."""
    return Report.opened(options, "peers", "P2Rec beside RecBole and pandas", "the other side", facts(options))


def measure(options: argparse.Namespace, report: Report) -> None:
    """Measure everything that was asked for."""
    if not options.quick and datasets_directory() is None:
        print(f"{DIRECTORY_VARIABLE} is not set: measuring the synthetic sample, which says little of real data.")
    keep_to(options.threads)
    if "limits" in options.parts:
        report.limits = report.limits or limits(options.threads)
    if set(options.parts) == {"limits"}:
        return
    python = peer_python(options.peer_environment, base_python=options.peer_python).absolute()
    sides = Sides(
        python, options.threads, options.caser_length, options.width, options.our_epochs, options.pace_seconds
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = written(options.dataset, folder, max_users=options.users)
        loaded = written(options.load_dataset, folder, max_users=options.users)
        report.facts["data"] = [data.facts(), loaded.facts()]
        for name, part in parts(options, sides, folder, data, loaded):
            report.measure(name, part)


def parts(
    options: argparse.Namespace,
    sides: Sides,
    folder: Path,
    data: Interactions,
    loaded: Interactions,
) -> Iterator[tuple[str, Callable[[], Part]]]:
    """What was asked for: the names of its parts, and what measures each.

    Args:
        options: The command line.
        sides: How either side is run.
        folder: For interactions that are drawn.
        data: To train and evaluate on.
        loaded: To load.
    """
    if "ingest" in options.parts:
        for millions in options.ingest_millions:
            n_rows = round(float(millions) * 1e6)
            yield f"ingest, {millions} M", partial(ingest_part, sides, folder, n_rows, options.rounds)
    if "load" in options.parts:
        yield f"load, {loaded.title}", partial(load_part, sides, loaded, options.rounds)
    if "evaluate" in options.parts:
        yield f"evaluate, {data.title}", partial(evaluate_part, sides, data, options.rounds, EVALUATE_REPEATS)
    if "pace" in options.parts:
        each = itertools.product(dict.fromkeys((data, loaded)), options.pace_widths, options.backbones)
        for taken, width, backbone in each:
            name = f"pace, {taken.title}, {backbone}, d {width}"
            wide = replace(sides, width=int(width))
            yield name, partial(pace_part, wide, taken, backbone, options.train_rounds)
    if "train" in options.parts:
        for backbone in options.backbones:
            name = f"train, {data.title}, {sides.named(backbone)}"
            yield name, partial(train_part, sides, data, backbone, options.train_rounds, options.epochs)


if __name__ == "__main__":
    sys.exit(measured(opened, measure, parsed()))
