"""Anything that can be done to a store, in any order, against a dictionary; kills and damage among it."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from p2rec_core.errors import P2RecError, StoreError
from storage.artefacts import Artefact, Store
from storage.doctor import examine
from storage.garbage import collect
from storage.snapshots import (
    list_snapshots,
    mend_pointer,
    pin,
    pinned,
    promote,
    publish_snapshot,
    read_snapshot,
    rollback,
    unpin,
)

STEPS = ("open", "write", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir")
NOW = timedelta(0)
VALUES = st.integers(0, 5)
FILES = ("history.parquet", "weights.safetensors", "report.json", "manifest.json")


class Killed(BaseException):
    """Stands for SIGKILL: nothing that would touch the disk happens after it."""


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    """From a step on, no function that touches the disk does anything any more."""
    left = [step]
    real = {name: getattr(os, name) for name in STEPS}

    def wrap(name: str) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] <= 0:
                raise Killed
            return None if name == "fsync" else real[name](*args, **kwargs)

        return wrapped

    try:
        for name in STEPS:
            setattr(os, name, wrap(name))
        with contextlib.suppress(Killed):
            yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)
        _free_locks()


def _free_locks() -> None:
    """The kernel frees the locks of a process that is killed; this one goes on."""
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{fd}").partition(" ")[0].endswith(".lock"):
                fcntl.flock(int(fd), fcntl.LOCK_UN)


def make(store: Store, value: int) -> Artefact:
    key = f"v{value}"
    with (
        store.lock("train", key),
        store.write("train", key, settings={"value": value}, inputs={}, fingerprint="f") as w,
    ):
        w.table("history", pa.table({"epoch": pa.array([0], pa.int32()), "metric": ["loss"], "value": [float(value)]}))
        w.tensors("weights", {"w": np.full(4, value, np.float32)})
        w.json("report", {"value": value})
        return w.publish({}, 1.0)


def values_of(artefact: Artefact) -> set[float]:
    return {
        float(artefact.table("history")["value"][0].as_py()),
        float(artefact.tensors("weights")["w"][0]),
        float(artefact.json("report")["value"]),
    }


class Machine(RuleBasedStateMachine):
    """The model: values of snapshots by number, which is current, which are pinned, which artefacts are damaged."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.store = Store.open(self.directory / "store")
        self.values: dict[int, int] = {}
        self.refused: set[int] = set()
        self.current: int | None = None
        self.pins: set[int] = set()
        self.damaged: set[int] = set()
        self.real_fsync = os.fsync
        os.fsync = lambda fd: None  # only the time that it takes

    def teardown(self) -> None:
        os.fsync = self.real_fsync
        shutil.rmtree(self.directory)

    def _number(self, choice: int) -> int:
        numbers = sorted(self.values)
        return numbers[choice % len(numbers)]

    @rule(value=VALUES, refused=st.booleans())
    def publish(self, value: int, refused: bool) -> None:
        ref = make(self.store, value).ref()
        self.damaged.discard(value)
        reasons = ["worse"] if refused else []
        snapshot = publish_snapshot(self.store, "tiny", {"train": ref}, {"value": value}, refused=reasons)
        assert snapshot.number not in self.values or self.values[snapshot.number] == value
        self.values[snapshot.number] = value
        if refused:
            self.refused.add(snapshot.number)
        else:
            self.current = snapshot.number

    @rule(value=VALUES, step=st.integers(1, 60))
    def killed_while_publishing(self, value: int, step: int) -> None:
        with killed_at(step):
            ref = make(self.store, value).ref()
            publish_snapshot(self.store, "tiny", {"train": ref}, {"value": value})
        self._look_again(value)

    @precondition(lambda self: self.values)
    @rule(choice=st.integers(0, 99), step=st.integers(1, 40), keep=st.integers(1, 3))
    def killed_while_collecting(self, choice: int, step: int, keep: int) -> None:
        before = dict(self.values)
        with killed_at(step), contextlib.suppress(StoreError):
            collect(self.store, grace=NOW, keep_last=keep)
        there = {snapshot.number for snapshot in list_snapshots(self.store, "tiny")}
        last = self._last(before, keep)
        assert last | self.pins | {self.current} - {None} <= there | {None}
        self.values = {n: v for n, v in before.items() if n in there}
        self.refused &= there
        self._forget_damage()

    def _last(self, numbers: Iterable[int], keep: int) -> set[int]:
        good, refused = (sorted(n for n in numbers if (n in self.refused) is which) for which in (False, True))
        return {*good[-keep:], *(n for n in refused[-keep:] if n > (self.current or 0))}

    def _look_again(self, value: int) -> None:
        """After a kill the new snapshot is there or it is not, and so is the artefact, whole."""
        for snapshot in list_snapshots(self.store, "tiny"):
            if snapshot.number not in self.values:
                assert snapshot.info == {"value": value}
                self.values[snapshot.number] = value
        if value not in self.damaged:
            self._whole(value)
        else:  # it may have been made anew before the kill
            with contextlib.suppress(StoreError):
                if self._whole(value):
                    self.damaged.remove(value)
        with contextlib.suppress(StoreError):
            now = read_snapshot(self.store, "tiny")
            assert now.number == self.current or self.values[now.number] == value
            # the first snapshot of all may be there without its pointer, and the reader is told so
            assert not now.notes or self.current is None
            self.current = mend_pointer(self.store, "tiny").number

    def _whole(self, value: int) -> bool:
        """Whether its artefact is there; StoreError where it is not whole."""
        artefact = self.store.find("train", f"v{value}")
        if artefact is not None:
            self.store.verify(artefact)
        return artefact is not None

    @precondition(lambda self: self.values)
    @rule(choice=st.integers(0, 99))
    def promote(self, choice: int) -> None:
        number = self._number(choice)
        try:
            promote(self.store, "tiny", number)
        except StoreError:
            assert self._unusable(self.values[number])
        else:
            self.current = number

    @precondition(lambda self: self.current is not None)
    @rule()
    def rollback(self) -> None:
        before = [n for n in sorted(self.values) if n < (self.current or 0) and n not in self.refused]
        usable = [n for n in before if not self._unusable(self.values[n])]
        try:
            number = rollback(self.store, "tiny").number
        except StoreError:
            assert not usable
        else:
            assert number == usable[-1]
            self.current = number

    def _unusable(self, value: int) -> bool:
        """Whether looking at its manifest says so; files are compared when they are read."""
        try:
            return self.store.find("train", f"v{value}") is None
        except StoreError:
            return True

    @precondition(lambda self: self.values)
    @rule(choice=st.integers(0, 99))
    def pin(self, choice: int) -> None:
        self.pins.add(self._number(choice))
        assert pin(self.store, "tiny", self._number(choice)) == self.pins

    @precondition(lambda self: self.pins)
    @rule(choice=st.integers(0, 99))
    def unpin(self, choice: int) -> None:
        number = sorted(self.pins)[choice % len(self.pins)]
        self.pins.remove(number)
        assert unpin(self.store, "tiny", number) == self.pins

    @precondition(lambda self: self.values)
    @rule(keep=st.integers(1, 3) | st.none())
    def collect(self, keep: int | None) -> None:
        try:
            collect(self.store, grace=NOW, keep_last=keep)
        except StoreError:
            assert self.damaged  # what a damaged manifest was computed from cannot be told, so nothing goes
            return
        if keep is not None:
            last = self._last(self.values, keep) | self.pins | {self.current}
            self.values = {n: v for n, v in self.values.items() if n in last}
            self.refused &= self.values.keys()
        wanted = {f"v{value}" for value in self.values.values()}
        there = {path.name for path in (self.store.root / "artefacts" / "train").glob("*")}
        assert there <= wanted
        self._forget_damage()

    def _forget_damage(self) -> None:
        there = {path.name for path in (self.store.root / "artefacts" / "train").glob("*")}
        self.damaged = {value for value in self.damaged if f"v{value}" in there}

    @rule(value=VALUES, file=st.sampled_from(FILES), place=st.integers(0, 10**6), bit=st.integers(0, 7))
    def corrupt(self, value: int, file: str, place: int, bit: int) -> None:
        path = self.store.root / "artefacts" / "train" / f"v{value}" / file
        if value in self.damaged or not path.exists():
            return
        data = bytearray(path.read_bytes())
        data[place % len(data)] ^= 1 << bit
        path.write_bytes(data)
        self.damaged.add(value)

    @precondition(lambda self: self.current is not None)
    @rule(content=st.binary(max_size=200))
    def tear_the_pointer(self, content: bytes) -> None:
        path = self.store.root / "snapshots" / "tiny" / "current.json"
        path.write_bytes(content)
        complete = [n for n in sorted(self.values) if n not in self.refused]
        if not complete:  # only refused ones are left, so there is nothing to go on with
            with pytest.raises(StoreError):
                read_snapshot(self.store, "tiny")
            promote_to = sorted(self.values)[-1]
            if not self._unusable(self.values[promote_to]):
                promote(self.store, "tiny", promote_to)
                self.current = promote_to
            else:
                self.current = None
            return
        found = read_snapshot(self.store, "tiny")
        assert found.notes
        assert found.number == complete[-1]
        assert mend_pointer(self.store, "tiny").number == found.number
        assert not read_snapshot(self.store, "tiny").notes
        self.current = found.number

    @rule()
    def repair(self) -> None:
        report = examine(self.store, repair=True, grace=NOW)
        for value in list(self.damaged):
            assert self.store.find("train", f"v{value}") is None
        self.damaged.clear()
        assert all(finding.kind == "snapshot" for finding in report.harm)

    @invariant()
    def nobody_sees_what_was_never_published(self) -> None:
        numbers = {snapshot.number: snapshot for snapshot in list_snapshots(self.store, "tiny")}
        assert {n: s.info["value"] for n, s in numbers.items()} == self.values
        assert pinned(self.store, "tiny") == self.pins
        if self.current is not None:
            snapshot = read_snapshot(self.store, "tiny")
            assert snapshot.number == self.current
            assert not snapshot.notes
        for snapshot in numbers.values():
            expected, problem = {float(snapshot.info["value"])}, ""
            try:
                found = values_of(self.store.load(snapshot.entries["train"]))
            except P2RecError as error:
                found, problem = expected, error.problem
            assert found == expected
            # damaged, or set aside for it and not computed again since
            assert not problem or snapshot.info["value"] in self.damaged or "There is no artefact" in problem


def _settings(n: int, steps: int) -> settings:
    # a failure is told as it was found: shrinking a run that writes files takes minutes
    return settings(
        max_examples=n,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.reuse, Phase.generate),
    )


def test_a_store_does_what_a_dictionary_would() -> None:
    run_state_machine_as_test(Machine, settings=_settings(8, 20))


@pytest.mark.slow
def test_a_store_does_what_a_dictionary_would_for_ten_thousand_steps() -> None:
    run_state_machine_as_test(Machine, settings=_settings(200, 50))
