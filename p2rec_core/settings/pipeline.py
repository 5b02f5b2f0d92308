"""The settings of a whole pipeline, where they come from, and what is said when one is wrong.

Precedence, later wins: defaults, profile, dataset preset, recipe, configuration file, changes, single assignments.
"""

import json
import tomllib
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from p2rec_core.backbones.registry import DEFAULT_BACKBONE, ENCODERS
from p2rec_core.errors import SettingsError, did_you_mean
from p2rec_core.settings.base import Settings
from p2rec_core.settings.clustering import ClusterSettings
from p2rec_core.settings.data import IngestSettings
from p2rec_core.settings.language import CostSettings, E4SRecSettings, FinetuneSettings, LanguageModelSettings
from p2rec_core.settings.refresh import RefreshSettings
from p2rec_core.settings.sequence_model import EncoderSettings, FusionSettings, RecommenderSettings, Variant


class Profile(StrEnum):
    """Defaults for a kind of machine."""

    CPU = "cpu"
    """Two CPU cores."""
    CPU_BF16 = "cpu-bf16"
    """CPU cores that multiply bf16 (avx512_bf16 or AMX)."""
    GPU = "gpu"
    """One CUDA GPU, bf16."""


class Recipe(StrEnum):
    """Which choices are made where the method leaves some."""

    DEFAULT = "default"
    """What was best on validation here."""
    PAPER = "paper"
    """What the paper says, and the plainest reading where it says nothing."""


class EvaluationSettings(Settings):
    """Full-ranking evaluation."""

    cutoffs: tuple[int, ...] = Field((5, 10), min_length=1)
    """The k of HR@k and NDCG@k, from 1."""

    @field_validator("cutoffs")
    @classmethod
    def _positive_and_distinct(cls, cutoffs: tuple[int, ...]) -> tuple[int, ...]:
        if min(cutoffs) < 1 or len(set(cutoffs)) < len(cutoffs):
            raise ValueError(f"cutoffs are distinct numbers from 1, not {list(cutoffs)}")
        return cutoffs


class RuntimeSettings(Settings):
    """Where and how fast things are computed; no cache key depends on it.

    A result is a function of settings and data up to rounding: another device or number of threads may change the
    last bits of a trained model.
    """

    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    """``cpu``, ``cuda``, or one GPU of several, e.g. ``cuda:1``."""
    threads: int = Field(2, ge=1, le=1024)
    """CPU threads of a computation."""
    checkpoint_every_s: float = Field(30.0, ge=0)
    """Seconds between two checkpoints of a training."""
    ingest_memory: str | None = Field(None, pattern=r"^\d+(\.\d+)? ?([KMGT]i?B)$")
    """Most memory that DuckDB takes in an import before it spills to the temporary directory, such as ``4GB``; null is
    four fifths of the machine's. The process takes up to twice as much: 100 million interactions took 4 GB with 2GB."""
    knowledge_batch_size: int = Field(256, ge=1)
    """Items that go through the language model at once."""
    push_to: str | None = Field(None, pattern=r"^(s3|gs|az|file)://[^@?\s]+$")
    """Bucket that a run copies its snapshot to once it is the current one, such as ``s3://models/p2rec``; null copies
    it nowhere. Keys are taken from the environment."""
    push_keep: int | None = Field(None, ge=1)
    """How many of the dataset's newest snapshots stay in that bucket; null keeps all."""


class PipelineSettings(Settings):
    """Settings of every stage."""

    ingest: IngestSettings = IngestSettings()
    backbone: RecommenderSettings = RecommenderSettings()
    """The pre-trained model M(Θ) that items are clustered and described by."""
    clusters: ClusterSettings = ClusterSettings()
    language_model: LanguageModelSettings = LanguageModelSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    recommender: RecommenderSettings = RecommenderSettings()
    """The new models that are trained with the knowledge embeddings."""
    fusion: FusionSettings = FusionSettings()
    variants: tuple[Variant, ...] = Field((Variant.BASE, Variant.CI, Variant.P2REC), min_length=1)
    """What is trained and compared."""
    evaluation: EvaluationSettings = EvaluationSettings()
    e4srec: E4SRecSettings = E4SRecSettings()
    """The instance-level baseline that experiments may ask for."""
    cost: CostSettings = CostSettings()
    """The measurement of language-model work that experiments may ask for."""
    refresh: RefreshSettings = RefreshSettings()
    """What `p2rec refresh` computes anew, and what a snapshot of it has to hold."""
    runtime: RuntimeSettings = RuntimeSettings()

    @field_validator("variants")
    @classmethod
    def _distinct(cls, variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
        if len(set(variants)) < len(variants):
            raise ValueError(f"a variant is named twice in {[str(v) for v in variants]}")
        return variants


NULL = "null"
"""What null is in a TOML file."""

_BF16 = {
    "backbone": {"training": {"bf16": True}},
    "recommender": {"training": {"bf16": True}},
    "language_model": {"dtype": "bfloat16"},
}
_PROFILES: dict[Profile, dict[str, Any]] = {
    Profile.CPU: {},
    Profile.CPU_BF16: _BF16,
    Profile.GPU: _BF16
    | {
        "runtime": {"device": "cuda", "knowledge_batch_size": 4096},
        "finetune": {"micro_batch_tokens": 65_536},
        "e4srec": {"micro_batch_tokens": 65_536},
    },
}

_PAPER_RECOMMENDER = {
    "encoder": {"hidden_size": 256},
    "training": {
        "learning_rate": 1e-4,
        "schedule": "constant",
        "batch_positions": 1024,
        "n_negatives": None,
        "max_epochs": 300,
        "learn_repeats": False,
        "item_std": 0.02,
    },
}
_RECIPES: dict[Recipe, dict[str, Any]] = {
    Recipe.DEFAULT: {},
    Recipe.PAPER: {
        "backbone": _PAPER_RECOMMENDER,
        "recommender": _PAPER_RECOMMENDER,
        "clusters": {"finer": [], "normalise": False},
        "language_model": {
            "item_text": False,
            "instruction": "Given the user's purchase history, predict the user's distribution among {n_clusters} "
            "purchase preferences.",
            "response": "Response:",
            "pooling": "last",
        },
        "fusion": {"kind": "gate", "item_text": False, "whitening": "none", "smoothing": 0.0},
    },
}

_SMALL = {"training": {"batch_positions": 512, "learning_rate": 5e-3, "max_epochs": 12, "item_std": 0.1}}
_PRESETS: dict[str, dict[str, Any]] = {
    "sample": {
        "backbone": _SMALL,
        "recommender": _SMALL,
        "clusters": {"n_clusters": 12, "finer": [60]},
        "finetune": {"epochs": 1},
        "fusion": {"n_components": 32},
    },
    # by validation: texts and smoothing help where items have few interactions; smoothing harms the denser sample
    # (docs/log.md)
    "beauty": {"fusion": {"item_text": True, "smoothing": 0.5}},
}
_TRAINING_PRESETS: dict[str, dict[str, Any]] = {
    "gru4rec": {"learning_rate": 4e-3, "batch_positions": 512, "n_negatives": 2048, "item_std": 0.1},
    "caser": {"batch_positions": 512, "n_negatives": 2048, "item_std": 0.1},
    "fmlp_rec": {"batch_positions": 512},
}
"""Of a backbone: the training that suits it better than the general defaults, by validation and time (docs/log.md)."""

_ENCODER_PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "sample": {
        "sasrec": {"hidden_size": 48, "inner_size": 192, "dropout": 0.3, "max_length": 50},
        "gru4rec": {"hidden_size": 48, "inner_size": 96},
        "caser": {"hidden_size": 48, "dropout": 0.3},
        "fmlp_rec": {"hidden_size": 48, "inner_size": 192, "dropout": 0.3},
    },
    "ml-1m": {
        "sasrec": {"max_length": 200, "dropout": 0.2},
        "gru4rec": {"max_length": 200},
        "caser": {"max_length": 200, "dropout": 0.2},
        "fmlp_rec": {"dropout": 0.1},
    },
}
"""Of a dataset, by backbone: only what that backbone reads."""


def pipeline_settings(
    *,
    dataset: str,
    profile: Profile = Profile.CPU,
    recipe: Recipe = Recipe.DEFAULT,
    config: Path | None = None,
    changes: Mapping[str, Any] | None = None,
    assignments: Iterable[str] = (),
) -> PipelineSettings:
    """Put settings together.

    Args:
        dataset: Name of the dataset; a known one may have a preset, and one for each backbone.
        profile: Defaults for the machine.
        recipe: Choices that the method leaves.
        config: TOML file with one table per stage.
        changes: Nested values, such as a form gives.
        assignments: ``"recommender.encoder.n_layers=1"``; a value is read as JSON, else as text.

    Raises:
        SettingsError: A key is unknown or a value out of range, or the file cannot be read.
    """
    given: dict[str, Any] = {}
    if config is not None:
        _merge(given, read_toml(config))
    _merge(given, changes or {})
    for assignment in assignments:
        _merge(given, _assignment(assignment))
    merged: dict[str, Any] = {}
    chosen = {section: _chosen_backbone(given, section) for section in ("backbone", "recommender")}
    for section, backbone in chosen.items():
        _merge(merged, {section: {"training": _TRAINING_PRESETS.get(backbone, {})}})
    _merge(merged, _PROFILES[profile])
    _merge(merged, _PRESETS.get(dataset, {}))
    for section, backbone in chosen.items():
        _merge(merged, {section: {"encoder": _ENCODER_PRESETS.get(dataset, {}).get(backbone, {})}})
    _merge(merged, _RECIPES[recipe])
    _merge(merged, given)
    return validated(merged)


def validated(values: Mapping[str, Any]) -> PipelineSettings:
    """Check nested values and make settings of them.

    Raises:
        SettingsError: Names every wrong key and value.
    """
    try:
        return PipelineSettings.model_validate(values)
    except ValidationError as error:
        problems = [_explain(entry) for entry in error.errors()]
        raise SettingsError(
            "; ".join(problems) + ".", remedy="`p2rec settings` lists every setting with its default and range."
        ) from error


def _chosen_backbone(given: Mapping[str, Any], section: str) -> str:
    """The backbone that a section asks for; whether there is such a one is checked later."""
    chosen: Any = given
    for part in (section, "encoder", "backbone"):
        chosen = chosen.get(part) if isinstance(chosen, Mapping) else None
    return chosen if isinstance(chosen, str) else DEFAULT_BACKBONE


def _merge(target: dict[str, Any], source: Mapping[str, Any]) -> None:
    for key, value in source.items():
        if isinstance(value, Mapping):
            nested = target.setdefault(key, {})
            if not isinstance(nested, dict):
                nested = target[key] = {}
            _merge(nested, value)
        else:
            target[key] = value


def read_toml(path: Path) -> dict[str, Any]:
    """The nested values of a TOML file that a user has written; see ``toml_values``.

    Raises:
        SettingsError: It cannot be read, or is no TOML.
    """
    try:
        return toml_values(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}.", remedy="Check the path.") from error
    except (ValueError, RecursionError) as error:  # also of bytes, of numbers too long and of brackets too deep
        raise SettingsError(f"{path} is not valid TOML: {error}.", remedy="Correct the file.") from error


def toml_values(text: str) -> dict[str, Any]:
    """The nested values of TOML; the text ``"null"`` is null, which TOML lacks, as it is with ``--set``.

    Raises:
        ValueError: It is no TOML.
        RecursionError: Brackets are nested too deep.
    """
    values: dict[str, Any] = _with_null(tomllib.loads(text))
    return values


def _with_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_null(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_with_null(part) for part in value]
    return None if value == NULL else value


def assigned(text: str) -> tuple[str, Any]:
    """A setting's dotted name and value from ``"clusters.n_clusters=20"``; a value is read as JSON, else as text.

    Raises:
        SettingsError: It is not an assignment.
    """
    name, equals, raw = text.partition("=")
    if not equals or not name.strip():
        raise SettingsError(
            f"{text!r} is not an assignment.", remedy="Write section.key=value, e.g. clusters.n_clusters=20."
        )
    try:
        return name.strip(), json.loads(raw)
    except (ValueError, RecursionError):
        return name.strip(), raw


def _assignment(text: str) -> dict[str, Any]:
    name, value = assigned(text)
    for part in reversed(name.split(".")):
        value = {part: value}
    nested: dict[str, Any] = value
    return nested


def _explain(entry: Any) -> str:
    location = ".".join(str(part) for part in entry["loc"])
    if entry["type"] != "extra_forbidden":
        said = str(entry["ctx"]["error"]) if entry["type"] == "value_error" else entry["msg"]
        said = said[0].lower() + said[1:]
        whole_group = entry["type"] == "value_error" and isinstance(entry["input"], Mapping)
        return f"{location}: {said}" if whole_group else f"{location} = {entry['input']!r}: {said}"
    model: Any = PipelineSettings
    for part in entry["loc"][:-1]:
        model = model.model_fields[part].annotation
    known = sorted(model.model_fields)
    hint = did_you_mean(str(entry["loc"][-1]), known) or f"known here: {', '.join(known)}"
    return f"{location}: there is no such setting ({hint})"


def which_backbones(name: str) -> str:
    """What the registry says of an encoder's setting."""
    if name == "backbone":
        return f" One of {', '.join(sorted(ENCODERS))}."
    readers = sorted(backbone for backbone, entry in ENCODERS.items() if name in entry.defaults)
    return "" if len(readers) == len(ENCODERS) else f" Read by {', '.join(readers)}."


def describe_settings(settings: PipelineSettings) -> list[tuple[str, str, str]]:
    """Every setting as (dotted name, value as JSON, what it means), in order of declaration."""
    rows: list[tuple[str, str, str]] = []

    def walk(group: Settings, prefix: str) -> None:
        for name, field in type(group).model_fields.items():
            value = getattr(group, name)
            if isinstance(value, Settings):
                walk(value, f"{prefix}{name}.")
            else:
                dumped = group.model_dump(mode="json").get(name)
                text = " ".join((field.description or "").split())
                if isinstance(group, EncoderSettings):
                    text += which_backbones(name)
                rows.append((f"{prefix}{name}", json.dumps(dumped, ensure_ascii=False), text))

    walk(settings, "")
    return rows
