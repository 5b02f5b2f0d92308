"""What is cached, what is computed again, and that a result never depends on which of the two it was."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from p2rec_core.errors import DataError
from storage.artefacts import Store
from storage.garbage import Kind, collect
from tasks.stage import Outcome, StageCall, StageResult, run_stage


def place(copied, slot: str) -> Path:
    ref = copied.refs[slot]
    return copied.store.place(ref.stage, ref.key)


def outcomes(results: dict[str, StageResult]) -> dict[str, set[str]]:
    by_outcome: dict[str, set[str]] = {}
    for name, result in results.items():
        by_outcome.setdefault(str(result.outcome), set()).add(name)
    return by_outcome


def assert_same_content(results, finished) -> None:
    assert {name: result.ref for name, result in results.items()} == finished.refs


def test_a_first_run_computes_everything(finished):
    assert outcomes(finished.results) == {"computed": set(finished.results)}
    assert {r.reason for r in finished.results.values()} == {"not in the store"}
    assert not list(finished.store.staging.iterdir())
    assert not list((finished.store.root / "work").glob("*/*"))


def test_a_second_run_computes_nothing_and_writes_nothing(copied, driver, photograph):
    before = photograph(copied.store)
    results = driver.run(copied.settings, copied.source, copied.store)
    assert outcomes(results) == {"cached": set(results)}
    assert {r.reason for r in results.values()} == {"the key matches and every byte is verified"}
    assert_same_content(results, copied)
    assert {name: r.info for name, r in results.items()} == {name: r.info for name, r in copied.results.items()}
    assert photograph(copied.store) == before


def test_what_a_run_found_is_not_garbage_while_it_goes_on(copied, driver):
    then = time.time() - 30 * 86400
    for path in (copied.store.root, *copied.store.root.rglob("*")):
        os.utime(path, (then, then))
    results = driver.run(copied.settings, copied.source, copied.store)
    assert outcomes(results) == {"cached": set(results)}
    removed = collect(copied.store).removed  # no snapshot refers to any of it yet
    assert {item.kind for item in removed} <= {Kind.LOCK}


def test_a_result_survives_json(finished):
    for result in finished.results.values():
        assert StageResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_neither_the_place_of_the_store_nor_that_of_the_source_matters(copied, driver, tmp_path):
    moved = tmp_path / "elsewhere" / "renamed.tsv"
    moved.parent.mkdir()
    shutil.copy(copied.source, moved)
    results = driver.run(copied.settings, moved, copied.store)
    assert outcomes(results) == {"cached": set(results)}


@pytest.mark.parametrize("slot", ["ingest", "backbone", "clusters", "preferences", "knowledge", "evaluation.sasrec.ci"])
def test_a_deleted_artefact_is_computed_again(copied, driver, slot):
    shutil.rmtree(place(copied, slot))
    results = driver.run(copied.settings, copied.source, copied.store)
    assert outcomes(results) == {"computed": {slot}, "cached": set(results) - {slot}}
    assert_same_content(results, copied)


@pytest.mark.parametrize(
    ("slot", "file"),
    [
        ("ingest", "sequences.parquet"),
        ("backbone", "model.safetensors"),
        ("clusters", "item_clusters.parquet"),
        ("finetune", "adapter.safetensors"),
        ("knowledge", "item_knowledge.parquet"),
        ("evaluation.no-learning", "user_ranks.parquet"),
        ("preferences", "manifest.json"),
    ],
)
def test_a_damaged_artefact_is_set_aside_and_rebuilt(copied, driver, slot, file):
    path = place(copied, slot) / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x04
    path.write_bytes(bytes(data))
    said: list[str] = []
    results = driver.run(copied.settings, copied.source, copied.store, log=said.append)
    assert outcomes(results) == {"rebuilt": {slot}, "cached": set(results) - {slot}}
    assert results[slot].reason.startswith("it was damaged: ")
    assert file in results[slot].reason
    assert_same_content(results, copied)
    (kept,) = (copied.store.root / "quarantine").iterdir()
    assert (kept / file).read_bytes() == bytes(data)
    assert any(str(kept) in line for line in said)
    # and it is whole now
    assert set(outcomes(driver.run(copied.settings, copied.source, copied.store))) == {"cached"}


@pytest.mark.parametrize("change", ["a file is gone", "a file too many", "a file is cut short"])
def test_other_damage_is_noticed(copied, driver, change):
    path = place(copied, "preferences") / "user_preferences.parquet"
    if change == "a file is gone":
        path.unlink()
    elif change == "a file too many":
        path.with_name("more.parquet").write_bytes(path.read_bytes())
    else:
        path.write_bytes(path.read_bytes()[:-1])
    results = driver.run(copied.settings, copied.source, copied.store)
    assert outcomes(results)["rebuilt"] == {"preferences"}
    assert_same_content(results, copied)


def test_forced_stages_are_computed_to_the_same_content(copied, driver, photograph):
    before = photograph(copied.store)
    forced = {"clusters", "finetune", "recommender.sasrec.p2rec"}
    results = driver.run(copied.settings, copied.source, copied.store, forced=forced)
    assert outcomes(results) == {"computed": forced, "cached": set(results) - forced}
    assert {results[name].reason for name in forced} == {"forced"}
    assert_same_content(results, copied)
    assert photograph(copied.store) == before  # equal content is not written again
    assert not list((copied.store.root / "quarantine").iterdir())


def test_forcing_a_damaged_stage_keeps_the_damaged_one(copied, driver):
    path = place(copied, "clusters") / "centroids.parquet"
    path.write_bytes(b"")
    results = driver.run(copied.settings, copied.source, copied.store, forced={"clusters"})
    assert results["clusters"].outcome is Outcome.REBUILT
    assert len(list((copied.store.root / "quarantine").iterdir())) == 1
    assert_same_content(results, copied)


def test_an_upstream_change_without_an_effect_stops_there(copied, driver, quick):
    # k-means converges long before either bound, and no row is rejected: other keys, the same content
    settings = quick({"clusters.max_iter": 299, "ingest.max_rejected": 0.5})
    results = driver.run(settings, copied.source, copied.store)
    assert outcomes(results) == {
        "computed": {"ingest", "clusters"},
        "cached": set(results) - {"ingest", "clusters"},
    }
    assert results["clusters"].ref.key != copied.refs["clusters"].key
    assert results["clusters"].ref.files == copied.refs["clusters"].files


def test_backbone_and_base_are_one_artefact_where_their_settings_are(copied, driver, quick):
    settings = quick({"recommender.encoder.n_layers": 1, "variants": ["base"]})
    results = driver.run(settings, copied.source, copied.store)
    assert results["recommender.sasrec.base"].outcome is Outcome.CACHED
    assert results["recommender.sasrec.base"].ref == copied.refs["backbone"]


def test_only_what_is_asked_for_is_run(copied, quick):
    names = [slot.name for slot in copied.slots(quick({"variants": ["base"]}))]
    assert names == ["ingest", "recommender.sasrec.base", "evaluation.sasrec.base", "evaluation.no-learning"]
    names = [slot.name for slot in copied.slots(quick({"variants": ["ci"]}))]
    assert "clusters" in names
    assert not {"finetune", "knowledge", "preferences"} & set(names)


def test_a_failing_stage_publishes_nothing(tmp_path, quick, driver):
    store = Store.open(tmp_path / "store")
    slow = driver.slow_call(tmp_path / "log", wait_s=0.0)

    def compute(context):
        slow.compute(context)
        raise DataError("No.", remedy="Never.")

    call = StageCall(slow.stage, slow.module, slow.settings, {}, compute)
    with pytest.raises(DataError, match="No"):
        run_stage(call, store, runtime=quick().runtime)
    assert store.find(call.stage, call.key()) is None
    assert not list(store.staging.iterdir())
    # the lock is free again
    assert run_stage(slow, store, runtime=quick().runtime).outcome is Outcome.COMPUTED


def test_two_processes_compute_a_key_once(tmp_path, spawn):
    log = tmp_path / "log"
    Store.open(tmp_path / "store")
    processes = [spawn("race", str(tmp_path / "store"), str(log)) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = []
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        answers.append(json.loads(out))
    assert len(log.read_text().splitlines()) == 1
    computed, waited = sorted(answers, key=lambda answer: answer["outcome"], reverse=True)
    assert (computed["outcome"], computed["reason"], computed["said"]) == ("computed", "not in the store", [])
    assert (waited["outcome"], waited["reason"]) == ("cached", "another process has just computed it")
    assert "another process computes clusters/" in waited["said"][0]
    assert computed["files"] == waited["files"]


def test_other_recommender_settings_load_no_language_model(copied, quick, spawn, as_json):
    settings = quick({"recommender.encoder.n_layers": 3})
    process = spawn("run", str(copied.store.root), str(copied.source), as_json(settings))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    answer = json.loads(out)
    computed = {name for name, slot in answer["slots"].items() if slot["outcome"] == "computed"}
    assert computed == {
        f"{stage}.sasrec.{v}" for stage in ("recommender", "evaluation") for v in ("base", "ci", "p2rec")
    }
    heavy = {"transformers", "peft", "tokenizers", "prefect", "p2rec_core.language.loading", "sklearn"}
    assert not heavy & set(answer["modules"])
    for name in ("knowledge", "finetune", "backbone"):
        assert answer["slots"][name]["files"] == dict(copied.refs[name].files)
