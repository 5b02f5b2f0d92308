"""Settings: what is refused, what is said about it, and which of two values wins."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from p2rec_core.errors import SettingsError
from p2rec_core.settings.pipeline import PipelineSettings, Profile, describe_settings, pipeline_settings, validated


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


LEAVES = dict(leaves(PipelineSettings))
WRONG_TYPE = '{"neither": "number nor text"}'


def refused(*assignments: str, **changes) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        pipeline_settings(dataset="beauty", assignments=assignments, **changes)
    return caught.value


@pytest.mark.parametrize("name", LEAVES)
def test_a_value_of_the_wrong_type_names_the_setting(name):
    error = refused(f"{name}={WRONG_TYPE}")
    assert f"{name} = " in error.problem or f"{name}." in error.problem
    assert error.remedy == "`p2rec settings` lists every setting with its default and range."
    assert "pydantic" not in str(error)


def bounds() -> Iterator[tuple[str, object, str]]:
    """A value just beyond every bound that a field declares, and what is said of it."""
    for name, field in LEAVES.items():
        for constraint in field.metadata:
            for kind, step, words in (
                ("ge", -1, "greater than or equal to"),
                ("gt", 0, "greater than"),
                ("le", 1, "less than or equal to"),
                ("lt", 0, "less than"),
            ):
                bound = getattr(constraint, kind, None)
                if bound is not None:
                    yield name, bound + step, words
            if getattr(constraint, "min_length", None) is not None:
                yield name, "[]" if "tuple" in str(field.annotation) else "", "at least 1"


@pytest.mark.parametrize(("name", "value", "words"), list(bounds()))
def test_a_value_beyond_a_bound_names_value_and_bound(name, value, words):
    error = refused(f"{name}={value}")
    assert f"{name} = " in error.problem
    assert words in error.problem
    if value not in ("", "[]"):
        assert f"{name} = {value}" in error.problem


@pytest.mark.parametrize("section", ["recommender", "backbone"])
def test_every_numeric_setting_is_bounded_from_below(section):
    bounded = {name for name, _, words in bounds() if words.startswith("greater")}
    numeric = {
        name
        for name, field in LEAVES.items()
        if field.annotation in (int, float, int | None) and name.startswith(section)
    }
    assert numeric <= bounded


@pytest.mark.parametrize(
    ("assignment", "problem"),
    [
        ("clusters.n_cluster=3", "clusters.n_cluster: there is no such setting (did you mean n_clusters?)"),
        (
            "recommender.encoder.hiden_size=3",
            "recommender.encoder.hiden_size: there is no such setting (did you mean hidden_size?)",
        ),
        ("cluster.n_clusters=3", "cluster: there is no such setting (did you mean clusters?)"),
        (
            "evaluation.zzz=3",
            "evaluation.zzz: there is no such setting (known here: cutoffs)",
        ),
        ("backbone=3", "backbone = 3: input should be a valid dictionary"),
        ("recommender.encoder.n_heads=5", "n_heads = 5 does not divide hidden_size = 64"),
        ("finetune.learning_rate=NaN", "finetune.learning_rate = nan: "),
        ("finetune.lora_alpha=Infinity", "finetune.lora_alpha = inf: input should be a finite number"),
        ("variants=[]", "variants = []: tuple should have at least 1 item"),
        ('variants=["p2rex"]', "variants.0 = 'p2rex': input should be 'base', 'ci' or 'p2rec'"),
        ("language_model.dtype=float16", "language_model.dtype = 'float16': input should be 'float32' or 'bfloat16'"),
        ("runtime.device=tpu", "runtime.device = 'tpu': "),
        ("fusion.whitening=zca", "fusion.whitening = 'zca': input should be 'none', 'standardise' or 'pca'"),
    ],
)
def test_what_is_said(assignment, problem):
    assert problem in refused(assignment).problem


def test_every_wrong_setting_is_named_at_once():
    problem = refused("clusters.n_clusters=1", "finetune.epochs=0", "nope=1").problem
    assert all(part in problem for part in ("clusters.n_clusters = 1", "finetune.epochs = 0", "nope: there is no"))


@pytest.mark.parametrize("text", ["clusters.n_clusters", "=3", "  =3"])
def test_what_is_no_assignment(text):
    error = refused(text)
    assert error.problem == f"{text!r} is not an assignment."
    assert error.remedy == "Write section.key=value, e.g. clusters.n_clusters=20."


def test_an_assignment_is_json_or_text():
    settings = pipeline_settings(
        dataset="beauty",
        assignments=[
            "clusters.n_clusters=20",
            "ingest.timestamp_column=null",
            "ingest.user_column=reviewer id",
            'variants=["p2rec"]',
            "clusters.normalise=false",
            "language_model.response=a=b",
        ],
    )
    assert settings.clusters.n_clusters == 20
    assert settings.ingest.timestamp_column is None
    assert settings.ingest.user_column == "reviewer id"
    assert settings.variants == ("p2rec",)
    assert settings.clusters.normalise is False
    assert settings.language_model.response == "a=b"


def test_later_sources_win(tmp_path):
    config = tmp_path / "p2rec.toml"
    config.write_text(
        """
        variants = ["base", "p2rec"]
        [clusters]
        n_clusters = 7
        [runtime]
        device = "cuda:1"
        [recommender.encoder]
        hidden_size = 24
        """
    )
    default = PipelineSettings()
    assert pipeline_settings(dataset="beauty") == default
    gpu = pipeline_settings(dataset="sample", profile=Profile.GPU)
    assert (gpu.runtime.device, gpu.recommender.training.bf16, gpu.language_model.dtype) == ("cuda", True, "bfloat16")
    assert (gpu.clusters.n_clusters, gpu.recommender.encoder.hidden_size) == (12, 48)
    filed = pipeline_settings(dataset="sample", profile=Profile.GPU, config=config)
    assert filed.runtime.device == "cuda:1"  # over the profile
    assert filed.recommender.training.bf16 is True  # the rest of the profile stays
    assert filed.clusters.n_clusters == 7  # over the preset
    assert filed.recommender.encoder.hidden_size == 24
    assert filed.recommender.encoder.inner_size == 192  # the rest of the preset stays
    assert filed.variants == ("base", "p2rec")
    single = pipeline_settings(
        dataset="sample", config=config, assignments=["clusters.n_clusters=8", "clusters.n_clusters=9"]
    )
    assert single.clusters.n_clusters == 9  # over the file, and the last of them
    assert single.backbone.encoder.hidden_size == 48


def test_profiles_and_presets_leave_the_defaults_as_they_were():
    before = PipelineSettings()
    pipeline_settings(dataset="sample", profile=Profile.GPU, assignments=["recommender.encoder.hidden_size=32"])
    assert pipeline_settings(dataset="sample").recommender.encoder.hidden_size == 48
    assert pipeline_settings(dataset="beauty") == before


def test_a_configuration_file_that_is_not_there(tmp_path):
    error = refused(config=tmp_path / "none.toml")
    assert (
        error.problem == f"The configuration file {tmp_path / 'none.toml'} cannot be read: No such file or directory."
    )


@pytest.mark.parametrize("content", [b"[clusters\n", b"\xff\xfe"])
def test_a_configuration_file_that_is_no_toml(tmp_path, content):
    path: Path = tmp_path / "bad.toml"
    path.write_bytes(content)
    assert f"{path} is not valid TOML" in refused(config=path).problem


def test_a_typo_in_a_configuration_file(tmp_path):
    path = tmp_path / "p2rec.toml"
    path.write_text("[finetune]\nepoch = 3\n")
    assert "finetune.epoch: there is no such setting (did you mean epochs?)" in refused(config=path).problem


def test_settings_are_frozen_and_compare_by_value():
    settings = PipelineSettings()
    with pytest.raises(ValidationError):
        settings.clusters.n_clusters = 3
    assert settings == PipelineSettings()
    assert hash(settings.clusters) == hash(PipelineSettings().clusters)


def test_settings_survive_json():
    settings = pipeline_settings(dataset="sample", profile=Profile.GPU, assignments=['finetune.lora_targets=["q"]'])
    assert validated(json.loads(settings.model_dump_json())) == settings


def test_every_setting_is_described():
    settings = pipeline_settings(dataset="sample")
    described = describe_settings(settings)
    assert [name for name, _, _ in described] == list(LEAVES)
    values = {name: json.loads(value) for name, value, _ in described}
    assert values["clusters.n_clusters"] == 12
    assert values["variants"] == ["base", "ci", "p2rec"]
    # what is shown can be put in again
    again = pipeline_settings(dataset="beauty", assignments=[f"{name}={value}" for name, value, _ in described])
    assert again == settings


@pytest.mark.parametrize(
    "assignment",
    [
        "evaluation.cutoffs=[0]",
        "evaluation.cutoffs=[5,5]",
        'variants=["base","base"]',
        "recommender.encoder.backbone=gru",
    ],
)
def test_what_cannot_work_is_refused_at_once(assignment):
    refused(assignment)
