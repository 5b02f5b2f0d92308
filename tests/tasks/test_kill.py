"""A process killed in the middle of a training: the next one goes on from there, to the same bytes."""

import shutil
import signal
from datetime import timedelta

import pytest

from p2rec_core.progress import silent
from storage.artefacts import Store
from storage.garbage import collect_leftovers


@pytest.mark.parametrize(("slot", "kill_at"), [("backbone", 4), pytest.param("finetune", 5, marks=pytest.mark.slow)])
def test_kill_9_in_the_middle_of_a_training(finished, driver, spawn, as_json, tmp_path, slot, kill_at):
    root = tmp_path / "store"
    shutil.copytree(finished.store.root, root)
    names = list(finished.results)
    for name in names[names.index(slot) :]:  # as if no more had been run than what the slot needs
        ref = finished.refs[name]
        shutil.rmtree(root / "artefacts" / ref.stage / ref.key, ignore_errors=True)

    process = spawn("run", str(root), str(finished.source), as_json(finished.settings), slot, str(kill_at))
    out, err = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, err
    assert out == ""

    store = Store.open(root)
    ref = finished.refs[slot]
    assert store.find(ref.stage, ref.key) is None
    assert (store.workspace_path(ref.stage, ref.key) / "checkpoint.safetensors").exists()
    assert len(list(store.staging.iterdir())) == 1  # what was being written; no reader looks there

    told: list[int] = []

    def progress(name):
        return (lambda done, total, message: told.append(done)) if name == slot else silent

    results = driver.run(finished.settings, finished.source, store, progress=progress)
    assert {name: result.ref for name, result in results.items()} == finished.refs
    undisturbed = dict(finished.results[slot].info)
    resumed = dict(results[slot].info)
    assert undisturbed.pop("resumed_at_step") is None
    assert 0 < resumed.pop("resumed_at_step") <= kill_at
    assert resumed == undisturbed
    assert told[0] > 1  # it did not begin anew
    assert not store.workspace_path(ref.stage, ref.key).exists()
    assert len(collect_leftovers(store, grace=timedelta(0)).removed) == 1
    assert not list(store.staging.iterdir())
