"""Faults are injected into stores, and what came of each is counted.

    python -m tests.faults              the full form, every step: see docs/trust.md for how long it takes
    python -m tests.faults --quick      a sample of it
    python -m tests.faults --parts a    some parts

Prints a table; ends with status 1 if anything was lost, silently wrong, or not as it is promised.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.rows import Row, table

Part = Callable[..., list[Row]]


# a part is imported when it is run: those that fork should not carry what others need
def _kills(directory: Path, *, quick: bool) -> list[Row]:
    from tests.faults.kills import kill_rows

    return kill_rows(directory, quick=quick)


def _flips(directory: Path, *, quick: bool) -> list[Row]:
    from tests.faults.flips import flip_rows

    return flip_rows(directory, quick=quick)


def _power(directory: Path, *, quick: bool) -> list[Row]:
    from tests.faults.power import power_rows

    return power_rows(directory, quick=quick)


def _disk(directory: Path, *, quick: bool) -> list[Row]:
    from tests.faults.disk_errors import disk_rows

    return disk_rows(directory, quick=quick)


def _resume(directory: Path, *, quick: bool) -> list[Row]:
    from tests.faults.resume import resume_rows

    return resume_rows(directory, quick=quick)


def _together(directory: Path, *, quick: bool) -> list[Row]:
    from tests.faults.together import together_rows

    return together_rows(directory, quick=quick)


def _memory(directory: Path, *, quick: bool) -> list[Row]:
    from tests.faults.memory import memory_rows

    return memory_rows(directory, quick=quick)


def _stages(directory: Path, *, quick: bool) -> list[Row]:
    from tests.faults.stages import stage_rows

    return stage_rows(directory, quick=quick)


PARTS: dict[str, Part] = {
    "a": _kills,
    "c": _power,
    "d": _disk,
    "f": _together,
    "b": _flips,
    "e": _resume,
    "h": _stages,
    "g": _memory,
}
"""In the order in which they run: first those that fork."""


def main() -> int:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Inject faults and count the outcomes.")
    parser.add_argument("--quick", action="store_true", help="a sample of every part")
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, separated by commas")
    parser.add_argument("--out", type=Path, help="a JSON file for the rows")
    arguments = parser.parse_args()
    begun = time.monotonic()
    rows: list[Row] = []
    for part in arguments.parts.split(","):
        with tempfile.TemporaryDirectory(prefix="p2rec-faults-") as directory:
            rows += PARTS[part](Path(directory), quick=arguments.quick)
        print(f"part {part}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    rows.sort(key=lambda row: row.part)
    print(table(rows))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps([row.to_json() for row in rows], indent=1) + "\n", encoding="utf-8")
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
