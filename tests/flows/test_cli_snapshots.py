"""Snapshots and garbage collection on the command line, as a person uses them."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from flows.report import RunReport
from storage.artefacts import Artefact, ArtefactRef, Store
from storage.disk import make_directory
from storage.manifest import FORMAT_VERSION, digest_of, render_json
from storage.snapshots import publish_snapshot, read_snapshot
from tasks.experiments import record_path

RUN = {"method": "sasrec", "variant": "p2rec", "split": "test", "seen": "keep"}


def p2rec(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", "from flows.cli import main; main()", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"},
    )


def said(*arguments: str | Path) -> str:
    """What a command that ends well prints."""
    call = p2rec(*arguments)
    assert call.returncode == 0, call.stderr
    return call.stdout


def failed(call: "subprocess.CompletedProcess[str]", status: int, *words: str) -> None:
    assert call.returncode == status, call.stderr
    assert "Traceback" not in call.stderr
    message = " ".join(call.stderr.split())
    for word in words:
        assert word in message, message


def make(store: Store, stage: str, key: str, value: float) -> Artefact:
    entry = {**RUN, "metric": "NDCG", "k": 10, "value": value, "n_users": 2}
    with store.write(stage, key, settings={}, inputs={}, fingerprint="f") as writer:
        if stage == "evaluation":
            types = [(name, pa.string()) for name in (*RUN, "metric")]
            numbers = [("k", pa.int32()), ("value", pa.float64()), ("n_users", pa.int32())]
            writer.table("metrics", pa.Table.from_pylist([entry]).cast(pa.schema(types + numbers)))
        else:
            writer.table(
                "users",
                pa.table({"user_idx": [1, 2], "user_id": ["u", f"v{value}"], "n_train": [1, 1]}).cast(
                    pa.schema([("user_idx", pa.int32()), ("user_id", pa.string()), ("n_train", pa.int32())])
                ),
            )
        return writer.publish({"metrics": [entry]} if stage == "evaluation" else {}, 1.0)


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A store with three snapshots of a dataset."""
    store = Store.open(tmp_path / "store")
    for n in (1, 2, 3):
        entries = {
            "ingest": make(store, "ingest", f"k{n}", n).ref(),
            "evaluation.sasrec.p2rec": make(store, "evaluation", f"k{n}", n / 8).ref(),
        }
        publish_snapshot(store, "tiny", entries, {})
    return store.root


def record(store: Store, name: str, *refs: ArtefactRef) -> Path:
    """A record of an experiment, as far as garbage collection reads it."""
    fields = {"format_version": FORMAT_VERSION, "artefacts": {f"{r.stage}/{r.key}": r.to_json() for r in refs}}
    path = record_path(store, name)
    make_directory(path.parent)
    path.write_bytes(render_json(fields | {"digest": digest_of(fields)}))
    return path


@pytest.mark.parametrize("command", ["snapshots", "diff", "promote", "rollback", "pin", "unpin", "gc"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    assert f"p2rec {command}" in said(command, "--help")


def test_snapshots_are_listed_with_what_is_to_be_known(filled: Path) -> None:
    at = ("-d", "tiny", "--store", filled)
    assert "Pinned snapshots of tiny: 2." in said("pin", "2", *at)
    shutil.rmtree(filled / "artefacts" / "ingest" / "k1")
    lines = {line.split("\t")[0]: line for line in said("snapshots", *at).splitlines() if "\t" in line}
    assert "current" in lines["3"]
    assert "0.3750 (sasrec +P2Rec)" in lines["3"]
    assert "pinned" in lines["2"]
    assert "There is no artefact ingest/k1" in lines["1"]
    listed = json.loads(said("snapshots", *at, "--json"))
    assert [(row["number"], row["current"], row["pinned"]) for row in listed["snapshots"]] == [
        (1, False, False),
        (2, False, True),
        (3, True, False),
    ]
    assert listed["snapshots"][2]["headline"] == {"method": "sasrec", "variant": "p2rec", "value": 0.375}
    assert listed["snapshots"][2]["slots"] == ["evaluation.sasrec.p2rec", "ingest"]
    assert "Pinned snapshots of tiny: none." in said("unpin", "2", *at)
    failed(p2rec("unpin", "2", *at), 4, "Snapshot 2 of 'tiny' is not pinned")
    failed(p2rec("snapshots", "-d", "beauty", "--store", filled), 4, "no snapshot of 'beauty'")


def test_promote_and_rollback_say_what_is_current(filled: Path) -> None:
    at = ("-d", "tiny", "--store", filled)
    assert "Snapshot 2 of tiny, created 2" in said("rollback", *at)
    assert json.loads(said("rollback", *at, "--json"))["current"] == 1
    failed(p2rec("rollback", *at), 4, "no complete snapshot of 'tiny' before the current one, 1")
    assert "Snapshot 3 of tiny" in said("promote", "3", *at)
    assert read_snapshot(Store.open(filled), "tiny").number == 3
    shutil.rmtree(filled / "artefacts" / "ingest" / "k2")
    failed(p2rec("promote", "2", *at), 4, "Snapshot 2 of 'tiny' is not complete, slot ingest")
    failed(p2rec("promote", "9", *at), 4, "no snapshot 9 of 'tiny'")
    call = p2rec("rollback", *at)
    assert call.returncode == 0, call.stderr
    assert "Snapshot 1 of tiny" in call.stdout
    assert "note: Snapshot 2 of 'tiny' is not complete" in call.stderr
    failed(p2rec("promote", "1", "-d", "tiny", "--store", filled.parent / "none"), 4, "There is no store")
    assert not (filled.parent / "none").exists()


def test_diff_shows_slots_ids_and_metrics(filled: Path) -> None:
    at = ("-d", "tiny", "--store", filled)
    text = said("diff", "1", "3", *at)
    for words in ("ingest/k1", "evaluation/k3", "sasrec +P2Rec", "NDCG@10", "0.1250", "0.3750", "+0.2500"):
        assert words in text
    assert "users: 2 → 2; 1 added, 1 removed by their ids" in text
    changes = json.loads(said("diff", "1", "3", *at, "--json"))
    assert {change["slot"] for change in changes["slots"]} == {"ingest", "evaluation.sasrec.p2rec"}
    assert [(metric["old"], metric["new"]) for metric in changes["metrics"]] == [(0.125, 0.375)]
    assert "Snapshots 2 and 2 of tiny have the same artefacts" in said("diff", "2", "2", *at)
    failed(p2rec("diff", "1", "7", *at), 4, "no snapshot 7 of 'tiny'")


def test_gc_keeps_what_snapshots_and_experiments_need(filled: Path) -> None:
    store = Store.open(filled)
    kept = record(store, "table", make(store, "evaluation", "cell", 0.5).ref())
    make(store, "evaluation", "unwanted", 0.5)
    at = ("--store", filled)
    assert "0 removed" in said("gc", *at)
    then = time.time() - 86400 * 3
    for path in filled.rglob("*"):
        os.utime(path, (then, then))
    assert json.loads(said("gc", "--json", *at))["removed"] == []
    text = said("gc", "--dry-run", "--grace", "2d", *at)
    for words in ("Would be removed", "evaluation/unwanted", "nothing refers to it", "1 would be removed"):
        assert words in text
    assert "kept: 7 × artefact: it is referred to" in text
    assert store.find("evaluation", "unwanted") is not None
    report = json.loads(said("gc", "--grace", "2d", "--keep-last", "1", "--json", *at))
    assert {item["name"] for item in report["removed"]} == {
        "artefacts/evaluation/unwanted",
        *(f"{place}/k{n}" for place in ("artefacts/ingest", "artefacts/evaluation") for n in (1, 2)),
        *(f"snapshots/tiny/00000{n}.json" for n in (1, 2)),
    }
    referrers = {item["name"]: item["referrer"] for item in report["kept"]}
    assert referrers["artefacts/evaluation/cell"] == "experiment table"
    content = kept.read_bytes()
    kept.write_text("torn")
    failed(p2rec("gc", "--grace", "0s", *at), 4, "table.json is damaged", "p2rec experiment run table")
    assert store.find("evaluation", "cell") is not None
    kept.write_bytes(content.replace(b"cell", b"call"))
    failed(p2rec("gc", "--grace", "0s", *at), 4, "table.json is damaged", "its digest should be")
    kept.unlink()
    assert "1 removed" in said("gc", "--grace", "0s", *at)
    assert store.find("evaluation", "cell") is None
    failed(p2rec("gc", "--keep-last", "0", *at), 4, "keep_last is 0")
    failed(p2rec("gc", "--store", filled.parent / "none"), 4, "There is no store")


def test_a_real_run_loses_nothing_to_gc_and_has_a_headline(first_run: tuple[Path, RunReport], tmp_path: Path) -> None:
    store = Path(shutil.copytree(first_run[0], tmp_path / "store"))
    [row] = json.loads(said("snapshots", "--store", store, "--json"))["snapshots"]
    assert row["headline"]["variant"] == "p2rec"
    assert 0 <= row["headline"]["value"] <= 1
    report = json.loads(said("gc", "--grace", "0s", "--store", store, "--json"))
    assert [item for item in report["removed"] if item["kind"] == "artefact"] == []
    assert len({item["name"] for item in report["kept"] if item["kind"] == "artefact"}) == len(
        {(result.ref.stage, result.ref.key) for result in first_run[1].results.values()}
    )
    assert json.loads(said("snapshots", "--store", store, "--json"))["snapshots"] == [row]
