"""What decides that two sides did the same, and what is read off a run."""

import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from clock import VARIABLE
from gpu_paths import parsed as parsed_gpu
from growth import Curve
from hot_paths import parsed as parsed_paths
from ingest_run import digest
from interactions import drawn, written
from machine_limits import has_bf16
from memory import peak_rss_bytes
from ours_run import EnoughError, EpochClock, StepClock, loaded
from pace import Pace, SomeSteps, paced
from peer_options import parsed
from peer_parts import (
    COUNTS,
    PACE,
    TIME_TO_NDCG,
    Sides,
    check_same,
    encoder_of,
    pace_part,
    peer_model,
    seconds_to,
    train_part,
)
from processes import BenchmarkError, run_command, run_script, tail
from timing import in_turn, seconds

from p2rec_core.settings.data import IngestSettings
from storage.ingest.pipeline import ingest

PYTHON = Path(sys.executable)


@pytest.fixture(autouse=True)
def no_datasets(monkeypatch):
    monkeypatch.delenv("P2REC_DATASETS_DIR", raising=False)


def test_sides_take_turns():
    calls = []
    timed = in_turn(lambda: calls.append("A"), lambda: calls.append("B"), 3)
    assert " ".join(calls) == "A B A B B A A B"  # once each to warm up
    assert len(timed.ours) == len(timed.peer) == 3


def test_without_warm_up_every_call_counts():
    calls = []
    in_turn(lambda: calls.append("A"), lambda: calls.append("B"), 1, warm_up=False)
    assert calls == ["A", "B"]


def test_the_clock_parts_steps_from_validation(capsys):
    clock = EpochClock()
    first, second = "epoch 1: NDCG@10 0.1250, HR@10 0.2000", "epoch 2: NDCG@10 0.2500, HR@10 0.3000"
    for done, message in ((1, "step"), (2, "step"), (2, first), (3, "step"), (3, second)):
        clock(done, 4, message)
    assert clock.ndcg == [0.125, 0.25]
    assert len(clock.seconds) == 2
    assert all(part >= 0 for seconds in clock.seconds for part in seconds)
    assert capsys.readouterr().out == f"{first}\n{second}\n"


def test_a_training_is_broken_off_after_its_last_epoch():
    clock = EpochClock(last_epoch=1)
    clock(1, 4, "step")
    with pytest.raises(EnoughError):
        clock(1, 4, "epoch 1: NDCG@10 0.1250, HR@10 0.2000")
    assert len(clock.seconds) == 1


def ticking(monkeypatch, seconds: float) -> None:
    """A clock that goes on by so many seconds whenever it is looked at."""
    ticks = itertools.count(0, seconds)
    monkeypatch.setattr("clock.now", lambda: next(ticks))


def test_a_pace_is_that_of_the_steps_after_the_first(monkeypatch):
    ticking(monkeypatch, 4)
    pace = Pace(10)
    assert list(SomeSteps(range(100), pace)) == [0, 1, 2, 3]  # begun after the first; 4, 8 and 12 seconds after it
    assert paced(pace, 100) == {"epoch_s": 400, "timed_steps": 3, "steps_per_epoch": 100}


def test_a_pace_has_two_steps_however_long_they_take_and_ends_with_its_epoch(monkeypatch):
    ticking(monkeypatch, 60)
    assert list(SomeSteps(range(100), Pace(1))) == [0, 1, 2]
    assert list(SomeSteps(range(2), Pace(1))) == [0, 1]
    pace = Pace(1)
    assert list(SomeSteps([0], pace)) == [0]
    with pytest.raises(RuntimeError, match="An epoch of 1 steps has none to time beside the first"):
        paced(pace, 1)


def test_our_training_is_broken_off_when_its_pace_is_known_or_its_epoch_ends(monkeypatch):
    ticking(monkeypatch, 4)
    clock = StepClock(Pace(6))
    for done in (1, 2):
        clock(done, 90, "step")
    with pytest.raises(EnoughError):
        clock(3, 90, "step")
    assert (clock.pace.steps, clock.pace.step_s, clock.total) == (2, 4, 90)
    short = StepClock(Pace(6))
    for done in (1, 2):
        short(done, 4, "step")
    with pytest.raises(EnoughError):
        short(2, 4, "epoch 1: NDCG@10 0.1250, HR@10 0.2000")
    assert short.pace.steps == 1


def test_seconds_of_the_cores_leave_waiting_out(monkeypatch):
    monkeypatch.setenv(VARIABLE, "cpu")
    assert seconds(lambda: time.sleep(0.2)) < 0.1
    monkeypatch.setenv(VARIABLE, "wall")
    assert seconds(lambda: time.sleep(0.02)) >= 0.02


def test_growth_is_the_slope_and_its_end_is_named():
    linear = Curve("part", "stage", "users", [100, 200, 400], [1.0, 2.0, 4.0])
    assert linear.exponent == pytest.approx(1)
    assert linear.verdict == "linear or better"
    bent = Curve("part", "stage", "users", [100, 200, 400], [1.0, 2.0, 8.0])
    assert bent.last_slope == pytest.approx(2)
    assert bent.verdict == "faster than its input beyond 200"


def curve(*ndcg: float) -> list[dict[str, float]]:
    return [{"train_s": 3.0, "validate_s": 1.0, "ndcg": value} for value in ndcg]


def test_time_to_quality_counts_validation_too():
    run = {"curve": curve(0.1, 0.3, 0.2)}
    assert seconds_to(run, 0.1) == 4.0
    assert seconds_to(run, 0.2) == 8.0
    assert seconds_to(run, 0.31) is None


class Recorded:
    """Sides of a measurement that were run before."""

    caser_length = 5
    last_epoch = None

    def named(self, backbone: str) -> str:
        return backbone

    def __init__(self) -> None:
        self.runs: list[str] = []

    def run(self, side: str, **result: object) -> dict:
        self.runs.append(side)
        memory = {"peak_rss_bytes": 3 << 30, "imported_rss_bytes": 1 << 30}
        return dict.fromkeys(COUNTS, 7) | memory | result

    def ours(self, data, backbone, task, *, seed):
        return self.run("ours", curve=curve(0.05, 0.2))

    def peer(self, data, backbone, task, *, seed, epochs):
        return self.run("peer", curve=curve(*[0.1] * epochs))


def test_every_run_of_the_peer_has_a_ratio_to_the_runs_around_it(tmp_path):
    sides = Recorded()
    part = train_part(sides, written("sample", tmp_path, max_users=9), "caser", 2, 10)
    assert sides.runs == ["ours", "peer", "ours", "peer", "ours"]
    assert [run["side"] for run in part.runs] == sides.runs
    time, epoch, memory, beyond = part.rows
    assert (time.quantity, time.model, time.dataset) == (TIME_TO_NDCG, "caser", "Synthetic sample, first 9 users")
    assert time.ratios == [0.5] * 4  # the peer is at its tenth epoch's level after one, ours after two
    assert time.wanted is None
    assert "RecBole's NDCG@10 after epoch 10 is 0.1000, P2Rec's best 0.2000" in time.note
    assert "filters reach 5 items back, P2Rec's 5" in time.note
    assert epoch.ratios == [1.0] * 4
    assert memory.ours == [3.0] * 4
    assert beyond.ours == [2.0] * 4


def test_a_pace_row_says_of_how_many_steps_it_is(tmp_path, monkeypatch):
    data = written("sample", tmp_path, max_users=400)
    sides = Sides(PYTHON, threads=1, caser_length=5, width=16, pace_s=0)
    whole = {"peak_rss_bytes": 3 << 30, "epoch_s": 8.0, "timed_steps": 3, "steps_per_epoch": 9}
    ours = sides.ours(data, "sasrec", "pace", seed=1)
    monkeypatch.setattr(Sides, "peer", lambda *_, seed: {name: ours[name] for name in COUNTS} | whole | {"seed": seed})
    part = pace_part(sides, data, "sasrec", 1)
    epoch, memory = part.rows
    assert [run["side"] for run in part.runs] == ["ours", "peer", "ours"]
    assert (epoch.quantity, epoch.model, epoch.peer) == (PACE, "sasrec, d 16", [8.0, 8.0])
    assert all(0 < seconds < 8 for seconds in epoch.ours)
    assert f"2 of P2Rec's {ours['steps_per_epoch']} steps, 3 of RecBole's 9" in epoch.note
    assert memory.peer == [3.0, 3.0]


def test_unlike_tasks_are_no_comparison():
    with pytest.raises(BenchmarkError, match=r"P2Rec has n_users = 3 and the other side 4: .* at least four"):
        check_same({"n_users": 3}, {"n_users": 4}, ["n_users"])


def test_the_peer_has_the_shape_of_ours():
    assert peer_model(encoder_of("sasrec", 64), 5) == (
        "SASRec",
        {
            "hidden_size": 64,
            "n_layers": 2,
            "n_heads": 2,
            "inner_size": 256,
            "hidden_dropout_prob": 0.5,
            "attn_dropout_prob": 0.5,
        },
        50,
    )
    name, options, length = peer_model(encoder_of("caser", 64), 7)
    assert (name, length, options["embedding_size"]) == ("Caser", 7, 64)
    assert peer_model(encoder_of("gru4rec", 256), 5) == (
        "GRU4Rec",
        {"embedding_size": 256, "hidden_size": 512, "dropout_prob": 0.3},
        50,
    )
    assert peer_model(encoder_of("fmlp_rec", 64), 5) == (
        "FMLP-Rec",
        {"hidden_size": 64, "n_layers": 2, "inner_size": 256, "dropout": 0.5},
        50,
    )


def test_the_plain_fmlp_rec_learns_the_same_examples_that_ours_counts(benchmarks, tmp_path):
    data = written("sample", tmp_path, max_users=200)
    shape = {"hidden_size": 32, "n_layers": 2, "inner_size": 64, "dropout": 0.1}
    request = {
        "task": "train",
        "data_path": str(data.path.parents[1]),
        "dataset": "interactions",
        "model_options": shape,
        "max_length": 20,
        "threads": 1,
        "seed": 1,
        "epochs": 6,
    }
    result = run_script(PYTHON, benchmarks / "peers" / "fmlp_run.py", request)
    some = run_script(PYTHON, benchmarks / "peers" / "fmlp_run.py", request | {"task": "pace", "pace_s": 0})
    assert (some["timed_steps"], some["steps_per_epoch"]) == (2, -(-result["n_examples"] // 256))
    sequences, validation, n_items = loaded(data.path)
    assert {name: result[name] for name in COUNTS} == {
        "n_users": len(sequences),
        "n_items": n_items,
        "n_validated": int((validation > 0).sum()),
        "n_examples": int((sequences.lengths - 1).sum()),
        "threads": 1,
    }
    curve = [epoch["ndcg"] for epoch in result["curve"]]
    assert len(curve) == 6
    assert curve[-1] > 3 * curve[0]


def test_both_sides_read_the_same_file(tmp_path):
    data = written("sample", tmp_path, max_users=100)
    assert data.path.read_text().startswith("user_id:token\titem_id:token\ttimestamp:float\nu0001\t")
    assert not data.whole
    assert "path" not in data.facts()
    sequences, validation, n_items = loaded(data.path)
    assert len(sequences) == data.n_users == len(validation) == 100
    assert n_items == data.n_items
    assert len(sequences.items) == data.n_interactions - 2 * 100
    assert written("sample", tmp_path).whole


def test_drawn_interactions_are_enough_and_pass_ingest(tmp_path):
    path = drawn(tmp_path, 1000)
    n_rows = len(path.read_text().splitlines()) - 1
    assert 1000 <= n_rows < 100_000
    settings = IngestSettings(format="recbole").model_dump(mode="json")
    once, again = ingest(path, **settings), ingest(path, **settings)
    assert once.counts["n_rows"] == n_rows
    assert digest(once) == digest(again)
    assert digest(once) != digest(ingest(path, **settings | {"seed": 2}))


def test_a_command_that_fails_says_so(tmp_path):
    code = "import sys; print('first'); sys.exit('last words')"
    with pytest.raises(BenchmarkError, match=r"ended with 1\. Its last lines:\n    first\n    last words"):
        run_command([sys.executable, "-c", code], folder=tmp_path)
    with pytest.raises(BenchmarkError, match="`no-such-program` cannot be run"):
        run_command(["no-such-program"], folder=tmp_path)
    assert tail("") == "    (no output)"


def test_a_script_gets_its_request_and_threads(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, sys\n"
        "request = json.load(open(sys.argv[1]))\n"
        "assert request['number'] < 3, 'too much'\n"
        "json.dump({'number': request['number'] + 1, 'omp': os.environ['OMP_NUM_THREADS']}, open(sys.argv[2], 'w'))\n"
    )
    request = {"number": 1, "threads": 2}
    assert run_script(PYTHON, script, request) == {"request": request, "number": 2, "omp": "2"}
    with pytest.raises(BenchmarkError, match=r"(?s)too much.*Its request was \{\"number\": 3"):
        run_script(PYTHON, script, {"number": 3, "threads": 1})


def test_options_depend_on_what_is_there(monkeypatch):
    out = ["--out", "x", "--threads", "1"]
    quick = parsed([*out, "--quick"])
    assert (quick.dataset, quick.epochs, quick.backbones, quick.caser_length) == ("sample", 1, ["sasrec"], 5)
    monkeypatch.setenv("P2REC_DATASETS_DIR", "/somewhere")
    full = parsed([*out, "--parts", "load,train"])
    assert (full.dataset, full.load_dataset, full.epochs, full.parts) == ("beauty", "ml-1m", 10, ["load", "train"])
    assert full.ingest_millions == ["1", "3", "10"]
    assert (full.pace_widths, quick.pace_widths) == (["64", "256"], ["64"])
    assert parsed_paths(out).dataset == "beauty"
    assert parsed_paths([*out, "--quick"]).dataset == "sample"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "load,lunch"], "there is no part 'lunch'; choose among limits"),
        (["--backbones", "transformer"], "there is no backbone 'transformer'"),
        (["--epochs", "-1"], "--epochs is -1; it has to be 1 or more"),
        (["--users", "0"], "--users is 0; it has to be 1 or more"),
        (["--threads", "5000"], "--threads is 5000, but there are"),
        (["--pace-widths", "64,wide"], "--pace-widths has 'wide'"),
        (["--ingest-millions", "1,-3"], "--ingest-millions has '-3'"),
    ],
)
def test_options_that_mean_nothing_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parsed(["--out", "x", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--parts", "lunch"], "there is no part 'lunch'"), (["--rounds", "-2"], "--rounds is -2; it has to be 1")],
)
def test_options_of_the_hot_paths_too(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parsed_paths(["--out", "x", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--shapes", "llama-4"], "there is no shape 'llama-4'"), (["--items", "0"], "--items is 0; it has to be 1")],
)
def test_options_of_the_gpu_too(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parsed_gpu(["--out", "x", *arguments])
    assert message in capsys.readouterr().err


def test_the_machine_is_told():
    assert has_bf16() in (True, False)
    held = np.ones(30_000_000)
    assert peak_rss_bytes() > held.nbytes


def test_results_of_ours_are_json(benchmarks, tmp_path):
    data = written("sample", tmp_path, max_users=200)
    request = {"task": "evaluate", "interactions": str(data.path), "dataset": "sample"}
    request |= {"encoder": {"backbone": "gru4rec"}, "threads": 1, "seed": 1, "repeats": 2}
    result = run_script(PYTHON, benchmarks / "ours_run.py", request)
    assert result["training"]["max_epochs"] == 12  # the sample's recipe
    assert len(result["evaluate_s"]) == 2
    assert (result["n_users"], result["n_validated"], result["threads"]) == (200, 200, 1)
    assert result["peak_rss_bytes"] > result["imported_rss_bytes"]
    assert json.loads(json.dumps(result)) == result
