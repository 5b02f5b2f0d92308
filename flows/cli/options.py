"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from p2rec_core.settings.pipeline import Profile, Recipe
from storage.artefacts import DEFAULT_STORE

DatasetOption = Annotated[str, Parameter(name=("--dataset", "-d"), help="Name of a dataset; `p2rec data list`.")]
StoreOption = Annotated[Path, Parameter(name="--store", env_var="P2REC_STORE", help="Directory of the artefact store.")]
ConfigOption = Annotated[Path | None, Parameter(name=("--config", "-c"), help="TOML file with one table per stage.")]
SetOption = Annotated[
    list[str] | None,
    Parameter(name="--set", negative="", help="One setting, e.g. --set clusters.n_clusters=20; may be repeated."),
]
SnapshotOption = Annotated[int | None, Parameter(name="--snapshot", help="Its number; default the current one.")]
JsonOption = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON for a program to read.")]
NoHeaderOption = Annotated[
    bool, Parameter(name="--no-header", negative="", help="The first line of CSV or TSV is a row; columns are 1, 2, …")
]

ProfileOption = Annotated[Profile, Parameter(name="--profile", help="Defaults for the machine: cpu, cpu-bf16 or gpu.")]
RecipeOption = Annotated[
    Recipe, Parameter(name="--recipe", help="Choices that the method leaves: default (best on validation) or paper.")
]

__all__ = [
    "DEFAULT_STORE",
    "ConfigOption",
    "DatasetOption",
    "JsonOption",
    "NoHeaderOption",
    "ProfileOption",
    "RecipeOption",
    "SetOption",
    "SnapshotOption",
    "StoreOption",
]
