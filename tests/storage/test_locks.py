"""Whatever lies in the place of a lock: the kernel decides who holds it, and nobody waits for a ghost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from p2rec_core.errors import StoreError
from storage.artefacts import Store
from storage.doctor import examine
from storage.garbage import collect_leftovers

ROOT = Path(__file__).parents[2]
LONGEST_S = 5.0


def _dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


LEFT: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "a dead process": lambda: f"{_dead_process()}\n".encode(),
    "this process, which does not hold it": lambda: f"{os.getpid()}\n".encode(),
    "another host": lambda: b'{"host": "elsewhere.example", "pid": 1}\n',
    "garbage": lambda: os.urandom(4096),
    "a lot of it": lambda: b"x" * (1 << 20),
}


def _place(store: Store) -> Path:
    with store.lock("train", "k"):
        pass
    path = store.root / "locks" / "train~k.lock"
    path.touch(mode=0o600)
    return path


@pytest.mark.parametrize("content", LEFT.values(), ids=LEFT)
@pytest.mark.parametrize("years", [0, -10, 10])
def test_a_stale_lock_holds_nobody_up(store: Store, content: Callable[[], bytes], years: float) -> None:
    path = _place(store)
    path.write_bytes(content())
    then = time.time() + years * 365 * 86400
    os.utime(path, (then, then))
    begun = time.monotonic()
    with store.lock("train", "k"):
        assert time.monotonic() - begun < LONGEST_S
    assert not examine(store).harm


@pytest.mark.parametrize("to", ["a file outside", "nothing", "itself"])
def test_a_symbolic_link_in_the_place_of_a_lock_is_refused(store: Store, tmp_path: Path, to: str) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    path = _place(store)
    path.unlink()
    path.symlink_to({"a file outside": outside, "nothing": tmp_path / "nothing", "itself": path}[to])
    with pytest.raises(StoreError, match="is a symbolic link"), store.lock("train", "k"):
        pass
    assert outside.read_bytes() == b"precious"
    assert not (tmp_path / "nothing").exists()
    assert [finding.kind for finding in examine(store).harm] == ["lock"]
    examine(store, repair=True)
    with store.lock("train", "k"):
        assert outside.read_bytes() == b"precious"


def test_a_directory_in_the_place_of_a_lock_is_named(store: Store) -> None:
    path = _place(store)
    path.unlink()
    path.mkdir()
    begun = time.monotonic()
    with pytest.raises(StoreError, match=r"train~k\.lock"), store.lock("train", "k"):
        pass
    assert time.monotonic() - begun < LONGEST_S
    examine(store, repair=True)
    with store.lock("train", "k"):
        pass


HOLDER = """
import os, sys, time
from pathlib import Path
from storage.artefacts import Store
with Store.open(Path(sys.argv[1])).lock("train", "k"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_lock_is_free_when_its_holder_has_ended_however_it_ended(store: Store, how: signal.Signals) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLDER, str(store.root)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.send_signal(how)
        process.wait()
    begun = time.monotonic()
    with store.lock("train", "k"):
        assert time.monotonic() - begun < LONGEST_S


def test_a_lock_that_garbage_collection_removes_while_another_waits_for_it_is_still_one(store: Store) -> None:
    """Whoever opens the file anew and whoever waited for the removed one must not both hold it."""
    path = _place(store)
    os.utime(path, (0, 0))
    assert [item.name for item in collect_leftovers(store, grace=timedelta(0)).removed] == ["locks/train~k.lock"]
    inside: list[str] = []
    with store.lock("train", "k"):
        os.utime(path, (0, 0))
        assert collect_leftovers(store, grace=timedelta(0)).removed == ()
        inside.append("held")
    assert inside == ["held"]
