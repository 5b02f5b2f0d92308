"""Where a dataset's interactions are: a known dataset, one that the user has imported, or the embedded sample."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2rec_core.errors import DataError, SettingsError, did_you_mean
from p2rec_core.settings.data import IngestSettings
from storage.artefacts import Store
from storage.datasets import DATASETS, DIRECTORY_VARIABLE, Progress, http_fetch, locate, locate_item_texts
from storage.disk import make_directory, os_errors, replace_durably, sync_directory
from storage.ingest.partitions import is_pattern, joined
from storage.manifest import checked_name, digest_of, render_json
from storage.snapshots import list_snapshots, snapshot_datasets

_LAYOUT = frozenset({"format", "user_column", "item_column", "timestamp_column", "delimiter", "header"})
"""Settings of ingest that say how a file is to be read, and not what is made of it."""

COUNTS = ("n_users", "n_items", "n_interactions")
"""What is remembered of an import's statistics."""

OFFLINE_VARIABLE = "P2REC_OFFLINE"
"""Any value other than 0 forbids downloads."""


@dataclass(frozen=True)
class TextFile:
    """A file of items' texts and how to read it.

    Attributes:
        path: The file.
        columns: Columns that make an item's text; None takes all but the first, the identifier.
    """

    path: Path
    columns: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Source:
    """A file of interactions and how to read it.

    Attributes:
        dataset: Its name.
        path: The file.
        ingest: Settings that belong to the file, by field of ``IngestSettings``; empty for known datasets.
        synthetic: Whether a program has drawn the data.
        texts: The items' texts; None where there are none.
    """

    dataset: str
    path: Path
    ingest: dict[str, Any]
    synthetic: bool
    texts: TextFile | None = None

    def ingest_settings(self, chosen: IngestSettings) -> IngestSettings:
        """What was chosen, and what the import has remembered where nothing was.

        Raises:
            SettingsError: Another layout was chosen than the file was imported with.
        """
        named = chosen.model_fields_set
        if named == IngestSettings.model_fields.keys():
            # whole settings that went through JSON: what is not the default was chosen
            named = {name for name in named if getattr(chosen, name) != IngestSettings.model_fields[name].default}
        remembered = IngestSettings.model_validate(self.ingest)
        for name in sorted(named & _LAYOUT):
            there, asked = getattr(remembered, name), getattr(chosen, name)
            if asked != there:
                raise SettingsError(
                    f"ingest.{name} = {asked!r}, but the file of {self.dataset!r} was imported with {there!r}.",
                    remedy=f"Leave it away, or import anew with `p2rec data import FILE --name {self.dataset}`.",
                )
        given = {name: getattr(chosen, name) for name in named}
        return IngestSettings.model_validate(chosen.model_dump() | self.ingest | given)


def find_source(dataset: str, store: Store, *, progress: Progress | None = None) -> Source:
    """Find a dataset's file, downloading it if it is known, public and nowhere on this machine.

    Args:
        dataset: Name of a known or imported dataset.
        store: Where imports are registered and downloads are kept.
        progress: Told about a download: bytes there, bytes in all if known.

    Raises:
        DataError: There is no such dataset, its file is gone, or what is remembered of it is damaged.
    """
    imported = imported_datasets(store)
    if dataset in imported:
        entry = read_registration(store, dataset)
        path = Path(entry["path"])
        if not path.exists() and not is_pattern(path):
            raise DataError(
                f"The dataset {dataset!r} was imported from {path}, which is no longer there.",
                remedy=f"Put the file back, or import it anew with `p2rec data import FILE --name {dataset}`.",
            )
        texts = entry.get("item_texts")
        if texts is not None and not Path(texts).exists():
            raise DataError(
                f"The item texts of {dataset!r} were in {texts}, which is no longer there.",
                remedy=f"Put the file back, or import anew with `p2rec data import FILE --name {dataset}`.",
            )
        path = one_file(path, IngestSettings.model_validate(entry["ingest"]), store)
        return Source(
            dataset, path, entry["ingest"], synthetic=False, texts=None if texts is None else TextFile(Path(texts))
        )
    if dataset not in DATASETS:
        raise _no_dataset(dataset, imported)
    directory = os.environ.get(DIRECTORY_VARIABLE)
    offline = os.environ.get(OFFLINE_VARIABLE, "0") != "0"
    path = locate(
        dataset,
        datasets_dir=Path(directory) if directory else None,
        cache_dir=store.root / "downloads",
        fetch=None if offline else http_fetch,
        progress=progress,
    )
    known = DATASETS[dataset]
    texts = locate_item_texts(
        dataset, datasets_dir=Path(directory) if directory else None, cache_dir=store.root / "downloads"
    )
    return Source(
        dataset,
        path,
        {"format": known.format},
        known.synthetic,
        None if texts is None else TextFile(texts, known.text_columns),
    )


def ingest_settings_of(dataset: str, chosen: IngestSettings, store: Store) -> IngestSettings:
    """What a run imports a dataset with; its file is not looked for.

    Args:
        dataset: Name of a known or imported dataset.
        chosen: What was chosen for the run.
        store: Where imports are registered.

    Raises:
        DataError: There is no such dataset, or what is remembered of it is damaged.
        SettingsError: Another layout was chosen than the file was imported with.
    """
    imported = imported_datasets(store)
    if dataset in imported:
        remembered = read_registration(store, dataset)["ingest"]
    elif dataset in DATASETS:
        remembered = {"format": DATASETS[dataset].format}
    else:
        raise _no_dataset(dataset, imported)
    return Source(dataset, Path(), remembered, synthetic=False).ingest_settings(chosen)


def _no_dataset(dataset: str, imported: Sequence[str]) -> DataError:
    names = sorted({*DATASETS, *imported})
    hint = did_you_mean(dataset.lower(), names).capitalize()
    return DataError(
        f"There is no dataset {dataset!r}.{' ' if hint else ''}{hint}",
        remedy=f"Choose one of {', '.join(names)}, or import a file with `p2rec data import FILE --name NAME`.",
    )


def one_file(path: Path, ingest: IngestSettings, store: Store) -> Path:
    """The file itself, or the partitions of a directory, or of a pattern of paths, joined into one.

    Raises:
        DataError: The directory or pattern holds no partition, or two do not have the same columns.
        StoreError: The joined file cannot be written.
    """
    if not path.is_dir() and not is_pattern(path):
        return path
    return joined(path, str(ingest.format), store.root / "downloads" / "joined", header=ingest.header)


def check_name(
    store: Store, dataset: str, path: Path, ingest: IngestSettings, *, item_texts: Path | None = None
) -> None:
    """Make sure that a name does not stand for something else already; what filters rows may differ.

    Args:
        store: Where imports are registered.
        dataset: The name.
        path: What is to be imported under it.
        ingest: How it is to be read.
        item_texts: The items' texts.

    Raises:
        DataError: The name belongs to a known dataset, or another file, layout or texts were imported under it.
        StoreError: The name is not allowed.
    """
    if dataset in DATASETS:
        raise DataError(f"{dataset!r} is the name of a known dataset.", remedy="Choose another name.")
    if not registration_path(store, dataset).exists():
        return
    try:
        before = read_registration(store, dataset)
    except DataError:
        return  # an import is what mends it
    read = IngestSettings.model_validate(before["ingest"])
    was = {"file": before["path"]} | {name: getattr(read, name) for name in sorted(_LAYOUT)}
    now = {"file": str(path.resolve())} | {name: getattr(ingest, name) for name in sorted(_LAYOUT)}
    was["item texts"] = before.get("item_texts")
    now["item texts"] = None if item_texts is None else str(item_texts.resolve())
    changed = [f"{what} {_shown(was[what])} → {_shown(now[what])}" for what in now if was[what] != now[what]]
    if changed:
        raise DataError(
            f"The name {dataset!r} was given to another import: {'; '.join(changed)}.",
            remedy="Choose another name; or give --replace, so that the next run or refresh reads what it stands for "
            "then. Its snapshots stay as they are.",
        )


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def register(
    store: Store,
    dataset: str,
    path: Path,
    ingest: IngestSettings,
    *,
    item_texts: Path | None = None,
    counts: Mapping[str, Any] | None = None,
) -> None:
    """Remember an imported file, and that of its items' texts, under a name, instead of what was there.

    Args:
        store: Where to.
        dataset: The name.
        path: The file, the directory of partitions, or a pattern.
        ingest: How it is read and filtered.
        item_texts: The items' texts.
        counts: What the import counted; the numbers of users, items and interactions are remembered.

    Raises:
        DataError: The name belongs to a known dataset.
        StoreError: The name is not allowed, or the store cannot be written.
    """
    if dataset in DATASETS:
        raise DataError(f"{dataset!r} is the name of a known dataset.", remedy="Choose another name.")
    target = registration_path(store, dataset)
    entry: dict[str, Any] = {
        "path": str(path.resolve()),
        "ingest": ingest.model_dump(mode="json", exclude_defaults=True),
    }
    if item_texts is not None:
        entry["item_texts"] = str(item_texts.resolve())
    if counts is not None:
        entry["counts"] = {name: counts[name] for name in COUNTS}
    with os_errors(target):
        make_directory(target.parent)
        replace_durably(target, render_json(entry | {"digest": digest_of(entry)}), scratch=store.staging)


def unregister(store: Store, dataset: str, *, force: bool = False) -> str:
    """Forget what was imported under a name. The file, snapshots and artefacts stay.

    Args:
        store: Where it is remembered.
        dataset: The name.
        force: Whether to do so even if there are snapshots of it, which nothing can bring up to date then.

    Returns:
        The path that it was imported from; empty if what is remembered is damaged.

    Raises:
        DataError: Nothing was imported under this name, or there are snapshots of it.
        StoreError: It cannot be removed.
    """
    names = imported_datasets(store)
    if dataset not in names:
        hint = " It is known, and cannot be removed." if dataset in DATASETS else ""
        if guess := did_you_mean(dataset.lower(), names):
            hint = f" {guess.capitalize()}"
        raise DataError(
            f"There is no imported dataset {dataset!r}.{hint}",
            remedy=f"Choose one of {', '.join(names)}." if names else "There is none in this store.",
        )
    snapshots = list_snapshots(store, dataset) if dataset in snapshot_datasets(store) else []
    if snapshots and not force:
        raise DataError(
            f"There are snapshots of {dataset!r} ({', '.join(str(made.number) for made in snapshots)}), which nothing "
            "could bring up to date any more.",
            remedy="Give --force to remove the name all the same. Snapshots and artefacts stay, and can be asked.",
        )
    path = registration_path(store, dataset)
    try:
        was = str(read_registration(store, dataset)["path"])
    except DataError:
        was = ""
    with os_errors(path):
        path.unlink()
        sync_directory(path.parent)
    return was


def imported_datasets(store: Store) -> list[str]:
    """Names of the datasets that were imported into this store."""
    return sorted(path.stem for path in (store.root / "datasets").glob("*.json"))


def registration_path(store: Store, dataset: str) -> Path:
    """Where it is remembered what was imported under a name, whether or not there is such a file."""
    return store.root / "datasets" / f"{checked_name('a dataset', dataset)}.json"


def read_registration(store: Store, dataset: str) -> dict[str, Any]:
    """What ``register`` has remembered: ``path``, ``ingest`` and, where there are any, ``item_texts`` and ``counts``.

    Raises:
        DataError: It is damaged.
    """
    path = registration_path(store, dataset)
    with os_errors(path):
        data = path.read_bytes()
    try:
        entry: dict[str, Any] = json.loads(data)
        if not {"path", "ingest"} <= entry.keys() <= {"path", "ingest", "item_texts", "counts", "digest"}:
            raise ValueError("it has other fields")
        # what was imported before there was a digest has none
        if "digest" in entry and (render_json(entry) != data or digest_of(entry) != entry["digest"]):
            raise ValueError("its digest is another")
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is damaged: {error}.",
            remedy=f"Import the dataset anew with `p2rec data import FILE --name {dataset}`.",
        ) from error
    return entry
