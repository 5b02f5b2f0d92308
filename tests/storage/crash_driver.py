"""Publish an artefact and a snapshot over and over, killed at the 1st, 2nd, 3rd… step that touches the disk.

Run as ``python crash_driver.py <directory with a store called template>``.
Leaves one store per step in that directory, named by the step, and prints the number of steps.
"""

import itertools
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from storage.artefacts import Store
from storage.snapshots import publish_snapshot

STEPS = ("open", "write", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir")
KILLED = 9


def publish_all(root: Path, value: float) -> None:
    """What is being interrupted: an artefact with a file of every kind, then the snapshot that names it."""
    store = Store.open(root)
    table = pa.table({"epoch": pa.array([0], pa.int32()), "metric": ["loss"], "value": [value]})
    key = f"v{value}"
    with store.lock("train", key):
        (store.workspace("train", key) / "checkpoint").write_bytes(b"half way")
        with store.write("train", key, settings={"value": value}, inputs={}, fingerprint="f") as writer:
            writer.table("history", table)
            writer.tensors("weights", {"w": np.full(3, value)})
            writer.json("report", {"value": value})
            artefact = writer.publish({}, 1.0)
    publish_snapshot(store, "tiny", {"train": artefact.ref()}, {})


def kill_at(step: int) -> None:
    """Replace the functions that touch the disk by ones that end the process at a step; a write is torn.

    A kill loses nothing that was written, so fsync counts as a step but does not wait for the disk.
    """
    counter = itertools.count(1)

    def killing(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if next(counter) == step:
                if name == "write":
                    function(args[0], bytes(args[1])[: len(args[1]) // 2])
                os._exit(KILLED)
            return None if name == "fsync" else function(*args, **kwargs)

        return wrapped

    for name in STEPS:
        setattr(os, name, killing(name, getattr(os, name)))


def main(directory: Path) -> int:
    for step in itertools.count(1):
        root = directory / str(step)
        shutil.copytree(directory / "template", root)
        child = os.fork()
        if child == 0:
            kill_at(step)
            try:
                publish_all(root, 2.0)
            finally:
                os._exit(0 if sys.exc_info()[0] is None else 1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            shutil.rmtree(root)
            return step - 1
        if status != KILLED:
            raise SystemExit(f"step {step} ended with status {status}")
    raise AssertionError


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
