"""Runs the stages without Prefect, in this process or as a program whose process can be killed.

    python pipeline_driver.py run STORE SOURCE SETTINGS [KILL_SLOT KILL_AT]
    python pipeline_driver.py race STORE LOG

``run`` prints one JSON object: the outcome, key and hashes of every slot and the modules that were loaded. With
KILL_SLOT the process kills itself, as by ``kill -9``, when that slot tells of its progress for the KILL_ATth time.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from p2rec_core.progress import Progress, silent
from p2rec_core.settings.pipeline import PipelineSettings, RuntimeSettings, validated
from storage.artefacts import ArtefactRef, Store
from tasks.dag import Slot, pipeline_slots
from tasks.stage import StageCall, StageContext, StageResult, run_stage

ENCODER = {"hidden_size": 16, "n_layers": 1, "n_heads": 2, "inner_size": 32, "dropout": 0.2, "max_length": 10}
TRAINING = {"max_epochs": 2, "batch_positions": 128}
QUICK: dict[str, Any] = {
    "ingest": {"min_user_interactions": 5, "min_item_interactions": 1},
    "backbone": {"encoder": ENCODER, "training": TRAINING},
    "recommender": {"encoder": ENCODER | {"n_layers": 2}, "training": TRAINING},
    "clusters": {"n_clusters": 4, "n_init": 1, "finer": [8]},
    "language_model": {"name_or_path": "random-llama-tiny"},
    "finetune": {"epochs": 2, "batch_users": 16, "lora_rank": 2, "max_length": 8, "holdout_fraction": 0.1},
    "fusion": {"n_components": 8},
    "runtime": {"threads": 1, "checkpoint_every_s": 0},
}


def run_slots(
    slots: list[Slot],
    store: Store,
    runtime: RuntimeSettings,
    *,
    forced: Collection[str] = (),
    progress: Callable[[str], Progress] = lambda slot: silent,
    log: Callable[[str], None] = lambda message: None,
) -> dict[str, StageResult]:
    """Walk the graph as the flow does."""
    refs: dict[str, ArtefactRef] = {}
    results: dict[str, StageResult] = {}
    for slot in slots:
        call = slot.call({name: refs[name] for name in slot.needs})
        result = run_stage(
            call, store, runtime=runtime, force=slot.name in forced, progress=progress(slot.name), log=log
        )
        refs[slot.name], results[slot.name] = result.ref, result
    return results


def run(settings: PipelineSettings, source: Path, store: Store, **options: Any) -> dict[str, StageResult]:
    """Run every stage."""
    return run_slots(pipeline_slots(settings, source), store, settings.runtime, **options)


def _killer(at: int) -> Progress:
    calls = iter(range(1, 1_000_000))

    def progress(done: int, total: int, message: str) -> None:
        if next(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return progress


def _main_run(store: str, source: str, settings: str, kill_slot: str = "", kill_at: str = "0") -> None:
    killer = _killer(int(kill_at))
    results = run(
        validated(json.loads(settings)),
        Path(source),
        Store.open(Path(store)),
        progress=lambda slot: killer if slot == kill_slot else silent,
    )
    slots = {
        name: {"outcome": result.outcome, "key": result.ref.key, "files": dict(result.ref.files)}
        for name, result in results.items()
    }
    print(json.dumps({"slots": slots, "modules": sorted(sys.modules)}))


def slow_call(log: Path, wait_s: float = 0.5) -> StageCall:
    """A computation that takes a while and notes down that it was done."""

    def compute(context: StageContext) -> dict[str, Any]:
        import pyarrow as pa

        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(wait_s)
        ints = pa.array([1, 2], pa.int32())
        columns = {"item_idx": ints, "cluster": ints, "distance": pa.array([0.0, 1.0], pa.float32())}
        context.writer.table("item_clusters", pa.table(columns))
        return {}

    return StageCall("clusters", "tasks.clusters", {"slow": True}, {}, compute)


def _main_race(store: str, log: str) -> None:
    opened, call = Store.open(Path(store)), slow_call(Path(log))
    print("ready", flush=True)
    sys.stdin.readline()
    said: list[str] = []
    result = run_stage(call, opened, runtime=RuntimeSettings(), log=said.append)
    print(json.dumps({"outcome": result.outcome, "reason": result.reason, "said": said, "files": result.ref.files}))


if __name__ == "__main__":
    {"run": _main_run, "race": _main_race}[sys.argv[1]](*sys.argv[2:])
