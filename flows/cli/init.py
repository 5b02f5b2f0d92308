"""``p2rec init``."""

import json
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from flows.cli.options import JsonOption, NoHeaderOption
from p2rec_core.errors import SettingsError
from p2rec_core.settings.data import IngestSettings, OnError, SourceFormat
from p2rec_core.settings.document import EXPERIMENTS_ONLY, configuration
from p2rec_core.settings.pipeline import toml_values, validated
from p2rec_core.settings.proposal import DataSizes, Proposal, proposals
from storage.datasets import DATASETS
from storage.ingest.detect import Detected, Wanted, detect
from storage.ingest.first_look import Core, FirstLook, first_look
from storage.ingest.partitions import is_pattern, joined, partitions_of
from storage.manifest import checked_name
from tasks.outputs import write_new_text

_NAME = re.compile(r"[^a-z0-9._-]+")


def init(
    path: Annotated[Path, Parameter(help="The file of interactions, a directory of its partitions, or a pattern.")],
    /,
    *,
    name: Annotated[str | None, Parameter(name="--name", help="Name of the dataset; default that of the file.")] = None,
    to: Annotated[Path | None, Parameter(name="--to", help="Configuration file to write; default NAME.toml.")] = None,
    format: Annotated[
        SourceFormat | None, Parameter(name="--format", help="The file's layout; default found out.")
    ] = None,
    user_column: Annotated[str | None, Parameter(name="--user-column", help="Default found out by its name.")] = None,
    item_column: Annotated[str | None, Parameter(name="--item-column", help="Default found out by its name.")] = None,
    timestamp_column: Annotated[
        str | None,
        Parameter(name="--timestamp-column", help='Default found out by its name; "none" keeps the order of the file.'),
    ] = None,
    delimiter: Annotated[
        str | None, Parameter(name="--delimiter", help="Between the fields of CSV or TSV; default found out.")
    ] = None,
    no_header: NoHeaderOption = False,
    on_error: Annotated[
        OnError, Parameter(name="--on-error", help="What to do with rows that cannot be read.")
    ] = OnError.STRICT,
    item_texts: Annotated[
        Path | None,
        Parameter(name="--item-texts", help=".tsv or .csv of the items' texts, for the command that follows; checked."),
    ] = None,
    everything: Annotated[
        bool, Parameter(name="--all", negative="", help="Also write every other setting, as a comment.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at a file of interactions and write a commented configuration for it.

    The format and the columns are found out, the k-core and what depends on the size are proposed. Nothing is imported
    and no file is overwritten.

    Examples:
        p2rec init clicks.csv
        p2rec init clicks.csv --user-column visitor --item-column sku --timestamp-column none
        p2rec init exports/ --format parquet --name clicks --all
    """
    dataset = checked_name("a dataset", name or _name_of(path))
    if dataset in DATASETS:
        raise SettingsError(f"{dataset!r} is the name of a known dataset.", remedy="Choose another with --name.")
    target = to or Path(f"{dataset}.toml")
    if target.exists():
        raise SettingsError(f"{target} is there already.", remedy="Name another file with --to, or move it away.")
    wanted = Wanted(
        format=None if format is None else str(format),
        user=user_column,
        item=item_column,
        timestamp=None if timestamp_column == "none" else timestamp_column,
        untimed=timestamp_column == "none",
        delimiter=validated({"ingest": {"delimiter": delimiter}}).ingest.delimiter,
        header=not no_header,
    )
    found, look = _looked_at(path, wanted, on_error, item_texts)
    chosen = [*_of_the_file(found, look, on_error), *proposals(_sizes(look.core))]
    commands = _commands(path, dataset, target, item_texts)
    text = configuration(_head(path, look, commands), chosen, left_out=EXPERIMENTS_ONLY, everything=everything)
    validated(toml_values(text))
    write_new_text(target, text)
    if as_json:
        values = {"path": str(target), "dataset": dataset, "format": found.format, "found": asdict(look)}
        values |= {"settings": {proposal.name: proposal.value for proposal in chosen}, "next": commands}
        sys.stdout.write(json.dumps(values, ensure_ascii=False) + "\n")
    else:
        _tell(target, found, look, commands)


def _name_of(path: Path) -> str:
    """A name that a dataset may have, from that of its file."""
    stem = path.absolute().name.partition(".")[0]
    return _NAME.sub("-", stem.lower()).strip("-._") or "data"


def _looked_at(path: Path, wanted: Wanted, on_error: OnError, item_texts: Path | None) -> tuple[Detected, FirstLook]:
    """Format, columns and sizes of a file, or of the partitions of a directory or pattern taken together."""
    defaults = IngestSettings()

    def look(file: Path) -> tuple[Detected, FirstLook]:
        found = detect(file, wanted)
        return found, first_look(
            file,
            format=found.format,
            columns=found.columns,
            on_error=str(on_error),
            max_rejected=defaults.max_rejected,
            drop_duplicates=defaults.drop_duplicates,
            dialect=found.dialect,
            item_texts=item_texts,
        )

    if not path.is_dir() and not is_pattern(path):
        return look(path)
    format = detect(partitions_of(path)[0], wanted).format
    with tempfile.TemporaryDirectory(prefix="p2rec-init-") as folder:
        return look(joined(path, format, Path(folder), header=wanted.header))


def _of_the_file(found: Detected, look: FirstLook, on_error: OnError) -> Iterator[Proposal]:
    yield Proposal("ingest.format", found.format, "found in the file")
    if found.dialect.delimiter is not None:
        yield Proposal("ingest.delimiter", found.dialect.delimiter, "found in the file")
    if not found.dialect.header:
        yield Proposal("ingest.header", False, "columns are named by their positions")
    if found.named:
        for column, name in (("user", found.columns.user), ("item", found.columns.item)):
            yield Proposal(f"ingest.{column}_column", name, "a column of the file")
    if found.columns.timestamp is None:
        yield Proposal("ingest.timestamp_column", "", "the order of the file counts")
    elif found.named:
        yield Proposal("ingest.timestamp_column", found.columns.timestamp, "a column of the file")
    core = look.core
    left = (
        f"leaves {core.n_users:,} of {look.n_users:,} users, {core.n_items:,} of {look.n_items:,} items and "
        f"{core.n_interactions:,} interactions"
    )
    yield Proposal("ingest.min_user_interactions", core.min_user, left)
    yield Proposal("ingest.min_item_interactions", core.min_item, left)
    yield Proposal("ingest.on_error", str(on_error), f"{look.n_rejected:,} of {look.n_rows:,} rows cannot be read")


def _sizes(core: Core) -> DataSizes:
    return DataSizes(core.n_users, core.n_items, core.n_interactions, core.longest)


def _commands(path: Path, dataset: str, target: Path, item_texts: Path | None) -> list[str]:
    """What to do next, as command lines."""
    texts = [] if item_texts is None else ["--item-texts", str(item_texts)]
    return [
        shlex.join(["p2rec", "data", "import", str(path), "--name", dataset, "--config", str(target), *texts]),
        shlex.join(["p2rec", "run", "--dataset", dataset, "--config", str(target)]),
        shlex.join(["p2rec", "recommend", "--dataset", dataset, "--to", "recommendations.parquet"]),
    ]


def _head(path: Path, look: FirstLook, commands: list[str]) -> list[str]:
    return [
        f"Settings of P2Rec for {path.name}: {look.n_rows:,} rows. Written by `p2rec init`.",
        "What is not here has the general default; `p2rec settings` lists all with value, default and range.",
        "",
        *(f"    {command}" for command in commands),
    ]


def _tell(target: Path, found: Detected, look: FirstLook, commands: list[str]) -> None:
    console, core = Console(), look.core
    columns: dict[str, Any] = {"user": found.columns.user, "item": found.columns.item, "time": found.columns.timestamp}
    named = ", ".join(f"{kind} {name!r}" for kind, name in columns.items() if name is not None)
    lines = [
        f"{found.format}{f' with {named}' if found.named else ''}: {look.n_rows:,} rows, {look.n_users:,} users, "
        f"{look.n_items:,} items.",
        f"k-core: users with {core.min_user} and items with {core.min_item} interactions or more: {core.n_users:,} "
        f"users, {core.n_items:,} items, {core.n_interactions:,} interactions.",
        *(f"note: {notice}" for notice in look.notices),
        f"Written to {target}. Look it over, then:",
        *(f"  {command}" for command in commands),
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
