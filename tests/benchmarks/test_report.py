"""Ratios and what is made of them."""

import json
from datetime import UTC, datetime

import pytest
from report import Report, Row

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ROW = Row("epoch", "Beauty", "sasrec", "s", [8.0, 12.0, 9.0], [2.0, 2.0, 3.0], 4, "a note", gflop=100.0)
ALONE = Row("start", "", "", "s", [], [0.25, 0.5, 0.75])


def make_report(*rows: Row, f32: float | None = 100.0) -> Report:
    limits = {"threads": 2, "f32_gflops": f32, "bf16_gflops": None, "copy_gb_per_s": 12.34} if f32 else None
    facts = {"command": "python benchmarks/x.py", "machine": {"processor": "none", "threads": 2}}
    return Report("x", "Ours beside theirs", "theirs", facts, limits, list(rows), {"epoch": [1]})


def test_a_ratio_is_of_the_runs_side_by_side():
    assert ROW.ratios == [4.0, 6.0, 3.0]
    assert ROW.met is True
    assert ALONE.ratios == []
    assert ALONE.met is None


def test_a_run_that_did_not_get_there_counts_against_the_ratio_to_reach():
    row = Row("time", "Beauty", "caser", "s", [100.0, 100.0], [1.0, None], 10)
    assert row.ratios == [100.0]
    assert row.met is False
    assert row.cells(None)[4] == "1 s, 1 of 2 not reached"
    nowhere = Row("time", "Beauty", "caser", "s", [100.0], [None], 10)
    assert nowhere.met is False
    assert nowhere.cells(None)[3:7] == ["100 s", "-, 1 of 1 not reached", "-", "-"]


def test_pairs_have_two_sides():
    with pytest.raises(ValueError, match="shorter"):
        _ = Row("time", "", "", "s", [1.0, 2.0], [1.0]).ratios


def test_the_share_of_the_limit_is_of_our_median():
    assert ROW.share(100.0) == 0.5
    assert ROW.share(None) is None
    assert ALONE.share(100.0) is None


def test_the_table_says_what_was_measured():
    text = make_report(ROW, ALONE).markdown()
    assert "| epoch | Beauty | sasrec | 9 s | 2 s | 4 | 3 to 6 | 50% | 4 (met) |" in text
    assert "| start |  |  | - | 0.5 s | - | - |  |  |" in text
    assert "- epoch, sasrec, Beauty: a note" in text
    assert "100 GFLOP/s in float32 and no bfloat16 in hardware; copying in memory 12.3 GB/s" in text
    assert "- command: `python benchmarks/x.py`" in text
    assert "- machine: processor none, threads 2" in text
    assert "Limits" not in make_report(ROW, f32=None).markdown()


def test_what_is_saved_can_be_read(tmp_path, capsys):
    history = tmp_path / "docs" / "history.jsonl"
    for _ in range(2):
        make_report(ROW, ALONE).finish(tmp_path / "out", history, 90.0, NOW)
    assert "kept in" in capsys.readouterr().out
    saved = json.loads((tmp_path / "out" / "x.json").read_text())
    assert saved["rows"][0]["ratios"] == [4.0, 6.0, 3.0]
    assert saved["rows"][0]["share_of_limit"] == 0.5
    assert saved["runs"] == {"epoch": [1]}
    assert saved["facts"]["wall"] == "1.5 minutes"
    assert (tmp_path / "out" / "x.md").read_text().startswith("# Ours beside theirs")
    assert (tmp_path / "out" / "x.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    assert len(lines) == 2
    assert lines[0]["date"] == "2026-01-02T03:04:05+00:00"
    assert lines[0]["rows"][0] | {"note": None} == {
        "quantity": "epoch",
        "dataset": "Beauty",
        "model": "sasrec",
        "unit": "s",
        "peer": 9.0,
        "ours": 2.0,
        "ratio": 4.0,
        "spread": [3.0, 6.0],
        "wanted": 4,
        "met": True,
        "note": None,
    }
    assert "runs" not in lines[0]


def test_no_picture_without_ratios(tmp_path):
    make_report(ALONE).save(tmp_path)
    assert not (tmp_path / "x.png").exists()
