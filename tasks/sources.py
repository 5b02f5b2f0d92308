"""Where a dataset's interactions are: a known dataset, one that the user has imported, or the embedded sample."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2rec_core.errors import DataError
from p2rec_core.settings.data import IngestSettings
from storage.artefacts import Store
from storage.datasets import DATASETS, DIRECTORY_VARIABLE, Progress, http_fetch, locate
from storage.disk import make_directory, os_errors, replace_durably
from storage.manifest import checked_name

OFFLINE_VARIABLE = "P2REC_OFFLINE"
"""Any value other than 0 forbids downloads."""


@dataclass(frozen=True)
class Source:
    """A file of interactions and how to read it.

    Attributes:
        dataset: Its name.
        path: The file.
        ingest: Settings that belong to the file, by field of ``IngestSettings``; empty for known datasets.
        synthetic: Whether a program has drawn the data.
    """

    dataset: str
    path: Path
    ingest: dict[str, Any]
    synthetic: bool


def find_source(dataset: str, store: Store, *, progress: Progress | None = None) -> Source:
    """Find a dataset's file, downloading it if it is known, public and nowhere on this machine.

    Args:
        dataset: Name of a known or imported dataset.
        store: Where imports are registered and downloads are kept.
        progress: Told about a download: bytes there, bytes in all if known.

    Raises:
        DataError: There is no such dataset, or its file is gone.
    """
    registered = _registered(store, dataset)
    if registered.exists():
        entry = json.loads(registered.read_text(encoding="utf-8"))
        path = Path(entry["path"])
        if not path.exists():
            raise DataError(
                f"The dataset {dataset!r} was imported from {path}, which is no longer there.",
                remedy=f"Put the file back, or import it anew with `p2rec data import FILE --name {dataset}`.",
            )
        return Source(dataset, path, entry["ingest"], synthetic=False)
    if dataset not in DATASETS:
        known = sorted({*DATASETS, *imported_datasets(store)})
        raise DataError(
            f"There is no dataset {dataset!r}.",
            remedy=f"Choose one of {', '.join(known)}, or import a file with `p2rec data import FILE --name NAME`.",
        )
    directory = os.environ.get(DIRECTORY_VARIABLE)
    offline = os.environ.get(OFFLINE_VARIABLE, "0") != "0"
    path = locate(
        dataset,
        datasets_dir=Path(directory) if directory else None,
        cache_dir=store.root / "downloads",
        fetch=None if offline else http_fetch,
        progress=progress,
    )
    return Source(dataset, path, {"format": DATASETS[dataset].format}, DATASETS[dataset].synthetic)


def register(store: Store, dataset: str, path: Path, ingest: IngestSettings) -> None:
    """Remember an imported file under a name.

    Raises:
        DataError: The name belongs to a known dataset.
        StoreError: The name is not allowed, or the store cannot be written.
    """
    if dataset in DATASETS:
        raise DataError(f"{dataset!r} is the name of a known dataset.", remedy="Choose another name.")
    target = _registered(store, dataset)
    entry = {"path": str(path.resolve()), "ingest": ingest.model_dump(mode="json", exclude_defaults=True)}
    with os_errors(target):
        make_directory(target.parent)
        replace_durably(target, json.dumps(entry, indent=1).encode(), scratch=store.staging)


def imported_datasets(store: Store) -> list[str]:
    """Names of the datasets that were imported into this store."""
    return sorted(path.stem for path in (store.root / "datasets").glob("*.json"))


def _registered(store: Store, dataset: str) -> Path:
    return store.root / "datasets" / f"{checked_name('a dataset', dataset)}.json"
