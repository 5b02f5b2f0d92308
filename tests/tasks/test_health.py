"""What the doctor finds in files that stages, experiments and imports keep in a store."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from p2rec_core.errors import DataError
from p2rec_core.settings.data import IngestSettings
from p2rec_core.training.checkpoint import Checkpoint, Checkpointer
from storage.artefacts import ArtefactRef, Store
from storage.disk import make_directory
from storage.doctor import examine
from storage.manifest import FORMAT_VERSION, digest_of, render_json
from tasks.experiments import record_path
from tasks.health import further_findings
from tasks.sources import find_source, register, registration_path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(bytes(data))


def save_checkpoints(store: Store) -> Path:
    checkpointer = Checkpointer(store.workspace("backbone", "k"), every_s=0)
    for n in range(2):
        checkpointer.save(Checkpoint({"a/x": torch.full((8,), float(n))}, {"step": n}))
    return checkpointer.directory


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_gone_on_from(store):
    directory = save_checkpoints(store)
    assert examine(store, further=lambda: further_findings(store)).harm == ()
    flip(directory / "checkpoint.safetensors", -3)
    [finding] = examine(store, further=lambda: further_findings(store)).harm
    assert (finding.kind, finding.name) == ("checkpoint", "work/backbone/k/checkpoint.safetensors")
    assert "its content is not what its digest says" in finding.problem
    assert examine(store, repair=True, further=lambda: further_findings(store)).harm == ()
    assert Checkpointer(directory, every_s=0).load().cursor == {"step": 0}


def write_record(store: Store, ref: ArtefactRef) -> Path:
    fields = {"format_version": FORMAT_VERSION, "artefacts": {"a": ref.to_json()}}
    path = record_path(store, "tiny")
    make_directory(path.parent)
    path.write_bytes(render_json(fields | {"digest": digest_of(fields)}))
    return path


def test_a_record_that_is_damaged_or_refers_to_what_is_gone(store):
    path = write_record(store, ArtefactRef("s", "gone", {"x": "0" * 64}))
    report = examine(store, further=lambda: further_findings(store))
    [missing] = report.harm
    assert missing.problem.startswith("The experiment tiny refers to what cannot be used: There is no artefact s/gone")
    assert "p2rec experiment run tiny" in missing.remedy
    flip(path, 40)
    [damaged] = examine(store, repair=True, further=lambda: further_findings(store)).harm
    assert f"{path} is damaged" in damaged.problem
    assert path.exists()  # else what only it refers to would be garbage


def test_every_flip_in_what_is_remembered_of_an_import_is_seen(store, tmp_path):
    source = tmp_path / "clicks.csv"
    source.write_text("u,i\n")
    register(store, "clicks", source, IngestSettings(min_item_interactions=3), item_texts=source)
    path = registration_path(store, "clicks")
    whole = path.read_bytes()
    expected = find_source("clicks", store)
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(data))
        with pytest.raises(DataError, match=r"clicks\.json is damaged: .* Import the dataset anew"):
            find_source("clicks", store)
    [finding] = examine(store, further=lambda: further_findings(store)).harm
    assert (finding.kind, finding.name) == ("dataset", "datasets/clicks.json")
    path.write_bytes(whole)
    assert find_source("clicks", store) == expected


def test_an_import_of_before_there_was_a_digest_is_still_known(store, tmp_path):
    source = tmp_path / "clicks.csv"
    source.write_text("u,i\n")
    register(store, "clicks", source, IngestSettings())
    path = registration_path(store, "clicks")
    path.write_text(json.dumps({"path": str(source), "ingest": {}}, indent=1))
    assert find_source("clicks", store).path == source


def test_the_command_line_tells_mends_and_has_a_status_of_its_own(store):
    flip(save_checkpoints(store) / "checkpoint.safetensors", -3)

    def doctor(*options: str) -> "subprocess.CompletedProcess[str]":
        program = "from flows.cli import main; main()"
        command = [sys.executable, "-c", program, "doctor", "--store", str(store.root), *options]
        environment = os.environ | {"COLUMNS": "300", "NO_COLOR": "1"}
        return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, env=environment)

    sick = doctor("--json")
    assert sick.returncode == 7, sick.stderr
    assert json.loads(sick.stdout)["healthy"] is False
    assert "1 findings in" in sick.stderr
    assert "`p2rec doctor --repair`" in sick.stderr
    mended = doctor("--repair")
    assert mended.returncode == 0, mended.stderr
    assert "done: set aside in" in mended.stdout
    assert "0 need something done, 2 are mended or harmless" in mended.stdout
