"""Ctrl-C: a real signal in the middle of a training, what is said, and that the same command goes on."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from safetensors import safe_open

CALL = (
    "import signal, sys; sys.argv[0] = 'p2rec'; "
    "signal.signal(signal.SIGINT, signal.default_int_handler); "  # a test run in the background has it ignored
    "from flows.cli import main; main()"
)
ENCODER = ("encoder.hidden_size=16", "encoder.inner_size=32", "encoder.n_layers=1")
SHORT = [
    *(f"{part}.{setting}" for part in ("backbone", "recommender") for setting in ENCODER),
    *(
        "clusters.n_init=1",
        "finetune.epochs=1",
        "fusion.n_components=8",
        "language_model.name_or_path=random-llama-tiny",
    ),
    *("runtime.threads=1", "runtime.checkpoint_every_s=1"),
]
"""A small model whose trainings have many steps: the sample's batch size, and a checkpoint every second."""

WAIT_S = 600


def options(*assignments: str) -> list[str]:
    return [word for assignment in assignments for word in ("--set", assignment)]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Sequence[str]], "subprocess.Popen[str]"]]:
    """Start a command in a directory of its own; what is left of it in the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(words: Sequence[str]) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", CALL, *words],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ
            | {
                "PREFECT_HOME": str(tmp_path / "prefect"),
                "NO_COLOR": "1",
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finished(process: "subprocess.Popen[str]") -> "tuple[str, str]":
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, err
    return out, err


def trained_epochs(pattern: str, directory: Path) -> int:
    """Whole epochs behind the newest checkpoint of a training; 0 where there is none."""
    for path in directory.glob(pattern):
        with safe_open(path, "numpy") as file:
            return int(json.loads(file.metadata()["cursor"])["epoch"])
    return 0


def interrupted(process: "subprocess.Popen[str]", checkpoint: str, directory: Path) -> str:
    """Send SIGINT once there is a checkpoint with a whole epoch behind it; what was said on the standard error."""
    until = time.monotonic() + WAIT_S
    while not trained_epochs(checkpoint, directory):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, f"no {checkpoint} after {WAIT_S} s"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert time.monotonic() - began < 60
    return err


def said_again(err: str) -> list[str]:
    """The command that the message says to run."""
    [line] = re.findall(r"goes on from the last checkpoint:\n  p2rec (.*)$", err, re.MULTILINE)
    return shlex.split(line)


@pytest.mark.slow
def test_a_run_that_is_interrupted_goes_on(start, tmp_path: Path) -> None:
    words = ["run", "--store", "store", *options(*SHORT, "backbone.training.max_epochs=12")]
    err = interrupted(start(words), "store/work/backbone/*/checkpoint.safetensors", tmp_path)
    assert said_again(err) == words
    assert not list(tmp_path.glob("store/snapshots/*/*"))
    out, err = finished(start(said_again(err)))
    [first] = re.findall(r"pre-train the backbone: \d+ %, epoch (\d+)", err)[:1]
    assert int(first) > 1
    assert "Snapshot 1 of sample" in out
    assert not list(tmp_path.glob("store/staging/*"))


@pytest.mark.slow
def test_a_refresh_that_is_interrupted_leaves_the_current_snapshot_and_goes_on(start, tmp_path: Path) -> None:
    settings = options(*SHORT, "backbone.training.max_epochs=2", "recommender.training.max_epochs=2")
    gate = options("refresh.max_metric_drop=1", "refresh.min_coverage=0", "refresh.min_cluster_agreement=0")
    at = ["--store", "store"]
    finished(start(["nights", "--to", "nights", "-n", "2", *at]))
    (tmp_path / "clicks.parquet").write_bytes((tmp_path / "nights/night-0.parquet").read_bytes())
    finished(start(["data", "import", "clicks.parquet", "--name", "clicks", "--format", "parquet", *at]))
    small = options("clusters.n_clusters=12", "clusters.finer=[]")
    finished(start(["run", "-d", "clicks", *at, *settings, *small]))
    (tmp_path / "clicks.parquet").write_bytes((tmp_path / "nights/night-1.parquet").read_bytes())
    often = options("refresh.epochs=40", "runtime.checkpoint_every_s=0")  # an epoch of a refresh is a matter of moments
    words = ["refresh", "-d", "clicks", *at, *settings, *small, *gate, *often]
    err = interrupted(start(words), "store/work/backbone/*/checkpoint.safetensors", tmp_path)
    out, _ = finished(start(["snapshots", "-d", "clicks", "--json", *at]))
    assert [(row["number"], row["current"]) for row in json.loads(out)["snapshots"]] == [(1, True)]
    out, _ = finished(start(said_again(err)))
    assert "Snapshot 2 is the current one now; before it was 1." in out


@pytest.mark.slow
def test_an_experiment_that_is_interrupted_leaves_no_process_and_goes_on(start, tmp_path: Path) -> None:
    words = ["experiment", "run", "sample", "--arms", "base", "--seeds", "1", "--store", "store", *options(*SHORT)]
    process = start(words)
    err = interrupted(process, "store/work/*/*/checkpoint.safetensors", tmp_path)
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False).stdout.split()
    assert left == []
    out, _ = finished(start(said_again(err)))
    assert "1 of 1 cells are there" in out


def test_a_command_without_checkpoints_says_so() -> None:
    script = CALL.replace(
        "from flows.cli import main;",
        "import flows.cli.settings as s, flows.cli as c, time;"
        "s.settings = lambda: (print('ready', flush=True), time.sleep(60));"
        "c.app = c.App(suppress_keyboard_interrupt=False); c.app.command(s.settings, name='settings');"
        "from flows.cli import main;",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "settings"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "nothing is left half done" in err
    assert "p2rec settings" in err
