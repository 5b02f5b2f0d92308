"""A fortnight of nightly refreshes on real data, beside full runs: cost, quality, the gate, and what readers see.

    python benchmarks/fortnight.py --dataset beauty --config fortnight.toml --out DIRECTORY

The dataset is cut into nights (``p2rec nights``); every night its file grows and ``p2rec refresh`` runs. Then come
two poisoned nights, a rollback, and a full run on the last file in a store of its own. Meanwhile a process reads the
current snapshot in a loop and checks that its tables belong together.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from processes import BenchmarkError, tail, threads_environment
from run_facts import keep_to, run_facts

from p2rec_core.errors import P2RecError
from storage.artefacts import Store
from storage.catalogue import Catalogue
from storage.snapshots import read_snapshot
from tasks.sources import find_source

HERE = Path(__file__).parent
COMMAND_LINE = "from flows.cli import main; main()"
NAME = "fortnight"
"""What the growing file is imported as."""
REFUSED = 6
"""Exit status of a refresh that does not pass the gate."""
LM_STAGES = ("text", "finetune", "knowledge")
TIMES = ("lm_s", "wall_s")
WANTED = {"lm": 0.10, "wall": 0.25, "quality": 0.02}
"""At most: language-model seconds and wall time of a night of a full run's; loss of quality against a full run."""
WHOLE = """
    SELECT (SELECT count(*) FROM items), (SELECT count(*) FROM item_clusters), (SELECT count(*) FROM item_knowledge),
           (SELECT count(*) FROM users), (SELECT count(DISTINCT user_idx) FROM user_preferences)
"""
"""Rows that have to agree within a snapshot."""


class House:
    """A store, and the command line on it.

    Args:
        store: Directory of the store.
        config: File of settings; None takes the dataset's.
        threads: Threads of one operation.
        scratch: For Prefect.
    """

    def __init__(self, store: Path, config: Path | None, threads: int, scratch: Path) -> None:
        self.store = store
        self.config = [] if config is None else ["--config", str(config.resolve())]
        self.threads = threads
        self.environment = os.environ | threads_environment(threads) | {
            "PREFECT_HOME": str(scratch / "prefect"),
            "PREFECT_API_URL": "",
        }  # fmt: skip

    def call(self, *arguments: str, allowed: Sequence[int] = (0,)) -> tuple[str, float, int]:
        """What a command printed, its seconds and its exit status.

        Raises:
            BenchmarkError: It ended with another status than those allowed.
        """
        command = [sys.executable, "-c", COMMAND_LINE, *arguments, "--store", str(self.store)]
        begun = time.monotonic()
        done = subprocess.run(
            command, cwd=HERE.parent, env=self.environment, capture_output=True, text=True, check=False
        )
        wall_s = time.monotonic() - begun
        if done.returncode not in allowed:
            raise BenchmarkError(f"p2rec {' '.join(arguments)} ended with {done.returncode}:\n{tail(done.stderr)}")
        return done.stdout, wall_s, done.returncode

    def compute(self, command: str, *more: str, allowed: Sequence[int] = (0,)) -> tuple[dict[str, Any], float, int]:
        """``p2rec run`` or ``p2rec refresh`` of the growing dataset: its report, seconds and exit status."""
        told = ["--dataset", NAME, *self.config, "--set", f"runtime.threads={self.threads}", "--json", *more]
        output, wall_s, status = self.call(command, *told, allowed=allowed)
        return json.loads(output), wall_s, status


def read_in_a_loop(store: Path, stop: Event, results: Any) -> None:
    """Read the current snapshot until told to stop; what does not belong together is told."""
    opened = Store.open(store, create=False)
    reads, numbers, wrong = 0, set(), []
    while not stop.is_set():
        try:
            snapshot = read_snapshot(opened, NAME)
            with Catalogue(opened, snapshot, threads=1) as catalogue:
                row = [column[0].as_py() for column in catalogue.query(WHOLE).columns]
        except P2RecError as error:
            wrong.append(str(error))
            continue
        reads += 1
        numbers.add(snapshot.number)
        if len(set(row[:3])) > 1 or row[3] != row[4]:
            wrong.append(f"snapshot {snapshot.number}: {row}")
        time.sleep(0.2)
    results.put((reads, len(numbers), wrong))


def lm_seconds(results: dict[str, Any]) -> float:
    """Seconds that a run spent in the language model's stages."""
    return float(sum(result["wall_s"] for name, result in results.items() if name in LM_STAGES))


def test_metrics(results: dict[str, Any]) -> dict[str, float]:
    """Test NDCG@10 under ``keep`` of every variant."""
    found = {}
    for name, result in results.items():
        if name.startswith("evaluation.") and name.count(".") == 2:
            wanted = {"split": "test", "seen": "keep", "metric": "NDCG", "k": 10}
            for entry in result["info"]["metrics"]:
                if all(entry[field] == value for field, value in wanted.items()):
                    found[name.removeprefix("evaluation.")] = float(entry["value"])
    return found


def poisoned(table: pa.Table, kind: str, seed: int) -> pa.Table:
    """The rows with their items shuffled, or without 30 % of them."""
    rng = np.random.default_rng(seed)
    if kind == "items shuffled":
        items = table.column("item_id").combine_chunks()
        place = table.schema.get_field_index("item_id")
        return table.set_column(place, "item_id", items.take(pa.array(rng.permutation(len(items)))))
    return table.filter(pa.array(rng.random(table.num_rows) >= 0.3))


def night_row(night: int, report: dict[str, Any], wall_s: float) -> dict[str, Any]:
    """What a reader wants to know of a night."""
    results, changes = report["run"]["results"], report["changes"]
    knowledge = results["knowledge"]["info"]
    return {
        "night": night,
        "rows": int(changes["n_rows_before"] + changes["n_rows_added"]),
        "new rows": int(changes["n_rows_added"]),
        "part": changes["n_rows_added"] / changes["n_rows_before"],
        "new users": int(changes["n_new_users"]),
        "new items": int(changes["n_new_items"]),
        "embedded": f"{knowledge.get('n_embedded', knowledge['n_items'])} of {knowledge['n_items']}",
        "tuned": report["tuned"],
        "tuning": report["tuning"],
        "clusters kept": changes["clusters_kept"],
        "lm_s": lm_seconds(results),
        "wall_s": wall_s,
        "promoted": not report["refused"],
        "refused": report["refused"],
        "metrics": test_metrics(results),
    }


def full_run(report: dict[str, Any], wall_s: float) -> dict[str, Any]:
    """What a night is compared with."""
    results = report["results"]
    rows = int(results["ingest"]["info"]["counts"]["n_interactions"])
    return {"rows": rows, "wall_s": wall_s, "lm_s": lm_seconds(results), "metrics": test_metrics(results)}


def part_of_full(night: dict[str, Any], what: str, found: dict[str, Any]) -> float:
    """Seconds of a night as a part of a full run's on as many interactions.

    Two full runs were measured, on the first and on the last file; between them the seconds go with the interactions.
    """
    first, last = found["first"], found["full"]
    seconds = np.interp(night["rows"], [first["rows"], last["rows"]], [first[what], last[what]])
    return float(night[what] / seconds)


def simulate(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """The whole fortnight.

    Raises:
        BenchmarkError: A command failed, a poisoned night was promoted, or a reader saw a mix.
    """
    house = House(scratch / "store", options.config, options.threads, scratch)
    share = ["--share", str(options.share), "--late-users", str(options.late), "--late-items", str(options.late)]
    cut = ["nights", "-d", options.dataset, "--nights", str(options.nights), "--to", str(scratch / "nights"), *share]
    house.call(*cut)
    texts = find_source(options.dataset, Store.open(house.store)).texts
    growing = scratch / f"{NAME}.parquet"

    def comes(table: Path) -> None:
        shutil.copy(table, scratch / "coming.parquet")
        (scratch / "coming.parquet").replace(growing)

    def imported(into: House) -> None:
        described = [] if texts is None else ["--item-texts", str(texts.path)]
        into.call("data", "import", str(growing), "--name", NAME, "--format", "parquet", *described)

    comes(scratch / "nights" / "night-0.parquet")
    imported(house)
    first, wall_s, _ = house.compute("run")
    began_with = full_run(first, wall_s)
    print(json.dumps({"first run": began_with}), flush=True)
    stop, seen = multiprocessing.Event(), multiprocessing.Queue()
    reader = multiprocessing.Process(target=read_in_a_loop, args=(house.store, stop, seen))
    reader.start()
    try:
        rows = []
        for night in range(1, options.nights + 1):
            comes(scratch / "nights" / f"night-{night}.parquet")
            report, wall_s, _ = house.compute("refresh", allowed=(0, REFUSED))
            rows.append(night_row(night, report, wall_s))
            print(json.dumps(rows[-1]), flush=True)
        last = pq.read_table(growing)
        poison = [poisoned_night(house, growing, last, kind) for kind in ("items shuffled", "30 % of the rows lost")]
        pq.write_table(last, growing)
        rollback = rolled_back(house)
    finally:
        stop.set()
        reads, n_snapshots, wrong = seen.get()
        reader.join()
    if wrong:
        raise BenchmarkError(f"A reader saw what does not belong together: {wrong[0]} ({len(wrong)} times).")
    beside = House(scratch / "full", options.config, options.threads, scratch)
    imported(beside)
    anew, wall_s, _ = beside.compute("run")
    return {
        "first": began_with,
        "nights": rows,
        "poisoned": poison,
        "rollback_s": rollback,
        "readers": {"reads": reads, "snapshots": n_snapshots, "wrong": len(wrong)},
        "full": full_run(anew, wall_s),
    }


def poisoned_night(house: House, growing: Path, good: pa.Table, kind: str) -> dict[str, Any]:
    """Refresh on poisoned rows, which has to be refused.

    Raises:
        BenchmarkError: It was promoted.
    """
    pq.write_table(poisoned(good, kind, seed=1), growing)
    before = read_snapshot(Store.open(house.store), NAME).number
    report, _, status = house.compute("refresh", allowed=(0, REFUSED))
    after = read_snapshot(Store.open(house.store), NAME).number
    if status != REFUSED or before != after:
        raise BenchmarkError(f"A night with {kind} became snapshot {after}; before it was {before}.")
    return {"kind": kind, "refused": report["refused"]}


def rolled_back(house: House) -> float:
    """Seconds of a rollback as a command, which is undone afterwards."""
    number = read_snapshot(Store.open(house.store), NAME).number
    _, wall_s, _ = house.call("rollback", "-d", NAME)
    house.call("promote", str(number), "-d", NAME)
    return wall_s


def full_times(run: dict[str, Any]) -> str:
    """Interactions and times of a full run, in words."""
    return f"{run['rows']} interactions, {run['lm_s']:.0f} s of LM work, {run['wall_s']:.0f} s in all"


def markdown(found: dict[str, Any], facts: dict[str, Any]) -> str:
    """The fortnight as a page."""
    variants = list(found["first"]["metrics"])
    header = ["night", "new rows", "part", "new users", "new items", "embedded", "tuned", "clusters kept"]
    header += ["LM work", "wall", "promoted", *variants]
    lines = ["# A fortnight of refreshes", ""]
    lines += [
        "LM work and wall time are parts of a full run's on as many interactions, of which two were measured: before",
        f"the first night ({full_times(found['first'])}) and after the last ({full_times(found['full'])}).",
        "",
    ]
    lines += [f"| {' | '.join(header)} |", f"|{'---:|' * len(header)}"]
    first = found["first"]["metrics"]
    lines.append(f"| 0 {'| ' * 10}| {' | '.join(f'{first[v]:.4f}' for v in variants)} |")
    for row in found["nights"]:
        cells = [str(row["night"]), str(row["new rows"]), f"{row['part']:.1%}", str(row["new users"])]
        cells += [str(row["new items"]), row["embedded"], "yes" if row["tuned"] else "no"]
        cells += [f"{row['clusters kept']:.3f}", *(f"{part_of_full(row, what, found):.1%}" for what in TIMES)]
        cells += ["yes" if row["promoted"] else "no", *(f"{row['metrics'].get(v, np.nan):.4f}" for v in variants)]
        lines.append(f"| {' | '.join(cells)} |")
    full = found["full"]["metrics"]
    lines.append(f"| full run {'| ' * 10}| {' | '.join(f'{full[v]:.4f}' for v in variants)} |")
    lines.append("")
    promoted = [row for row in found["nights"] if row["promoted"]]
    if promoted:
        told = [f"{v} {promoted[-1]['metrics'][v] / full[v] - 1:+.1%}" for v in variants]
        lines.append(f"After the last promoted night against the full run (wanted: at least {-WANTED['quality']:.0%}): "
                     f"{', '.join(told)}.")  # fmt: skip
    untuned = [row for row in found["nights"] if not row["tuned"]]
    if untuned:
        lm, wall = (float(np.median([part_of_full(row, what, found) for row in untuned])) for what in TIMES)
        lines.append(f"Nights without a fine-tuning, medians: LM work {lm:.1%} (wanted: {WANTED['lm']:.0%} at most), "
                     f"wall {wall:.1%} (wanted: {WANTED['wall']:.0%} at most).")  # fmt: skip
    lines += [f"A night with {p['kind']} was refused: {'; '.join(p['refused'])}." for p in found["poisoned"]]
    readers = found["readers"]
    lines.append(
        f"Rollback as a command: {found['rollback_s']:.1f} s. {readers['reads']} reads of {readers['snapshots']} "
        f"snapshots during all of it, {readers['wrong']} of them wrong."
    )
    lines += ["", *(f"- {row['night']}: {'; '.join(row['refused']) or row['tuning']}" for row in found["nights"]), ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Simulate, and keep what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="beauty")
    parser.add_argument("--config", type=Path, help="TOML file of settings; those of refreshes among them")
    parser.add_argument("--nights", type=int, default=14)
    parser.add_argument("--share", type=float, default=0.01, help="part of all interactions that comes in a night")
    parser.add_argument("--late", type=float, default=0.01, help="part of users and of items that come late")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    parser.set_defaults(quick=False)
    options = parser.parse_args()
    keep_to(options.threads)
    begun = time.monotonic()
    shown = ("dataset", "config", "nights", "share", "late", "threads")
    facts = run_facts("fortnight.py", options, shown)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            found = simulate(options, Path(scratch))
        except (BenchmarkError, P2RecError) as error:
            sys.exit(f"error: {error}")
    facts["wall"] = f"{(time.monotonic() - begun) / 60:.1f} minutes"
    (options.out / "fortnight.json").write_text(
        json.dumps({"facts": facts, **found}, indent=1) + "\n", encoding="utf-8"
    )
    page = markdown(found, facts)
    (options.out / "fortnight.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
