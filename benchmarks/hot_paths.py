"""P2Rec's hot paths beside the plain way of writing them, in one run.

    python benchmarks/hot_paths.py --out DIRECTORY            ten minutes
    python benchmarks/hot_paths.py --out DIRECTORY --quick    two minutes: everything small

Ratios are what counts: machines are noisy, and both sides of a ratio are timed in turn. A ratio is the plain side's
seconds over P2Rec's. See docs/how-to/benchmark.md.
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from catalogue_paths import catalogue_rows
from interactions import datasets_directory, written
from language_paths import MODELS, case, finetune_row, knowledge_row
from machine_limits import has_bf16, limits
from options import add_report_options, checked_options, option_parser
from ours_run import loaded
from pipeline_paths import command_line_rows, run_rows
from report import Part, Report, measured
from run_facts import keep_to, run_facts
from store_paths import store_rows

from p2rec_core.runtime import prepared_device
from storage.datasets import DATASETS

PARTS = ("limits", "catalogue", "language", "store", "start", "pipeline")


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, with what depends on ``--quick`` and on the machine filled in."""
    parser = option_parser(
        "Measure P2Rec's hot paths beside plain ones.", writes="paths.md and paths.json", parts=PARTS
    )
    add_report_options(parser)
    parser.add_argument("--quick", action="store_true", help="two minutes: everything small")
    parser.add_argument("--dataset", choices=DATASETS, help="of the users to tune a language model on")
    parser.add_argument("--users", type=int, help="how many of them")
    parser.add_argument("--pipeline-dataset", choices=DATASETS, default="sample", help="to run the pipeline on")
    parser.add_argument("--rounds", type=int, help="pairs of measurements")
    options = checked_options(parser, arguments, whole=("users", "rounds"))
    real = datasets_directory() is not None and not options.quick
    options.dataset = options.dataset or ("beauty" if real else "sample")
    options.users = options.users or (64 if options.quick else 512)
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


def language_parts(options: argparse.Namespace) -> dict[str, Callable[[], Part]]:
    """Fine-tuning and item knowledge of both language models, on the users of a data set; in bfloat16 too where the
    processor has it."""
    with tempfile.TemporaryDirectory() as folder:
        data = written(options.dataset, Path(folder))
        sequences, _, n_items = loaded(data.path)

    def measured_part(name: str, narrow: bool) -> Part:
        this = case(name, sequences, n_items, options.users, narrow=narrow)
        tuning = finetune_row(this, data.title, options.rounds)
        return Part([tuning, knowledge_row(this, 256 if options.quick else 4096, options.rounds)])

    return {
        f"language, {name}, {'bfloat16' if narrow else 'float32'}": partial(measured_part, name, narrow)
        for name, narrow in itertools.product(MODELS, (False, True) if has_bf16() else (False,))
    }


def parts(options: argparse.Namespace) -> dict[str, Callable[[], Part]]:
    """What was asked for: the names of its parts, and what measures each."""
    n_items = 50_000 if options.quick else 1_000_000
    known: dict[str, Callable[[], Part]] = {
        "catalogue": lambda: Part(catalogue_rows(quick=options.quick, rounds=options.rounds, threads=options.threads)),
        "store": lambda: Part(store_rows(options.out, n_items=n_items, width=256, rounds=options.rounds)),
        "start": lambda: Part(command_line_rows(options.rounds)),
        "pipeline": lambda: Part(
            run_rows(options.pipeline_dataset, options.rounds, options.threads, quick=options.quick)
        ),
    }
    found: dict[str, Callable[[], Part]] = {}
    for part in options.parts:
        if part == "language":
            found |= language_parts(options)
        elif part != "limits":
            found[part] = known[part]
    return found


def opened(options: argparse.Namespace) -> Report:
    """The report of what was asked for."""
    shown = ("parts", "dataset", "users", "pipeline_dataset", "rounds", "clock", "threads")
    facts = run_facts("hot_paths.py", options, shown)
    return Report.opened(options, "paths", "P2Rec's hot paths beside plain ones", "plain", facts)


def measure(options: argparse.Namespace, report: Report) -> None:
    """Measure everything that was asked for."""
    keep_to(options.threads)
    prepared_device("cpu", options.threads)
    if "limits" in options.parts:
        report.limits = report.limits or limits(options.threads)
    for name, part in parts(options).items():
        report.measure(name, part)


if __name__ == "__main__":
    sys.exit(measured(opened, measure, parsed()))
