"""A small dataset, quick settings, and a store in which they have been run once."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from p2rec_core.settings.pipeline import PipelineSettings, validated
from storage.artefacts import ArtefactRef, Store
from storage.sample import generate_sample
from tasks.dag import Slot, pipeline_slots
from tasks.stage import StageResult

DRIVER = Path(__file__).with_name("pipeline_driver.py")
ROOT = Path(__file__).parents[2]


def _load_driver() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pipeline_driver", DRIVER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def driver() -> ModuleType:
    """``pipeline_driver.py`` as a module."""
    return _load_driver()


@pytest.fixture(scope="session")
def spawn() -> Callable[..., subprocess.Popen]:
    """Start ``pipeline_driver.py`` as a process of its own."""

    def spawn(*arguments: str) -> subprocess.Popen:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(
            [sys.executable, str(DRIVER), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    return spawn


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in changes.items():
        merged[name] = _merged(merged.get(name, {}), value) if isinstance(value, dict) else value
    return merged


@pytest.fixture(scope="session")
def quick(driver) -> Callable[..., PipelineSettings]:
    """Quick settings, changed by nested dictionaries or dotted names."""

    def quick(changes: dict[str, Any] | None = None) -> PipelineSettings:
        values = driver.QUICK
        for name, value in (changes or {}).items():
            for part in reversed(name.split(".")):
                value = {part: value}
            values = _merged(values, value)
        return validated(values)

    return quick


Rows = list[list[str]]


@pytest.fixture(scope="session")
def rows() -> Rows:
    """One row per user: the user's id and items, oldest first."""
    text = generate_sample(n_users=60, n_items=40, n_categories=4, mean_length=8).text()
    return [line.split() for line in text.splitlines()]


def write_rows(path: Path, rows: Rows) -> Path:
    path.write_text("".join(" ".join(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def write() -> Callable[[Path, Rows], Path]:
    return write_rows


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory, rows: Rows) -> Path:
    return write_rows(tmp_path_factory.mktemp("source") / "small.txt", rows)


@dataclass(frozen=True)
class Finished:
    """A store in which every stage has been run."""

    store: Store
    source: Path
    settings: PipelineSettings
    results: dict[str, StageResult]

    @property
    def refs(self) -> dict[str, ArtefactRef]:
        return {name: result.ref for name, result in self.results.items()}

    def slots(self, settings: PipelineSettings | None = None) -> list[Slot]:
        return pipeline_slots(settings or self.settings, self.source)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, driver, quick, source) -> Finished:
    """Run once; not to be changed, see ``copied``."""
    store = Store.open(tmp_path_factory.mktemp("finished") / "store")
    return Finished(store, source, quick(), driver.run(quick(), source, store))


@pytest.fixture
def copied(finished, tmp_path) -> Finished:
    """A copy of ``finished`` that a test may change."""
    shutil.copytree(finished.store.root, tmp_path / "store")
    return Finished(Store.open(tmp_path / "store"), finished.source, finished.settings, finished.results)


@pytest.fixture(scope="session")
def photograph() -> Callable[[Store], dict[str, tuple[int, str]]]:
    """Modification time and digest of every file of every artefact."""

    def photograph(store: Store) -> dict[str, tuple[int, str]]:
        return {
            str(path.relative_to(store.root)): (
                path.stat().st_mtime_ns,
                hashlib.sha256(path.read_bytes()).hexdigest(),
            )
            for path in sorted((store.root / "artefacts").rglob("*"))
            if path.is_file()
        }

    return photograph


@pytest.fixture(scope="session")
def as_json() -> Callable[[PipelineSettings], str]:
    return lambda settings: json.dumps(settings.model_dump(mode="json"))
