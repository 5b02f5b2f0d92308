"""What the command lines of the benchmarks have in common."""

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import clock
from run_facts import cores


def option_parser(
    description: str,
    *,
    writes: str,
    parts: Iterable[str],
    clock_by_default: str = clock.CLOCKS[0],
    threads: int | None = None,
) -> argparse.ArgumentParser:
    """A command line with ``--out``, ``--parts``, ``--clock`` and ``--threads``.

    Args:
        description: What the benchmark does.
        writes: Files that it leaves.
        parts: What can be measured; all of it unless named.
        clock_by_default: One of ``clock.CLOCKS``.
        threads: So many unless named; None takes all cores.
    """
    known = ",".join(parts)
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help=f"directory for {writes}")
    parser.add_argument("--parts", default=known, help=f"which of {known}")
    parser.add_argument(
        "--clock", choices=clock.CLOCKS, default=clock_by_default, help="seconds on the wall, or of the cores"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=threads or len(cores()),
        help="threads and cores of either side; %(default)s unless named",
    )
    return parser


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Add what a benchmark with a ``Report`` takes: ``--history`` and ``--anew``."""
    parser.add_argument("--history", type=Path, help="file of JSON lines to append the run to")
    parser.add_argument("--anew", action="store_true", help="measure again what --out has already")


def checked_options(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, *, whole: Iterable[str] = ()
) -> argparse.Namespace:
    """The parsed command line; the clock counts from here on, in this process and all that it starts.

    Args:
        parser: Comes from ``option_parser``.
        arguments: Of the command line; None takes this process's.
        whole: Other options that are 1 or more, where they are given.

    Raises:
        SystemExit: A part is unknown or a number is out of its range.
    """
    options = parser.parse_args(arguments)
    options.parts = chosen(parser, "part", options.parts, parser.get_default("parts").split(","))
    for name in ("threads", *whole):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}; it has to be 1 or more")
    if options.threads > len(cores()):
        parser.error(f"--threads is {options.threads}, but there are {len(cores())} cores")
    os.environ[clock.VARIABLE] = options.clock
    return options


def chosen(parser: argparse.ArgumentParser, what: str, names: str, known: Sequence[str]) -> list[str]:
    """Names of a list with commas, all of them known."""
    listed = names.split(",")
    for name in listed:
        if name not in known:
            parser.error(f"there is no {what} {name!r}; choose among {', '.join(known)}")
    return listed
