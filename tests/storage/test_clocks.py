"""Clocks that are ten years off: nothing is ordered by them, and what is referred to stays."""

import os
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from storage import garbage, manifest
from storage.artefacts import Artefact, Store
from storage.doctor import examine
from storage.garbage import Kind, collect
from storage.snapshots import list_snapshots, publish_snapshot, read_snapshot, rollback

TEN_YEARS = timedelta(days=3653)
WEEK = timedelta(days=7)

Make = Callable[[str], Artefact]


@pytest.fixture
def make(store: Store) -> Make:
    def make(key: str) -> Artefact:
        with store.write("s", key, settings={}, inputs={}, fingerprint="f") as writer:
            writer.json("value", {"key": key})
            return writer.publish({}, 1.0)

    return make


def _set_clock(monkeypatch: pytest.MonkeyPatch, off: timedelta) -> None:
    real, real_datetime = time.time, datetime

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return real_datetime.now(tz) + off

    monkeypatch.setattr(garbage.time, "time", lambda: real() + off.total_seconds())
    monkeypatch.setattr(manifest, "datetime", Clock)


def _set_files(root: Path, off: timedelta) -> None:
    then = time.time() + off.total_seconds()
    for path in (root, *root.rglob("*")):
        os.utime(path, (then, then), follow_symlinks=False)


@pytest.mark.parametrize("steps", [(0, -1, 1), (1, 0, -1), (-1, 1, 0)])
def test_snapshots_are_ordered_by_number_whatever_the_clock_says(
    store: Store, make: Make, monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...]
) -> None:
    for n, step in enumerate(steps, start=1):
        with monkeypatch.context() as patch:
            _set_clock(patch, step * TEN_YEARS)
            publish_snapshot(store, "tiny", {"slot": make(f"k{n}").ref()}, {"n": n})
    assert [snapshot.number for snapshot in list_snapshots(store, "tiny")] == [1, 2, 3]
    assert read_snapshot(store, "tiny").info == {"n": 3}
    assert rollback(store, "tiny").number == 2
    (store.root / "snapshots" / "tiny" / "current.json").unlink()
    assert read_snapshot(store, "tiny").number == 3


@pytest.mark.parametrize("files", [-TEN_YEARS, timedelta(0), TEN_YEARS])
@pytest.mark.parametrize("clock", [-TEN_YEARS, timedelta(0), TEN_YEARS])
def test_garbage_collection_never_takes_what_is_referred_to(
    store: Store, make: Make, monkeypatch: pytest.MonkeyPatch, files: timedelta, clock: timedelta
) -> None:
    for n in (1, 2):
        publish_snapshot(store, "tiny", {"slot": make(f"k{n}").ref()}, {})
    make("unwanted")
    _set_files(store.root, files)
    _set_clock(monkeypatch, clock)
    old = clock - files > WEEK
    report = collect(store, grace=WEEK, keep_last=1)
    removed = {item.name for item in report.removed if item.kind in (Kind.ARTEFACT, Kind.SNAPSHOT)}
    assert removed == ({"artefacts/s/k1", "artefacts/s/unwanted", "snapshots/tiny/000001.json"} if old else set())
    store.verify(store.load(read_snapshot(store, "tiny").entries["slot"]))
    assert not examine(store).harm
    assert not [item for item in collect(store, grace=WEEK, keep_last=1).removed if item.kind is not Kind.LOCK]


def test_garbage_that_is_dated_ahead_is_young_and_can_be_collected_all_the_same(store: Store, make: Make) -> None:
    make("unwanted")
    _set_files(store.root, TEN_YEARS)
    assert not [item for item in collect(store, grace=WEEK).removed if item.kind is Kind.ARTEFACT]
    assert {item.name for item in collect(store, grace=timedelta(0)).removed} >= {"artefacts/s/unwanted"}
