"""Held-out items reach nothing before the evaluation, and runs are functions of their inputs."""

from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from storage.artefacts import Store
from tasks.stage import Outcome

HELD_OUT_OF_INGEST = {"interactions", "validation", "test"}


def rotated(rows: list[list[str]], *places: int) -> list[list[str]]:
    """Give a third of the users the held-out items of others; the catalogue stays what it was."""
    changed = [list(row) for row in rows]
    chosen = range(0, len(rows), 3)
    for place in places:
        taken = [rows[user][place] for user in chosen]
        for user, item in zip(chosen, taken[1:] + taken[:1], strict=True):
            changed[user][place] = item
    assert changed != rows
    return changed


def two_runs(driver, write, rows, settings, tmp_path: Path, *places: int) -> tuple[Any, Any, Store]:
    one, other = Store.open(tmp_path / "one"), Store.open(tmp_path / "other")
    first = driver.run(settings, write(tmp_path / "a.txt", rows), one)
    second = driver.run(settings, write(tmp_path / "b.txt", rotated(rows, *places)), other)
    return first, second, other


def assert_only_evaluation_differs(first, second, differing: set[str]) -> None:
    ours, theirs = first["ingest"].ref.files, second["ingest"].ref.files
    assert {name for name in ours if ours[name] != theirs[name]} == differing
    for name in first:
        if name == "ingest":
            continue
        if name.startswith("evaluation"):
            assert first[name].ref.files != second[name].ref.files, name
        else:
            assert second[name].outcome is Outcome.COMPUTED, name
            assert first[name].ref == second[name].ref, name


def test_held_out_items_do_not_reach_the_models(driver, write, rows, quick, tmp_path):
    without_early_stopping = {f"{s}.training.patience": None for s in ("backbone", "recommender")}
    settings = quick(without_early_stopping)
    first, second, _ = two_runs(driver, write, rows, settings, tmp_path, -1, -2)
    assert_only_evaluation_differs(first, second, HELD_OUT_OF_INGEST)


def test_test_items_do_not_reach_the_models_with_early_stopping(driver, write, rows, quick, finished, tmp_path):
    store = Store.open(tmp_path / "other")
    second = driver.run(quick(), write(tmp_path / "b.txt", rotated(rows, -1)), store)
    assert_only_evaluation_differs(finished.results, second, {"interactions", "test"})


def test_validation_items_do_count_in_early_stopping(driver, write, rows, quick, finished, tmp_path):
    # the test above would hold of a pipeline that reads nothing: this one shows that it would notice
    store = Store.open(tmp_path / "other")
    settings = quick({"variants": ["base"]})
    second = driver.run(settings, write(tmp_path / "b.txt", rotated(rows, -2)), store)
    assert second["recommender.sasrec.base"].ref.key != finished.refs["recommender.sasrec.base"].key


def test_training_items_reach_everything(driver, write, rows, quick, finished, tmp_path):
    store = Store.open(tmp_path / "other")
    second = driver.run(quick(), write(tmp_path / "b.txt", rotated(rows, -3)), store)
    same = {n for n, r in second.items() if r.ref.files == finished.refs[n].files}
    assert same == set()


def test_two_cold_runs_are_byte_identical(driver, quick, source, finished, tmp_path):
    store = Store.open(tmp_path / "second")
    results = driver.run(quick({"runtime.checkpoint_every_s": 3600}), source, store)
    assert {r.outcome for r in results.values()} == {Outcome.COMPUTED}
    assert {name: r.ref for name, r in results.items()} == finished.refs
    for name, ref in finished.refs.items():
        ours, theirs = (s.place(ref.stage, ref.key) for s in (store, finished.store))
        assert sorted(p.name for p in ours.iterdir()) == sorted(p.name for p in theirs.iterdir())
        for path in ours.iterdir():
            if path.name != "manifest.json":  # it tells how long it took
                assert path.read_bytes() == (theirs / path.name).read_bytes(), (name, path.name)


def test_a_seed_has_an_effect(driver, quick, copied):
    results = driver.run(quick({"backbone.training.seed": 12, "finetune.seed": 12}), copied.source, copied.store)
    for slot in ("backbone", "finetune", "knowledge", "recommender.sasrec.p2rec"):
        assert results[slot].ref.files != copied.refs[slot].files, slot


def test_what_the_evaluation_says_is_what_the_ranks_say(finished):
    for name, result in finished.results.items():
        if not name.startswith("evaluation"):
            continue
        ranks = finished.store.load(result.ref).table("user_ranks")
        for entry in result.info["metrics"]:
            chosen = ranks
            for column in ("method", "variant", "split", "seen"):
                chosen = chosen.filter(pc.equal(chosen[column], entry[column]))
            assert chosen.num_rows == entry["n_users"] == 60
            if entry["metric"] == "HR":
                hits = pc.sum(pc.less_equal(chosen["rank"], entry["k"])).as_py() or 0
                assert hits / chosen.num_rows == pytest.approx(entry["value"])
