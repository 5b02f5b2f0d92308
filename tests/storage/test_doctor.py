"""The store as a whole: what is found, and what mending does about it."""

import json
import os
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from p2rec_core.errors import StoreError
from storage.artefacts import Artefact, Store
from storage.doctor import Finding, HealthReport, examine
from storage.manifest import Manifest, digest_of, render_json
from storage.snapshots import pin, publish_snapshot, read_snapshot

NOW = timedelta(0)


@pytest.fixture
def filled(store: Store, tables: SimpleNamespace, publish: Any) -> Artefact:
    """Two snapshots of a dataset; the artefact that only the second refers to."""
    first = publish("clusters", {"item_clusters": tables.item_clusters}, key="k0")
    second = publish("clusters", {"item_clusters": tables.item_clusters}, key="k1")
    publish_snapshot(store, "tiny", {"clusters": first.ref()}, {})
    publish_snapshot(store, "tiny", {"clusters": second.ref()}, {})
    pin(store, "tiny", 1)
    return second


def flip(path: Path, place: int = 40) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(bytes(data))


def found(report: HealthReport, *, harmful: bool = True) -> dict[str, Finding]:
    return {finding.name: finding for finding in report.findings if finding.harmful is harmful}


def test_a_whole_store_is_healthy(store: Store, filled: Artefact) -> None:
    report = examine(store)
    assert report.findings == ()
    assert (report.n_artefacts, report.n_snapshots) == (2, 2)
    assert report.n_bytes == 2 * filled.files["item_clusters"].bytes
    assert json.loads(json.dumps(report.to_json()))["healthy"] is True


def test_a_damaged_artefact_is_named_with_what_rebuilds_it_and_set_aside(store: Store, filled: Artefact) -> None:
    path = filled.path / "item_clusters.parquet"
    flip(path)
    [(name, finding)] = found(examine(store)).items()
    assert name == "artefacts/clusters/k1"
    assert f"The file {path} is damaged" in finding.problem
    assert finding.remedy == "Rebuild it with `p2rec run --dataset tiny`."
    assert path.exists()

    report = examine(store, repair=True)
    mended = found(report)[name].mended
    assert mended == f"set aside in {store.root / 'quarantine' / 'clusters-k1-1'}; a rerun rebuilds it"
    assert not path.exists()
    [missing] = report.harm  # the snapshot that refers to it is whole again after a rerun
    assert missing.problem.startswith("Snapshot 2 of 'tiny' is not complete, slot clusters: There is no artefact")
    assert "`p2rec rollback --dataset tiny`" in missing.remedy


@pytest.mark.parametrize("what", ["manifest", "no manifest", "file too many", "file gone", "wrong rows"])
def test_every_kind_of_damage_to_an_artefact_is_found(store: Store, filled: Artefact, what: str) -> None:
    manifest = filled.path / "manifest.json"
    if what == "manifest":
        flip(manifest)
    elif what == "no manifest":
        manifest.unlink()
    elif what == "file too many":
        (filled.path / "extra").touch()
    elif what == "file gone":
        (filled.path / "item_clusters.parquet").unlink()
    else:  # as if a writer had counted wrongly
        fields = json.loads(manifest.read_bytes())
        del fields["digest"]
        fields["files"]["item_clusters"]["rows"] = 7
        made = Manifest.parse(manifest.read_bytes(), place="here")
        entry = {"item_clusters": type(filled.files["item_clusters"])(**fields["files"]["item_clusters"])}
        wrong = Manifest.create(
            made.stage,
            made.key,
            settings=made.settings,
            inputs=made.inputs,
            fingerprint=made.fingerprint,
            files=entry,
            info=made.info,
            wall_s=made.wall_s,
        )
        manifest.write_bytes(wrong.render())
    finding = found(examine(store))["artefacts/clusters/k1"]
    words = {
        "manifest": "is damaged",
        "no manifest": "has no manifest.json",
        "file too many": "is not in the manifest",
        "file gone": "is missing",
        "wrong rows": "has 3 rows, and its manifest says 7",
    }
    assert words[what] in finding.problem


def test_a_damaged_pointer_points_to_the_last_complete_snapshot_again(store: Store, filled: Artefact) -> None:
    pointer = store.root / "snapshots" / "tiny" / "current.json"
    before = pointer.read_bytes()
    pointer.write_bytes(before[:-3])
    [finding] = examine(store).harm
    assert (finding.kind, finding.name) == ("pointer", "snapshots/tiny/current.json")
    report = examine(store, repair=True)
    assert [f.mended for f in report.findings] == ["it points to snapshot 2 now"]
    assert report.harm == ()
    assert pointer.read_bytes() == before
    assert read_snapshot(store, "tiny").notes == ()


def test_damaged_snapshots_and_pins_are_set_aside(store: Store, filled: Artefact) -> None:
    directory = store.root / "snapshots" / "tiny"
    flip(directory / "000002.json")
    flip(directory / "pins.json")
    assert {f.name.rpartition("/")[2] for f in examine(store).harm} == {"000002.json", "current.json", "pins.json"}
    report = examine(store, repair=True)
    assert report.harm == ()
    assert (store.root / "quarantine" / "snapshots-tiny-1" / "000002.json").exists()
    assert read_snapshot(store, "tiny").number == 1
    again = examine(store)
    assert again.harm == ()
    assert {f.kind for f in again.findings} == {"quarantine"}


def test_locks_that_cannot_be_locked_are_found_and_moved(store: Store, filled: Artefact, tmp_path: Path) -> None:
    locks = store.root / "locks"
    (tmp_path / "elsewhere").write_text("precious")
    (locks / "s~linked.lock").symlink_to(tmp_path / "elsewhere")
    (locks / "s~directory.lock").mkdir()
    (locks / "s~stale.lock").write_text("pid 1")
    (locks / "README").touch()
    report = examine(store)
    assert {name: f.problem.split(", so")[0].split(" is ")[1] for name, f in found(report).items()} == {
        "locks/s~directory.lock": "no regular file",
        "locks/s~linked.lock": "a symbolic link",
    }
    assert list(found(report, harmful=False)) == ["locks/README"]
    assert examine(store, repair=True).harm == ()
    assert (tmp_path / "elsewhere").read_text() == "precious"
    for key in ("linked", "directory", "stale"):
        with store.lock("s", key):
            pass


def test_a_lock_of_another_user_is_found_and_moved(
    store: Store, filled: Artefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.lock("s", "theirs"), store.lock("s", "ours"):
        pass
    path = store.root / "locks" / "s~theirs.lock"
    # the tests may run as root, who may open everything
    monkeypatch.setattr(os, "access", lambda place, mode: place != path or not mode & os.W_OK)
    [finding] = examine(store).harm
    assert (finding.kind, finding.name) == ("lock", "locks/s~theirs.lock")
    assert finding.problem == f"The lock {path} cannot be opened by this user."
    assert finding.remedy == "Remove it; the next process that needs the lock makes it anew."
    [mended] = [f for f in examine(store, repair=True).findings if f.kind == "lock"]
    assert mended.mended == f"set aside in {store.root / 'quarantine' / 'locks-foreign-1'}"
    assert not path.exists()


def test_old_leftovers_are_listed_and_removed(store: Store, filled: Artefact) -> None:
    (store.staging / "s~k~01").mkdir()
    os.utime(store.staging / "s~k~01", (0, 0))
    (store.staging / "s~k~02").mkdir()
    report = examine(store)
    assert {name: (f.kind, f.mended) for name, f in found(report, harmful=False).items()} == {
        "staging/s~k~01": ("leftover", ""),  # the other one is younger than the grace period
    }
    assert report.harm == ()
    assert found(examine(store, repair=True), harmful=False)["staging/s~k~01"].mended == "removed"
    assert [path.name for path in store.staging.iterdir()] == ["s~k~02"]
    examine(store, repair=True, grace=NOW)
    assert not list(store.staging.iterdir())


def test_what_a_process_works_on_is_left_to_it(store: Store, filled: Artefact) -> None:
    flip(filled.path / "item_clusters.parquet")
    with store.lock("clusters", "k1"):
        report = examine(store, repair=True)
    [finding] = report.harm
    assert finding.problem.endswith("It could not be mended: A process works on it.")
    assert (filled.path / "item_clusters.parquet").exists()


def test_what_was_not_made_by_p2rec_is_named_and_left(store: Store, filled: Artefact, tmp_path: Path) -> None:
    (store.root / "artefacts" / "clusters" / "UPPER").mkdir()
    (store.root / "artefacts" / "linked").symlink_to(tmp_path)
    (store.root / "snapshots" / "tiny" / "notes.txt").touch()
    (store.root / "snapshots" / "not a name").mkdir()
    report = examine(store, repair=True)
    assert report.harm == ()
    assert sorted(found(report, harmful=False)) == [
        "artefacts/clusters/UPPER",
        "artefacts/linked",
        "snapshots/not a name",
        "snapshots/tiny/notes.txt",
    ]
    assert (store.root / "snapshots" / "tiny" / "notes.txt").exists()


def test_a_directory_of_the_store_that_leads_elsewhere(store: Store, filled: Artefact, tmp_path: Path) -> None:
    (store.root / "work").rmdir()
    (store.root / "work").symlink_to(tmp_path)
    [finding] = examine(store).harm
    assert finding.problem == f"{store.root / 'work'} is a symbolic link."


def test_a_copy_without_the_empty_directories_is_healthy(store: Store, filled: Artefact, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("artefacts", "snapshots"):
        shutil.copytree(store.root / name, copy / name)
    shutil.copy(store.root / "store.json", copy)
    assert examine(Store.open(copy, create=False)).harm == ()


def test_what_a_newer_version_wrote_is_not_set_aside(store: Store, filled: Artefact) -> None:
    manifest = filled.path / "manifest.json"
    fields = json.loads(manifest.read_bytes()) | {"format_version": 99}
    manifest.write_bytes(render_json(fields | {"digest": digest_of(fields)}))
    report = examine(store, repair=True)
    assert "has format version 99; this P2Rec reads up to" in found(report)["artefacts/clusters/k1"].problem
    assert manifest.exists()


def test_what_others_find_is_mended_with_the_rest(store: Store, filled: Artefact) -> None:
    done: list[float] = []

    def fails() -> str:
        raise StoreError("The disk is full.", remedy="Make room.")

    def further() -> list[tuple[Finding, Callable[[], str] | None]]:
        return [
            (Finding("record", "a", "It is torn.", "Mend it."), lambda: done.append(time.time()) or "mended it"),
            (Finding("record", "b", "It is torn.", "Mend it."), fails),
        ]

    assert len(examine(store, further=further).harm) == 2
    assert done == []
    report = examine(store, repair=True, further=further)
    assert [f.mended for f in report.findings] == ["mended it", ""]
    assert report.harm[0].problem == "It is torn. It could not be mended: The disk is full."


def test_every_finding_says_what_it_is_what_is_wrong_and_what_to_do(
    store: Store, filled: Artefact, publish: Any, tables: SimpleNamespace, tmp_path: Path
) -> None:
    gone = publish("train", {"history": tables.history}, key="k2")
    publish_snapshot(store, "other", {"train": gone.ref()}, {})
    shutil.rmtree(gone.path)
    (filled.path / "extra").touch()
    (store.root / "artefacts" / "clusters" / "k9").mkdir()
    (store.root / "artefacts" / "clusters" / "UPPER").mkdir()
    (store.root / "artefacts" / "linked").symlink_to(tmp_path)
    directory = store.root / "snapshots" / "tiny"
    (store.root / "snapshots" / "not a name").mkdir()
    (directory / "notes.txt").touch()
    (directory / "000002.json").write_bytes(b"{}\n")
    (directory / "pins.json").write_bytes(b"{}\n")
    locks = store.root / "locks"
    (locks / "s~linked.lock").symlink_to(tmp_path / "elsewhere")
    (locks / "s~directory.lock").mkdir()
    (locks / "README").touch()
    (locks / "s~README").touch()
    (store.root / "work" / "UPPER").mkdir()
    (store.root / "quarantine" / "train-k7-1").mkdir()
    (store.staging / "s~k~01").mkdir()
    os.utime(store.staging / "s~k~01", (0, 0))
    (filled.path.parent / "k0" / "item_clusters.parquet").unlink()
    shown = [
        f"{f.kind} | {f.name} | {'harm' if f.harmful else 'no harm'}\n  {f.problem}\n  {f.remedy}"
        for f in examine(store).findings
    ]
    assert "\n".join(shown).replace(str(store.root), "ROOT") == FINDINGS.strip()
    mended = [f"{f.name} | {f.mended}" for f in examine(store, repair=True).findings if f.mended]
    assert "\n".join(mended).replace(str(store.root), "ROOT") == MENDED.strip()


FINDINGS = """
artefact | artefacts/clusters/UPPER | no harm
  ROOT/artefacts/clusters/UPPER was not made by P2Rec.
  Move it elsewhere; nothing of P2Rec reads it.
artefact | artefacts/clusters/k0 | harm
  The file ROOT/artefacts/clusters/k0/item_clusters.parquet is missing.
  Rebuild it with `p2rec run --dataset tiny`.
artefact | artefacts/clusters/k1 | harm
  ROOT/artefacts/clusters/k1/extra is not in the manifest.
  Run the pipeline again: it sets the damaged artefact aside and rebuilds it.
artefact | artefacts/clusters/k9 | harm
  ROOT/artefacts/clusters/k9 has no manifest.json.
  Run the pipeline again: it sets the damaged artefact aside and rebuilds it.
artefact | artefacts/linked | no harm
  ROOT/artefacts/linked was not made by P2Rec.
  Move it elsewhere; nothing of P2Rec reads it.
snapshot | snapshots/not a name | no harm
  ROOT/snapshots/not a name was not made by P2Rec.
  Move it elsewhere; nothing of P2Rec reads it.
snapshot | snapshots/other/000001.json | harm
  Snapshot 1 of 'other' is not complete, slot train: There is no artefact train/k2 in ROOT.
  Compute it again with `p2rec run --dataset other` and the settings of then, or go to a complete snapshot with `p2rec rollback --dataset other`.
snapshot | snapshots/tiny/notes.txt | no harm
  ROOT/snapshots/tiny/notes.txt was not made by P2Rec.
  Move it elsewhere; nothing of P2Rec reads it.
snapshot | snapshots/tiny/000002.json | harm
  ROOT/snapshots/tiny/000002.json is damaged: its digest should be 44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a, found None.
  Go on with another snapshot, or make a new one with `p2rec run --dataset tiny`.
pointer | snapshots/tiny/current.json | harm
  ROOT/snapshots/tiny/current.json or the snapshot that it points to is damaged (its digest should be 44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a, found None); using the last complete snapshot, 1, instead.
  Choose a snapshot with `p2rec promote N --dataset tiny`.
pins | snapshots/tiny/pins.json | harm
  ROOT/snapshots/tiny/pins.json is damaged: its digest should be 44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a, found None.
  Remove it and pin again with `p2rec pin N --dataset tiny`.
lock | locks/README | no harm
  ROOT/locks/README was not made by P2Rec.
  Move it elsewhere; nothing of P2Rec reads it.
lock | locks/s~README | no harm
  ROOT/locks/s~README was not made by P2Rec.
  Move it elsewhere; nothing of P2Rec reads it.
lock | locks/s~directory.lock | harm
  The lock ROOT/locks/s~directory.lock is no regular file, so that nobody can use what it protects.
  Remove it; the next process that needs the lock makes it anew.
lock | locks/s~linked.lock | harm
  The lock ROOT/locks/s~linked.lock is a symbolic link, so that nobody can use what it protects.
  Remove it; the next process that needs the lock makes it anew.
leftover | staging/s~k~01 | no harm
  Its writer did not finish (0 bytes).
  Remove it with `p2rec gc`, or with `--repair`.
work | work/UPPER | no harm
  ROOT/work/UPPER was not made by P2Rec.
  Move it elsewhere; nothing of P2Rec reads it.
quarantine | quarantine/train-k7-1 | no harm
  It was set aside.
  Look at it, and remove it if it is of no use; `p2rec gc` does so in time.
"""  # noqa: E501 (messages are one line)
MENDED = """
artefacts/clusters/k0 | set aside in ROOT/quarantine/clusters-k0-1; a rerun rebuilds it
artefacts/clusters/k1 | set aside in ROOT/quarantine/clusters-k1-1; a rerun rebuilds it
artefacts/clusters/k9 | set aside in ROOT/quarantine/clusters-k9-1; a rerun rebuilds it
snapshots/tiny/000002.json | set aside in ROOT/quarantine/snapshots-tiny-1; artefacts that only it referred to are garbage when they are old
snapshots/tiny/current.json | it points to snapshot 1 now
snapshots/tiny/pins.json | set aside in ROOT/quarantine/snapshots-tiny-2; no snapshot is pinned now
locks/s~directory.lock | set aside in ROOT/quarantine/locks-foreign-1
locks/s~linked.lock | set aside in ROOT/quarantine/locks-foreign-2
staging/s~k~01 | removed
"""  # noqa: E501
