"""What ``p2rec doctor`` checks beside the store's own files: checkpoints, experiments' records, imported datasets."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from p2rec_core.errors import ArtefactDamaged, ArtefactMissing, P2RecError, StoreError
from p2rec_core.training.checkpoint import read_checkpoint
from storage.artefacts import Store
from storage.doctor import Finding, Found
from storage.manifest import checked_name
from tasks.experiments import read_record, record_path, recorded
from tasks.references import record_references
from tasks.sources import imported_datasets, read_registration, registration_path


def further_findings(store: Store) -> Iterator[Found]:
    """What is wrong with files that stages and experiments keep in a store, and what mends it."""
    yield from _checkpoints(store)
    yield from _experiments(store)
    yield from _datasets(store)


def _checkpoints(store: Store) -> Iterator[Found]:
    for path in sorted((store.root / "work").glob("*/*/*.safetensors")):
        stage, key = path.parts[-3:-1]
        try:
            checked_name("a stage", stage), checked_name("a key", key)
            read_checkpoint(path)
        except StoreError:  # not a place that a stage has made
            continue
        except ValueError as error:
            if not path.exists():
                continue
            problem = f"The checkpoint {path} is damaged: {error}."
            remedy = "Set it aside: a rerun goes on from the checkpoint before it, or from the start."
            finding = Finding("checkpoint", str(path.relative_to(store.root)), problem, remedy)
            yield finding, partial(_set_aside, store, path, stage, key, problem)


def _set_aside(store: Store, path: Path, stage: str, key: str, problem: str) -> str:
    with store.lock(stage, key, on_wait=_refuse_to_wait):
        return f"set aside in {store.set_aside(path, f'{stage}-{key}', problem)}; a rerun goes on without it"


def _refuse_to_wait() -> None:
    raise StoreError("A process works on it.", remedy="Try again when it has ended.")


def _experiments(store: Store) -> Iterator[Found]:
    for name in recorded(store):
        path = str(record_path(store, name).relative_to(store.root))
        remedy = f"Run `p2rec experiment run {name}`: what is in the store is recorded anew, the rest is computed."
        try:
            references = record_references(store, name)
        except StoreError as error:
            yield Finding("record", path, error.problem, error.remedy), None
            continue
        for ref in references:
            try:
                store.load(ref)
            except (ArtefactDamaged, ArtefactMissing) as error:
                problem = f"The experiment {name} refers to what cannot be used: {error.problem}"
                yield Finding("record", path, problem, remedy), None
        try:
            read_record(store, name)
        except P2RecError as error:
            yield Finding("record", path, error.problem, error.remedy, harmful=False), None


def _datasets(store: Store) -> Iterator[Found]:
    for name in imported_datasets(store):
        try:
            read_registration(store, name)
        except P2RecError as error:
            path = str(registration_path(store, name).relative_to(store.root))
            yield Finding("dataset", path, error.problem, error.remedy), None
