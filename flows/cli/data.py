"""``p2rec data``: list, fetch, describe, import."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from flows.cli.options import DEFAULT_STORE, DatasetOption, JsonOption, StoreOption
from flows.cli.terminal import StageBars
from p2rec_core.settings.data import IngestSettings, OnError, SourceFormat
from p2rec_core.settings.pipeline import RuntimeSettings, pipeline_settings, validated
from storage.artefacts import Store
from storage.datasets import DATASETS, DIRECTORY_VARIABLE
from storage.ingest.item_text import read_item_texts
from tasks.ingest import ingest_call
from tasks.sources import find_source, imported_datasets, one_file, register
from tasks.stage import StageResult, run_stage


def list_datasets(*, store: StoreOption = DEFAULT_STORE) -> None:
    """List known datasets and those imported into the store."""
    directory = os.environ.get(DIRECTORY_VARIABLE)
    table = Table("dataset", "users", "items", "interactions", "what it is", title_justify="left")
    for known in DATASETS.values():
        table.add_row(
            known.name,
            f"{known.n_users:,}",
            f"{known.n_items:,}",
            f"{known.n_interactions:,}",
            f"{known.title}{' (synthetic)' if known.synthetic else ''}",
        )
    if (store / "store.json").exists():
        for name in imported_datasets(Store.open(store, create=False)):
            table.add_row(name, "", "", "", "imported")
    Console().print(table)
    Console().print(
        f"{DIRECTORY_VARIABLE} = {directory}" if directory else f"{DIRECTORY_VARIABLE} is not set",
        highlight=False,
        soft_wrap=True,
    )


def fetch(*, dataset: DatasetOption, store: StoreOption = DEFAULT_STORE) -> None:
    """Find a known dataset on this machine or download it, and verify it.

    Example:
        p2rec data fetch -d beauty
    """
    opened = Store.open(store)
    with StageBars(enabled=True) as bars:
        source = find_source(
            dataset, opened, progress=lambda done, total: bars("download", done, total or done, f"{done:,} bytes")
        )
    Console().print(f"{dataset}: {source.path}, verified", highlight=False, soft_wrap=True)


def describe(*, dataset: DatasetOption, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Import a dataset, if it is not yet, and print its statistics.

    Example:
        p2rec data describe -d ml-1m
    """
    opened = Store.open(store)
    source = find_source(dataset, opened)
    settings = source.ingest_settings(pipeline_settings(dataset=dataset).ingest)
    _print_statistics(dataset, _ingest(source.path, settings, opened, as_json), as_json)


def import_file(
    path: Annotated[Path, Parameter(help="The file of interactions, a directory of its partitions, or a pattern.")],
    /,
    *,
    name: Annotated[str, Parameter(name="--name", help="Name to give it: a-z 0-9 . _ -")],
    format: Annotated[SourceFormat, Parameter(name="--format", help="Its layout.")],
    user_column: Annotated[str, Parameter(name="--user-column")] = "user_id",
    item_column: Annotated[str, Parameter(name="--item-column")] = "item_id",
    timestamp_column: Annotated[
        str | None, Parameter(name="--timestamp-column", help='"none" keeps the order of the file.')
    ] = "timestamp",
    encoding: Annotated[str, Parameter(name="--encoding", help="Of a text file, such as latin-1.")] = "utf-8",
    normalise_ids: Annotated[
        bool, Parameter(name="--normalise-ids", negative="", help="Bring ids into composed form (NFC).")
    ] = False,
    first_day: Annotated[
        str | None, Parameter(name="--first-day", help="Reject interactions before it (UTC, 2020-01-31).")
    ] = None,
    last_day: Annotated[str | None, Parameter(name="--last-day", help="Reject interactions after it.")] = None,
    min_user_interactions: Annotated[int, Parameter(name="--min-user-interactions")] = 5,
    min_item_interactions: Annotated[int, Parameter(name="--min-item-interactions")] = 5,
    on_error: Annotated[
        OnError, Parameter(name="--on-error", help="What to do with rows that cannot be read.")
    ] = OnError.STRICT,
    item_texts: Annotated[
        Path | None,
        Parameter(name="--item-texts", help=".tsv or .csv of the items' texts: identifier first, then words."),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Check a file of interactions, import it and give it a name for `p2rec run --dataset NAME`.

    Examples:
        p2rec data import clicks.csv --name clicks --format csv --user-column visitor --item-column sku
        p2rec data import ratings.dat --name ratings --format movielens
    """
    chosen = {
        "format": format,
        "user_column": user_column,
        "item_column": item_column,
        "timestamp_column": None if timestamp_column == "none" else timestamp_column,
        "encoding": encoding,
        "normalise_ids": normalise_ids,
        "first_day": first_day,
        "last_day": last_day,
        "min_user_interactions": min_user_interactions,
        "min_item_interactions": min_item_interactions,
        "on_error": on_error,
    }
    settings = validated({"ingest": chosen}).ingest
    opened = Store.open(store)
    result = _ingest(one_file(path, format, opened), settings, opened, as_json)
    if item_texts is not None:
        _check_item_texts(item_texts, result, opened)
    register(opened, name, path, settings, item_texts=item_texts)
    _print_statistics(name, result, as_json)


def _check_item_texts(path: Path, result: StageResult, store: Store) -> None:
    """Read the texts once, so that a file that cannot be used is refused at import."""
    item_ids = store.load(result.ref).table("items", ["item_id"]).column("item_id").to_pylist()
    texts = read_item_texts(path, item_ids, None)
    if texts.n_missing:
        Console(stderr=True).print(f"note: {texts.n_missing} of {len(item_ids)} items have no text", highlight=False)


def _ingest(path: Path, settings: IngestSettings, store: Store, as_json: bool) -> StageResult:
    with StageBars(enabled=not as_json) as bars:
        return run_stage(
            ingest_call(path, settings),
            store,
            runtime=RuntimeSettings(),
            progress=lambda done, total, message: bars("import", done, total, message),
        )


def _print_statistics(dataset: str, result: StageResult, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({"dataset": dataset, **result.info}) + "\n")
        return
    table = Table("statistic", title=dataset, title_justify="left")
    table.add_column("value", justify="right")
    for name, value in result.info["counts"].items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.4g}")
    Console().print(table)
    for notice in result.info["notices"]:
        Console().print(f"note: {notice}", highlight=False)
