"""``p2rec data``: list, fetch, describe, import, remove."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.cli.options import DEFAULT_STORE, DatasetOption, JsonOption, NoHeaderOption, StoreOption
from flows.cli.tables import print_table
from flows.cli.terminal import StageBars
from p2rec_core.errors import DataError, SettingsError
from p2rec_core.settings.data import IngestSettings, OnError, SourceFormat
from p2rec_core.settings.pipeline import RuntimeSettings, pipeline_settings
from storage.artefacts import Store, is_store
from storage.datasets import DATASETS, DIRECTORY_VARIABLE
from storage.ingest.item_text import read_item_texts
from tasks.ingest import ingest_call
from tasks.sources import (
    COUNTS,
    check_name,
    find_source,
    imported_datasets,
    one_file,
    read_registration,
    register,
    unregister,
)
from tasks.stage import StageResult, run_stage


def list_datasets(*, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List known datasets and those imported into the store, with the numbers of the import.

    Example:
        p2rec data list --store elsewhere
    """
    directory = os.environ.get(DIRECTORY_VARIABLE)
    imported = _imported(Store.open(store, create=False)) if is_store(store) else []
    if as_json:
        counts = ("name", "title", *COUNTS, "synthetic")
        rows = [{count: getattr(known, count) for count in counts} | {"imported": False} for known in DATASETS.values()]
        rows += imported
        sys.stdout.write(json.dumps({"datasets": rows, "directory": directory}, ensure_ascii=False) + "\n")
        return
    table = Table("dataset", "users", "items", "interactions", "what it is", title_justify="left")
    for known in DATASETS.values():
        table.add_row(
            known.name,
            f"{known.n_users:,}",
            f"{known.n_items:,}",
            f"{known.n_interactions:,}",
            f"{known.title}{' (synthetic)' if known.synthetic else ''}",
        )
    for row in imported:
        numbers = ["" if row[name] is None else f"{row[name]:,}" for name in COUNTS]
        origin = row["damaged"] or f"imported from {row['path']}"
        texts = f", with texts of {row['item_texts']}" if row["item_texts"] else ""
        table.add_row(row["name"], *numbers, escape(f"{origin}{texts}"))
    print_table(table, markup=True)
    Console().print(
        f"{DIRECTORY_VARIABLE} = {directory}" if directory else f"{DIRECTORY_VARIABLE} is not set",
        highlight=False,
        soft_wrap=True,
    )


def _imported(store: Store) -> list[dict[str, Any]]:
    """What is remembered of every import; ``damaged`` says why there is nothing."""
    rows = []
    for name in imported_datasets(store):
        entry: dict[str, Any] = {}
        damaged = None
        try:
            entry = read_registration(store, name)
        except DataError as error:
            damaged = error.problem
        row = {"name": name, "imported": True, "damaged": damaged}
        row |= {"path": entry.get("path"), "item_texts": entry.get("item_texts")}
        # what was imported before they were remembered has no numbers
        rows.append(row | {count: entry.get("counts", {}).get(count) for count in COUNTS})
    return rows


def fetch(*, dataset: DatasetOption, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Find a known dataset on this machine or download it, and verify it.

    A download is kept in the store's directory, which is made for it if need be.

    Example:
        p2rec data fetch -d beauty
    """
    there = is_store(store)
    opened = Store.open(store, create=False) if there else Store(store.expanduser().resolve())
    with StageBars(enabled=not as_json) as bars:
        source = find_source(
            dataset, opened, progress=lambda done, total: bars("download", done, total or done, f"{done:,} bytes")
        )
    if as_json:
        sys.stdout.write(json.dumps({"dataset": dataset, "path": str(source.path)}, ensure_ascii=False) + "\n")
        return
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
    config: Annotated[
        Path | None, Parameter(name=("--config", "-c"), help="TOML file whose table [ingest] says what options do not.")
    ] = None,
    format: Annotated[SourceFormat | None, Parameter(name="--format", help="Its layout.")] = None,
    user_column: Annotated[str | None, Parameter(name="--user-column", help="Default user_id.")] = None,
    item_column: Annotated[str | None, Parameter(name="--item-column", help="Default item_id.")] = None,
    timestamp_column: Annotated[
        str | None,
        Parameter(name="--timestamp-column", help='Default timestamp; "none" keeps the order of the file.'),
    ] = None,
    delimiter: Annotated[
        str | None,
        Parameter(name="--delimiter", help="Between fields of CSV or TSV, such as ';'; default the format's."),
    ] = None,
    no_header: NoHeaderOption = False,
    encoding: Annotated[
        str | None, Parameter(name="--encoding", help="Of a text file, such as latin-1; default utf-8.")
    ] = None,
    normalise_ids: Annotated[
        bool | None, Parameter(name="--normalise-ids", negative="", help="Bring ids into composed form (NFC).")
    ] = None,
    first_day: Annotated[
        str | None, Parameter(name="--first-day", help="Reject interactions before it (UTC, 2020-01-31).")
    ] = None,
    last_day: Annotated[str | None, Parameter(name="--last-day", help="Reject interactions after it.")] = None,
    min_user_interactions: Annotated[
        int | None, Parameter(name="--min-user-interactions", help="Users with fewer are dropped; default 5.")
    ] = None,
    min_item_interactions: Annotated[
        int | None, Parameter(name="--min-item-interactions", help="Items with fewer are dropped; default 5.")
    ] = None,
    on_error: Annotated[
        OnError | None,
        Parameter(name="--on-error", help="What to do with rows that cannot be read; default strict."),
    ] = None,
    item_texts: Annotated[
        Path | None,
        Parameter(name="--item-texts", help=".tsv or .csv of the items' texts: identifier first, then words."),
    ] = None,
    replace: Annotated[
        bool, Parameter(name="--replace", negative="", help="Give the name to this import, whatever it stood for.")
    ] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Check a file of interactions, import it and give it a name for `p2rec run --dataset NAME`.

    A name that stands for another file, layout or texts is not given away unless by --replace. What filters rows may
    change.

    Examples:
        p2rec data import clicks.csv --name clicks --config clicks.toml
        p2rec data import clicks.csv --name clicks --format csv --user-column visitor --item-column sku
        p2rec data import ratings.dat --name ratings --format movielens
    """
    options = {
        "format": format,
        "user_column": user_column,
        "item_column": item_column,
        "timestamp_column": "" if timestamp_column == "none" else timestamp_column,
        "delimiter": delimiter,
        "header": False if no_header else None,
        "encoding": encoding,
        "normalise_ids": normalise_ids,
        "first_day": first_day,
        "last_day": last_day,
        "min_user_interactions": min_user_interactions,
        "min_item_interactions": min_item_interactions,
        "on_error": on_error,
    }
    settings = _import_settings(path, config, {name: value for name, value in options.items() if value is not None})
    opened = Store.open(store)
    if not replace:
        check_name(opened, name, path, settings, item_texts=item_texts)
    result = _ingest(one_file(path, settings, opened), settings, opened, as_json)
    if item_texts is not None:
        _check_item_texts(item_texts, result, opened, normalise_ids=settings.normalise_ids)
    register(opened, name, path, settings, item_texts=item_texts, counts=result.info["counts"])
    _print_statistics(name, result, as_json)


def remove(
    name: Annotated[str, Parameter(help="Name of an imported dataset.")],
    /,
    *,
    force: Annotated[
        bool,
        Parameter(name="--force", negative="", help="Even if there are snapshots, which then cannot be refreshed."),
    ] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Forget what was imported under a name. The file and the snapshots stay; artefacts stay until `p2rec gc`.

    Example:
        p2rec data remove clicks
    """
    path = unregister(Store.open(store, create=False), name, force=force)
    if as_json:
        sys.stdout.write(json.dumps({"dataset": name, "path": path or None}, ensure_ascii=False) + "\n")
        return
    origin = f", which was imported from {path}" if path else ""
    Console().print(f"Removed {name}{origin}.", highlight=False, soft_wrap=True, markup=False)


def _import_settings(path: Path, config: Path | None, options: dict[str, Any]) -> IngestSettings:
    """The settings of an import: a configuration's, and those of options over them."""
    settings = pipeline_settings(dataset="", config=config, changes={"ingest": options}).ingest
    if "format" not in settings.model_fields_set:
        raise SettingsError(
            f"Nothing says what format {path} has.",
            remedy=f"Give --format, or let `p2rec init {path}` write a configuration and give that with --config.",
        )
    return settings


def _check_item_texts(path: Path, result: StageResult, store: Store, *, normalise_ids: bool) -> None:
    """Read the texts once, so that a file that cannot be used is refused at import."""
    item_ids = store.load(result.ref).table("items", ["item_id"]).column("item_id").to_pylist()
    texts = read_item_texts(path, item_ids, None, normalise_ids=normalise_ids)
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
    print_table(table, markup=True)
    for notice in result.info["notices"]:
        Console().print(f"note: {notice}", highlight=False)
