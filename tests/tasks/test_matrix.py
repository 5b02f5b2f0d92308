"""The graph of an experiment, its run, its record and its child processes, without Prefect."""

import dataclasses
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from p2rec_core.analysis.results import Cell
from p2rec_core.errors import ArtefactMissing, DataError, P2RecError, SettingsError, StoreError
from p2rec_core.metrics import SEEN_POLICIES
from p2rec_core.progress import silent
from p2rec_core.settings.data import IngestSettings
from p2rec_core.settings.experiment import ExperimentSettings, experiment_settings, read_experiment
from p2rec_core.settings.sequence_model import Variant
from storage.artefacts import ArtefactRef, Store
from storage.garbage import Kind, collect, collect_leftovers
from storage.manifest import digest_of, render_json
from tasks.estimate import TimeLeft, Walls, duration, remaining_s, time_left, whole_wall
from tasks.experiments import CellRecord, DatasetRecord, ExperimentRecord, Recorder, read_record, record_path
from tasks.matrix import Matrix, Recipe
from tasks.matrix_run import CellState, MatrixRun
from tasks.references import experiment_references
from tasks.results import load_results
from tasks.sources import register
from tasks.stage import Outcome, StageResult
from tasks.worker import Order, Worker

DRIVER = Path(__file__).with_name("matrix_driver.py")
ROOT = Path(__file__).parents[2]
SASREC_ONLY = [f"recommender.encoder.{name}" for name in ("n_layers", "n_heads", "inner_size")]
ARMS = {"base": {"variant": "base"}, "ci": {"variant": "ci"}, "p2rec": {"variant": "p2rec", "title": "with knowledge"}}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for name, value in values.items():
        rows |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return rows


@pytest.fixture(scope="module")
def matrix_driver() -> ModuleType:
    spec = importlib.util.spec_from_file_location("matrix_driver", DRIVER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def define(driver) -> Callable[..., ExperimentSettings]:
    """A small experiment, with changes."""

    def define(**changes: Any) -> ExperimentSettings:
        settings = flat({name: group for name, group in driver.QUICK.items() if name != "ingest"})
        settings |= changes.pop("settings", {})
        own = {name: settings.pop(name) for name in SASREC_ONLY}
        values = {
            "name": "tiny",
            "backbone_settings": {"sasrec": own},
            "datasets": ["small"],
            "backbones": ["sasrec"],
            "arms": ARMS,
            "seeds": [1],
        }
        return experiment_settings(values | {"settings": settings} | changes, place="the test")

    return define


@pytest.fixture(scope="module")
def new_store(source: Path) -> Callable[[Path], Store]:
    """A store that knows the dataset ``small``."""

    def new_store(path: Path) -> Store:
        store = Store.open(path)
        register(store, "small", source, IngestSettings(min_item_interactions=1))
        return store

    return new_store


@pytest.fixture
def store(new_store, tmp_path) -> Store:
    return new_store(tmp_path / "store")


@pytest.fixture(scope="module")
def computed(new_store, define, matrix_driver, tmp_path_factory) -> tuple[Store, MatrixRun]:
    """A store in which a matrix was run; not to be changed."""
    store = new_store(tmp_path_factory.mktemp("computed") / "store")
    return store, matrix_driver.run_here(define(arms=ARMS | {"bad": BAD}), store)


BAD = {"variant": "p2rec", "settings": {"fusion.n_components": 4000}}


def contents(store: Store) -> dict[str, str]:
    """sha256 of every file of every artefact; of manifests, of what does not tell of the time that was spent."""
    found: dict[str, str] = {}
    for path in sorted((store.root / "artefacts").rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.name == "manifest.json":
                fields = json.loads(data)
                for name in ("created_utc", "wall_s", "digest"):
                    del fields[name]
                fields["info"].pop("resumed_at_step", None)
                data = json.dumps(fields, sort_keys=True).encode()
            found[str(path.relative_to(store.root))] = hashlib.sha256(data).hexdigest()
    return found


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backbones": ["sasrek"]}, r"there is no backbone 'sasrek' \(did you mean sasrec\? known: .*sasrec"),
        ({"seeds": [1, 1]}, "seeds: one is named twice in"),
        ({"seeds": []}, "seeds"),
        ({"arms": {}}, "arms"),
        ({"arms": {"x": {"variant": "bse"}}}, "arms.x.variant = 'bse': input should be 'base', 'ci' or 'p2rec'"),
        ({"arms": {"X y": {"variant": "base"}}}, "arms.X y"),
        ({"arms": {"x": {"variant": "base", "setings": {}}}}, r"no setting 'setings' \(did you mean settings\?"),
        ({"seed": [1]}, r"no setting 'seed' \(did you mean seeds\?"),
        ({"settings": {"recommender.training.seed": 3}}, "settings may not set recommender.training.seed"),
        ({"tuning": {"variants": [["base"]]}}, "tuning may not set variants"),
        ({"tuning": {"recommender.training.learning_rate": []}}, "no value to try for recommender.training.learning"),
        ({"roles": {"base": "bse"}}, r"roles.base: there is no arm 'bse' \(did you mean base\?"),
        ({"name": "../x"}, "name"),
        ({"backbone_settings": {"cazer": {}}}, r"backbone_settings: there is no backbone 'cazer' \(did you mean caser"),
        ({"dataset_settings": {"small": {"variants": []}}}, "dataset_settings.small may not set variants"),
        (
            {"arms": [{"name": "base"}]},
            r"arms = .* has the wrong form; write \[arms\.base\] with variant = .* each arm",
        ),
        ({"arms": {"base": "base"}}, r"arms\.base = 'base' has the wrong form; write \[arms\.base\] with variant"),
        ({"arms": {"x": {}}}, r"arms\.x\.variant is missing; write \[arms\.base\] with variant = .base. below it"),
        ({"arms": {"x": {"variant": "ci", "settings": ["a"]}}}, r"wrong form; write \[arms\.coarse\.settings\] with"),
        ({"datasets": "small"}, r"datasets = 'small' has the wrong form; write datasets = \[\"clicks\"\]"),
        ({"seeds": 1}, r"seeds = 1 has the wrong form; write seeds = \[1, 2, 3\]"),
        (
            {"tuning": {"fusion.smoothing": 0.5}},
            r"tuning\.fusion\.smoothing = 0\.5 has the wrong form; write \[tuning\]",
        ),
        ({"settings": {"clusters.seed": 1, "clusters": {"seed": 2}}}, "settings: clusters.seed is set twice"),
    ],
)
def test_a_wrong_experiment_says_what_is_wrong(define, changes, said):
    with pytest.raises(SettingsError, match=said):
        define(**changes)


def test_settings_may_stand_in_tables_of_their_own():
    def experiment(own: dict[str, Any], grid: dict[str, Any]) -> ExperimentSettings:
        arms = {"a": {"variant": "p2rec", "settings": own}}
        of_each = {
            "settings": own,
            "dataset_settings": {"x": own},
            "backbone_settings": {"sasrec": own},
            "tuning": grid,
        }
        return experiment_settings(
            {"name": "mine", "datasets": ["x"], "backbones": ["sasrec"], "arms": arms} | of_each, place="the test"
        )

    dotted = experiment({"clusters.n_clusters": 5, "clusters.finer": []}, {"fusion.smoothing": [0, 1]})
    assert experiment({"clusters": {"n_clusters": 5, "finer": []}}, {"fusion": {"smoothing": [0, 1]}}) == dotted
    with pytest.raises(SettingsError, match=r"settings: clusters\.finer is set twice") as caught:
        experiment({"clusters": {"finer": []}, "clusters.finer": [9]}, {})
    assert "docs/how-to/compare.md has a whole file" in caught.value.remedy


def test_a_wrong_setting_of_an_arm_is_found_before_anything_is_computed(define, store):
    arms = ARMS | {"odd": {"variant": "ci", "settings": {"clusters.n_cluster": 3}}}
    with pytest.raises(SettingsError, match=r"clusters.n_cluster: there is no such setting .did you mean n_clusters"):
        Matrix(define(arms=arms), store)
    with pytest.raises(DataError, match="There is no dataset 'nowhere'"):
        Matrix(define(datasets=["nowhere"]), store)
    untold = {"recommender.training.patience": None}
    tuned = define(settings=untold, tuning={"recommender.training.learning_rate": [0.1]})
    with pytest.raises(SettingsError, match=r"tuning chooses by validation, and recommender.training.patience is null"):
        Matrix(tuned, store)


def test_an_experiment_is_read_from_toml(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('datasets = ["beauty"]\nbackbones = ["sasrec"]\n[arms.base]\nvariant = "base"\n')
    assert read_experiment(path).name == "mine"
    path.write_text("datasets = [")
    with pytest.raises(SettingsError, match="is not valid TOML"):
        read_experiment(path)
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        read_experiment(tmp_path / "none.toml")


def test_settings_of_a_dataset_that_the_experiment_does_not_have_are_refused(tmp_path):
    path = tmp_path / "mine.toml"
    text = 'datasets = ["beauty", "yelp"]\nbackbones = ["sasrec"]\n[arms.base]\nvariant = "base"\n'
    path.write_text(text + '[dataset_settings.beatuy]\n"clusters.n_clusters" = 5\n')
    with pytest.raises(SettingsError, match=r"dataset_settings: there is no dataset 'beatuy' \(did you mean beauty\?"):
        read_experiment(path)
    path.write_text(text + '[dataset_settings.beauty]\n"clusters.n_clusters" = 5\n')
    assert read_experiment(path).narrowed(datasets=["yelp"]).datasets == ("yelp",)


def test_narrowing_keeps_the_seed_of_the_trials(define):
    whole = define(seeds=[3, 4], roles={"base": "base", "ci": "ci"})
    part = whole.narrowed(seeds=[4, 5], arms=["ci"])
    assert (part.seeds, list(part.arms), part.trial_seed) == ((4, 5), ["ci"], 3)
    assert (part.roles.base, part.roles.ci) == (None, "ci")
    with pytest.raises(SettingsError, match=r"there is no arm 'p2rek' .did you mean p2rec. known: base, ci, p2rec"):
        whole.narrowed(arms=["p2rek"])


# ---------------------------------------------------------------- the graph


def test_what_is_the_same_is_one_node(define, store):
    backbones = ["caser", "gru4rec", "sasrec"]
    matrix = Matrix(define(backbones=backbones, seeds=[1, 2]), store)
    shared = ["ingest", "backbone", "clusters", "preferences", "finetune", "knowledge", "evaluation.no-learning"]
    assert [name for name in matrix.nodes if "/seed" not in name] == [f"small/{slot}" for slot in shared]
    assert len(matrix.cells) == 18
    assert len(matrix.nodes) == len(shared) + 2 * 18
    knowledge = {planned.slots.get("knowledge") for planned in matrix.cells.values()} - {None}
    assert knowledge == {"small/knowledge"}
    assert matrix.nodes["small/recommender.caser.p2rec/seed2"].needs == {
        "ingest": "small/ingest",
        "knowledge": "small/knowledge",
    }
    wider = Matrix(define(backbones=backbones, seeds=[1, 2, 3]), store)
    assert {name.rpartition("/")[2] for name in wider.nodes.keys() - matrix.nodes.keys()} == {"seed3"}


def test_base_is_the_pre_trained_backbone_where_the_settings_agree(define, store, driver):
    same = {"recommender.encoder.n_layers": driver.QUICK["backbone"]["encoder"]["n_layers"]}
    arms = {name: arm | {"settings": same} for name, arm in ARMS.items()}
    matrix = Matrix(define(arms=arms), store)
    assert matrix.cells[Cell("small", "sasrec", "base", 1)].slots["recommender.sasrec.base"] == "small/backbone"


def test_settings_of_a_dataset_a_backbone_and_an_arm_override_each_other_in_that_order(define):
    name = "recommender.training.max_epochs"
    experiment = define(
        backbones=["sasrec", "caser"],
        settings={name: 1},
        dataset_settings={"small": {name: 2}},
        backbone_settings={"caser": {name: 3, "recommender.encoder.n_vertical": 5}},
        arms={"base": {"variant": "base"}, "long": {"variant": "base", "settings": {name: 4}}},
    )

    def epochs(dataset: str, backbone: str, arm: str, **chosen: int) -> int:
        settings = experiment.pipeline(dataset, arm, backbone=backbone, chosen=chosen and {name: chosen["tuned"]})
        return settings.recommender.training.max_epochs

    assert epochs("other", "sasrec", "base") == 1
    assert epochs("small", "sasrec", "base") == 2
    assert epochs("small", "caser", "base") == 3
    assert epochs("small", "caser", "long") == 4
    assert epochs("small", "caser", "long", tuned=5) == 5


def test_arms_share_what_their_settings_leave_alone(define, store):
    arms = ARMS | {
        "p2rec-k3": {"variant": "p2rec", "settings": {"clusters.n_clusters": 3}},
        "p2rec-raw": {"variant": "p2rec", "settings": {"fusion.kind": "sum", "fusion.whitening": "none"}},
        "twin": {"variant": "ci", "settings": {"fusion.kind": "sum", "fusion.whitening": "none"}},
    }
    matrix = Matrix(define(arms=arms), store)
    slots = {cell.arm: planned.slots for cell, planned in matrix.cells.items()}
    assert slots["p2rec-k3"]["clusters"] == "small/clusters.p2rec-k3"
    assert slots["p2rec-k3"]["backbone"] == slots["p2rec"]["backbone"] == "small/backbone"
    assert slots["p2rec-raw"]["knowledge"] == "small/knowledge"
    assert slots["p2rec-raw"]["recommender.sasrec.p2rec"] == "small/recommender.sasrec.p2rec-raw/seed1"
    assert slots["twin"] == slots["ci"]


KNOWLEDGE_ARMS = ARMS | {
    "gate": {"variant": "p2rec", "settings": {"fusion.kind": "gate"}},
    "few": {"variant": "p2rec", "settings": {"fusion.n_components": 4}},
    "random": {"variant": "p2rec", "settings": {"fusion.source": "random"}},
}


def test_every_distinct_knowledge_is_probed_once_beside_the_cells(define, store):
    changes = {"backbones": ["sasrec", "caser"], "arms": KNOWLEDGE_ARMS, "seeds": [4, 5]}
    matrix = Matrix(define(probes=True, **changes), store)
    probed = {slot: node for slot, node in matrix.shared["small"].items() if slot.startswith("probe")}
    nodes = {"p2rec": "small/probe", "gate": "small/probe", "few": "small/probe.few", "random": "small/probe.random"}
    assert probed == {f"probe.{b}.{arm}": node for b in ("sasrec", "caser") for arm, node in nodes.items()}
    assert matrix.nodes["small/probe"].needs == {"ingest": "small/ingest", "knowledge": "small/knowledge"}
    assert matrix.nodes["small/probe.random"].needs == {"ingest": "small/ingest"}
    assert matrix.nodes["small/probe.random"].recipe.settings.recommender.training.seed == 4
    assert not any("probe" in planned.slots for planned in matrix.cells.values())
    without = Matrix(define(**changes), store)
    assert matrix.nodes.keys() - without.nodes.keys() == set(nodes.values())
    # a child process finds the slot by its recipe
    recipe = Recipe.from_json(json.loads(json.dumps(matrix.nodes["small/probe.few"].recipe.to_json())))
    assert recipe.slots()[-1].name == "probe"


def result(node: str, **info: Any) -> StageResult:
    return StageResult(ArtefactRef("recommender", "0" * 32, {}), Outcome.COMPUTED, node, 1.0, info, 1)


def test_tuning_gives_every_arm_the_same_trials_and_validation_chooses(define, store):
    grid = {"recommender.training.learning_rate": [0.1, 0.01], "recommender.training.warmup_steps": [0, 5]}
    matrix = Matrix(define(tuning=grid, seeds=[7, 8]).narrowed(seeds=[8, 9]), store)
    assert matrix.cells == {}
    assert [len(group.trials) for group in matrix.groups] == [4, 4, 4]
    assert all("/seed7/trial" in name for group in matrix.groups for _, name in group.trials)
    assert [point for point, _ in matrix.groups[0].trials] == [point for point, _ in matrix.groups[2].trials]
    results = {}
    for group in matrix.groups[:2]:
        for number, (_, name) in enumerate(group.trials):
            results[name] = result(name, best={"NDCG@10": [0.1, 0.3, 0.3, 0.2][number], "HR@10": 0.9 - number})
    assert matrix.grow(results)
    assert not matrix.grow(results)
    assert matrix.groups[0].chosen == {
        "recommender.training.learning_rate": 0.1,
        "recommender.training.warmup_steps": 5,
    }
    assert sorted(matrix.cells) == [Cell("small", "sasrec", arm, seed) for arm in ("base", "ci") for seed in (8, 9)]
    training = matrix.cell_settings(Cell("small", "sasrec", "ci", 8), matrix.groups[1].chosen).recommender.training
    assert (training.warmup_steps, training.seed) == (5, 8)
    with pytest.raises(SettingsError, match="has no validation NDCG@10"):
        matrix.grow({name: result(name, best={}) for _, name in matrix.groups[2].trials})


# ---------------------------------------------------------------- the run


def test_a_cell_that_fails_leaves_the_others(computed):
    store, run = computed
    states = {cell.arm: run.state(cell)[0] for cell in run.matrix.all_cells()}
    assert states == {"base": "done", "ci": "done", "p2rec": "done", "bad": "failed"}
    reason = run.state(Cell("small", "sasrec", "bad", 1))[1]
    assert "fusion.n_components" in reason or "principal components" in reason
    failure = run.failures["small/evaluation.sasrec.bad/seed1"]
    assert (failure.node, failure.exit_status) == ("small/recommender.sasrec.bad/seed1", 3)
    assert "needs small/recommender.sasrec.bad/seed1, which failed" in run.reason("small/evaluation.sasrec.bad/seed1")
    assert run.n_nodes == len(run.results) + len(run.failures)
    assert not list((store.root / "staging").iterdir())


def test_what_is_there_is_found_and_a_new_seed_is_all_that_is_missing(computed, define, photograph):
    store, _ = computed
    before = photograph(store)
    found = MatrixRun(Matrix(define(seeds=[1, 2]), store), store, parallel=1, walls=Walls.of(store)).looked_up()
    missing = found.matrix.nodes.keys() - found.results.keys()
    assert {name.rpartition("/")[2] for name in missing} == {"seed2"}
    assert len(found.prepared) == 3
    assert {str(result.outcome) for result in found.results.values()} == {"cached"}
    left = found.left()
    assert left.n_unknown == 0
    assert 0 < left.seconds < 60
    assert photograph(store) == before


def test_other_content_or_code_is_not_taken_for_the_same(computed, define, monkeypatch):
    store, _ = computed
    monkeypatch.setattr("tasks.stage.code_fingerprint", lambda *modules: "another")
    found = MatrixRun(Matrix(define(), store), store, parallel=1).looked_up()
    assert found.results == {}
    assert list(found.prepared) == ["small/ingest"]


def test_nodes_that_turn_out_to_be_the_same_are_computed_once(define, store):
    run = MatrixRun(Matrix(define(), store), store, parallel=4)
    list(run.advance())
    job = run.take()
    assert run.take() is None
    twin = dataclasses.replace(job.node, name="small/twin")
    run.matrix.nodes["small/twin"] = twin
    assert list(run.advance()) == []
    assert run.take() is None
    run.settle(job, lambda: result("ingest"))
    assert run.results["small/twin"].reason == "the same computation as small/ingest"
    assert run.results["small/twin"].outcome is Outcome.CACHED


def test_tuning_runs_to_the_end_and_is_recorded(define, store, matrix_driver):
    grid = {"recommender.training.learning_rate": [1e-5, 5e-3]}
    experiment = define(arms={"base": ARMS["base"]}, tuning=grid, seeds=[1, 2])
    run = matrix_driver.run_here(experiment, store)
    assert run.failures == {}
    [group] = run.matrix.groups
    scores = {
        point["recommender.training.learning_rate"]: run.results[n].info["best"]["NDCG@10"] for point, n in group.trials
    }
    best = max(scores, key=scores.__getitem__)
    assert scores[1e-5] != scores[5e-3]
    assert group.chosen == {"recommender.training.learning_rate": best}
    record = read_record(store, "tiny")
    assert {(entry.trials, str(entry.chosen)) for entry in record.cells.values()} == {(2, str(group.chosen))}
    first = record.cells[Cell("small", "sasrec", "base", 1)]
    assert first.validation == scores[best]
    assert len([name for name in run.results if "recommender" in name]) == 3  # the first seed is a trial already
    facts = load_results(store, "tiny").cells[0].facts
    assert (facts["trials"], facts["chosen"]) == (2, group.chosen)
    report = collect(store, grace=timedelta(0), references=lambda: experiment_references(store))
    assert [item.name for item in report.removed if item.kind is Kind.ARTEFACT] == []
    assert {node for _, node in group.trials} <= MatrixRun(run.matrix, store, parallel=1).looked_up().results.keys()


def test_what_garbage_collection_took_from_a_run_is_not_recorded(computed, define, tmp_path):
    store = Store.open(shutil.copytree(computed[0].root, tmp_path / "store"))
    record_path(store, "tiny").unlink()
    experiment = define()
    found = MatrixRun(Matrix(experiment, store), store, parallel=1).looked_up()
    assert collect(store, grace=timedelta(0)).removed
    with pytest.raises(ArtefactMissing, match=r"There is no artefact ingest/\w+ in"):
        Recorder(found, experiment, "tiny").write()
    assert not record_path(store, "tiny").exists()


# ---------------------------------------------------------------- the record and the results


def test_results_are_those_of_the_artefacts(computed):
    store, run = computed
    results = load_results(store, "tiny")
    assert [str(result.cell) for result in results.cells] == [
        f"small/sasrec/{arm}/seed 1" for arm in ("base", "ci", "p2rec")
    ]
    assert results.missing == (Cell("small", "sasrec", "bad", 1),)
    assert results.command == (
        f"p2rec experiment run tiny --datasets small --backbones sasrec --arms bad --seeds 1 --store {store.root}"
    )
    assert (results.arms["p2rec"], results.roles.ablations) == ("with knowledge", ("bad",))
    for cell in results.cells:
        slots = run.matrix.cells[cell.cell].slots
        metrics = run.results[slots[f"evaluation.sasrec.{cell.cell.arm}"]].info["metrics"]
        for seen in SEEN_POLICIES:
            ranks = cell.ranks[seen]
            [expected] = [
                m["value"] for m in metrics if (m["split"], m["seen"], m["metric"], m["k"]) == ("test", seen, "HR", 10)
            ]
            assert np.mean((ranks > 0) & (ranks <= 10)) == pytest.approx(expected)
        assert cell.validation == max(value for _, metric, value in cell.curve if metric == "NDCG@10")
        assert cell.facts["machine"]["threads"] >= 1
        assert cell.facts["key"].split("/")[1] == run.results[slots[f"recommender.sasrec.{cell.cell.arm}"]].ref.key
    facts = results.datasets["small"]
    assert (facts.n_users, facts.n_items) == (60, len(store.load(run.results["small/ingest"].ref).table("items")))
    assert set(facts.agreement["p2rec"]) == {"C1", "C2", "C3"}
    assert sum(facts.agreement["p2rec"].values()) == pytest.approx(1)
    assert facts.language_model == "random-llama-tiny (random-init)"
    assert set(facts.no_learning) == {"popularity", "recency copy", "id + 1"}
    assert (facts.target_n_train >= 0).sum() == len(results.cells[0].users)
    ingested = store.load(run.results["small/ingest"].ref)
    had = {row["user_idx"]: set(row["items"]) for row in ingested.table("sequences").to_pylist()}
    for row in ingested.table("validation").to_pylist():
        had[row["user_idx"]].add(row["item_idx"])
    expected = {row["user_idx"]: row["item_idx"] in had[row["user_idx"]] for row in ingested.table("test").to_pylist()}
    assert {user: bool(seen) for user, seen in enumerate(facts.target_seen.tolist(), 1) if seen >= 0} == expected


def test_what_the_knowledge_carries_is_in_the_results(computed, define, matrix_driver, tmp_path):
    shutil.copytree(computed[0].root, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    arms = {name: KNOWLEDGE_ARMS[name] for name in ("base", "p2rec", "random", "gate")}
    run = matrix_driver.run_here(define(arms=arms, probes=True), store)
    assert run.failures == {}
    tuned, noise = load_results(store, "tiny").datasets["small"].probes
    assert (tuned.arms, tuned.methods, tuned.source, tuned.width) == (("p2rec", "gate"), ("sasrec",), "tuned", 8)
    assert (noise.arms, noise.source, noise.width) == (("random",), "random", 8)
    keys = {slot: run.results[node].ref.key for slot, node in run.matrix.shared["small"].items()}
    assert (tuned.key, noise.key) == (keys["probe.sasrec.gate"], keys["probe.sasrec.random"])
    for knowledge in (tuned, noise):
        rows = {(row["probe"], row["metric"], row["group"]): row for row in knowledge.rows}
        assert rows["next_item", "HR@10", "all"]["n"] == 60
        assert 0 < rows["copurchase", "precision@10", "all"]["chance"] < 1
        assert rows["category", "accuracy of 10 nearest", "all"]["value"] is None
    # a cell does not wait for its probe
    os.unlink(store.root / "artefacts" / "probe" / noise.key / "manifest.json")
    assert [knowledge.source for knowledge in load_results(store, "tiny").datasets["small"].probes] == ["tuned"]
    assert load_results(store, "tiny").missing == ()


def test_a_part_keeps_the_cells_of_the_rest_unless_they_mean_something_else_now(computed, define, matrix_driver):
    store, _ = computed
    record_before = record_path(store, "tiny").read_bytes()
    try:
        whole = define(arms=ARMS | {"bad": BAD})
        run = MatrixRun(Matrix(whole.narrowed(arms=["ci"]), store), store, parallel=1)
        list(run.advance())
        record = matrix_driver.Recorder(run, whole, "tiny").write()
        assert {cell.arm: str(entry.state) for cell, entry in record.cells.items()} == {
            "base": "done",
            "ci": "done",
            "p2rec": "done",
            "bad": "failed",
        }
        other = define(settings={"recommender.training.max_epochs": 3})
        run = MatrixRun(Matrix(other.narrowed(arms=["ci"]), store), store, parallel=1)
        list(run.advance())
        record = matrix_driver.Recorder(run, other, "tiny").write()
        assert {cell.arm: str(entry.state) for cell, entry in record.cells.items()} == {"ci": CellState.MISSING}
    finally:
        record_path(store, "tiny").write_bytes(record_before)


def test_a_damaged_record_is_refused_and_replaced_by_the_next_run(computed, define, matrix_driver, tmp_path):
    store, _ = computed
    path = record_path(store, "tiny")
    before = path.read_bytes()
    path.write_bytes(before.replace(b'"done"', b'"gone"', 1))
    with pytest.raises(StoreError, match=r"tiny.json is damaged: its digest should be"):
        read_record(store, "tiny")
    damaged = path.read_bytes()
    matrix_driver.run_here(define(arms=ARMS | {"bad": BAD}), store)
    assert path.read_bytes() == before
    (kept,) = (store.root / "quarantine").glob("experiments-tiny-*")
    assert (kept / path.name).read_bytes() == damaged
    assert "its digest should be" in (kept / "discarded.txt").read_text()
    shutil.rmtree(kept)
    with pytest.raises(StoreError, match=r"no results of an experiment 'other' .*it has: tiny"):
        read_record(store, "other")


def test_a_record_that_cannot_be_read_is_not_replaced(computed, define, matrix_driver):
    store, _ = computed
    path = record_path(store, "tiny")
    before = path.read_bytes()
    fields = json.loads(before) | {"format_version": 99}
    newer = render_json(fields | {"digest": digest_of(fields)})
    matrix = Matrix(define(arms=ARMS | {"bad": BAD}), store)
    recorder = Recorder(MatrixRun(matrix, store, parallel=1), matrix.experiment, "tiny")
    try:
        path.write_bytes(newer)
        with pytest.raises(StoreError, match=r"tiny\.json has format version 99; this P2Rec reads up to 1"):
            recorder.write()
        assert path.read_bytes() == newer
        path.unlink()
        path.mkdir()  # as a file that the disk does not give
        with pytest.raises(StoreError, match=r"tiny\.json: Is a directory"):
            recorder.write()
        path.rmdir()
    finally:
        path.write_bytes(before)


def test_cells_of_two_contents_under_one_key_keep_what_they_refer_to():
    cells = {}
    for seed in (1, 2):
        cell = Cell("sample", "gru4rec", "base", seed)
        ref = ArtefactRef("backbone", "k", {"checkpoint": str(seed) * 64})
        cells[cell] = CellRecord(cell, Variant.BASE, "d", CellState.DONE, "", {"backbone": ref}, "t", "e", tried=(ref,))
    settings = experiment_settings(
        {"name": "tiny", "datasets": ["sample"], "backbones": ["gru4rec"], "seeds": [1, 2], "arms": ARMS}, place="here"
    )
    record = ExperimentRecord(settings, "tiny", cells, {"sample": DatasetRecord(True, {"backbone": ref})})
    assert ExperimentRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


# ---------------------------------------------------------------- estimates


def test_the_time_left_follows_needs_and_places():
    needs = {"a": [], "b": ["a"], "c": [], "d": ["done"]}
    assert time_left({"a": 5, "b": 5, "c": 4, "d": 3}, needs, [], 1) == TimeLeft(17, 0)
    assert time_left({"a": 5, "b": 5, "c": 4, "d": 3}, needs, ["a"], 2) == TimeLeft(10, 0)
    assert time_left({"a": 5, "b": None}, needs, [], 2) == TimeLeft(5, 1)
    assert time_left({"a": None}, needs, [], 2) == TimeLeft(None, 1)
    assert time_left({}, {}, [], 2) == TimeLeft(0.0, 0)
    assert str(TimeLeft(None, 1)) == "time left unknown"
    assert str(TimeLeft(4000, 2)) == "at least 67 min left (2 of unknown length)"
    assert [duration(s) for s in (3, 100, 6000, 12_000, 200_000)] == [
        "3 s",
        "2 min",
        "1 h 40 min",
        "3 h 20 min",
        "2 d 7 h",
    ]


def test_a_running_computation_is_judged_by_its_likes_and_by_how_far_it_is():
    assert remaining_s(10, 0.1, 30) == 20
    assert remaining_s(10, 0.5, None) == 10
    assert remaining_s(10, 0.8, 60) == pytest.approx(2.5)
    assert remaining_s(0, 0, None) is None
    assert whole_wall(10, {"resumed_at_step": 50, "n_steps": 100}) == 20
    assert whole_wall(10, {"resumed_at_step": None, "n_steps": 100}) == 10


def test_likes_are_of_the_same_dataset_and_backbone(computed, define):
    store, run = computed
    walls = Walls.of(store)
    nodes = Matrix(define(seeds=[9], backbones=["sasrec", "caser"]), store).nodes
    known = store.load(run.results["small/recommender.sasrec.ci/seed1"].ref).manifest.wall_s
    assert walls.guess(nodes["small/recommender.sasrec.ci/seed9"].kinds) == known
    assert walls.guess(nodes["small/recommender.caser.ci/seed9"].kinds) is None
    assert walls.guess(nodes["small/finetune"].kinds) > 0


# ---------------------------------------------------------------- child processes


def orders(define: Any, store: Store, **changes: Any) -> dict[str, Order]:
    """Orders that can be carried out now, by slot."""
    found = MatrixRun(Matrix(define(**changes), store), store, parallel=1).looked_up()
    return {
        job.node.slot.name: Order(job.node.recipe, job.node.slot.name, job.refs, job.key, store.root)
        for job in found.prepared.values()
    }


def test_a_worker_computes_and_its_errors_cross(define, store):
    order = orders(define, store)["ingest"]
    assert Order.from_json(json.loads(json.dumps(order.to_json()))).to_json() == order.to_json()
    told: list[str] = []
    worker = Worker(1)
    try:
        done = worker.compute(order, progress=lambda done, total, message: told.append(message), log=told.append)
        assert (done.outcome, done.ref.key) == (Outcome.COMPUTED, order.key)
        assert told == ["reading small.txt"]
        again = worker.compute(order, progress=silent, log=told.append)
        assert again.outcome is Outcome.CACHED
        with pytest.raises(P2RecError, match="the code or a source file has changed meanwhile"):
            worker.compute(dataclasses.replace(order, key="0" * 32), progress=silent, log=told.append)
        gone = dataclasses.replace(order.recipe, source=Path("/nowhere/gone.txt"))
        with pytest.raises(DataError, match=r"gone\.txt") as caught:
            worker.compute(dataclasses.replace(order, recipe=gone), progress=silent, log=told.append)
        assert caught.value.exit_status == 3
        assert caught.value.remedy
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(P2RecError, match="The process that computed ingest was ended by SIGKILL"):
            worker.compute(order, progress=silent, log=told.append)
        assert not worker.alive
    finally:
        worker.stop()


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_gone(pids: list[int], within_s: float = 60.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not any(map(alive, pids)):
            return True
        time.sleep(0.05)
    return False


def start(store: Store, experiment: ExperimentSettings, parallel: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(DRIVER), str(store.root), experiment.model_dump_json(), str(parallel)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_children_do_not_outlive_their_parent(define, store, how):
    process = start(store, define(), 1)
    pids = json.loads(process.stdout.readline())
    assert all(map(alive, pids))
    process.send_signal(how)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert all_gone(pids)


@pytest.mark.slow
def test_killed_at_any_point_and_started_again_it_ends_with_the_same_bytes(define, new_store, tmp_path):
    experiment = define(arms={"base": ARMS["base"], "p2rec": ARMS["p2rec"]}, seeds=[1, 2])
    undisturbed = new_store(tmp_path / "undisturbed")
    process = start(undisturbed, experiment, 1)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["failures"] == []

    disturbed = new_store(tmp_path / "disturbed")
    rng = np.random.default_rng(1)
    for _ in range(4):
        process = start(disturbed, experiment, 2)
        pids = [json.loads(process.stdout.readline()) for _ in range(rng.integers(1, 4))][-1]  # a line per computation
        time.sleep(float(rng.uniform(0, 1)))
        process.kill()
        process.communicate(timeout=30)
        assert process.returncode == -signal.SIGKILL
        assert all_gone(pids)
        assert read_record(disturbed, "tiny").missing()
    process = start(disturbed, experiment, 2)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert contents(disturbed) == contents(undisturbed)
    assert len(contents(undisturbed)) > 20
    assert read_record(disturbed, "tiny").missing() == []
    for path in disturbed.staging.iterdir():
        os.utime(path, (0, 0))
    collect_leftovers(disturbed, grace=timedelta(0))
    assert not list(disturbed.staging.iterdir())
