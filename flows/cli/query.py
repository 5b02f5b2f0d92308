"""``p2rec query``."""

import csv
import json
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import pyarrow as pa
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from flows.cli.options import DEFAULT_STORE, DatasetOption, JsonOption, SnapshotOption, StoreOption
from flows.cli.tables import print_table
from p2rec_core.errors import SettingsError, did_you_mean
from storage.artefacts import Store
from storage.snapshots import read_snapshot

_SHOWN_VALUES = 6
_SHOWN_ROWS = 100
_BATCH = 10_000


def query(
    sql: Annotated[str, Parameter(help="One SELECT over the snapshot's views; ? and $name are parameters.")],
    /,
    *,
    dataset: DatasetOption = "sample",
    snapshot: SnapshotOption = None,
    parameters: Annotated[
        list[str] | None,
        Parameter(
            name=("--param", "-p"), negative="", help="Value of the next ?, or name=value for $name; may be repeated."
        ),
    ] = None,
    memory: Annotated[
        str, Parameter(name="--memory", help="Most memory before it spills to temporary files, e.g. 4GB.")
    ] = "2GB",
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, Parameter(name="--csv", negative="", help="Print CSV.")] = False,
) -> None:
    """Ask a snapshot with SQL; DuckDB answers from the Parquet files.

    On a terminal the first 100 rows are drawn; a file or a pipe gets all of them. Of columns of one name the second is
    called name_1. In JSON a value that is not a number (NaN) or infinite is null.

    Examples:
        p2rec query "SHOW TABLES"
        p2rec query "SELECT * FROM metrics WHERE split = 'test' AND seen = 'keep'" -d beauty
        p2rec query "SELECT preference FROM user_preferences WHERE user_id = ?" -p 42
        p2rec query 'SELECT item_id FROM item_clusters WHERE cluster = $cluster' -p cluster=3 --csv
    """
    if as_json and as_csv:
        raise SettingsError("--json and --csv exclude each other.", remedy="Give one of them.")
    from storage.catalogue import Catalogue

    opened = Store.open(store, create=False)
    with Catalogue(opened, read_snapshot(opened, dataset, snapshot), memory_limit=memory) as catalogue:
        table = catalogue.query(sql, _bound(parameters or [], catalogue.named_parameters(sql)))
    if as_json:
        _print_json(table)
    elif as_csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(table.column_names)
        writer.writerows(_rows(table))
    else:
        _print_rows(table)


def _bound(given: Sequence[str], names: Sequence[str]) -> list[str] | dict[str, str]:
    """Parameters by name where the query has names, else by position; whether none is missing DuckDB says."""
    if not names:
        return list(given)
    values: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in names:
            hint = did_you_mean(name, names)
            raise SettingsError(
                f"-p {text!r} is no parameter of the query, which has {', '.join('$' + known for known in names)}"
                f"{f' ({hint})' if hint else ''}.",
                remedy=f"Write -p name=value, e.g. -p {names[0]}=3.",
            )
        if name in values:
            raise SettingsError(f"-p gives ${name} twice.", remedy="Give it once.")
        values[name] = value
    return values


def _rows(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    """The rows, with the values of all columns in order."""
    for batch in table.to_batches(max_chunksize=_BATCH):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _print_json(table: pa.Table) -> None:
    separator = "["
    for row in _rows(table):
        values = dict(zip(table.column_names, map(_finite, row), strict=True))
        sys.stdout.write(f"{separator}{json.dumps(values, ensure_ascii=False, default=str, allow_nan=False)}")
        separator = ",\n"
    sys.stdout.write("]\n" if separator != "[" else "[]\n")


def _finite(value: Any) -> Any:
    """The value with None in place of what JSON has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    return value


def _print_rows(table: pa.Table) -> None:
    """All rows, but for a terminal, which gets the first ones, with long values cut."""
    drawn = Console().is_terminal
    shown = Table(*table.column_names)
    for row in _rows(table.slice(0, _SHOWN_ROWS) if drawn else table):
        shown.add_row(*(_cell(value) if drawn else str(value) for value in row))
    print_table(shown)
    cut = drawn and table.num_rows > _SHOWN_ROWS
    rest = f", the first {_SHOWN_ROWS} shown; --csv prints all" if cut else ""
    counted = f"{table.num_rows} row{'' if table.num_rows == 1 else 's'}"
    Console(stderr=True).print(f"{counted}{rest}", highlight=False)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 2**53 else f"{value:.6g}"
    if isinstance(value, list | tuple):
        head = ", ".join(_cell(v) for v in value[:_SHOWN_VALUES])
        return f"[{head}, … {len(value)} values]" if len(value) > _SHOWN_VALUES else f"[{head}]"
    return str(value)
