"""Settings in words, and the configuration file that is made of them."""

import json
import re
import tomllib

import pytest

from p2rec_core.settings.document import configuration, groups
from p2rec_core.settings.pipeline import PipelineSettings, describe_settings, pipeline_settings, toml_values, validated
from p2rec_core.settings.proposal import DataSizes, Proposal, proposals

DEFAULTS = PipelineSettings()
MEANINGS = {meaning.name: meaning for group in groups() for meaning in group.settings}


def test_every_setting_is_described_with_its_default():
    expected = {name: value for name, value, _ in describe_settings(DEFAULTS)}
    assert MEANINGS.keys() == expected.keys()
    assert {name: json.loads(m.default) for name, m in MEANINGS.items() if m.default != "null"} == {
        name: json.loads(value) for name, value in expected.items() if value != "null"
    }
    assert all(meaning.text for meaning in MEANINGS.values())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("clusters.n_clusters", "whole number, ≥ 2, ≤ 65536"),
        ("clusters.seed", "whole number, ≥ 0, < 2147483648"),
        ("clusters.finer", "list of whole number"),
        ("ingest.timestamp_column", "text or null"),
        ("fusion.trainable", "true or false"),
        ("recommender.encoder.dropout", "number or null, ≥ 0, < 1"),
        ("refresh.finetune", 'one of "always", "never", "on_drift"'),
    ],
)
def test_the_values_of_a_setting_are_said(name, kind):
    assert MEANINGS[name].kind == kind


def test_choices_have_the_texts_below_them():
    choices = MEANINGS["fusion.kind"].choices
    assert list(choices) == ["gate", "sum", "concat", "init"]
    assert choices["sum"] == "The ID embedding plus the projected knowledge."
    assert MEANINGS["refresh.finetune"].choices["always"] == ""
    assert MEANINGS["clusters.n_clusters"].choices == {}


def test_a_group_within_a_group_says_where_it_is():
    texts = {group.name: group.text for group in groups()}
    assert texts["backbone.training"].startswith("The pre-trained model")
    assert texts["recommender.training"].startswith("The new models")


def test_the_file_sets_what_is_proposed_and_comments_all_else():
    chosen = [Proposal("clusters.n_clusters", 7, "few"), Proposal("ingest.user_column", 'a "b" \\ ü\x7f', "named so")]
    text = configuration(["A head."], chosen)
    assert text.startswith("# A head.\n")
    assert tomllib.loads(text) == {"clusters": {"n_clusters": 7}, "ingest": {"user_column": 'a "b" \\ ü\x7f'}}
    assert (
        "# K, the number of latent categories. (whole number, ≥ 2, ≤ 65536; general default 50)\n# Here: few." in text
    )
    assert all(len(line) <= 120 for line in text.splitlines())


def test_with_everything_the_comments_are_the_defaults():
    text = configuration([], [Proposal("clusters.n_clusters", 7, "few")], left_out=("e4srec", "cost"), everything=True)
    assert validated(toml_values(text)) == validated({"clusters": {"n_clusters": 7}})
    uncommented = re.sub(r"^# (\w+ = .+)$", r"\1", text, flags=re.MULTILINE)
    values = toml_values(uncommented)
    assert "e4srec" not in values
    assert values["variants"] == ["base", "ci", "p2rec"]
    assert validated(values) == validated({"clusters": {"n_clusters": 7}})
    left = set(re.findall(r'^# (\w+) = "null"$', text, flags=re.MULTILINE))
    null = [name for name, meaning in MEANINGS.items() if meaning.default == "null"]
    assert left == {name.rpartition(".")[2] for name in null if not name.startswith(("e4srec.", "cost."))}


def proposed(sizes):
    return {proposal.name: proposal.value for proposal in proposals(sizes)}


def test_the_sample_gets_what_was_chosen_for_it():
    sample = {name: json.loads(value) for name, value, _ in describe_settings(pipeline_settings(dataset="sample"))}
    for name, value in proposed(DataSizes(900, 480, 10_985, 22)).items():
        assert sample[name] == value, name


def test_a_dataset_of_beautys_size_gets_the_general_defaults():
    general = {name: json.loads(value) for name, value, _ in describe_settings(DEFAULTS)}
    values = proposed(DataSizes(22_363, 12_101, 198_502, 15))
    assert {name: general[name] for name in values} == values
    assert not any(name.startswith(("backbone.", "recommender.")) for name in values)  # a backbone has defaults


@pytest.mark.parametrize(("longest", "length"), [(3, None), (50, None), (51, 100), (4_000, 200)])
def test_the_length_goes_by_the_sequences(longest, length):
    assert proposed(DataSizes(100, 100, 10**6, longest)).get("recommender.encoder.max_length") == length


def test_very_few_items_get_values_that_are_allowed():
    values = proposed(DataSizes(3, 4, 12, 3))
    assert (values["clusters.n_clusters"], values["clusters.finer"], values["fusion.n_components"]) == (2, [], 1)
    assert validated({"clusters": {"n_clusters": 2, "finer": []}, "fusion": {"n_components": 1}})
