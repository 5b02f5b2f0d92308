"""The quick form of the fault suite keeps every promise."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from storage import disk, publish, snapshots
from storage.reading import Artefact
from tests.faults import disk_errors, flips, power
from tests.faults.__main__ import PARTS
from tests.faults.house import OPERATIONS, fill
from tests.faults.rows import Fate

ROOT = Path(__file__).parents[2]
PUBLISH = OPERATIONS[1]


def _rows(out: Path, *options: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.faults", "--out", str(out), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=7200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))
    return rows


def test_nothing_is_lost_or_silently_wrong_in_a_sample(tmp_path: Path) -> None:
    rows = _rows(tmp_path / "rows.json", "--quick")
    assert {row["part"][0] for row in rows} == set(PARTS)
    assert [row["problems"] for row in rows if not row["kept"]] == []


@pytest.mark.slow
def test_nothing_is_lost_or_silently_wrong_anywhere(tmp_path: Path) -> None:
    rows = _rows(tmp_path / "rows.json")
    assert {row["part"][0] for row in rows} == set(PARTS)
    assert all(row["kept"] for row in rows)
    assert sum(row["n"] for row in rows if row["part"].startswith("b")) >= 10_000


def test_the_suite_sees_a_store_that_does_not_flush_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_sync", lambda path: None)
    assert power.cut(fill(tmp_path / "template").root, tmp_path, PUBLISH, 20).counts[Fate.LOST]


def test_the_suite_sees_a_store_that_does_not_flush_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.DurableFile, "sync", lambda file: file._sha256.hexdigest())
    row = power.cut(fill(tmp_path / "template").root, tmp_path, PUBLISH, 20)
    assert row.counts[Fate.LOST] + row.counts[Fate.WRONG]


def test_the_suite_sees_a_reader_that_does_not_compare_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Artefact, "whole_file", lambda artefact, name: artefact.path / artefact.files[name].path)
    sql = next(flips.targets(tmp_path))
    row = flips.damaged(sql, 5)
    assert row.counts[Fate.WRONG]
    assert not row.kept


def test_the_suite_sees_a_store_that_writes_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_place(path: Path, data: bytes, *, scratch: Path) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(fd, data)
        os.close(fd)

    template = fill(tmp_path / "template").root
    monkeypatch.setattr(snapshots, "replace_durably", in_place)
    assert power.cut(template, tmp_path, OPERATIONS[2], 1).counts[Fate.LOST]


def test_the_suite_sees_an_error_that_is_not_clear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "os_errors", lambda path, n_bytes=0: contextlib.nullcontext())
    row = disk_errors.failed(fill(tmp_path / "template").root, tmp_path, PUBLISH, disk_errors.ERRORS[:1], 3)
    assert any("no clear error but OSError" in problem for problem in row.problems)
