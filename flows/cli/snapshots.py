"""``p2rec snapshots``, ``diff``, ``promote``, ``rollback``, ``pin``, ``unpin`` and ``gc``."""

import json
import sys
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from flows.cli.options import DEFAULT_STORE, DatasetOption, JsonOption, StoreOption
from flows.cli.tables import print_table
from p2rec_core.errors import StoreError
from p2rec_core.metrics import SEEN_POLICIES
from p2rec_core.settings.experiment import SELECTED_BY
from p2rec_core.settings.sequence_model import Variant
from storage import snapshots as stored
from storage.artefacts import Artefact, Store
from storage.garbage import DEFAULT_GRACE, GarbageReport, Item, collect
from storage.snapshot_changes import SnapshotChanges, snapshot_changes
from tasks.dag import VARIANT_TITLES
from tasks.references import experiment_references

NumberArgument = Annotated[int, Parameter(help="Number of a snapshot; `p2rec snapshots`.")]
_MIB = 2**20
_SHOWN_ITEMS = 100


def snapshots(
    *, dataset: DatasetOption = "sample", store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False
) -> None:
    """List the snapshots of a dataset, oldest first: which is the current one, which are pinned, how good they are.

    Examples:
        p2rec snapshots -d beauty
        p2rec snapshots -d beauty --json
    """
    opened = Store.open(store, create=False)
    current = stored.read_snapshot(opened, dataset)
    _print_notes(current)
    pins = stored.pinned(opened, dataset)
    rows = [
        {"number": number, "current": number == current.number, "pinned": number in pins, "refused": False}
        | _described(opened, dataset, number)
        for number in stored.snapshot_files(opened, dataset)
    ]
    if as_json:
        sys.stdout.write(json.dumps({"dataset": dataset, "snapshots": rows}, ensure_ascii=False) + "\n")
        return
    table = Table(title=f"Snapshots of {dataset}", title_justify="left")
    table.add_column("snapshot", justify="right")
    for column in ("", "created", "slots", f"test {SELECTED_BY}", "problem"):
        table.add_column(column)
    for row in rows:
        marks = [mark for mark in ("current", "pinned", "refused") if row[mark]]
        slots, headline = row["slots"] or [], row["headline"]
        table.add_row(
            str(row["number"]),
            ", ".join(marks),
            row["created_utc"] or "",
            str(len(slots)) if slots else "",
            "" if headline is None else f"{headline['value']:.4f} ({_title(headline['method'], headline['variant'])})",
            row["problem"] or "",
        )
    print_table(table)


def _described(store: Store, dataset: str, number: int) -> dict[str, Any]:
    """What there is to say of a snapshot; a damaged one, or one that lacks artefacts, has a problem."""
    row: dict[str, Any] = {"created_utc": None, "slots": None, "headline": None, "problem": None}
    try:
        snapshot = stored.read_snapshot(store, dataset, number)
        row |= {"created_utc": snapshot.created_utc, "slots": list(snapshot.entries)}
        row["refused"] = bool(stored.refusal_of(snapshot))
        row["headline"] = _headline({slot: store.load(ref) for slot, ref in snapshot.entries.items()})
    except StoreError as error:
        row["problem"] = error.problem
    return row


def _headline(artefacts: dict[str, Artefact]) -> dict[str, Any] | None:
    """The metric that stands for a snapshot: that of the recommender that knows most; None without an evaluation."""
    found = [
        {name: entry[name] for name in ("method", "variant", "value")}
        for slot, artefact in artefacts.items()
        if slot.startswith("evaluation.")
        for entry in artefact.manifest.info.get("metrics", ())
        if entry["variant"] in set(Variant)
        and (entry["split"], entry["seen"]) == ("test", SEEN_POLICIES[0])
        and f"{entry['metric']}@{entry['k']}" == SELECTED_BY
    ]
    return max(found, key=lambda entry: list(Variant).index(entry["variant"]), default=None)


def _title(method: str, variant: str) -> str:
    return f"{method} {VARIANT_TITLES[Variant(variant)]}" if variant in set(Variant) else method


def _print_notes(snapshot: stored.Snapshot) -> None:
    for note in snapshot.notes:
        Console(stderr=True).print(f"note: {note}", highlight=False, soft_wrap=True, markup=False)


def diff(
    old: NumberArgument,
    new: NumberArgument,
    /,
    *,
    dataset: DatasetOption = "sample",
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Show what is different between two snapshots: slots, users and items, clusters, embeddings, metrics.

    Examples:
        p2rec diff 3 4 -d beauty
        p2rec diff 3 4 -d beauty --json
    """
    opened = Store.open(store, create=False)
    changes = snapshot_changes(
        opened, stored.read_snapshot(opened, dataset, old), stored.read_snapshot(opened, dataset, new)
    )
    if as_json:
        sys.stdout.write(json.dumps({"dataset": dataset, **changes.to_json()}, ensure_ascii=False) + "\n")
        return
    console = Console()
    if not changes.slots:
        console.print(f"Snapshots {old} and {new} of {dataset} have the same artefacts.", highlight=False)
        return
    print_table(_slot_table(changes, dataset))
    if changes.metrics:
        print_table(_metric_table(changes))
    for line in _content_lines(changes):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    for note in changes.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True, markup=False)


def _slot_table(changes: SnapshotChanges, dataset: str) -> Table:
    title = f"Snapshots {changes.old} and {changes.new} of {dataset}"
    table = Table("slot", "what", str(changes.old), str(changes.new), title=title, title_justify="left")
    for change in changes.slots:
        what = "added" if change.old is None else "removed" if change.new is None else "changed"
        places = ("" if ref is None else f"{ref.stage}/{ref.key[:12]}" for ref in (change.old, change.new))
        table.add_row(change.slot, "same content, another key" if change.same_content else what, *places)
    return table


def _metric_table(changes: SnapshotChanges) -> Table:
    table = Table("method", "seen", "metric", title="Test metrics", title_justify="left")
    for column in (str(changes.old), str(changes.new), "difference"):
        table.add_column(column, justify="right")
    for change in changes.metrics:
        if change.split == "test":
            values = ("" if value is None else f"{value:.4f}" for value in (change.old, change.new))
            name = f"{change.metric}@{change.k}" if change.k else change.metric
            difference = ""
            if change.old is not None and change.new is not None:
                difference = f"{change.new - change.old:+.4f}"
            table.add_row(_title(change.method, change.variant), change.seen, name, *values, difference)
    return table


def _content_lines(changes: SnapshotChanges) -> Iterable[str]:
    for ids in changes.ids:
        yield (
            f"{ids.table}: {ids.n_old:,} → {ids.n_new:,}; {ids.n_added:,} added, {ids.n_removed:,} removed by their ids"
        )
    for moved in changes.clusters:
        yield (
            f"{moved.slot}: {moved.changed:.1%} of {moved.n_items:,} items have another cluster; "
            f"{moved.split:.1%} left most of their old cluster"
        )
    for similar in changes.embeddings:
        mean = "nothing to compare" if similar.mean_cosine is None else f"mean cosine {similar.mean_cosine:.4f}"
        zero = f"; {similar.n_zero:,} zero vectors left out" if similar.n_zero else ""
        yield f"{similar.slot} ({similar.table}): {mean} over {similar.n_items:,} items{zero}"


def promote(
    number: NumberArgument,
    /,
    *,
    dataset: DatasetOption,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Make a snapshot the current one, after checking that all its artefacts are there.

    Example:
        p2rec promote 3 -d beauty
    """
    _print_current(stored.promote(Store.open(store, create=False), dataset, number), as_json)


def rollback(*, dataset: DatasetOption, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Go back to the complete snapshot before the current one; the current one stays and can be promoted again.

    Example:
        p2rec rollback -d beauty
    """
    _print_current(stored.rollback(Store.open(store, create=False), dataset), as_json)


def _print_current(snapshot: stored.Snapshot, as_json: bool) -> None:
    _print_notes(snapshot)
    if as_json:
        values = {"dataset": snapshot.dataset, "current": snapshot.number, "created_utc": snapshot.created_utc}
        sys.stdout.write(json.dumps(values) + "\n")
        return
    Console().print(
        f"Snapshot {snapshot.number} of {snapshot.dataset}, created {snapshot.created_utc}, is the current one.",
        highlight=False,
        soft_wrap=True,
    )


def pin(
    number: NumberArgument,
    /,
    *,
    dataset: DatasetOption,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Keep a snapshot, and what it needs, from being forgotten by `p2rec gc --keep-last`.

    Example:
        p2rec pin 3 -d beauty
    """
    _print_pins(dataset, stored.pin(Store.open(store, create=False), dataset, number), as_json)


def unpin(
    number: NumberArgument,
    /,
    *,
    dataset: DatasetOption,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Take the pin of a snapshot back.

    Example:
        p2rec unpin 3 -d beauty
    """
    _print_pins(dataset, stored.unpin(Store.open(store, create=False), dataset, number), as_json)


def _print_pins(dataset: str, pins: Iterable[int], as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps({"dataset": dataset, "pinned": sorted(pins)}) + "\n")
        return
    Console().print(f"Pinned snapshots of {dataset}: {', '.join(map(str, sorted(pins))) or 'none'}.", highlight=False)


def gc(
    *,
    dry_run: Annotated[
        bool, Parameter(name="--dry-run", negative="", help="Change nothing; say what would be removed.")
    ] = False,
    grace: Annotated[
        timedelta, Parameter(name="--grace", help="What is younger stays, e.g. 7d or 12h; longer than a run takes.")
    ] = DEFAULT_GRACE,
    keep_last: Annotated[
        int | None,
        Parameter(
            name="--keep-last",
            help="Forget all but so many snapshots of a dataset that were not refused, the current and the pinned.",
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Remove artefacts that no snapshot and no experiment needs, leftovers of crashes, and what was set aside.

    Examples:
        p2rec gc --dry-run
        p2rec gc --grace 2d --keep-last 5
    """
    opened = Store.open(store, create=False)
    report = collect(
        opened,
        grace=grace,
        keep_last=keep_last,
        references=lambda: experiment_references(opened),
        dry_run=dry_run,
    )
    if as_json:
        sys.stdout.write(json.dumps(report.to_json(), ensure_ascii=False) + "\n")
    else:
        _print_garbage(report, opened)


def _print_garbage(report: GarbageReport, store: Store) -> None:
    console = Console()
    if report.removed:
        table = Table("what", "name", "why", title="Would be removed" if report.dry_run else "Removed")
        table.title_justify = "left"
        table.add_column("MiB", justify="right")
        for item in report.removed[:_SHOWN_ITEMS]:
            table.add_row(str(item.kind), item.name, item.reason, f"{item.n_bytes / _MIB:.2f}")
        print_table(table)
        if len(report.removed) > _SHOWN_ITEMS:
            console.print(f"… the first {_SHOWN_ITEMS} shown; --json prints all", highlight=False)
    lines = [f"{report.summary}; store: {store.root}"]
    lines += [f"kept: {line}" for line in _kept_lines(report.kept)]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _kept_lines(kept: Iterable[Item]) -> Iterable[str]:
    numbers = Counter((str(item.kind), item.reason) for item in kept)
    return (f"{n} × {kind}: {reason}" for (kind, reason), n in sorted(numbers.items()))
