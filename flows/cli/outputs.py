"""``p2rec recommend``, ``p2rec neighbours`` and ``p2rec export``."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from flows.cli.options import DEFAULT_STORE, DatasetOption, JsonOption, SnapshotOption, StoreOption
from flows.cli.tables import print_table
from flows.cli.terminal import StageBars
from p2rec_core.errors import SettingsError
from storage.artefacts import Store
from storage.snapshots import Snapshot, read_snapshot
from tasks.export import (
    NEIGHBOURS,
    export_faiss,
    export_model,
    export_npy,
    export_parquet,
    item_place,
    item_vectors,
)
from tasks.export import neighbours as neighbour_tables
from tasks.outputs import write_table
from tasks.recommendation import (
    COLUMNS,
    Unknown,
    allowed_items,
    given_users,
    known_users,
    open_recommender,
)
from tasks.recommendation import recommend as recommend_tables

Seen = Literal["keep", "weigh", "mask"]
CountOption = Annotated[int, Parameter(name=("-n", "--count"), help="How many items.")]
_SHOWN_USERS = 5


def recommend(
    *,
    dataset: DatasetOption = "sample",
    n: CountOption = 10,
    users: Annotated[
        Path | None, Parameter(name="--users", help="File with a user's id on each line; default all users.")
    ] = None,
    sequences: Annotated[
        Path | None,
        Parameter(name="--sequences", help='Instead of users: JSON lines {"user_id": "u", "items": ["i", "j"]}.'),
    ] = None,
    items: Annotated[
        Path | None, Parameter(name="--items", help="File with an item's id on each line: only these are recommended.")
    ] = None,
    seen: Annotated[
        Seen,
        Parameter(
            name="--seen",
            help="A user's own items: mask leaves them out, keep treats them as all others, weigh adds to their "
            "scores what validation said of repeats.",
        ),
    ] = "mask",
    unknown: Annotated[
        Unknown, Parameter(name="--unknown", help="Ids in files that the dataset does not have: error or skip.")
    ] = Unknown.ERROR,
    slot: Annotated[
        str | None, Parameter(name="--slot", help="A recommender; default +P2Rec, else +CI, else Base.")
    ] = None,
    snapshot: SnapshotOption = None,
    to: Annotated[Path | None, Parameter(name="--to", help="File to write, .parquet or .csv.")] = None,
    device: Annotated[Literal["cpu", "cuda"], Parameter(name="--device", help="Where to compute.")] = "cpu",
    threads: Annotated[int, Parameter(name="--threads", help="CPU threads.")] = 2,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Recommend items to users from all that is known of them; without --to, show those of the first users.

    Users of whom nothing is known get the most popular items; the column ``source`` says so.

    Examples:
        p2rec recommend
        p2rec recommend -d beauty -n 20 --to recommendations.csv
        p2rec recommend -d beauty --users some.txt --items in-stock.txt --to recommendations.parquet
        p2rec recommend -d beauty --sequences sessions.jsonl --unknown skip --json
    """
    if users is not None and sequences is not None:
        raise SettingsError("--users and --sequences exclude each other.", remedy="Give one of them.")
    if threads < 1:
        raise SettingsError(f"--threads {threads} is below 1.", remedy="Give at least one.")
    opened = Store.open(store, create=False)
    published = open_recommender(opened, _snapshot(opened, dataset, snapshot), slot)
    chosen = known_users(published, users, unknown) if sequences is None else given_users(published, sequences, unknown)
    allowed, n_skipped = (None, 0) if items is None else allowed_items(published, items, unknown)
    if to is None and not as_json:
        chosen = dataclasses.replace(chosen, rows=chosen.rows[:_SHOWN_USERS])
    if chosen.n_skipped + n_skipped:
        Console(stderr=True).print(
            f"note: {chosen.n_skipped + n_skipped} unknown ids were passed over", highlight=False
        )
    with StageBars(enabled=to is not None and not as_json) as bars:
        tables = recommend_tables(
            published,
            chosen,
            n,
            seen=seen,
            allowed=allowed,
            device=device,
            threads=threads,
            progress=lambda done, total, message: bars("recommend", done, total, message),
        )
        if to is None:
            _print_recommendations(tables, f"{published.slot}, snapshot {published.snapshot.number}", as_json)
            return
        settings = {"n": n, "seen": seen, "n_allowed_items": None if allowed is None else int(allowed.sum())}
        n_rows = write_table(to, COLUMNS, tables, published.facts() | {"settings": settings})
    _tell(to, {"rows": n_rows, "users": len(chosen.rows)} | published.facts(), as_json)


def neighbours(
    item_id: Annotated[str | None, Parameter(help="An item's id; left out with --all.")] = None,
    /,
    *,
    dataset: DatasetOption = "sample",
    n: CountOption = 10,
    slot: Annotated[str, Parameter(name="--slot", help="Whose embeddings: knowledge, backbone, …")] = "knowledge",
    every: Annotated[bool, Parameter(name="--all", negative="", help="Of all items; needs --to.")] = False,
    snapshot: SnapshotOption = None,
    to: Annotated[Path | None, Parameter(name="--to", help="File to write, .parquet or .csv.")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """The items whose embeddings have the highest cosine with an item's; exact.

    Examples:
        p2rec neighbours i0001
        p2rec neighbours i0001 -n 5 --slot recommender.sasrec.p2rec
        p2rec neighbours --all -d beauty --to neighbours.parquet
    """
    if every == (item_id is not None):
        raise SettingsError("Neighbours are those of one item or of all.", remedy="Give an item's id, or --all.")
    if every and to is None:
        raise SettingsError(
            "The neighbours of all items go to a file.", remedy="Name it with --to FILE.parquet or FILE.csv."
        )
    opened = Store.open(store, create=False)
    found = item_vectors(opened, _snapshot(opened, dataset, snapshot), slot)
    rows = None if item_id is None else np.array([item_place(found, item_id)])
    with StageBars(enabled=to is not None and not as_json) as bars:
        tables = neighbour_tables(
            found,
            n,
            rows=rows,
            progress=lambda done, total, message: bars("neighbours", done, total, message),
        )
        if to is not None:
            n_rows = write_table(to, NEIGHBOURS, tables, found.facts | {"settings": {"n": n}})
            _tell(to, {"rows": n_rows} | found.facts, as_json)
            return
    answers = [row for table in tables for row in table.to_pylist()]
    if as_json:
        sys.stdout.write(json.dumps(answers, ensure_ascii=False) + "\n")
        return
    shown = Table("rank", "item", "cosine", title=f"Nearest to {item_id} by {slot}", title_justify="left")
    for row in answers:
        shown.add_row(str(row["rank"]), row["neighbour_id"], f"{row['similarity']:.4f}")
    print_table(shown)


def export(
    slot: Annotated[str, Parameter(help="A slot: knowledge, backbone, recommender.sasrec.p2rec, …")],
    /,
    *,
    to: Annotated[
        Path, Parameter(name="--to", help="File .parquet (parquet) or new directory (npy, faiss, model) to write.")
    ],
    form: Annotated[
        Literal["parquet", "npy", "faiss", "model"],
        Parameter(
            name="--format",
            help="Embeddings as parquet, npy or a faiss index, or a model for another program.",
        ),
    ] = "parquet",
    dataset: DatasetOption = "sample",
    snapshot: SnapshotOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Write the embeddings of a slot, or a recommender, with the dataset's own item ids.

    parquet: columns item_id and embedding. npy: embeddings.npy and ids.txt. faiss: index.faiss, exact and by cosine,
    and ids.txt. model: model.safetensors, ids.txt and config.json, which ``p2rec_core.inference.Recommender.load``
    reads.

    Examples:
        p2rec export knowledge -d beauty --to knowledge.parquet
        p2rec export backbone --format npy --to backbone
        p2rec export recommender.sasrec.p2rec --format model --to model
    """
    opened = Store.open(store, create=False)
    chosen = _snapshot(opened, dataset, snapshot)
    if form == "model":
        published = open_recommender(opened, chosen, slot)
        _tell(to, {"items": export_model(published, to)} | published.facts(), as_json)
        return
    found = item_vectors(opened, chosen, slot)
    write = {"parquet": export_parquet, "npy": export_npy, "faiss": export_faiss}[form]
    _tell(to, {"items": write(found, to)} | found.facts, as_json)


def _snapshot(store: Store, dataset: str, number: int | None) -> Snapshot:
    chosen = read_snapshot(store, dataset, number)
    for note in chosen.notes:
        Console(stderr=True).print(f"note: {note}", highlight=False)
    return chosen


def _print_recommendations(tables: Iterator[pa.Table], title: str, as_json: bool) -> None:
    if as_json:
        separator = "["
        for table in tables:
            for row in table.to_pylist():
                sys.stdout.write(f"{separator}{json.dumps(row, ensure_ascii=False)}")
                separator = ",\n"
        sys.stdout.write("]\n" if separator != "[" else "[]\n")
        return
    shown = Table("user", "rank", "item", "score", "source", title=title, title_justify="left")
    previous = None
    for table in tables:
        for row in table.to_pylist():
            if previous not in (None, row["user_id"]):
                shown.add_section()
            previous = row["user_id"]
            shown.add_row(row["user_id"], str(row["rank"]), row["item_id"], f"{row['score']:.4f}", row["source"])
    print_table(shown)
    Console().print(
        f"The first {_SHOWN_USERS} users at the most; --to FILE.csv or FILE.parquet writes those of all.",
        highlight=False,
    )


def _tell(to: Path, facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({"path": str(to)} | facts, ensure_ascii=False) + "\n")
        return
    counted = ", ".join(f"{facts[name]:,} {name}" for name in ("users", "items", "rows") if name in facts)
    Console().print(
        f"{to}: {counted}, from {facts['slot']} of snapshot {facts['snapshot']} of {facts['dataset']}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
