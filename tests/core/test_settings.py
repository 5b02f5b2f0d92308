"""Settings: what is refused, what is said about it, and which of two values wins."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from p2rec_core.backbones.registry import ENCODERS
from p2rec_core.errors import SettingsError
from p2rec_core.settings.pipeline import (
    _ENCODER_PRESETS,
    PipelineSettings,
    Profile,
    Recipe,
    describe_settings,
    pipeline_settings,
    read_toml,
    validated,
)
from p2rec_core.settings.sequence_model import EncoderSettings


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
        ("recommender.encoder.n_heads=5", "recommender.encoder: n_heads = 5 does not divide"),
        (
            "backbone.encoder.backbone=grurec",
            "backbone.encoder.backbone = 'grurec': there is no backbone 'grurec' (did you mean gru4rec?); known: caser",
        ),
        (
            "recommender.encoder.backbone=zzz",
            "recommender.encoder.backbone = 'zzz': there is no backbone 'zzz'; known: caser, fmlp_rec, gru4rec, sasrec",
        ),
        (
            "recommender.encoder.window=3",
            "recommender.encoder.window = 3: sasrec does not read this; it reads dropout, hidden_size, inner_size, "
            "max_length, n_heads, n_layers.",
        ),
        ("finetune.learning_rate=NaN", "finetune.learning_rate = nan: "),
        ("finetune.lora_alpha=Infinity", "finetune.lora_alpha = inf: input should be a finite number"),
        ("variants=[]", "variants = []: tuple should have at least 1 item"),
        ('variants=["p2rex"]', "variants.0 = 'p2rex': input should be 'base', 'ci' or 'p2rec'"),
        ("language_model.dtype=float16", "language_model.dtype = 'float16': input should be 'float32' or 'bfloat16'"),
        ("runtime.device=tpu", "runtime.device = 'tpu': "),
        (
            "fusion.whitening=none",
            "fusion: kind = init starts from the first dimensions, and these tell most only with ",
        ),
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
    assert pipeline_settings(dataset="yelp") == default
    gpu = pipeline_settings(dataset="sample", profile=Profile.GPU)
    assert (gpu.runtime.device, gpu.recommender.training.bf16, gpu.language_model.dtype) == ("cuda", True, "bfloat16")
    narrow = pipeline_settings(dataset="sample", profile=Profile.CPU_BF16)
    assert (narrow.runtime.device, narrow.backbone.training.bf16, narrow.language_model.dtype) == (
        "cpu",
        True,
        "bfloat16",
    )
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


ENCODER_CASES = [(backbone, dataset) for backbone in ENCODERS for dataset in ("beauty", "ml-1m", "sample", "yelp")]


@pytest.mark.parametrize(("backbone", "dataset"), ENCODER_CASES)
@pytest.mark.parametrize("section", ["recommender", "backbone"])
def test_a_backbone_is_one_assignment(backbone, dataset, section):
    settings = pipeline_settings(dataset=dataset, assignments=[f"{section}.encoder.backbone={backbone}"])
    encoder = getattr(settings, section).encoder
    assert encoder.backbone == backbone
    assert set(encoder.options()) == set(ENCODERS[backbone].defaults)
    assert encoder.model_dump() == {"backbone": backbone} | encoder.options()
    assert None not in encoder.options().values()
    # presets apart, these are the registry's
    preset = _ENCODER_PRESETS.get(dataset, {}).get(backbone, {})
    assert encoder.options() == {**ENCODERS[backbone].defaults, **preset}
    assert set(preset) <= set(ENCODERS[backbone].defaults)
    # the other section stays as it was
    others = {"recommender", "backbone"} - {section}
    default = pipeline_settings(dataset=dataset)
    assert all(getattr(settings, name) == getattr(default, name) for name in others)


def test_sasrecs_defaults_are_what_they_were():
    published = {"n_layers": 2, "n_heads": 2, "inner_size": 256, "dropout": 0.5, "hidden_size": 64, "max_length": 50}
    assert EncoderSettings().model_dump() == {"backbone": "sasrec"} | published
    sample = pipeline_settings(dataset="sample").recommender.encoder.options()
    assert sample == published | {"hidden_size": 48, "inner_size": 192, "dropout": 0.3}
    assert pipeline_settings(dataset="ml-1m").backbone.encoder.options() == published | {
        "max_length": 200,
        "dropout": 0.2,
    }


def test_a_chosen_backbone_in_a_file_takes_its_preset(tmp_path):
    config = tmp_path / "p2rec.toml"
    config.write_text('[recommender.encoder]\nbackbone = "caser"\nwindow = 4\n')
    settings = pipeline_settings(dataset="sample", config=config)
    assert settings.recommender.encoder.options() == {
        **ENCODERS["caser"].defaults,
        "hidden_size": 48,
        "dropout": 0.3,
        "window": 4,
    }
    # a later choice counts, and what was meant for the other is then refused by its name
    with pytest.raises(SettingsError, match=r"recommender.encoder.window = 4: gru4rec does not read this; it reads"):
        pipeline_settings(dataset="sample", config=config, assignments=["recommender.encoder.backbone=gru4rec"])


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        (backbone, name)
        for backbone, entry in ENCODERS.items()
        for name in EncoderSettings.model_fields
        if name != "backbone" and name not in entry.defaults
    ],
)
def test_a_setting_that_the_backbone_does_not_read_is_refused(backbone, name):
    problem = refused(f"recommender.encoder.backbone={backbone}", f"recommender.encoder.{name}=1").problem
    reads = ", ".join(sorted(ENCODERS[backbone].defaults))
    assert problem == f"recommender.encoder.{name} = 1: {backbone} does not read this; it reads {reads}."


@pytest.mark.parametrize("backbone", ENCODERS)
def test_encoder_settings_survive_being_dumped(backbone):
    encoder = EncoderSettings(backbone=backbone, hidden_size=32)
    assert EncoderSettings.model_validate(encoder.model_dump()) == encoder
    assert EncoderSettings.model_validate_json(encoder.model_dump_json()) == encoder
    with_nulls = {name: getattr(encoder, name) for name in EncoderSettings.model_fields}
    assert EncoderSettings.model_validate(with_nulls) == encoder
    assert hash(EncoderSettings.model_validate(with_nulls)) == hash(encoder)


def test_a_window_is_within_the_sequence():
    error = refused(*(f"recommender.encoder.{s}" for s in ("backbone=caser", "window=9", "max_length=8")))
    assert "recommender.encoder: window = 9 is longer than max_length = 8" in error.problem


def test_profiles_and_presets_leave_the_defaults_as_they_were():
    before = PipelineSettings()
    pipeline_settings(dataset="sample", profile=Profile.GPU, assignments=["recommender.encoder.hidden_size=32"])
    assert pipeline_settings(dataset="sample").recommender.encoder.hidden_size == 48
    assert pipeline_settings(dataset="yelp") == before


def test_a_backbone_brings_its_training_along_but_not_into_the_papers_recipe():
    def training(**changes):
        chosen = {"recommender": {"encoder": {"backbone": "caser"}, **changes}}
        return [pipeline_settings(dataset="beauty", recipe=r, changes=chosen).recommender.training for r in Recipe]

    default, paper = training()
    assert (default.batch_positions, default.n_negatives, default.item_std) == (512, 2048, 0.1)
    assert (paper.batch_positions, paper.n_negatives, paper.item_std) == (1024, None, 0.02)
    assert [each.n_negatives for each in training(training={"n_negatives": 7})] == [7, 7]
    assert [each.n_negatives for each in training(training={"n_negatives": None})] == [None, None]


def test_the_papers_recipe_smooths_nothing():
    assert pipeline_settings(dataset="beauty").fusion.smoothing > 0
    assert pipeline_settings(dataset="beauty", recipe=Recipe.PAPER).fusion.smoothing == 0


def test_a_configuration_file_that_is_not_there(tmp_path):
    error = refused(config=tmp_path / "none.toml")
    assert error.problem == f"{tmp_path / 'none.toml'} cannot be read: No such file or directory."


@pytest.mark.parametrize("value", ["[" * 20_000, "9" * 5000])
def test_what_python_cannot_hold_is_no_toml(tmp_path, value):
    path = tmp_path / "deep.toml"
    path.write_text(f"x = {value}")
    with pytest.raises(SettingsError, match=r"deep\.toml is not valid TOML: .*Correct the file"):
        read_toml(path)


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
    meanings = {name: meaning for name, _, meaning in described}
    assert meanings["backbone.encoder.backbone"].endswith("One of caser, fmlp_rec, gru4rec, sasrec.")
    assert meanings["recommender.encoder.n_vertical"].endswith("Read by caser.")
    assert "Read by" not in meanings["recommender.encoder.max_length"]
    assert all(meaning for name, meaning in meanings.items() if ".encoder." in name)
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
