"""What orchestration costs: a cached run beside its cold one, a cached stage, the start of the command line."""

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from processes import BenchmarkError, run_command, run_script, threads_environment
from report import Row
from timing import seconds

HERE = Path(__file__).parent
COMMAND_LINE = "from flows.cli import main; main()"
WANTED_CACHED = 200
"""Ratio to reach on real data; a cold run of the sample is short."""
SAMPLE = "sample"
QUICK = ("language_model.name_or_path=random-llama-tiny", "backbone.training.max_epochs=2")
"""Settings with which the sample takes a minute."""
STARTS = {
    "p2rec --help": ("-c", COMMAND_LINE, "--help"),
    "import of the flows": ("-c", "import flows.pipeline"),
    "import of the training loop": ("-c", "import p2rec_core.training.recommender"),
}
"""What is started, by what a reader calls it."""


def command_line_rows(rounds: int) -> list[Row]:
    """Seconds of starting Python with something; the bare interpreter's are in the note."""

    def started(arguments: Sequence[str]) -> list[float]:
        command = [sys.executable, *arguments]
        return [seconds(lambda: run_command(command, folder=HERE.parent)) for _ in range(rounds + 1)][1:]

    note = f"the interpreter alone takes {statistics.median(started(('-c', ''))):.3f} s"
    return [Row(what, "", "", "s", [], started(arguments), note=note) for what, arguments in STARTS.items()]


def run_rows(dataset: str, rounds: int, threads: int, *, quick: bool) -> list[Row]:
    """A cold ``p2rec run`` beside the same command again, and what Prefect adds to a cached stage.

    Args:
        dataset: Name of a known data set.
        rounds: Cold runs, each into a store of its own.
        threads: Threads of one operation.
        quick: Whether to take a small language model and few epochs.

    Raises:
        BenchmarkError: A run failed, or computed what was there.
    """
    assignments = [*(QUICK if quick else ()), f"runtime.threads={threads}"]
    cold, cached, added = [], [], []
    n_slots = 0
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as scratch:
            # no server but that of the run, and no history of the user's
            environment = threads_environment(threads) | {"PREFECT_HOME": f"{scratch}/prefect", "PREFECT_API_URL": ""}
            command = [sys.executable, "-c", COMMAND_LINE, "run", "--dataset", dataset, "--store", f"{scratch}/store"]
            command += [part for assignment in assignments for part in ("--set", assignment)]

            def run(command: list[str] = command, environment: dict[str, str] = environment) -> None:
                run_command(command, folder=HERE.parent, environment=environment)

            cold.append(seconds(run))
            cached.append(statistics.median(seconds(run) for _ in range(3)))
            request = {
                "store": f"{scratch}/store",
                "dataset": dataset,
                "assignments": assignments,
                "rounds": 3,
                "threads": threads,
            }
            result = run_script(Path(sys.executable), HERE / "cached_run.py", request, environment=environment)
        if not result["cached"]:
            raise BenchmarkError("The second run has something to compute; the two cannot be compared.")
        n_slots = result["n_slots"]
        pairs = zip(result["flow_s"], result["verify_s"], strict=True)
        added += [(flow - verified) / n_slots for flow, verified in pairs]
    shown = "quick settings" if quick else "default settings"
    return [
        Row(
            "cached p2rec run beside the cold one",
            dataset,
            "",
            "s",
            cold,
            cached,
            None if quick or dataset == SAMPLE else WANTED_CACHED,
            f"both as processes, {shown}; the cached one verifies {n_slots} slots and needs no Prefect",
        ),
        Row(
            "what Prefect adds to a cached stage",
            dataset,
            "",
            "s",
            [],
            added,
            note="a flow run with everything cached less verifying the same, over the number of slots",
        ),
    ]
