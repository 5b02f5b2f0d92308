"""Nights on end: a dataset that grows, refreshed by the command line every night, with a fault in most of them.

    python -m tests.faults.soak --nights 30 --out soak.json

After each night there must be a newer current snapshot, whole to the last byte, whose tables belong together, and the
doctor must find nothing that it cannot mend. The same nights go through a second store undisturbed, and both must hold
the same
bytes. What the store takes on the disk and a run of memory is noted. Ends with status 1 if any of it does not hold.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from p2rec_core.settings.data import IngestSettings
from storage.artefacts import Store
from storage.catalogue import Catalogue
from storage.doctor import examine
from storage.ingest.nights import nights
from storage.ingest.pipeline import ingest
from storage.sample import generate_sample
from storage.snapshots import read_snapshot
from tests.faults.rows import Fate, Row, Timed, table

NAME = "soak"
PART = "i soak"
STORE, REFUSED, UNSOUND = 4, 6, 7
"""Exit statuses."""
COMMAND_LINE = "from flows.cli import main; main()"
KEPT = 3
SETTINGS = """
variants = ["base", "p2rec"]
[backbone.encoder]
hidden_size = 16
inner_size = 32
[backbone.training]
max_epochs = 3
batch_positions = 1024
[recommender.encoder]
hidden_size = 16
inner_size = 32
[recommender.training]
max_epochs = 3
batch_positions = 1024
[clusters]
n_clusters = 6
finer = [12]
n_init = 1
[language_model]
name_or_path = "random-llama-tiny"
[finetune]
epochs = 1
[fusion]
n_components = 8
[runtime]
threads = 1
checkpoint_every_s = 0
[refresh]
epochs = 2
max_metric_drop = 1.0
max_hold_out_drop = 1.0
min_coverage = 0.0
min_cluster_agreement = 0.0
"""
"""Small, with a gate that only counts rows: in so few epochs nothing is learned that a metric could stand for."""

BELONG_TOGETHER = """
    SELECT (SELECT count(*) FROM items) = (SELECT count(*) FROM item_clusters)
       AND (SELECT count(*) FROM items) = (SELECT count(*) FROM item_knowledge)
       AND (SELECT count(*) FROM users) = (SELECT count(DISTINCT user_idx) FROM user_preferences)
"""


@dataclass
class House:
    """A store whose dataset grows.

    Attributes:
        directory: Of the store, the growing file, the settings and Prefect's own things.
        longest_s: The longest refresh that was not disturbed.
        other_way: Whether it came to its current snapshot another way than an undisturbed store.
    """

    directory: Path
    longest_s: float = 1.0
    other_way: bool = False
    store: Path = field(init=False)
    growing: Path = field(init=False)

    def __post_init__(self) -> None:
        self.directory.mkdir()
        self.store = self.directory / "store"
        self.growing = self.directory / "growing.parquet"
        (self.directory / "soak.toml").write_text(SETTINGS)

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """A command of p2rec on the store."""
        computes = words[0] in ("run", "refresh")
        config = ["--dataset", NAME, "--config", str(self.directory / "soak.toml")] if computes else []
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND_LINE, *words, *config, "--store", str(self.store)],
            env=os.environ | {"PREFECT_HOME": str(self.directory / "prefect"), "PREFECT_API_URL": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, *words: str, allowed: tuple[int, ...] = (0,)) -> tuple[int, str]:
        """The status of a command and what it printed.

        Raises:
            RuntimeError: It ended with a status that is not allowed.
        """
        process = self.start(*words)
        output, errors = process.communicate()
        if process.returncode not in allowed:
            raise RuntimeError(f"p2rec {' '.join(words)} ended with {process.returncode}: {errors[-2000:]}")
        return process.returncode, output

    def comes(self, rows: pa.Table) -> None:
        """Replace the growing file, in one step."""
        pq.write_table(rows, self.directory / "coming.parquet")
        (self.directory / "coming.parquet").replace(self.growing)

    def current(self) -> int:
        """Number of the current snapshot."""
        return read_snapshot(Store.open(self.store), NAME).number

    def refresh(self) -> None:
        """An undisturbed night."""
        begun = time.monotonic()
        self.call("refresh")
        self.longest_s = max(self.longest_s, time.monotonic() - begun)

    def tidy(self) -> int:
        """Collect what only older snapshots need; the bytes that are left."""
        self.call("gc", "--grace", "0s", "--keep-last", str(KEPT))
        return sum(path.stat().st_size for path in self.store.rglob("*") if path.is_file())

    def becomes(self, other: "House") -> None:
        """Go on from another store."""
        shutil.rmtree(self.store)
        shutil.copytree(other.store, self.store)

    def contents(self) -> dict[str, dict[str, str]]:
        """The hashes of all files of the current snapshot."""
        return {slot: dict(ref.files) for slot, ref in read_snapshot(Store.open(self.store), NAME).entries.items()}


def killed(house: House, draw: random.Random, rows: pa.Table) -> Fate:
    """kill -9 at a random time, up to three times in one night."""
    for _ in range(draw.randint(1, 3)):
        process = house.start("refresh")
        time.sleep(draw.uniform(0, house.longest_s))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    house.refresh()
    return Fate.HARMLESS


def flipped(house: House, draw: random.Random, rows: pa.Table) -> Fate:
    """A bit of a file of the current snapshot; where a refresh cannot mend it, the doctor does."""
    store = Store.open(house.store)
    entries = read_snapshot(store, NAME).entries
    artefact = store.load(entries[draw.choice(sorted(entries))])
    path = artefact.path / artefact.files[draw.choice(sorted(artefact.files))].path
    damaged = bytearray(path.read_bytes())
    place = draw.randrange(8 * len(damaged))
    damaged[place // 8] ^= 1 << (place % 8)
    path.chmod(0o644)
    path.write_bytes(damaged)
    process = house.start("refresh")
    _, errors = process.communicate()
    if process.returncode == 0:  # it did not need the file, or made it anew
        house.call("doctor", "--repair", "--grace", "0s", allowed=(0, UNSOUND))
        return Fate.HARMLESS
    if path.parent.name not in errors:
        raise RuntimeError(f"A flipped bit of {path} ended with {process.returncode} and does not name it: {errors}")
    house.call("doctor", "--repair", "--grace", "0s", allowed=(0, UNSOUND))
    status, _ = house.call("rollback", "--dataset", NAME, allowed=(0, STORE))
    if status == STORE or house.call("refresh", allowed=(0, STORE))[0] == STORE:
        house.call("run")  # all snapshots that are kept had the file
    house.other_way = True
    return Fate.DETECTED


def together(house: House, draw: random.Random, rows: pa.Table) -> Fate:
    """Two schedules fire at the same time: one makes the night, for the other there is nothing new."""
    before = house.current()
    processes = [house.start("refresh") for _ in range(2)]
    said = [process.communicate() for process in processes]
    if any(process.returncode for process in processes) or house.current() != before + 1:
        raise RuntimeError(f"two at once: snapshot {before} became {house.current()}; {said}")
    return Fate.HARMLESS


def poisoned(house: House, draw: random.Random, rows: pa.Table) -> Fate:
    """30 % of the rows are lost, which the gate has to refuse; then they are back."""
    before = house.current()
    keep = [draw.random() >= 0.3 for _ in range(rows.num_rows)]
    house.comes(rows.filter(pa.array(keep)))
    house.call("refresh", allowed=(REFUSED,))
    if house.current() != before:
        raise RuntimeError("a night with lost rows was promoted")
    house.comes(rows)
    house.refresh()
    return Fate.DETECTED


def undisturbed(house: House, draw: random.Random, rows: pa.Table) -> Fate:
    """Nothing happens."""
    house.refresh()
    return Fate.HARMLESS


FAULTS: dict[str, Callable[[House, random.Random, pa.Table], Fate]] = {
    "killed up to three times": killed,
    "a bit flipped": flipped,
    "two at once": together,
    "30 % of the rows lost": poisoned,
    "undisturbed": undisturbed,
}


def tables_of(n_nights: int) -> list[pa.Table]:
    """The beginning, and what is there in each night."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "whole.txt"
        sample = generate_sample(n_users=400, n_items=120, n_categories=6, mean_length=12 + n_nights / 5)
        path.write_text(sample.text(), encoding="utf-8")
        whole = ingest(path, **IngestSettings(timestamp_column=None).model_dump(mode="json"))
    return nights(whole, n_nights, share=0.01, late_users=0.2, late_items=0.1, min_rows=5, seed=1)


def soak(directory: Path, n_nights: int, seed: int) -> tuple[list[Row], list[dict[str, Any]]]:
    """The faults by kind, and the nights one by one."""
    tables, draw = tables_of(n_nights), random.Random(seed)
    disturbed, quiet = House(directory / "disturbed"), House(directory / "quiet")
    for house in (disturbed, quiet):
        house.comes(tables[0])
        house.call("data", "import", str(house.growing), "--name", NAME, "--format", "parquet")
        house.call("run")
    rows = {what: Row(PART, what) for what in FAULTS}
    told = []
    for night, now in enumerate(tables[1:], start=1):
        what = draw.choice(list(FAULTS))
        before = disturbed.current()
        for house in (disturbed, quiet):
            house.comes(now)
        with Timed(Row(PART, what)) as timed:
            fate = FAULTS[what](disturbed, draw, now)
        rows[what].wall_s += timed.wall_s
        n_bytes = disturbed.tidy()
        if disturbed.other_way:
            quiet.becomes(disturbed)
            disturbed.other_way = False
        else:
            quiet.refresh()
        rows[what].add(fate, problem_of(disturbed, quiet, before))
        memory_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        told.append(
            {"night": night, "rows": now.num_rows, "fault": what, "fate": fate, "snapshot": disturbed.current(),
             "wall s": timed.wall_s, "store MB": n_bytes / 1e6, "undisturbed MB": quiet.tidy() / 1e6,
             "memory MB": memory_mb}
        )  # fmt: skip
        print(json.dumps(told[-1]), flush=True)
    return [row for row in rows.values() if row.n], told


def problem_of(disturbed: House, quiet: House, before: int) -> str:
    """What does not hold after a night; empty if all does."""
    store = Store.open(disturbed.store)
    snapshot = read_snapshot(store, NAME)
    for ref in snapshot.entries.values():
        store.verify(store.load(ref))
    # an older snapshot may want a file that was damaged and could not be made again: it goes when it is collected
    if harm := [finding for finding in examine(store).harm if finding.kind != "snapshot"]:
        return f"the doctor finds {harm[0].problem}"
    if snapshot.number <= before:
        return f"snapshot {snapshot.number} is no newer than {before}"
    with Catalogue(store, snapshot, threads=1) as catalogue:
        if not catalogue.query(BELONG_TOGETHER).column(0)[0].as_py():
            return f"the tables of snapshot {snapshot.number} do not belong together"
    mine, theirs = disturbed.contents(), quiet.contents()
    if other := [slot for slot in theirs if mine.get(slot) != theirs[slot]]:
        return f"{', '.join(other)}: other bytes than undisturbed"
    return ""


def main() -> int:
    """Run it and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description="Nights on end, with faults.")
    parser.add_argument("--nights", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1, help="of the faults")
    parser.add_argument("--out", type=Path, help="a JSON file for the nights and the faults")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="p2rec-soak-") as directory:
        rows, told = soak(Path(directory), options.nights, options.seed)
    print(table(rows))
    if options.out is not None:
        found = {"nights": told, "faults": [row.to_json() for row in rows]}
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
