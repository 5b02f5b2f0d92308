"""No setting is a knob that turns nothing: each changes the key of a stage, or is read from the runtime."""

import ast
import hashlib
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from p2rec_core.backbones.registry import DEFAULT_BACKBONE, ENCODERS
from p2rec_core.settings.pipeline import PipelineSettings, RuntimeSettings, validated
from p2rec_core.settings.refresh import RefreshSettings
from p2rec_core.settings.sequence_model import EncoderSettings
from storage.artefacts import ArtefactRef
from tasks.cost import cost_call
from tasks.dag import pipeline_slots
from tasks.e4srec import e4srec_call
from tasks.e4srec_evaluation import e4srec_evaluation_call
from tasks.refresh.slots import refresh_plan
from tasks.sources import TextFile

ROOT = Path(__file__).parents[2]
FILES = (
    *("sequences", "validation", "test", "items"),
    *("item_embeddings", "model", "item_clusters", "centroids"),
    *("user_preferences", "adapter", "item_knowledge", "finer_clusters", "item_texts"),
)

# where the next value of the type would not do
ALTERNATIVES: dict[str, Any] = {
    "language_model.name_or_path": "random-llama-small",
    "finetune.lora_targets": ("q_proj",),
    "evaluation.cutoffs": (5, 10, 20),
    "backbone.encoder.n_heads": 1,
    "recommender.encoder.n_heads": 1,
    "backbone.encoder.hidden_size": 66,
    "recommender.encoder.hidden_size": 66,
    "backbone.encoder.backbone": "gru4rec",
    "recommender.encoder.backbone": "gru4rec",
    "ingest.timestamp_column": None,
    "ingest.delimiter": ";",
    "ingest.encoding": "cp1252",
    "ingest.first_day": "2020-01-31",
    "ingest.last_day": "2020-01-31",
    "clusters.finer": (200, 500),
    "fusion.source": "categories",  # another slot's artefact would be another pipeline
    "backbone.training.n_negatives": 100,
    "recommender.training.n_negatives": 100,
    "e4srec.lora_targets": ("q_proj",),
    "e4srec.max_steps": 7,
    "e4srec.patience": 3,
    "cost.step_tokens": 5000,
    "backbone.training.patience": None,
    "runtime.ingest_memory": "1GB",
    "runtime.push_to": "s3://models/p2rec",
    "runtime.push_keep": 7,
    "recommender.training.patience": None,
}


def leaves(group: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in type(group).model_fields:
        value = getattr(group, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def other(name: str, value: Any) -> Any:
    if name in ALTERNATIVES:
        return ALTERNATIVES[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, StrEnum):
        return next(member for member in type(value) if member is not value)
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 0.5 if value else 0.01
    if isinstance(value, str):
        return value + " x"
    raise AssertionError(f"say in ALTERNATIVES which other value {name} may have")


def defaults(backbone: str) -> PipelineSettings:
    section = {"encoder": {"backbone": backbone}}
    values = {"language_model": {"name_or_path": "random-llama-tiny"}, "backbone": section, "recommender": section}
    return validated(values | {"fusion": {"kind": "sum"}})  # init takes one whitening only


DEFAULTS = defaults(DEFAULT_BACKBONE)
SETTINGS = [
    name
    for name, value in leaves(DEFAULTS)
    if not name.startswith(("runtime.", "e4srec.", "cost.", "refresh."))
    and name not in ("variants", "language_model.revision")
    and not (isinstance(value, StrEnum) and len(type(value)) == 1)  # a choice of one cannot be changed
    and not (".encoder." in name and value is None)  # other backbones read these, see below
]


def changed(name: str, settings: PipelineSettings = DEFAULTS) -> PipelineSettings:
    values = settings.model_dump()
    *path, last = name.split(".")
    group = values
    for part in path:
        group = group[part]
    alternative = other(name, group[last])
    if last == "backbone":
        group.clear()  # what the one reads, another may not
    group[last] = alternative
    after = validated(values)
    assert after != settings
    return after


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("source") / "data.txt"
    path.write_text("u a b c\n")
    return path


def keys(settings: PipelineSettings, source: Path) -> dict[str, str]:
    """The key of every slot, were all of them to read the same files."""
    slots = pipeline_slots(settings, source, TextFile(source))
    content = {file: hashlib.sha256(file.encode()).hexdigest() for file in FILES}
    refs = {slot.name: ArtefactRef(slot.stage, "0" * 32, content) for slot in slots}
    return {slot.name: slot.call(refs).key() for slot in slots}


@pytest.fixture(scope="module")
def before(source) -> dict[str, str]:
    return keys(DEFAULTS, source)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_changes_the_key_of_its_own_stage(name, source, before):
    after = keys(changed(name), source)
    assert after.keys() == before.keys() or name in ("recommender.encoder.backbone", "language_model.item_text")
    stages = {slot.split(".")[0] for slot in after if after[slot] != before.get(slot)}
    own = {
        "language_model": {"text", "finetune", "knowledge"},
        "finetune": {"text", "finetune", "knowledge"},
        "fusion": {"recommender"},
        "recommender": {"recommender", "evaluation"},
        "ingest.normalise_ids": {"ingest", "text"},  # the identifiers of the texts are to meet those of the catalogue
    }
    section = name.split(".")[0]
    assert stages
    assert stages <= own.get(name, own.get(section, {section}))


EXPERIMENTS_ONLY = [name for name, _ in leaves(DEFAULTS) if name.startswith(("e4srec.", "cost."))]


@pytest.mark.parametrize("name", EXPERIMENTS_ONLY)
def test_a_setting_that_only_experiments_read_changes_a_key(name):
    refs = {name: ArtefactRef(name, "0" * 32, dict.fromkeys(FILES, "0" * 64)) for name in ("ingest", "backbone", "x")}

    def calls(settings: PipelineSettings) -> set[str]:
        ingest, backbone, other = refs.values()
        lm, e4srec = settings.language_model, settings.e4srec
        trained = e4srec_call(lm, e4srec, ingest=ingest, backbone=backbone)
        ranked = e4srec_evaluation_call(settings.evaluation, lm, e4srec, ingest=ingest, backbone=backbone, model=other)
        read = {"ingest": ingest, "backbone": backbone, "clusters": other, "preferences": other}
        cost = cost_call(lm, settings.finetune, e4srec, settings.cost, **read)
        return {trained.key(), ranked.key(), cost.key()}

    assert calls(changed(name)) != calls(DEFAULTS)


@pytest.mark.parametrize("section", ["backbone", "recommender"])
@pytest.mark.parametrize(
    ("backbone", "name"), [(backbone, name) for backbone, entry in ENCODERS.items() for name in entry.defaults]
)
def test_a_setting_of_an_encoder_changes_the_keys_of_those_who_read_it(backbone, name, section, source):
    settings = defaults(backbone)
    setting = f"{section}.encoder.{name}"
    before, after = keys(settings, source), keys(changed(setting, settings), source)
    assert after.keys() == before.keys()
    stages = {slot.split(".")[0] for slot in after if after[slot] != before[slot]}
    assert stages == {"backbone": {"backbone"}, "recommender": {"recommender", "evaluation"}}[section]


def test_no_setting_of_an_encoder_is_read_by_none():
    read = {name for entry in ENCODERS.values() for name in entry.defaults}
    assert read == set(EncoderSettings.model_fields) - {"backbone"}


def test_every_backbone_has_keys_of_its_own(source):
    found = {backbone: keys(defaults(backbone), source) for backbone in ENCODERS}
    assert len({k["backbone"] for k in found.values()}) == len(ENCODERS)
    trained = {slots[f"recommender.{backbone}.p2rec"] for backbone, slots in found.items()}
    assert len(trained) == len(ENCODERS)
    # what does not depend on the backbone is shared; all else would be, were its item embeddings the same
    assert len({k["ingest"] for k in found.values()}) == len({k["knowledge"] for k in found.values()}) == 1


def test_a_setting_that_language_models_do_not_share_is_not_in_the_key_of_the_items(source, before):
    # how long was trained is in the adapter's content, not in the settings of what reads it
    after = keys(changed("finetune.epochs"), source)
    assert after["finetune"] != before["finetune"]
    assert after["knowledge"] == before["knowledge"]


def test_components_count_only_where_they_are_cut_to(source, before):
    base = validated({"fusion": {"n_components": 3}, "language_model": {"name_or_path": "random-llama-tiny"}})
    after = keys(base, source)
    assert {slot for slot in after if after[slot] != before[slot]} == {"recommender.sasrec.p2rec"}


def test_the_revision_reaches_the_models_identity(source, tmp_path, monkeypatch):
    def cached(name: str, revision: str | None) -> Path:
        directory = tmp_path / str(revision)
        directory.mkdir(exist_ok=True)
        (directory / "config.json").write_text(f'"{revision}"')
        return directory

    monkeypatch.setattr("p2rec_core.language.identity._cached_repository", cached)
    found = [
        keys(validated({"language_model": {"name_or_path": "some/model", "revision": revision}}), source)
        for revision in (None, "abc")
    ]
    assert {slot for slot in found[0] if found[0][slot] != found[1][slot]} == {"text", "finetune", "knowledge"}


def test_variants_are_the_recommenders(source):
    slots = keys(DEFAULTS.model_copy(update={"variants": ("base",)}), source)
    assert {name for name in slots if name.startswith("recommender")} == {"recommender.sasrec.base"}


@pytest.mark.parametrize("name", RuntimeSettings.model_fields)
def test_a_runtime_setting_is_read_and_enters_no_key(name, source, before):
    alternative = "cuda" if name == "device" else other(f"runtime.{name}", getattr(DEFAULTS.runtime, name))
    runtime = DEFAULTS.runtime.model_copy(update={name: alternative})
    assert keys(DEFAULTS.model_copy(update={"runtime": runtime}), source) == before
    read = {
        node.attr
        for room in ("tasks", "flows")
        for path in (ROOT / room).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("runtime")
    }
    assert name in read


COMPUTED_BY = {
    "epochs": {"backbone", "recommender"},
    "learning_rate_scale": {"backbone", "recommender"},
    "knowledge_tolerance": {"knowledge"},
    "gate_metric": {"comparison"},
    "gate_k": {"comparison"},
    "gate_seen": {"comparison"},
}
"""Settings of the refresh that stages read; the others are the decision's and the gate's."""


@pytest.mark.parametrize("name", RefreshSettings.model_fields)
def test_a_setting_of_the_refresh_is_read_by_it_and_by_no_ordinary_run(name, source, before):
    after = changed(f"refresh.{name}")
    assert keys(after, source) == before

    def refreshed(settings: PipelineSettings) -> dict[str, str]:
        content = {file: hashlib.sha256(file.encode()).hexdigest() for file in (*FILES, "interactions", "users")}
        refs = {slot.name: ArtefactRef(slot.stage, "0" * 32, content) for slot in pipeline_slots(settings, source)}
        plan = refresh_plan(settings, source, None, refs)
        return {slot.name: slot.call(refs).key() for slot in (*plan.first, *plan.untuned)}

    found, others = refreshed(DEFAULTS), refreshed(after)
    assert {slot.split(".")[0] for slot in found if found[slot] != others[slot]} == COMPUTED_BY.get(name, set())
    if name not in COMPUTED_BY:
        text = "".join((ROOT / path).read_text(encoding="utf-8") for path in ("p2rec_core/gate.py", "flows/refresh.py"))
        assert f"settings.{name}" in text
