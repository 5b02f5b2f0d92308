import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from p2rec_core.errors import ArtefactDamaged, ArtefactMissing, StoreError
from storage import garbage
from storage.artefacts import Artefact, ArtefactRef, InputRef, Store
from storage.doctor import examine
from storage.garbage import GarbageReport, Item, Kind, collect, collect_leftovers
from storage.snapshots import (
    list_snapshots,
    mark_used,
    pin,
    promote,
    publish_snapshot,
    read_snapshot,
    references_lock,
    rollback,
    unpin,
)

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
NOW = timedelta(0)

Make = Callable[..., Artefact]


@pytest.fixture
def make(store: Store) -> Make:
    """Publish a small artefact, computed from others."""

    def make(key: str, *inputs: Artefact, stage: str = "s") -> Artefact:
        refs = {f"input-{i}": artefact.input("value") for i, artefact in enumerate(inputs)}
        refs["source"] = InputRef("source", "0" * 32, "source", "0" * 64)
        with store.write(stage, key, settings={}, inputs=refs, fingerprint="f") as writer:
            writer.json("value", {"key": key})
            return writer.publish({}, 1.0)

    return make


def age(path: Path, days: float) -> None:
    """Make everything in a directory so many days old."""
    then = time.time() - 86400 * days
    for each in (path, *path.rglob("*")):
        os.utime(each, (then, then), follow_symlinks=False)


def tree(store: Store) -> dict[str, tuple[int, bytes]]:
    """Everything in the store with its content and its time of change."""
    return {
        str(path.relative_to(store.root)): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in store.root.rglob("*")
    }


def names(report: GarbageReport, kind: Kind = Kind.ARTEFACT) -> set[str]:
    return {item.name for item in report.removed if item.kind is kind}


def reasons(report: GarbageReport) -> dict[str, str]:
    return {item.name: item.reason for item in report.kept}


def there(store: Store) -> set[str]:
    return {artefact.key for artefact in store.artefacts()}


def test_what_nothing_refers_to_goes_when_it_is_old(store: Store, make: Make) -> None:
    for key in ("current", "old", "young"):
        make(key)
    publish_snapshot(store, "tiny", {"slot": make("current").ref()}, {})
    age(store.root, 8)
    (store.place("s", "young") / "manifest.json").touch()
    report = collect(store)
    assert names(report) == {"artefacts/s/old"}
    assert report.n_bytes_freed > 500
    assert reasons(report) == {
        "artefacts/s/current": "it is referred to",
        "artefacts/s/young": "it is younger than the grace period",
        "snapshots/tiny/000001.json": "it is the current one",
    }
    assert there(store) == {"current", "young"}
    assert names(collect(store, grace=NOW)) == {"artefacts/s/young"}
    assert collect(store, grace=NOW).removed == ()
    assert json.loads(json.dumps(report.to_json()))["removed"][0]["kind"] == "artefact"


def test_what_a_run_is_about_to_read_is_as_young_as_new(store: Store, make: Make) -> None:
    used, unused = make("used"), make("unused")
    age(store.root, 8)
    before = tree(store)
    assert mark_used(store, used)
    assert {name for name, seen in tree(store).items() if seen != before.get(name)} >= {"artefacts/s/used"}
    store.verify(used)
    assert names(collect(store)) == {"artefacts/s/unused"}
    assert not mark_used(store, unused)


def test_a_dataset_of_which_every_snapshot_was_refused_does_not_stop_the_collection(store: Store, make: Make) -> None:
    """Found by the state machine: there is no current snapshot, and that is no damage."""
    for n in range(3):
        publish_snapshot(store, "tiny", {"slot": make(f"k{n}").ref()}, {"n": n}, refused=["worse"])
    make("unwanted")
    report = collect(store, grace=NOW, keep_last=2)
    assert names(report) == {"artefacts/s/k0", "artefacts/s/unwanted"}
    assert [snapshot.number for snapshot in list_snapshots(store, "tiny")] == [2, 3]
    assert not examine(store).harm
    (store.root / "snapshots" / "tiny" / "current.json").write_text("torn")
    with pytest.raises(StoreError, match="No snapshot of 'tiny' is readable"):
        collect(store, grace=NOW)
    assert [finding.kind for finding in examine(store).harm] == ["pointer"]


def test_what_a_snapshot_was_computed_from_is_kept_and_nothing_further_up(store: Store, make: Make) -> None:
    raw = make("raw", stage="ingest")
    middle = make("middle", raw)
    last = make("last", middle)
    make("other", middle)
    publish_snapshot(store, "tiny", {"slot": last.ref()}, {})
    report = collect(store, grace=NOW)
    assert names(report) == {"artefacts/s/other", "artefacts/ingest/raw"}
    referrers = {item.name: item.referrer for item in report.kept if item.kind is Kind.ARTEFACT}
    assert referrers == {
        "artefacts/s/last": "snapshot 1 of tiny",
        "artefacts/s/middle": "s/last, which was computed from it",
    }


def test_what_further_references_were_computed_from_is_kept_however_far_up(store: Store, make: Make) -> None:
    raw = make("raw", stage="ingest")
    middle = make("middle", raw)
    last = make("last", middle, raw)
    make("other", middle)
    publish_snapshot(store, "tiny", {"slot": make("later", last).ref()}, {})  # one step from there must not end it
    report = collect(store, grace=NOW, references=lambda: {"experiment tiny": [last.ref()]})
    assert names(report) == {"artefacts/s/other"}
    referrers = {item.name: item.referrer for item in report.kept if item.kind is Kind.ARTEFACT}
    assert referrers["artefacts/s/middle"] == "s/last, which was computed from it"
    assert "which was computed from it" in str(referrers["artefacts/ingest/raw"])
    shutil.rmtree(middle.path)  # its inputs are no longer known
    assert names(collect(store, grace=NOW, references=lambda: {"experiment tiny": [last.ref()]})) == set()


def test_nights_that_were_computed_from_each_other_do_not_pile_up(store: Store, make: Make) -> None:
    night, backbone = None, None
    for n in range(1, 9):
        earlier = [made for made in (night, backbone) if made is not None]
        backbone = make(f"backbone{n}", *earlier)
        night = make(f"night{n}", backbone, *earlier)
        publish_snapshot(store, "tiny", {"backbone": backbone.ref(), "slot": night.ref()}, {})
        collect(store, grace=NOW, keep_last=2)
    assert there(store) == {f"{what}{n}" for what in ("backbone", "night") for n in (6, 7, 8)}


def test_older_snapshots_keep_what_they_refer_to_until_they_are_forgotten(store: Store, make: Make) -> None:
    for n in range(1, 6):
        publish_snapshot(store, "tiny", {"slot": make(f"k{n}").ref()}, {})
    publish_snapshot(store, "other", {"slot": make("k1").ref()}, {})
    promote(store, "tiny", 3)
    pin(store, "tiny", 2)
    assert collect(store, grace=NOW).removed == ()
    young = collect(store, keep_last=1)
    assert young.removed == ()
    assert reasons(young)["snapshots/tiny/000001.json"] == "it is younger than the grace period"
    report = collect(store, grace=NOW, keep_last=1)
    assert names(report, Kind.SNAPSHOT) == {"snapshots/tiny/000001.json", "snapshots/tiny/000004.json"}
    assert names(report) == {"artefacts/s/k4"}  # k1 belongs to the other dataset
    kept = reasons(report)
    assert kept["snapshots/tiny/000002.json"] == "it is pinned"
    assert kept["snapshots/tiny/000003.json"] == "it is the current one"
    assert kept["snapshots/tiny/000005.json"] == "it is one of the last 1"
    assert [snapshot.number for snapshot in list_snapshots(store, "tiny")] == [2, 3, 5]
    unpin(store, "tiny", 2)
    assert collect(store, grace=NOW, keep_last=3).removed == ()
    assert names(collect(store, grace=NOW, keep_last=2)) == {"artefacts/s/k2"}
    assert publish_snapshot(store, "tiny", {"slot": make("k6").ref()}, {}).number == 6
    assert names(collect(store, grace=NOW, keep_last=1)) == {"artefacts/s/k3", "artefacts/s/k5"}
    assert there(store) == {"k1", "k6"}


def test_refused_nights_do_not_crowd_out_what_a_rollback_goes_to(store: Store, make: Make) -> None:
    def night(n: int, *refused: str) -> None:
        publish_snapshot(store, "tiny", {"slot": make(f"k{n}").ref()}, {"n": n}, refused=refused)

    def numbers() -> list[int]:
        collect(store, grace=NOW, keep_last=3)
        return [snapshot.number for snapshot in list_snapshots(store, "tiny")]

    for n in (1, 2, 3, 4):
        night(n)
    for n in (5, 6, 7, 8):
        night(n, "worse")
    assert numbers() == [2, 3, 4, 6, 7, 8]
    assert rollback(store, "tiny").number == 3
    promote(store, "tiny", 4)
    night(9)
    report = collect(store, grace=timedelta(days=1), keep_last=3)
    assert reasons(report)["snapshots/tiny/000006.json"] == "it is younger than the grace period"
    assert numbers() == [3, 4, 9]  # nobody promotes a refused night once a good one has followed
    assert there(store) == {"k3", "k4", "k9"}


def test_further_references_are_asked_for_while_no_snapshot_can_change(store: Store, make: Make) -> None:
    source = make("source")
    wanted = make("wanted", source)
    make("unwanted")
    held = []

    def references() -> dict[str, list[ArtefactRef]]:
        def refuse() -> None:
            raise TimeoutError

        try:
            with store.lock("snapshots", "all", on_wait=refuse):
                held.append(False)
        except TimeoutError:
            held.append(True)
        return {"experiment x": [wanted.ref()]}

    report = collect(store, grace=NOW, references=references)
    assert held == [True]
    assert names(report) == {"artefacts/s/unwanted"}
    assert {item.referrer for item in report.kept} == {"experiment x", "s/wanted, which was computed from it"}


def test_leftovers_and_the_quarantine_go_when_they_are_old(store: Store, make: Make) -> None:
    make("damaged")
    set_aside = store.discard("s", "damaged", "a test")
    (store.workspace("s", "going") / "checkpoint").write_bytes(b"1234")
    (store.workspace("s", "gone") / "checkpoint").write_bytes(b"1234")
    (store.staging / "s~k~0123").mkdir()
    (store.staging / "current.json.0123").write_text("torn")
    assert collect(store).removed == ()
    age(store.root, 8)
    (store.workspace("s", "going") / "checkpoint").touch()
    report = collect(store)
    assert names(report, Kind.QUARANTINE) == {f"quarantine/{set_aside.name}"}
    assert names(report, Kind.WORK) == {"work/s/gone"}
    assert names(report, Kind.STAGING) == {"staging/s~k~0123", "staging/current.json.0123"}
    assert reasons(report) == {"work/s/going": "it is younger than the grace period"}
    assert list(store.staging.iterdir()) == []
    assert list((store.root / "quarantine").iterdir()) == []


def test_without_a_lock_to_ask_an_unfinished_pointer_stays_for_an_hour(store: Store) -> None:
    unfinished = store.staging / "current.json.0123"
    unfinished.write_text("half")
    assert reasons(collect(store, grace=NOW)) == {"staging/current.json.0123": "it is younger than the grace period"}
    age(unfinished, 0.1)
    assert names(collect(store, grace=NOW), Kind.STAGING) == {"staging/current.json.0123"}


def test_old_locks_that_nobody_holds_go(store: Store) -> None:
    for key in ("held", "free", "young"):
        with store.lock("s", key):
            pass
    (store.root / "locks" / "note.txt").touch()
    age(store.root / "locks", 8)
    (store.root / "locks" / "s~young.lock").touch()
    with store.lock("s", "held"):
        assert names(collect_leftovers(store), Kind.LOCK) == {"locks/s~free.lock"}
    assert {path.name for path in (store.root / "locks").iterdir()} == {
        "garbage~collect.lock",
        "note.txt",
        "s~held.lock",
        "s~young.lock",
    }


def test_a_lock_that_is_removed_while_others_wait_for_it_admits_one_at_a_time(store: Store) -> None:
    inside: list[str] = []
    problems: list[str] = []

    def worker() -> None:
        for _ in range(10):
            with store.lock("s", "k"):
                inside.append("one")
                if len(inside) > 1:
                    problems.append("two at a time")
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=worker) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        with contextlib.suppress(FileNotFoundError):
            os.utime(store.root / "locks" / "s~k.lock", (0, 0))
        collect_leftovers(store)
    assert problems == []


def test_a_dry_run_changes_nothing_and_says_what_a_run_would_do(store: Store, make: Make) -> None:
    for n in (1, 2, 3):
        publish_snapshot(store, "tiny", {"slot": make(f"k{n}").ref()}, {})
    make("unwanted")
    make("damaged")
    store.discard("s", "damaged", "a test")
    (store.workspace("s", "gone") / "checkpoint").write_bytes(b"1234")
    (store.staging / "s~k~0123").mkdir()
    age(store.root, 8)
    before = tree(store)
    planned = collect(store, keep_last=1, dry_run=True)
    assert tree(store) == before
    done = collect(store, keep_last=1)
    assert (planned.removed, planned.kept) == (done.removed, done.kept)
    assert planned.dry_run
    assert {item.kind for item in done.removed} == set(Kind) - {Kind.LOCK}


def test_a_dry_run_needs_no_permission_to_write(store: Store, make: Make) -> None:
    make("unwanted")
    shutil.rmtree(store.root / "locks")
    shutil.rmtree(store.staging)
    assert names(collect(store, grace=NOW, dry_run=True)) == {"artefacts/s/unwanted"}
    assert not (store.root / "locks").exists()


def test_what_belongs_to_a_locked_key_stays(store: Store, make: Make) -> None:
    make("k")
    make("damaged")
    make("free")
    store.discard("s", "damaged", "a test")
    (store.workspace("s", "k") / "checkpoint").write_bytes(b"1234")
    (store.staging / "s~k~0123").mkdir()
    with store.lock("s", "k"), store.lock("s", "damaged"):
        planned = collect(store, grace=NOW, dry_run=True)
        report = collect(store, grace=NOW)
    assert (planned.removed, planned.kept) == (report.removed, report.kept)
    assert names(report) == {"artefacts/s/free"}
    assert reasons(report) == dict.fromkeys(
        ("artefacts/s/k", "work/s/k", "staging/s~k~0123", "quarantine/s-damaged-1"), "a process works on it"
    )
    assert len(collect(store, grace=NOW).removed) == 4


def test_what_is_made_anew_between_look_and_lock_stays(
    store: Store, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("k")
    age(store.root, 8)
    real = store.lock

    def lock(stage: str, key: str, **options: Any) -> Any:
        if (stage, key) == ("s", "k"):
            shutil.rmtree(store.place("s", "k"))
            make("k")
        return real(stage, key, **options)

    monkeypatch.setattr(store, "lock", lock)
    assert reasons(collect(store))["artefacts/s/k"] == "it is younger than the grace period"
    assert there(store) == {"k"}


@pytest.mark.parametrize("years", [-10, 10])
def test_a_clock_that_is_far_off_costs_nothing_that_is_referred_to(
    store: Store, make: Make, monkeypatch: pytest.MonkeyPatch, years: int
) -> None:
    last = make("last", make("first"))
    make("unwanted")
    for n in range(3):
        publish_snapshot(store, "tiny", {"slot": last.ref(), f"s{n}": last.ref()}, {})
    now = time.time() + years * 365 * 86400
    monkeypatch.setattr(garbage.time, "time", lambda: now)
    report = collect(store)
    assert names(report) == ({"artefacts/s/unwanted"} if years > 0 else set())
    assert there(store) >= {"first", "last"}
    assert len(list_snapshots(store, "tiny")) == 3


def test_if_a_reference_cannot_be_told_nothing_goes(store: Store, make: Make) -> None:
    first = make("first")
    last = make("last", first)
    make("unwanted")
    for n in range(3):
        publish_snapshot(store, "tiny", {"slot": last.ref(), f"s{n}": last.ref()}, {})
    directory = store.root / "snapshots" / "tiny"
    good = (directory / "000001.json").read_bytes()
    before = there(store)
    (directory / "000001.json").write_text("torn")
    with pytest.raises(StoreError, match=r"snapshot 1 of 'tiny' refers to cannot be told: .*000001\.json is damaged"):
        collect(store, grace=NOW)
    assert there(store) == before
    (directory / "000001.json").write_bytes(good)
    (directory / "pins.json").write_text("torn")
    with pytest.raises(StoreError, match=r"pins\.json is damaged"):
        collect(store, grace=NOW, keep_last=1)
    (directory / "pins.json").unlink()
    manifest = last.path / "manifest.json"
    content = manifest.read_bytes()
    manifest.write_text("torn")
    with pytest.raises(ArtefactDamaged, match=r"What s/last was computed from cannot be told, and snapshot 3 of tiny"):
        collect(store, grace=NOW, keep_last=1)
    manifest.write_bytes(content)
    assert len(list_snapshots(store, "tiny")) == 3
    assert there(store) == before

    def unreadable() -> dict[str, list[ArtefactRef]]:
        raise StoreError("A record is damaged.", remedy="Run it again.")

    with pytest.raises(StoreError, match="A record is damaged"):
        collect(store, grace=NOW, keep_last=1, references=unreadable)
    assert len(list_snapshots(store, "tiny")) == 3
    (directory / "000001.json").write_text("torn")  # forgotten, it no longer matters
    assert names(collect(store, grace=NOW, keep_last=2)) == {"artefacts/s/unwanted"}
    for path in directory.iterdir():
        path.write_text("torn")
    with pytest.raises(StoreError, match="No snapshot of 'tiny' is readable"):
        collect(store, grace=NOW)


@pytest.mark.parametrize("options", [{"grace": timedelta(seconds=-1)}, {"keep_last": 0}, {"keep_last": -1}])
def test_bounds(store: Store, options: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match=r"The grace period is|keep_last is"):
        collect(store, **options)


def test_a_publish_of_what_has_just_been_removed_fails(store: Store, make: Make) -> None:
    ref = make("k").ref()
    collect(store, grace=NOW)
    with pytest.raises(ArtefactMissing, match="There is no artefact s/k"):
        publish_snapshot(store, "new", {"slot": ref}, {})
    assert not (store.root / "snapshots" / "new").exists()


def test_a_first_publish_waits_for_the_removal_and_then_fails(
    store: Store, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The artefact is there when the publish begins, and gone when it is its turn."""
    ref = make("k").ref()
    failures: list[ArtefactMissing] = []

    def publish() -> None:
        try:
            publish_snapshot(store, "new", {"slot": ref}, {})
        except ArtefactMissing as error:
            failures.append(error)

    publisher = threading.Thread(target=publish)

    def references() -> dict[str, list[ArtefactRef]]:
        publisher.start()
        time.sleep(0.3)
        assert publisher.is_alive()
        return {}

    collect(store, grace=NOW, references=references)
    publisher.join(timeout=30)
    assert len(failures) == 1
    assert not (store.root / "snapshots" / "new").exists()


def test_a_removal_waits_for_a_publish_and_then_keeps(store: Store, make: Make) -> None:
    ref = make("k").ref()
    reports: list[GarbageReport] = []
    collector = threading.Thread(target=lambda: reports.append(collect(store, grace=NOW)))
    with references_lock(store):
        collector.start()
        time.sleep(0.3)
        assert collector.is_alive()
        (store.root / "snapshots" / "tiny").mkdir()
        shutil.copy(_snapshot_file(store, ref), store.root / "snapshots" / "tiny" / "000001.json")
    collector.join(timeout=30)
    assert reports[0].removed == ()
    assert there(store) == {"k"}


def _snapshot_file(store: Store, ref: ArtefactRef) -> Path:
    """The file that a publish of ``ref`` writes, taken from a store beside."""
    beside = Store.open(store.root.parent / "beside")
    shutil.copytree(store.root / "artefacts", beside.root / "artefacts", dirs_exist_ok=True)
    publish_snapshot(beside, "tiny", {"slot": ref}, {})
    return beside.root / "snapshots" / "tiny" / "000001.json"


def test_what_was_not_made_by_p2rec_is_left_alone(store: Store, make: Make, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "k").mkdir(parents=True)
    (outside / "k" / "precious").write_text("!")
    (store.root / "artefacts" / "linked").symlink_to(outside)
    (store.root / "work" / "linked").symlink_to(outside)
    (store.root / "artefacts" / ".DS_Store").write_text("")
    (store.root / "snapshots" / "@eaDir").mkdir()
    (store.root / "snapshots" / ".DS_Store").write_text("")
    make("unwanted")
    (store.root / "artefacts" / "s" / "k").symlink_to(outside / "k")
    (store.staging / "linked~k~0").symlink_to(outside)
    report = collect(store, grace=NOW)
    assert {item.name for item in report.removed} == {"artefacts/s/unwanted", "staging/linked~k~0"}
    assert set(reasons(report).values()) == {"it was not made by P2Rec"}
    assert (outside / "k" / "precious").read_text() == "!"


KILLED = 9
KILLER = """
import importlib.util, os, sys
from datetime import timedelta
from pathlib import Path
from storage.artefacts import Store
from storage.garbage import collect

spec = importlib.util.spec_from_file_location("crash_driver", sys.argv[1])
driver = importlib.util.module_from_spec(spec)
spec.loader.exec_module(driver)
for step, root in enumerate(sys.argv[2:], 1):
    child = os.fork()
    if child == 0:
        driver.kill_at(step)
        try:
            collect(Store.open(Path(root)), grace=timedelta(0), keep_last=1)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_killed_at_every_step_the_store_is_valid_and_the_next_collection_finishes(
    store: Store, make: Make, tmp_path: Path
) -> None:
    for n in (1, 2):
        publish_snapshot(store, "tiny", {"slot": make(f"k{n}", make(f"input{n}")).ref()}, {})
    make("unwanted")
    make("damaged")
    store.discard("s", "damaged", "a test")
    (store.workspace("s", "gone") / "checkpoint").write_bytes(b"1234")
    (store.staging / "s~k~0123").mkdir()
    roots = [tmp_path / str(step) for step in range(1, 80)]
    for root in roots:
        shutil.copytree(store.root, root)
    driver = str(Path(__file__).with_name("crash_driver.py"))
    done = subprocess.run(
        [sys.executable, "-c", KILLER, driver, *map(str, roots)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    statuses = list(map(int, done.stdout.split()))
    n_steps = statuses.index(0)
    assert n_steps > 20, statuses
    assert set(statuses[:n_steps]) == {KILLED}
    between = set()
    for root in roots[: n_steps + 1]:
        killed = Store.open(root)
        for snapshot in list_snapshots(killed, "tiny"):
            for ref in snapshot.entries.values():
                artefact = killed.load(ref)
                killed.verify(artefact)
                killed.verify(next(a for a in killed.artefacts() if a.key == artefact.manifest.inputs["input-0"].key))
        for artefact in killed.artefacts():
            killed.verify(artefact)
        assert read_snapshot(killed, "tiny").number == 2
        assert read_snapshot(killed, "tiny").notes == ()
        between.add((len(there(killed)), len(list_snapshots(killed, "tiny"))))
        collect(killed, grace=NOW, keep_last=1)
        assert there(killed) == {"k2", "input2"}
        for name in ("staging", "quarantine", "work/s"):
            assert list((root / name).iterdir()) == []
        assert collect(killed, grace=NOW, keep_last=1).removed == ()
    assert between == {(5, 2), (5, 1), (4, 1), (3, 1), (2, 1)}
    shutil.rmtree(store.staging / "s~k~0123")


PUBLISHER = """
import sys
from pathlib import Path
from p2rec_core.errors import ArtefactMissing
from storage.artefacts import Store
from storage.snapshots import publish_snapshot, rollback

store = Store.open(Path(sys.argv[1]))
n_refused = 0


def make(stage, key, inputs):
    with store.lock(stage, key):
        with store.write(stage, key, settings={}, inputs=inputs, fingerprint="f") as writer:
            writer.json("value", {"key": key})
            return writer.publish({}, 1.0)


for n in range(int(sys.argv[2])):
    while True:
        try:
            first = make("first", f"k{n % 7}", {})
            last = make("last", f"k{n}", {"input": first.input("value")})
            published = publish_snapshot(store, "tiny", {"first": first.ref(), "last": last.ref()}, {"n": n})
            break
        except ArtefactMissing:
            n_refused += 1
    assert published.info == {"n": n}, published
    make("last", f"unwanted{n}", {"input": first.input("value")})
print(n_refused)
"""


@pytest.mark.parametrize("n", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_beside_a_process_that_publishes_no_reader_misses_anything(store: Store, n: int) -> None:
    publisher = subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, str(store.root), str(n)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    stopped = threading.Event()
    missing: list[object] = []
    n_read = [0]

    def read() -> None:
        """Everything that the current snapshot refers to is there as long as it is the current one."""
        reader = Store.open(store.root, create=False)
        while not stopped.is_set():
            if not (store.root / "snapshots" / "tiny" / "current.json").exists():
                continue
            snapshot = read_snapshot(reader, "tiny")
            try:
                for ref in snapshot.entries.values():
                    reader.verify(reader.load(ref))
            except StoreError as error:
                if read_snapshot(reader, "tiny").number == snapshot.number:
                    missing.append((snapshot.number, error))
            n_read[0] += not snapshot.notes
            time.sleep(0.002)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    reports = []
    try:
        while publisher.poll() is None:
            reports.append(collect(store, grace=NOW, keep_last=2))
            time.sleep(0.05)
    finally:
        stopped.set()
        for reader in readers:
            reader.join()
        out, err = publisher.communicate(timeout=60)
    assert publisher.returncode == 0, err
    assert missing == []
    assert n_read[0] > n
    removed = list(itertools.chain.from_iterable(report.removed for report in reports))
    assert sum(item.kind is Kind.ARTEFACT for item in removed) > n / 2
    collect(store, grace=NOW, keep_last=1)
    current = read_snapshot(store, "tiny")
    assert current.info == {"n": n - 1}
    assert there(store) == {ref.key for ref in current.entries.values()}
    assert int(out) >= 0


def test_two_collections_at_once_finish_both(store: Store, make: Make) -> None:
    for n in range(20):
        make(f"k{n}")
    reports: list[GarbageReport] = []
    collectors = [threading.Thread(target=lambda: reports.append(collect(store, grace=NOW))) for _ in range(2)]
    for collector in collectors:
        collector.start()
    for collector in collectors:
        collector.join(timeout=60)
    assert sorted(len(report.removed) for report in reports) == [0, 20]


def test_everything_that_is_judged_says_what_it_is_and_why_it_goes_or_stays(store: Store, make: Make) -> None:
    for number, key in enumerate(("first", "second", "third", "fourth"), 1):
        publish_snapshot(store, "tiny", {"slot": make(key).ref()}, {"number": number})
    publish_snapshot(store, "tiny", {"slot": make("worse").ref()}, {}, refused=["it is worse"])
    pin(store, "tiny", 1)
    user = make("asked-for", make("read-by-it"))
    make("unused")
    store.workspace("s", "half-way")
    (store.workspace("s", "taken") / "checkpoint").write_bytes(b"12345")
    (store.root / "work" / "UPPER").mkdir()
    (store.staging / "s~k~01").mkdir()
    (store.staging / "removed.01").mkdir()
    shutil.move(make("damaged").path, store.root / "quarantine" / "s-damaged-1")
    with store.lock("s", "unlocked"):
        pass
    age(store.root, 8)
    store.workspace("s", "new")
    with store.lock("s", "taken"):
        planned = collect(store, keep_last=2, references=lambda: {"experiment e": [user.ref()]}, dry_run=True)
        done = collect(store, keep_last=2, references=lambda: {"experiment e": [user.ref()]})
    for report in (planned, done):
        assert judged(report.removed) == REMOVED.strip()
        assert judged(report.kept) == KEPT.strip()


def judged(items: Iterable[Item]) -> str:
    return "\n".join(sorted(f"{item.kind} | {item.name} | {item.reason} | {item.referrer}" for item in items))


REMOVED = """
artefact | artefacts/s/second | nothing refers to it | None
artefact | artefacts/s/unused | nothing refers to it | None
lock | locks/s~unlocked.lock | nobody holds it | None
quarantine | quarantine/s-damaged-1 | it was set aside long enough ago | None
snapshot | snapshots/tiny/000002.json | it is not one of the last 2 | None
staging | staging/removed.01 | an earlier collection did not delete it | None
staging | staging/s~k~01 | its writer did not finish | None
work | work/s/half-way | its computation did not go on | None
"""
KEPT = """
artefact | artefacts/s/asked-for | it is referred to | experiment e
artefact | artefacts/s/first | it is referred to | snapshot 1 of tiny
artefact | artefacts/s/fourth | it is referred to | snapshot 4 of tiny
artefact | artefacts/s/read-by-it | it is referred to | s/asked-for, which was computed from it
artefact | artefacts/s/third | it is referred to | snapshot 3 of tiny
artefact | artefacts/s/worse | it is referred to | snapshot 5 of tiny
snapshot | snapshots/tiny/000001.json | it is pinned | None
snapshot | snapshots/tiny/000003.json | it is one of the last 2 | None
snapshot | snapshots/tiny/000004.json | it is the current one | None
snapshot | snapshots/tiny/000005.json | it is one of the last 2 that were refused, and nothing came after it | None
work | work/UPPER | it was not made by P2Rec | None
work | work/s/new | it is younger than the grace period | None
work | work/s/taken | a process works on it | None
"""
