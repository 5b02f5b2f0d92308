"""Ratios and what is made of them."""

import json
from argparse import Namespace
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from processes import BenchmarkError
from report import Part, Report, Row, measured

ROW = Row("epoch", "Beauty", "sasrec", "s", [8.0, 12.0, 9.0], [2.0, 2.0, 3.0], 4, "a note", gflop=100.0)
ALONE = Row("start", "", "", "s", [], [0.25, 0.5, 0.75])


FACTS = {"command": "python benchmarks/x.py", "machine": {"processor": "none", "threads": 2}, "sources": "0a1b"}


def opened(folder: Path, *, anew: bool = False, **facts: str) -> Report:
    return Report.opened(Namespace(out=folder, anew=anew), "x", "Ours beside theirs", "theirs", FACTS | facts)


def make_report(folder: Path, *rows: Row, f32: float | None = 100.0) -> Report:
    report = opened(folder)
    report.limits = {"threads": 2, "f32_gflops": f32, "bf16_gflops": None, "copy_gb_per_s": 12.34} if f32 else None
    report.measure("epoch", lambda: Part(rows, [1]))
    return report


def never() -> Part:
    raise AssertionError("it is measured again")


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


def test_the_table_says_what_was_measured(tmp_path):
    text = make_report(tmp_path, ROW, ALONE).markdown()
    assert "| epoch | Beauty | sasrec | 9 s | 2 s | 4 | 3 to 6 | 50% | 4 (met) |" in text
    assert "| start |  |  | - | 0.5 s | - | - |  |  |" in text
    assert "- epoch, sasrec, Beauty: a note" in text
    assert "100 GFLOP/s in float32 and no bfloat16 in hardware; copying in memory 12.3 GB/s" in text
    assert "- command: `python benchmarks/x.py`" in text
    assert "- machine: processor none, threads 2" in text
    assert "- sittings: begun 2" in text
    assert "Limits" not in make_report(tmp_path / "other", ROW, f32=None).markdown()


def test_what_is_saved_can_be_read(tmp_path):
    history = tmp_path / "docs" / "history.jsonl"
    for folder in ("other", "out"):
        make_report(tmp_path / folder, ROW, ALONE).finish(history)
    saved = json.loads((tmp_path / "out" / "x.json").read_text())
    assert saved["rows"][0]["ratios"] == [4.0, 6.0, 3.0]
    assert saved["rows"][0]["share_of_limit"] == 0.5
    assert saved["rows"][0]["part"] == "epoch"
    assert saved["runs"] == {"epoch": [1]}
    assert datetime.fromisoformat(saved["sittings"][0]["begun"]) <= datetime.fromisoformat(saved["ended"])
    assert (tmp_path / "out" / "x.md").read_text().startswith("# Ours beside theirs")
    assert (tmp_path / "out" / "x.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    assert len(lines) == 2
    assert lines[1]["date"] == saved["ended"]
    assert lines[0]["rows"][0] == {
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
    }
    assert "runs" not in lines[0]


def test_a_run_that_was_broken_off_goes_on(tmp_path, capsys):
    nowhere = Row("time", "Beauty", "caser", "s", [100.0], [None], 10)
    first = make_report(tmp_path, ROW, nowhere)
    first.facts["data"] = "found on the way"
    first.measure("other", lambda: Part([ALONE], [{"a": 1}]))
    second = opened(tmp_path)
    assert "x.json was broken off; going on. Measured already: epoch, other." in capsys.readouterr().out
    second.measure("epoch", never)
    second.measure("more", lambda: Part([ROW]))
    assert second.rows == [ROW, nowhere, ALONE, ROW]
    assert (second.limits, second.facts) == (first.limits, first.facts)
    assert second.parts["other"].runs == [{"a": 1}]
    assert len(second.sittings) == 2
    second.finish(None)
    assert len(json.loads((tmp_path / "x.json").read_text())["sittings"]) == 2


def test_what_is_measured_is_not_measured_again_unless_asked(tmp_path, capsys):
    def run(*, anew: bool = False, sources: str = "0a1b", part: Callable[[], Part] = never) -> int:
        return measured(
            lambda options: opened(options.out, anew=anew, sources=sources),
            lambda options, report: report.measure("epoch", part),
            Namespace(out=tmp_path, history=tmp_path / "history.jsonl"),
        )

    assert run(part=lambda: Part([ROW])) == 0
    first = capsys.readouterr().out
    assert "| epoch | Beauty |" in first
    assert "--anew" not in first
    assert run() == 0
    second = capsys.readouterr().out
    assert "| epoch | Beauty |" in second
    assert "All of it was measured before, until 2" in second
    assert "--anew measures again" in second
    assert run(anew=True, part=lambda: Part([ALONE])) == 0
    assert "| start |" in capsys.readouterr().out
    assert run(sources="ffff", part=lambda: Part([ALONE])) == 0
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 3


def test_a_benchmark_that_cannot_be_run_says_why_and_has_not_ended(tmp_path, capsys):
    def fail(options: Namespace, report: Report) -> None:
        raise BenchmarkError("The two do not do the same.")

    assert measured(lambda options: opened(options.out), fail, Namespace(out=tmp_path, history=None)) == 1
    assert capsys.readouterr().err == "The two do not do the same.\n"
    assert json.loads((tmp_path / "x.json").read_text())["ended"] is None


def test_a_run_of_something_else_is_not_gone_on_with(tmp_path, capsys):
    make_report(tmp_path, ROW)
    assert opened(tmp_path, sources="ffff").parts == {}
    assert "x.json has other sources: beginning anew." in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b"\xff"])
def test_what_is_no_report_is_left_alone(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(BenchmarkError, match=r"x\.json is no report .*Name another --out, or replace it with --anew"):
        opened(tmp_path)
    assert (tmp_path / "x.json").read_bytes() == content
    assert opened(tmp_path, anew=True).parts == {}


def test_no_picture_without_ratios(tmp_path):
    make_report(tmp_path, ALONE).save()
    assert not (tmp_path / "x.png").exists()
