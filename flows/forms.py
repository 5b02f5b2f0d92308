"""Parameters of flows as a form shows them: choices, sections of settings, and what to do while others are at work."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import GetJsonSchemaHandler, PlainValidator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from flows.definitions import built_in
from p2rec_core.settings.form import changes_of, form_of
from p2rec_core.settings.pipeline import PipelineSettings, Profile, Recipe, pipeline_settings
from p2rec_core.settings.sequence_model import BACKBONES
from storage.artefacts import DEFAULT_STORE, Store
from storage.datasets import DATASETS
from tasks.dag import STAGES
from tasks.experiments import recorded
from tasks.sources import imported_datasets

STORE_VARIABLE = "P2REC_STORE"
"""Directory of the artefact store whose datasets and experiments a form offers."""

_OF_EXPERIMENTS = frozenset({"e4srec", "cost"})
_OF_A_REFRESH = frozenset({"refresh"})


def chosen_store() -> Path:
    """Directory of the store that this process works with."""
    return Path(os.environ.get(STORE_VARIABLE, DEFAULT_STORE))


def known_datasets() -> list[str]:
    """Names of the datasets that are known, or were imported into the chosen store."""
    return sorted({*DATASETS, *_in_store(imported_datasets)})


def recorded_experiments() -> list[str]:
    """Names of the experiments that have results in the chosen store."""
    return _in_store(recorded)


def _in_store(names: Callable[[Store], list[str]]) -> list[str]:
    directory = chosen_store()
    return names(Store.open(directory, create=False)) if directory.exists() else []


@dataclass(frozen=True)
class Choices:
    """Offers names in a form; they are looked up when the form is made.

    Attributes:
        names: Gives them; where there are none yet, the form takes any text.
    """

    names: Callable[[], Sequence[str]]

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        written = handler(schema)
        names = self.names()
        return written | {"enum": list(names)} if names else written


DatasetName = Annotated[str, Choices(known_datasets)]
StageName = Annotated[str, Choices(lambda: STAGES)]
BackboneName = Annotated[str, Choices(lambda: BACKBONES)]
ExperimentName = Annotated[str, Choices(lambda: list(built_in()))]
RecordedName = Annotated[str, Choices(recorded_experiments)]


def _given(leave_out: frozenset[str]) -> PlainValidator:
    """Whole settings as they are, and what a form gave checked field by field."""

    def check(value: Any) -> PipelineSettings | dict[str, Any]:
        return value if isinstance(value, PipelineSettings) else changes_of(PipelineSettings, value, leave_out)

    return PlainValidator(check, json_schema_input_type=form_of(PipelineSettings, leave_out))


GivenSettings = Annotated[PipelineSettings | Mapping[str, Any], _given(_OF_EXPERIMENTS | _OF_A_REFRESH)]
"""Whole settings, or changes to those that the dataset, the profile and the recipe have."""

GivenRefreshSettings = Annotated[PipelineSettings | Mapping[str, Any], _given(_OF_EXPERIMENTS)]
"""The same with the settings of a refresh."""


def settled(
    dataset: str,
    given: PipelineSettings | Mapping[str, Any],
    profile: Profile = Profile.CPU,
    recipe: Recipe = Recipe.DEFAULT,
) -> PipelineSettings:
    """The settings that a flow works with: whole ones as they are, changes put onto those of the dataset.

    Raises:
        SettingsError: The changes do not fit together.
    """
    if isinstance(given, PipelineSettings):
        return given
    return pipeline_settings(dataset=dataset, profile=profile, recipe=recipe, changes=given)
