"""What a reader of a benchmark's numbers has to know of the run."""

import argparse
import hashlib
import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from p2rec_core.settings.pipeline import RuntimeSettings
from tasks.machine import machine_facts

ROOT = Path(__file__).parents[1]
SOURCES = ("p2rec_core", "storage", "tasks", "flows", "benchmarks")
PACKAGES = ("p2rec", "torch", "numpy", "scikit-learn", "transformers", "peft", "prefect", "duckdb")


def cores() -> list[int]:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def keep_to(threads: int) -> None:
    """Keep this process, and those that it will start, to the first so many cores where the system can.

    It reaches what does not go by OMP_NUM_THREADS too, such as DuckDB.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores()[:threads])


def run_facts(script: str, options: argparse.Namespace, shown: Iterable[str], *, device: str = "cpu") -> dict[str, Any]:
    """Command, machine, versions and sources.

    Args:
        script: Its name in this directory.
        options: Has ``quick`` and ``threads``.
        shown: Names of the options that decide what is measured; those that are None are left out.
        device: Where it is measured.
    """
    values = {name: getattr(options, name) for name in shown}
    named = [
        f"--{name.replace('_', '-')} {','.join(value) if isinstance(value, list) else value}"
        for name, value in values.items()
        if value is not None
    ]
    return {
        "command": " ".join([f"python benchmarks/{script}", *(["--quick"] if options.quick else []), *named]),
        "machine": machine_facts(RuntimeSettings(device=device, threads=options.threads)),
        "versions": {"Python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "sources": sources_digest(),
    }


def sources_digest() -> str:
    """The beginning of the sha256 of all that is measured and measures: P2Rec's sources and the benchmarks', in hex."""
    digest = hashlib.sha256()
    for package in SOURCES:
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT).as_posix()}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
