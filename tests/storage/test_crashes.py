import errno
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from p2rec_core.errors import ArtefactDamaged, StoreError
from storage.artefacts import Store
from storage.garbage import collect_leftovers
from storage.snapshots import read_snapshot

NOW = timedelta(0)
ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def driver() -> ModuleType:
    spec = importlib.util.spec_from_file_location("crash_driver", Path(__file__).with_name("crash_driver.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _hashes(store: Store) -> dict[str, dict[str, str]]:
    return {artefact.key: artefact.ref().files for artefact in store.artefacts()}


def _make_old(store: Store) -> None:
    """As if what is in ``staging`` had been left there some time ago."""
    for path in store.staging.rglob("*"):
        os.utime(path, (0, 0))


def test_killed_at_every_step_the_store_is_old_or_new_and_a_rerun_finishes(
    driver: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # only the time that it takes
    driver.publish_all(tmp_path / "template", 1.0)
    driver.publish_all(tmp_path / "undisturbed", 1.0)
    driver.publish_all(tmp_path / "undisturbed", 2.0)
    undisturbed = _hashes(Store.open(tmp_path / "undisturbed"))
    command = [sys.executable, driver.__file__, str(tmp_path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    n_steps = int(done.stdout)
    assert n_steps > 50
    seen = set()
    for step in range(1, n_steps + 1):
        store = Store.open(tmp_path / str(step))
        for artefact in store.artefacts():
            store.verify(artefact)
        before = read_snapshot(store, "tiny")
        store.verify(store.load(before.entries["train"]))
        assert not before.notes
        seen.add((len(_hashes(store)), before.number))
        driver.publish_all(store.root, 2.0)
        after = read_snapshot(store, "tiny")
        assert after.entries["train"].key == "v2.0"
        assert after.number in (2, 3)
        assert _hashes(store) == undisturbed
        _make_old(store)
        collect_leftovers(store, grace=NOW)
        assert not list(store.staging.iterdir())
        assert not list((store.root / "work").glob("*/*"))
        shutil.rmtree(store.root)
    assert seen == {(1, 1), (2, 1), (2, 2)}


def test_everything_is_flushed_before_the_step_that_relies_on_it(
    driver: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut loses what was not flushed, which a kill does not show."""
    store = Store.open(tmp_path / "store")
    done: list[tuple[str, str]] = []
    real_fsync, real_rename, real_replace = os.fsync, os.rename, os.replace

    def fsync(fd: int) -> None:
        done.append(("fsync", Path(os.readlink(f"/proc/self/fd/{fd}")).name.partition("~")[0]))
        real_fsync(fd)

    def rename(source: Path, target: Path) -> None:
        done.append(("rename", target.name))
        real_rename(source, target)

    def replace(source: Path, target: Path) -> None:
        done.append(("replace", target.name))
        real_replace(source, target)

    for name, function in (("fsync", fsync), ("rename", rename), ("replace", replace)):
        monkeypatch.setattr(os, name, function)
    driver.publish_all(store.root, 1.0)
    order = [
        ("fsync", "history.parquet"),
        ("fsync", "weights.safetensors"),
        ("fsync", "report.json"),
        ("fsync", "manifest.json"),
        ("fsync", "train"),  # the staging directory train~v1.0~…
        ("rename", "v1.0"),
        ("fsync", "train"),  # artefacts/train
        ("replace", "000001.json"),
        ("fsync", "tiny"),
        ("replace", "current.json"),
        ("fsync", "tiny"),
    ]
    place = -1
    for step in order:
        place = done.index(step, place + 1)
    numbered = next(i for i, (_, name) in enumerate(done) if name.startswith("000001.json."))
    pointer = next(i for i, (_, name) in enumerate(done) if name.startswith("current.json."))
    assert numbered < done.index(("replace", "000001.json")) < pointer < done.index(("replace", "current.json"))


def test_a_full_disk_at_every_write_leaves_nothing_behind(
    driver: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.publish_all(tmp_path / "store", 1.0)
    store = Store.open(tmp_path / "store")
    before = _hashes(store)
    real = os.write
    refusals: list[StoreError] = []
    for step in range(1, 200):
        left = [step]

        def full(fd: int, data: bytes, left: list[int] = left) -> int:
            left[0] -= 1
            if left[0] == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(fd, data)

        monkeypatch.setattr(os, "write", full)
        try:
            driver.publish_all(store.root, 2.0)
        except StoreError as error:
            refusals.append(error)
        else:
            break
        finally:
            monkeypatch.setattr(os, "write", real)
        assert not list(store.staging.iterdir())
        assert read_snapshot(store, "tiny").number == 1
        if _hashes(store) != before:  # the artefact was complete, only its snapshot was not
            store.verify(next(a for a in store.artefacts() if a.key == "v2.0"))
    assert len(refusals) > 5
    for error in refusals:
        assert "bytes needed): No space left on device" in error.problem
        assert "Free at least" in error.remedy
    assert read_snapshot(store, "tiny").entries["train"].key == "v2.0"


def test_bytes_that_are_not_what_was_written_are_not_published(
    store: Store, tables: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(byte ^ 1 for byte in bytes(data))))
    with (
        pytest.raises(ArtefactDamaged, match=r"history\.parquet is not what was written to it: expected sha256 \w{64}"),
        store.write("train", "k", settings={}, inputs={}, fingerprint="f") as writer,
    ):
        writer.table("history", tables.history)
    assert store.find("train", "k") is None


HOLDER = """
import sys, time
from pathlib import Path
from storage.artefacts import Store
with Store.open(Path(sys.argv[1])).lock("train", "k"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
    print(time.monotonic(), flush=True)
"""


def _hold(store: Store, seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(store.root), str(seconds)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_waits_for_the_first_and_says_so_once(store: Store) -> None:
    waits = []
    with _hold(store, 0.5) as process:
        with store.lock("train", "k", on_wait=lambda: waits.append("waiting")):
            begun = time.monotonic()
        assert process.stdout is not None
        assert float(process.stdout.readline()) <= begun
    assert waits == ["waiting"]


def test_a_killed_process_leaves_no_lock(store: Store) -> None:
    with _hold(store, 60) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        begun = time.monotonic()
        with store.lock("train", "k"):
            assert time.monotonic() - begun < 5


def test_garbage_of_a_locked_key_stays(store: Store) -> None:
    unfinished = store.staging / "train~k~0123"
    unfinished.mkdir()
    with _hold(store, 60) as process:
        assert collect_leftovers(store, grace=NOW).removed == ()
        process.kill()
    assert collect_leftovers(store, grace=timedelta(hours=1)).removed == ()
    assert [item.name for item in collect_leftovers(store, grace=NOW).removed] == ["staging/train~k~0123"]
    assert not unfinished.exists()


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from p2rec_core.errors import StoreError
from storage.artefacts import Store
if os.getuid() == 0:
    os.setuid(65534)
store = Store.open(Path(sys.argv[1]), create=False)
print([artefact.key for artefact in store.artefacts()])
for attempt in (
    lambda: Store.open(store.root),
    lambda: store.write("s", "k", settings={}, inputs={}, fingerprint="f").__enter__(),
    lambda: store.workspace("s", "k"),
    lambda: store.lock("s", "k").__enter__(),
):
    try:
        attempt()
    except StoreError as error:
        print(error)
"""


def test_a_read_only_store_can_be_read_and_says_that_it_cannot_be_written(driver: ModuleType) -> None:
    outside = Path(tempfile.mkdtemp())  # pytest's own directories are closed to other users
    try:
        outside.chmod(0o755)
        driver.publish_all(outside / "store", 1.0)
        for directory in [outside / "store", *(p for p in (outside / "store").rglob("*") if p.is_dir())]:
            directory.chmod(0o555)
        command = [sys.executable, "-c", UNPRIVILEGED, str(outside / "store")]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
        lines = done.stdout.splitlines()
        assert done.returncode == 0, done.stderr
        assert lines[0] == "['v1.0']"
        assert len(lines) == 5
        for line in lines[1:]:
            assert str(outside / "store") in line
            assert "Permission denied. Give this user write permission there or choose another" in line
    finally:
        for directory in [outside / "store", *(p for p in (outside / "store").rglob("*") if p.is_dir())]:
            directory.chmod(0o755)
        shutil.rmtree(outside)
