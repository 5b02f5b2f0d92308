"""What DuckDB spilled does not outlive its process, however that ends."""

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from p2rec_core.errors import StoreError
from storage.ingest.engine import open_engine
from storage.spill import spill_folder

HOLDER = """
import time
from storage.spill import spill_folder
with spill_folder() as folder:
    (folder / "spilled").write_bytes(b"x" * 1000)
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_removed_with_what_is_in_it(temporary: Path) -> None:
    with spill_folder() as folder:
        assert folder.parent == temporary
        (folder / "spilled").touch()
    assert not any(temporary.iterdir())


def test_that_of_a_killed_process_is_removed_by_the_next_and_no_other(temporary: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        left = Path(killed.stdout.readline().strip())
        (temporary / "p2rec-spilled").mkdir()
        with spill_folder() as beside:
            assert (left / "spilled").exists(), "its process lives"
            assert beside.exists()
            killed.send_signal(signal.SIGKILL)
            killed.wait()
            with spill_folder() as folder:
                assert not left.exists()
                assert sorted(temporary.iterdir()) == sorted([beside, folder, temporary / "p2rec-spilled"])


def test_a_symbolic_link_is_not_followed(temporary: Path) -> None:
    (temporary / "own").mkdir()
    (temporary / "own" / "kept").touch()
    (temporary / "p2rec-spill-link").symlink_to("own")
    with spill_folder():
        assert (temporary / "own" / "kept").exists()


def test_one_that_is_taken_for_abandoned_before_it_is_locked_is_made_anew(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another process that locks it and removes it, or has just removed it."""
    steps = iter(["locked", "removed", "neither"])
    made = []
    flock = fcntl.flock

    def between(descriptor: int, operation: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        made.append(path)
        step = next(steps)
        if step == "removed":
            path.rmdir()
        if step == "locked":
            raise BlockingIOError
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", between)
    with spill_folder() as folder:
        assert len(set(made)) == 3
        assert list(temporary.iterdir()) == [folder] == [made[2]]


def test_a_file_system_without_locks_will_do(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with spill_folder() as first, spill_folder():
        assert first.exists()
    assert not any(temporary.iterdir())


def test_an_import_without_a_place_for_temporary_files_says_so(
    monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(temporary / "none"))
    with (
        pytest.raises(StoreError, match=r"no place for temporary files: No such file .* in TMPDIR\."),
        open_engine(None),
    ):
        pass
