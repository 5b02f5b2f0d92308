"""A training that was interrupted anywhere ends bit for bit as one that was not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from p2rec_core.errors import ModelError
from p2rec_core.training.checkpoint import Checkpoint, Checkpointer
from p2rec_core.training.recommender import Knowledge, TrainedRecommender

NEWEST, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"
EPOCHS = 3


class Interrupted(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture(scope="module")
def job(cycles, train) -> Callable[..., TrainedRecommender]:
    """The training under test: two variants' worth of parameters, dropout, warm-up and early stopping."""
    sequences, targets = cycles(36, 12, seed=3)
    knowledge = np.random.default_rng(0).normal(size=(12, 6)).astype(np.float32)

    def run(**changes: Any) -> TrainedRecommender:
        return train(
            sequences,
            targets,
            12,
            knowledge=Knowledge(knowledge, "gate", smoothing=0.5),
            max_epochs=EPOCHS,
            **changes,
        )

    return run


@pytest.fixture(scope="module")
def undisturbed(job) -> TrainedRecommender:
    return job()


def interrupt_after(n_calls: int) -> Callable[[int, int, str], None]:
    calls = iter(range(1, 10_000))

    def progress(done: int, total: int, message: str) -> None:
        if next(calls) == n_calls:
            raise Interrupted

    return progress


def assert_identical(found: TrainedRecommender, expected: TrainedRecommender) -> None:
    assert found.fit.history == expected.fit.history
    assert (found.fit.best_epoch, found.fit.n_epochs, found.fit.n_steps) == (
        expected.fit.best_epoch,
        expected.fit.n_epochs,
        expected.fit.n_steps,
    )
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert found.tensors[name].tobytes() == tensor.tobytes(), name


def test_checkpoints_change_nothing(job, undisturbed, tmp_path):
    result = job(checkpointer=Checkpointer(tmp_path, every_s=0))
    assert result.fit.resumed_at_step is None
    assert_identical(result, undisturbed)


# progress is told after every step and after every epoch: 6 steps make 7 calls
@pytest.mark.parametrize("call", [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 13, 14])
def test_resuming_is_exact(job, undisturbed, tmp_path, call):
    with pytest.raises(Interrupted):
        job(checkpointer=Checkpointer(tmp_path, every_s=0), progress=interrupt_after(call))
    result = job(checkpointer=Checkpointer(tmp_path, every_s=0))
    assert result.fit.resumed_at_step is not None
    assert 0 < result.fit.resumed_at_step <= call
    assert result.fit.notes == ()
    assert_identical(result, undisturbed)


@pytest.mark.parametrize("backbone", ["gru4rec", "caser", "fmlp_rec"])
def test_every_backbone_resumes_exactly(job, tmp_path, backbone):
    with pytest.raises(Interrupted):
        job(backbone=backbone, checkpointer=Checkpointer(tmp_path, every_s=0), progress=interrupt_after(5))
    result = job(backbone=backbone, checkpointer=Checkpointer(tmp_path, every_s=0))
    assert result.fit.resumed_at_step is not None
    assert_identical(result, job(backbone=backbone))


def test_resuming_from_a_checkpoint_that_is_some_steps_old(job, undisturbed, tmp_path, monkeypatch):
    due = iter([False, False, True] * 20)
    monkeypatch.setattr(Checkpointer, "due", lambda self: next(due))
    with pytest.raises(Interrupted):
        job(checkpointer=Checkpointer(tmp_path, every_s=0), progress=interrupt_after(8))
    result = job(checkpointer=Checkpointer(tmp_path, every_s=0))
    assert result.fit.resumed_at_step < 7
    assert_identical(result, undisturbed)


def test_being_interrupted_again_and_again(job, undisturbed, tmp_path):
    for _ in range(30):
        try:
            result = job(checkpointer=Checkpointer(tmp_path, every_s=0), progress=interrupt_after(2))
        except Interrupted:
            continue
        break
    assert_identical(result, undisturbed)


def test_a_finished_training_is_not_trained_again(job, undisturbed, tmp_path):
    job(checkpointer=Checkpointer(tmp_path, every_s=0))
    told = []
    result = job(checkpointer=Checkpointer(tmp_path, every_s=0), progress=lambda *call: told.append(call))
    assert result.fit.resumed_at_step == undisturbed.fit.n_steps
    assert told == []
    assert_identical(result, undisturbed)


@pytest.fixture(scope="module")
def stopped(job, tmp_path_factory) -> Path:
    """The checkpoints of a training that was interrupted at its 8th step."""
    directory = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Interrupted):
        job(checkpointer=Checkpointer(directory, every_s=0), progress=interrupt_after(9))
    return directory


@pytest.fixture
def workspace(stopped, tmp_path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "workspace"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garble_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[20] ^= 0xFF
    path.write_bytes(bytes(data))


def zero_header(path: Path) -> None:
    path.write_bytes(bytes(64) + path.read_bytes()[64:])


def without_cursor(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path)


def flip_a_bit_of_a_tensor(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-200] ^= 0x10
    path.write_bytes(bytes(data))


DAMAGES = [truncate, empty, garble_header, zero_header, without_cursor, flip_a_bit_of_a_tensor]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(job, undisturbed, workspace, damage):
    damage(workspace / NEWEST)
    result = job(checkpointer=Checkpointer(workspace, every_s=3600))
    assert result.fit.resumed_at_step == 7
    (note,) = result.fit.notes
    assert note.startswith(f"passed over the damaged checkpoint {workspace / NEWEST}")
    assert_identical(result, undisturbed)


def test_a_kill_between_the_two_renames_of_a_save(job, undisturbed, workspace):
    (workspace / NEWEST).unlink()  # the old one is away, the new one not there yet
    assert_identical(job(checkpointer=Checkpointer(workspace, every_s=0)), undisturbed)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_no_whole_checkpoint_is_left(job, workspace, damage):
    damage(workspace / NEWEST)
    damage(workspace / PREVIOUS)
    with pytest.raises(ModelError) as caught:
        job(checkpointer=Checkpointer(workspace, every_s=0))
    assert NEWEST in caught.value.problem
    assert PREVIOUS in caught.value.problem
    assert caught.value.remedy == f"Delete {workspace} to train from the start."


def test_a_checkpoint_of_another_model(job, tmp_path):
    Checkpointer(tmp_path, every_s=0).save(Checkpoint({"parameter/other": torch.zeros(2)}, {"epoch": 1, "history": []}))
    with pytest.raises(ModelError, match=r"holds other parameters than the model.*'other'"):
        job(checkpointer=Checkpointer(tmp_path, every_s=0))


def test_saving_keeps_the_one_before(tmp_path):
    checkpointer = Checkpointer(tmp_path / "new" / "place", every_s=3600)
    assert checkpointer.load() is None
    assert not checkpointer.due()
    for n in range(3):
        checkpointer.save(Checkpoint({"a/x": torch.full((2,), float(n))}, {"n": n, "best": float("-inf")}))
    loaded = checkpointer.load()
    assert loaded is not None
    assert loaded.cursor == {"n": 2, "best": float("-inf")}
    assert loaded.group("a")["x"].tolist() == [2.0, 2.0]
    assert loaded.group("b") == {}
    with safe_open(checkpointer.directory / PREVIOUS, framework="pt") as file:
        assert json.loads(file.metadata()["cursor"])["n"] == 1
    assert sorted(p.name for p in checkpointer.directory.iterdir()) == [PREVIOUS, NEWEST]
