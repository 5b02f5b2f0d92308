"""``p2rec show``."""

import json
import sys
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from flows.cli.options import (
    DEFAULT_STORE,
    ConfigOption,
    DatasetOption,
    JsonOption,
    ProfileOption,
    RecipeOption,
    SetOption,
    SnapshotOption,
    StoreOption,
)
from flows.cli.tables import print_table
from flows.cli.terminal import print_plan
from flows.prepare import prepared_slots
from p2rec_core.errors import SettingsError
from p2rec_core.settings.pipeline import Profile, Recipe, pipeline_settings
from storage.artefacts import Artefact, Store
from storage.snapshots import Snapshot, list_snapshots, read_snapshot
from tasks.plan import plan


def show(
    slot: Annotated[str | None, Parameter(help="A slot (knowledge); without, the whole snapshot.")] = None,
    /,
    *,
    dataset: DatasetOption = "sample",
    snapshot: SnapshotOption = None,
    profile: ProfileOption = Profile.CPU,
    recipe: RecipeOption = Recipe.DEFAULT,
    config: ConfigOption = None,
    assignments: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    planned: Annotated[
        bool, Parameter(name="--plan", negative="", help="What a run with these settings would compute, and why.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a snapshot's artefacts, one artefact with its lineage, or what a run would do.

    Examples:
        p2rec show -d beauty
        p2rec show knowledge -d beauty
        p2rec show -d beauty --plan --set clusters.n_clusters=100
    """
    given = {"--profile": profile is not Profile.CPU, "--recipe": recipe is not Recipe.DEFAULT}
    given |= {"--config": config is not None, "--set": bool(assignments)}
    of_the_run = ", ".join(option for option, is_given in given.items() if is_given)
    if of_the_run and not planned:
        raise SettingsError(f"Without --plan {of_the_run} would change nothing.", remedy="Add --plan, or leave it out.")
    if planned and (slot is not None or snapshot is not None):
        raise SettingsError("--plan is of a whole run from now on.", remedy="Leave out the slot and --snapshot.")
    opened = Store.open(store, create=False)
    if planned:
        settings = pipeline_settings(
            dataset=dataset, profile=profile, recipe=recipe, config=config, assignments=assignments or ()
        )
        slots, _ = prepared_slots(dataset, settings, opened)
        print_plan(list(plan(slots, opened, read_snapshot(opened, dataset).entries)), as_json=as_json)
        return
    chosen = read_snapshot(opened, dataset, snapshot)
    for note in chosen.notes:
        Console(stderr=True).print(f"note: {note}", highlight=False)
    if slot is None:
        _show_snapshot(opened, chosen, as_json)
        return
    if slot not in chosen.entries:
        raise SettingsError(
            f"Snapshot {chosen.number} of {dataset!r} has no slot {slot!r}.",
            remedy=f"Choose one of: {', '.join(chosen.entries)}.",
        )
    _show_artefact(opened, opened.load(chosen.entries[slot]), as_json)


def _show_snapshot(store: Store, snapshot: Snapshot, as_json: bool) -> None:
    artefacts = {slot: store.load(ref) for slot, ref in snapshot.entries.items()}
    rows = [
        {
            "slot": slot,
            "artefact": f"{a.stage}/{a.key}",
            "files": {n: {"rows": e.rows, "bytes": e.bytes, "sha256": e.sha256} for n, e in a.files.items()},
            "wall_s": a.manifest.wall_s,
            "created_utc": a.manifest.created_utc,
        }
        for slot, a in artefacts.items()
    ]
    if as_json:
        sys.stdout.write(json.dumps({"snapshot": snapshot.number, "slots": rows}) + "\n")
        return
    label = f"{snapshot.dataset} (synthetic)" if snapshot.info.get("synthetic") else snapshot.dataset
    table = Table("slot", "files", title=f"Snapshot {snapshot.number} of {label}", title_justify="left")
    for column in ("rows", "MiB", "computed in s"):
        table.add_column(column, justify="right")
    table.add_column("artefact", no_wrap=True)
    for slot, a in artefacts.items():
        entries = list(a.files.values())
        table.add_row(
            slot,
            "\n".join(e.name for e in entries),
            "\n".join("" if e.rows is None else f"{e.rows:,}" for e in entries),
            "\n".join(f"{e.bytes / 2**20:.2f}" for e in entries),
            f"{a.manifest.wall_s:.1f}",
            f"{a.stage}/{a.key[:12]}",
        )
    print_table(table, markup=True)
    numbers = ", ".join(str(s.number) for s in list_snapshots(store, snapshot.dataset))
    unique = {a.path: sum(e.bytes for e in a.files.values()) for a in artefacts.values()}
    Console().print(
        f"{sum(unique.values()) / 2**20:.1f} MiB in {len(unique)} artefacts under {store.root}; snapshots: {numbers}",
        highlight=False,
        soft_wrap=True,
    )


def _show_artefact(store: Store, artefact: Artefact, as_json: bool) -> None:
    if as_json:
        sys.stdout.write((artefact.path / "manifest.json").read_text(encoding="utf-8"))
        return
    manifest = artefact.manifest
    console = Console()
    tree = Tree(f"[bold]{artefact.stage}/{artefact.key}[/]")
    tree.add(f"path: {artefact.path}")
    tree.add(f"computed {manifest.created_utc} in {manifest.wall_s:.1f} s; code {manifest.fingerprint[:12]}")
    files = tree.add("files")
    for entry in artefact.files.values():
        rows = "" if entry.rows is None else f"{entry.rows:,} rows, "
        branch = files.add(f"{entry.name}: {rows}{entry.bytes:,} bytes, sha256 {entry.sha256[:16]}")
        for name, kind in entry.columns.items():
            branch.add(f"{name}: {kind}")
    settings = tree.add("settings")
    for name, value in sorted(manifest.settings.items()):
        settings.add(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    info = tree.add("facts")
    for name, value in sorted(manifest.info.items()):
        text = json.dumps(value, ensure_ascii=False)
        info.add(f"{name} = {text if len(text) < 300 else text[:300] + ' …'}")
    _add_lineage(tree.add("lineage"), store, artefact, set())
    console.print(tree, highlight=False, soft_wrap=True)


def _add_lineage(branch: Tree, store: Store, artefact: Artefact, seen: set[tuple[str, str]]) -> None:
    for name, ref in artefact.manifest.inputs.items():
        text = f"{name} ← {ref.stage}/{ref.key[:12]} {ref.file} ({ref.sha256[:12]})"
        again = (ref.stage, ref.key) in seen
        node = branch.add(text + (" …" if again and ref.stage != "source" else ""))
        if ref.stage == "source" or again:
            continue
        seen.add((ref.stage, ref.key))
        found = store.find_input(ref)
        if found is None:
            node.add("[red]no longer in the store[/]")
        else:
            _add_lineage(node, store, found, seen)
