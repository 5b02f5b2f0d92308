"""The quick form of the fault suite keeps every promise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _rows(out: Path, *options: str) -> list[dict[str, object]]:
    command = [sys.executable, "-m", "tests.faults", "--out", str(out), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows: list[dict[str, object]] = json.loads(out.read_text(encoding="utf-8"))
    return rows


def test_nothing_is_lost_or_silently_wrong_in_a_sample(tmp_path: Path) -> None:
    rows = _rows(tmp_path / "rows.json", "--quick")
    assert [row["what"] for row in rows] == ["publish an artefact and its snapshot", "collect garbage"]
    assert all(row["kept"] and row["n"] for row in rows)


@pytest.mark.slow
def test_nothing_is_lost_or_silently_wrong_at_any_step(tmp_path: Path) -> None:
    rows = _rows(tmp_path / "rows.json")
    assert len(rows) == 7
    assert all(row["kept"] and row["n"] == row["facts"]["steps"] for row in rows)
