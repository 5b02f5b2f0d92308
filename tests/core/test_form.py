"""Settings as a form: every field once, with the group's own types, bounds and words, and no value of its own."""

import pytest

from p2rec_core.errors import SettingsError
from p2rec_core.settings.base import Settings
from p2rec_core.settings.form import changes_of, form_of
from p2rec_core.settings.pipeline import PipelineSettings, describe_settings


def leaves(schema, part, prefix=""):
    for name, field in part["properties"].items():
        if "$ref" in field and "properties" in (group := schema["$defs"][field["$ref"].rpartition("/")[2]]):
            yield from leaves(schema, group, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def test_every_setting_is_a_field_with_words_and_without_a_value():
    schema = form_of(PipelineSettings).model_json_schema()
    fields = dict(leaves(schema, schema))
    assert list(fields) == [name for name, _, _ in describe_settings(PipelineSettings())]
    for name, field in fields.items():
        assert field["description"], name
        assert "default" not in field, name
    assert "required" not in schema
    assert fields["clusters.n_clusters"]["description"].endswith("Default: 50.")
    assert fields["evaluation.cutoffs"]["description"].endswith("Default: 5, 10.")
    assert fields["recommender.encoder.n_layers"]["type"] == "integer"  # left empty, it is the backbone's own


def test_yes_and_no_are_a_choice_that_can_be_left_open():
    schema = form_of(PipelineSettings).model_json_schema()
    field = dict(leaves(schema, schema))["clusters.normalise"]
    assert field["anyOf"] == [{"type": "string", "enum": ["true", "false"]}, {"type": "boolean"}]
    for given in ("false", False):
        changes = changes_of(PipelineSettings, {"clusters": {"normalise": given}})
        assert changes == {"clusters": {"normalise": False}}


def test_a_group_can_be_left_out():
    form = form_of(PipelineSettings, frozenset({"cost"}))
    assert "cost" not in form.model_fields
    with pytest.raises(SettingsError, match="cost: Extra inputs are not permitted"):
        changes_of(PipelineSettings, {"cost": {}}, {"cost"})


def test_only_what_was_given_is_a_change():
    given = {"recommender": {"encoder": {"backbone": "caser"}}, "ingest": {"timestamp_column": None}}
    assert changes_of(PipelineSettings, given) == given
    assert changes_of(PipelineSettings, {}) == {}


def test_every_wrong_field_is_named():
    wrong = {"clusters": {"n_clusters": 1}, "fusion": {"whitenning": "pca"}}
    with pytest.raises(SettingsError) as refused:
        changes_of(PipelineSettings, wrong)
    assert "clusters.n_clusters: Input should be greater than or equal to 2" in refused.value.problem
    assert "fusion.whitenning: Extra inputs are not permitted" in refused.value.problem


def test_every_group_of_settings_has_words():
    def groups(group):
        yield group
        for field in group.model_fields.values():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
                yield from groups(field.annotation)

    assert all(group.__doc__ for group in groups(PipelineSettings))
