import hashlib
import os
from pathlib import Path

import pytest

from storage import hashes
from storage.hashes import FileHashes


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were really read, in order."""
    read: list[Path] = []
    real = hashes.hash_file

    def hash_file(path: Path) -> str:
        read.append(path)
        return real(path)

    monkeypatch.setattr(hashes, "hash_file", hash_file)
    return read


def settle(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the file had last changed a while ago; its time of change cannot be set."""
    monkeypatch.setattr(hashes.time, "time_ns", lambda: path.stat().st_ctime_ns + 3_000_000_000)


def test_a_file_that_did_not_change_is_hashed_once(
    tmp_path: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    settle(path, monkeypatch)
    known = FileHashes()
    assert {known.sha256(path) for _ in range(3)} == {hashlib.sha256(b"one").hexdigest()}
    assert hashed == [path]


def test_a_file_that_changed_is_hashed_again_though_size_and_time_are_the_same(
    tmp_path: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    os.utime(path, ns=(1, 1))
    settle(path, monkeypatch)
    known = FileHashes()
    known.sha256(path)
    os.utime(path, ns=(2, 2))
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert known.sha256(path) == hashlib.sha256(b"two").hexdigest()
    other = tmp_path / "b"
    other.write_bytes(b"six")
    os.replace(other, path)
    assert known.sha256(path) == hashlib.sha256(b"six").hexdigest()


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path, hashed: list[Path]) -> None:
    """Two changes within a tick of the file system's clock look like one."""
    path = tmp_path / "a"
    path.write_bytes(b"one")
    known = FileHashes()
    known.sha256(path), known.sha256(path)
    assert hashed == [path, path]


def test_it_does_not_grow_without_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "_MOST_FILES", 2)
    known = FileHashes()
    for name in "abc":
        (tmp_path / name).write_text(name)
    settle(tmp_path / "c", monkeypatch)
    for name in "abc":
        known.sha256(tmp_path / name)
    assert [path.name for path in known._known] == ["b", "c"]


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileHashes().sha256(tmp_path / "a")
