"""Every stage with half and with a quarter of the address space that it asks for: done all the same, or stopped."""

import contextlib
import importlib
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from p2rec_core.errors import P2RecError
from p2rec_core.settings.pipeline import RuntimeSettings, validated
from storage.artefacts import ArtefactRef, Store
from storage.doctor import examine
from storage.sample import generate_sample
from tasks.dag import Slot, pipeline_slots
from tasks.stage import run_stage
from tests.faults.house import copy_without
from tests.faults.rows import Fate, Row, Timed
from tests.tasks.pipeline_driver import QUICK, run_slots

PART = "g memory"
LONGEST_S = 600
DONE, STOPPED, UNCLEAR = 0, 10, 11
_LIBRARIES = {
    "accelerate",
    "duckdb",
    "peft",
    "pyarrow",
    "safetensors",
    "scipy",
    "sklearn",
    "tokenizers",
    "transformers",
}
ONE_EPOCH = {"training": {"max_epochs": 1}}
REAL: dict[str, Any] = {
    "ingest": QUICK["ingest"],
    "backbone": ONE_EPOCH,
    "recommender": ONE_EPOCH,
    "language_model": {"name_or_path": "random-llama-small"},
    "finetune": {"epochs": 1},
    "runtime": QUICK["runtime"],
}
"""The settings that people have, for as short as it can be: width 64, a softmax over the catalogue, K = 50 and 500."""


def memory_rows(directory: Path, *, quick: bool) -> list[Row]:
    """Every stage of a pipeline on a catalogue as large as Beauty's; the quick form imports 300 users."""
    torch.set_num_threads(1)
    source = directory / "rows.txt"
    sample = (
        generate_sample(n_users=300, n_items=200, n_categories=8)
        if quick
        else generate_sample(n_users=6000, n_items=12_000, n_categories=40)
    )
    source.write_text(sample.text())
    settings = validated(QUICK if quick else REAL)
    store = Store.open(directory / "store")
    slots = list(pipeline_slots(settings, source))[: 1 if quick else None]
    # nothing is computed in this process: what it had freed, its children would not have to ask for
    status, _ = _in_child(lambda: _run_and_tell(slots, store, settings.runtime, directory / "modules"), None)
    assert status == DONE
    _load_libraries((directory / "modules").read_text().split())
    refs = {name: result.ref for name, result in run_slots(slots, store, settings.runtime).items()}
    return [_limited(slot, refs, store.root, directory / "copy", settings.runtime) for slot in slots]


def _run_and_tell(slots: list[Slot], store: Store, runtime: RuntimeSettings, told: Path) -> None:
    """Run the stages, and write down what they had loaded in the end."""
    run_slots(slots, store, runtime)
    told.write_text("\n".join(sys.modules))


def _load_libraries(names: Iterable[str]) -> None:
    """Load what stages load on their way. Their code is not what is to be kept short of memory, and OpenBLAS, for one,
    waits for ever for its buffers if it is loaded without room for them."""
    for name in names:
        if name.partition(".")[0] in _LIBRARIES:
            with contextlib.suppress(ImportError):  # an alias that only its maker can load
                importlib.import_module(name)


def _limited(slot: Slot, refs: dict[str, ArtefactRef], template: Path, place: Path, runtime: RuntimeSettings) -> Row:
    call = slot.call(refs)
    ref = refs[slot.name]

    def compute(store: Store, limit: int | None) -> tuple[int, int]:
        return _in_child(lambda: run_stage(call, store, runtime=runtime), limit)

    with Timed(Row(PART, f"{slot.name} with 1/2 and 1/4 of its address space")) as row:
        status, wanted = compute(copy_without(template, place, ref), None)
        if status != DONE:
            row.problems.append(f"without a limit it ended with status {status}")
        row.facts["MB asked for"] = wanted / 1e6
        for share in (2, 4):
            store = copy_without(template, place, ref)
            status, _ = compute(store, max(wanted // share, 1 << 20))
            artefact = store.find(ref.stage, ref.key)
            problem = ""
            if artefact is not None:
                store.verify(artefact)
                if artefact.ref() != ref:
                    row.add(Fate.WRONG, f"with 1/{share} it published other content")
                    continue
            if harm := examine(store).harm:
                problem = harm[0].problem
            if (status == DONE) != (artefact is not None) or status == UNCLEAR:
                problem = f"with 1/{share} it ended with status {status}: no clear error"
            row.add(Fate.HARMLESS if status == DONE else Fate.DETECTED, problem)
            row.facts["died"] = row.facts.get("died", 0) + (status not in (DONE, STOPPED, UNCLEAR))
            status, _ = compute(store, None)
            artefact = store.find(ref.stage, ref.key)
            if status != DONE or artefact is None or artefact.ref() != ref:
                row.problems.append(f"after 1/{share} a rerun ends with other content")
    return row


def _in_child(job: Callable[[], object], limit: int | None) -> tuple[int, int]:
    """Run a job in a child that may ask for so many bytes more; its status, and the bytes that it asked for."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(LONGEST_S)
        before = _address_space("VmSize")
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_AS, (before + limit, before + limit))
        try:
            job()
            status = DONE
        except P2RecError:
            status = STOPPED
        except BaseException as error:
            status = UNCLEAR
            os.write(2, f"{type(error).__name__}: {error!s:.300}\n".encode())
        os.write(tell, str(max(0, _address_space("VmPeak") - before)).encode())
        os._exit(status)
    os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        asked = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), int(asked or 0)


def _address_space(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)
