"""No setting is a knob that turns nothing: each changes the key of a stage, or is read from the runtime."""

import ast
import hashlib
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from p2rec_core.settings.pipeline import PipelineSettings, RuntimeSettings, validated
from storage.artefacts import ArtefactRef
from tasks.dag import pipeline_slots

ROOT = Path(__file__).parents[2]
FILES = (
    *("sequences", "validation", "test", "items"),
    *("item_embeddings", "model", "item_clusters", "centroids"),
    *("user_preferences", "adapter", "item_knowledge"),
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
    "ingest.timestamp_column": None,
    "backbone.training.patience": None,
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


DEFAULTS = validated({"language_model": {"name_or_path": "random-llama-tiny"}})
SETTINGS = [
    name
    for name, value in leaves(DEFAULTS)
    if not name.startswith("runtime.")
    and name not in ("variants", "language_model.revision")
    and not (isinstance(value, StrEnum) and len(type(value)) == 1)  # a choice of one cannot be changed
]


def changed(name: str) -> PipelineSettings:
    values = DEFAULTS.model_dump()
    *path, last = name.split(".")
    group = values
    for part in path:
        group = group[part]
    group[last] = other(name, group[last])
    settings = validated(values)
    assert settings != DEFAULTS
    return settings


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("source") / "data.txt"
    path.write_text("u a b c\n")
    return path


def keys(settings: PipelineSettings, source: Path) -> dict[str, str]:
    """The key of every slot, were all of them to read the same files."""
    slots = pipeline_slots(settings, source)
    content = {file: hashlib.sha256(file.encode()).hexdigest() for file in FILES}
    refs = {slot.name: ArtefactRef(slot.stage, "0" * 32, content) for slot in slots}
    return {slot.name: slot.call(refs).key() for slot in slots}


@pytest.fixture(scope="module")
def before(source) -> dict[str, str]:
    return keys(DEFAULTS, source)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_changes_the_key_of_its_own_stage(name, source, before):
    after = keys(changed(name), source)
    assert after.keys() == before.keys() or name == "recommender.encoder.backbone"
    stages = {slot.split(".")[0] for slot in after if after[slot] != before.get(slot)}
    own = {
        "language_model": {"finetune", "knowledge"},
        "finetune": {"finetune", "knowledge"},
        "fusion": {"recommender"},
        "recommender": {"recommender", "evaluation"},
    }
    section = name.split(".")[0]
    assert stages
    assert stages <= own.get(section, {section})


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
    assert {slot for slot in found[0] if found[0][slot] != found[1][slot]} == {"finetune", "knowledge"}


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
        for path in (ROOT / "tasks").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("runtime")
    }
    assert name in read
