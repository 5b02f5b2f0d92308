"""Settings of an experiment: a matrix of datasets, backbones, arms and seeds, and where they come from."""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from p2rec_core.backbones.registry import ENCODERS
from p2rec_core.errors import SettingsError, did_you_mean
from p2rec_core.settings.base import Settings
from p2rec_core.settings.pipeline import PipelineSettings, Profile, pipeline_settings, read_toml
from p2rec_core.settings.sequence_model import Variant

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Value = bool | int | float | str | None | list[Any]
"""What a single setting may be set to."""

SELECTED_BY = "NDCG@10"
"""The validation metric by which a tuned arm's settings are chosen."""

_OF_THE_CELL = ("recommender.encoder.backbone", "recommender.training.seed", "variants")
_REMEDY = (
    "Correct the experiment; docs/how-to/compare.md has a whole file with comments, and `p2rec experiment list` shows "
    "those that are built in."
)
_FORMS = {
    "datasets": 'datasets = ["clicks"]',
    "backbones": 'backbones = ["sasrec", "gru4rec"]',
    "seeds": "seeds = [1, 2, 3]",
    "arms": '[arms.base] with variant = "base" below it, a table for each arm',
    "settings": '[settings] with "clusters.n_clusters" = 20 below it',
    "dataset_settings": '[dataset_settings.clicks] with "clusters.n_clusters" = 20 below it',
    "backbone_settings": '[backbone_settings.gru4rec] with "recommender.training.max_epochs" = 20 below it',
    "tuning": '[tuning] with "recommender.training.learning_rate" = [1e-3, 2e-3] below it',
    "roles": '[roles] with p2rec = "p2rec" below it',
}
"""How what an experiment consists of is written in TOML."""
_SETTINGS_OF_AN_ARM = '[arms.coarse.settings] with "clusters.n_clusters" = 20 below it'

_WRONG_FORM = ("dict_type", "model_type", "tuple_type", "list_type", "missing")


def flattened(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of nested tables by dotted name: ``{"clusters": {"finer": []}}`` is ``{"clusters.finer": []}``.

    Raises:
        ValueError: One is there twice.
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        within = flattened(value) if isinstance(value, Mapping) else None
        for dotted, inner in [(name, value)] if within is None else [(f"{name}.{n}", v) for n, v in within.items()]:
            if dotted in flat:
                raise ValueError(f"{dotted} is set twice")
            flat[dotted] = inner
    return flat


def _dotted(values: Any) -> Any:
    return flattened(values) if isinstance(values, Mapping) else values


def _each_dotted(groups: Any) -> Any:
    return {name: _dotted(values) for name, values in groups.items()} if isinstance(groups, Mapping) else groups


Dotted = Annotated[dict[str, Value], BeforeValidator(_dotted)]
DottedByName = Annotated[dict[str, dict[str, Value]], BeforeValidator(_each_dotted)]


class Arm(Settings):
    """What is done to a backbone."""

    variant: Variant
    """What the recommender knows of an item beside its id."""
    settings: Dotted = Field(default_factory=dict)
    """Settings by dotted name, e.g. ``clusters.n_clusters``, that differ from the experiment's own."""
    title: str = ""
    """What it is, in one line."""


class Roles(Settings):
    """Which arm plays which part in the report; null means the first arm of the variant."""

    base: Name | None = None
    ci: Name | None = None
    p2rec: Name | None = None


class ExperimentSettings(Settings):
    """A matrix of cells: every dataset with every backbone, arm and seed."""

    name: Name
    """Under which name its results are kept."""
    title: str = ""
    """What it is for, in one line."""
    datasets: tuple[str, ...] = Field(min_length=1)
    """Known or imported datasets."""
    backbones: tuple[str, ...] = Field(min_length=1)
    """Sequence encoders of the registry."""
    arms: dict[Name, Arm] = Field(min_length=1)
    """Arms by name, in the order in which they are shown."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field((1,), min_length=1)
    """Seeds of the recommenders' training. The stages before are computed once, with seeds of their own."""
    settings: Dotted = Field(default_factory=dict)
    """Settings by dotted name that all cells share."""
    dataset_settings: DottedByName = Field(default_factory=dict)
    """Dataset to settings by dotted name that only its cells take."""
    backbone_settings: DottedByName = Field(default_factory=dict)
    """Backbone to settings by dotted name that only its cells take, such as those that other encoders do not have."""
    tuning: Annotated[dict[str, list[Value]], BeforeValidator(_dotted)] = Field(default_factory=dict)
    """A grid: dotted name to the values to be tried. Each arm of each dataset and backbone gets the same trials, with
    ``tuning_seed``; the best validation NDCG@10 chooses, and the choice is run with every seed."""
    tuning_seed: int | None = Field(None, ge=0, lt=2**31)
    """Seed of the trials; null takes the first of ``seeds``."""
    profile: Profile = Profile.CPU
    """Defaults for the machine."""
    roles: Roles = Roles()
    e4srec: bool = False
    """Also train E4SRec, the instance-level method that the paper compares with, on every dataset."""
    cost: bool = False
    """Also measure the language model's cost, user-level against instance-level, on every dataset."""
    probes: bool = False
    """Also measure what the knowledge of every +P2Rec arm carries by itself, without a recommender."""

    @field_validator("datasets", "backbones", "seeds")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError(f"one is named twice in {list(values)}")
        return values

    @field_validator("backbones")
    @classmethod
    def _known_backbones(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in ENCODERS:
                raise ValueError(_unknown("backbone", name, ENCODERS))
        return names

    @field_validator("tuning")
    @classmethod
    def _something_to_try(cls, grid: dict[str, list[Value]]) -> dict[str, list[Value]]:
        for name, values in grid.items():
            if not values:
                raise ValueError(f"there is no value to try for {name}")
        return grid

    @model_validator(mode="after")
    def _consistent(self) -> "ExperimentSettings":
        groups: dict[str, Iterable[str]] = {"settings": self.settings, "tuning": self.tuning}
        groups |= {f"arms.{name}.settings": arm.settings for name, arm in self.arms.items()}
        groups |= {f"dataset_settings.{name}": values for name, values in self.dataset_settings.items()}
        groups |= {f"backbone_settings.{name}": values for name, values in self.backbone_settings.items()}
        for place, names in groups.items():
            if taken := [name for name in names if name in _OF_THE_CELL]:
                raise ValueError(f"{place} may not set {taken[0]}: each cell of the matrix has its own")
        for name in self.backbone_settings:
            if name not in ENCODERS:
                raise ValueError("backbone_settings: " + _unknown("backbone", name, ENCODERS))
        for role, arm in self.roles.model_dump().items():
            if arm is not None and arm not in self.arms:
                raise ValueError(f"roles.{role}: " + _unknown("arm", arm, self.arms))
        return self

    def trials(self) -> list[dict[str, Value]]:
        """The points of the tuning grid, the last name running fastest; one empty point where nothing is tuned."""
        return [dict(zip(self.tuning, values, strict=True)) for values in itertools.product(*self.tuning.values())]

    @property
    def trial_seed(self) -> int:
        """Seed of the tuning trials."""
        return self.seeds[0] if self.tuning_seed is None else self.tuning_seed

    def role(self, variant: Variant) -> str | None:
        """The arm that plays Base, +CI or +P2Rec, or None where there is none."""
        named: str | None = getattr(self.roles, str(variant))
        return named or next((name for name, arm in self.arms.items() if arm.variant is variant), None)

    def pipeline(
        self,
        dataset: str,
        arm: str,
        *,
        backbone: str | None = None,
        seed: int | None = None,
        chosen: Mapping[str, Value] | None = None,
    ) -> PipelineSettings:
        """The settings of one cell's pipeline.

        Later ones win: the experiment's, the dataset's, the backbone's, the arm's, what tuning chose.

        Args:
            dataset: The dataset, which may have a preset.
            arm: Name of the arm.
            backbone: The recommender's encoder; None leaves the default.
            seed: Seed of the recommender's training; None leaves the default.
            chosen: What tuning chose, or tries.

        Raises:
            SettingsError: A setting is unknown or out of range.
        """
        values = self.settings | self.dataset_settings.get(dataset, {})
        values |= self.backbone_settings.get(backbone or "", {}) | self.arms[arm].settings | dict(chosen or {})
        values["variants"] = [str(self.arms[arm].variant)]
        if backbone is not None:
            values["recommender.encoder.backbone"] = backbone
        if seed is not None:
            values["recommender.training.seed"] = seed
        assignments = [f"{name}={json.dumps(value)}" for name, value in values.items()]
        return pipeline_settings(dataset=dataset, profile=self.profile, assignments=assignments)

    def narrowed(
        self,
        *,
        datasets: Sequence[str] | None = None,
        backbones: Sequence[str] | None = None,
        arms: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> "ExperimentSettings":
        """The same experiment with other datasets, backbones or seeds, or with some of its arms.

        Tuning stays with the seed that it has, so that the choice does not depend on which part is run.

        Raises:
            SettingsError: A name is unknown, or given twice.
        """
        changed: dict[str, Any] = {"tuning_seed": self.trial_seed}
        given = {"datasets": datasets, "backbones": backbones, "seeds": seeds}
        changed |= {name: list(values) for name, values in given.items() if values is not None}
        for arm in arms or ():
            if arm not in self.arms:
                raise SettingsError(f"{self.name}: {_unknown('arm', arm, self.arms)}.", remedy="Choose one of them.")
        values = self.model_dump(mode="json") | changed
        if arms is not None:
            values["arms"] = {name: arm for name, arm in values["arms"].items() if name in arms}
            values["roles"] = {role: arm for role, arm in values["roles"].items() if arm in arms}
        return experiment_settings(values, place=self.name)


def experiment_settings(values: Mapping[str, Any], *, place: str) -> ExperimentSettings:
    """Check nested values and make an experiment of them.

    Args:
        values: What a file or a form holds.
        place: Where they come from, for messages.

    Raises:
        SettingsError: Names every wrong key and value.
    """
    try:
        return ExperimentSettings.model_validate(values)
    except ValidationError as error:
        problems = [_explain(entry) for entry in error.errors()]
        raise SettingsError(f"{place}: {'; '.join(problems)}.", remedy=_REMEDY) from error


def read_experiment(path: Path) -> ExperimentSettings:
    """Read an experiment from a TOML file; its name is that of the file where the file does not give one.

    Raises:
        SettingsError: The file cannot be read, a key or value is wrong, or a dataset has settings and is not among the
            experiment's.
    """
    experiment = experiment_settings({"name": path.stem} | read_toml(path), place=str(path))
    # not in the model: an experiment that is narrowed keeps the settings of the datasets that it leaves out
    for name in experiment.dataset_settings:
        if name not in experiment.datasets:
            known = _unknown("dataset", name, experiment.datasets)
            raise SettingsError(f"{path}: dataset_settings: {known}.", remedy=_REMEDY)
    return experiment


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    hint = did_you_mean(name, names)
    return f"there is no {kind} {name!r} ({hint}{' ' if hint else ''}known: {', '.join(names)})"


def _explain(entry: Any) -> str:
    location = ".".join(str(part) for part in entry["loc"] if part != "[key]")
    if entry["type"] == "extra_forbidden":
        known = Arm.model_fields if entry["loc"][0] == "arms" else ExperimentSettings.model_fields
        known = Roles.model_fields if entry["loc"][0] == "roles" else known
        return _unknown("setting", str(entry["loc"][-1]), known) + (f" in {location}" if len(entry["loc"]) > 1 else "")
    if entry["type"] in _WRONG_FORM and location.split(".")[0] in _FORMS:
        of_an_arm = len(entry["loc"]) > 1 and entry["loc"][-1] == "settings"
        form = _SETTINGS_OF_AN_ARM if of_an_arm else _FORMS[location.split(".")[0]]
        shown = "is missing" if entry["type"] == "missing" else f"= {entry['input']!r:.60} has the wrong form"
        return f"{location} {shown}; write {form}"
    message = entry["msg"].removeprefix("Value error, ")
    shown = "" if entry["type"] in ("missing", "value_error") else f" = {entry['input']!r:.60}"
    return f"{location}{shown}: {message[0].lower()}{message[1:]}" if location else message
