"""``p2rec settings``."""

import json
import sys
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from flows.cli.options import (
    DEFAULT_STORE,
    ConfigOption,
    DatasetOption,
    JsonOption,
    ProfileOption,
    RecipeOption,
    SetOption,
    StoreOption,
)
from flows.cli.tables import print_table
from flows.prepare import looked_at
from p2rec_core.errors import SettingsError, did_you_mean
from p2rec_core.settings.document import groups
from p2rec_core.settings.pipeline import PipelineSettings, Profile, Recipe, describe_settings, pipeline_settings
from tasks.sources import ingest_settings_of


def settings(
    name: Annotated[
        str | None, Parameter(help="A setting (fusion.kind) or a group of them (fusion); without, all.")
    ] = None,
    /,
    *,
    dataset: DatasetOption = "sample",
    profile: ProfileOption = Profile.CPU,
    recipe: RecipeOption = Recipe.DEFAULT,
    config: ConfigOption = None,
    assignments: SetOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """List settings with the value that a run on a dataset takes, the general default, and the values that are allowed.

    Examples:
        p2rec settings -d ml-1m
        p2rec settings fusion -d beauty
        p2rec settings fusion.kind
        p2rec settings recommender.training --profile gpu --json
    """
    chosen = pipeline_settings(
        dataset=dataset, profile=profile, recipe=recipe, config=config, assignments=assignments or ()
    )
    with looked_at(store) as (opened, _):
        ingest = ingest_settings_of(dataset, chosen.ingest, opened)
    rows = _named(name, _rows(chosen.model_copy(update={"ingest": ingest})))
    if as_json:
        sys.stdout.write(json.dumps(rows, ensure_ascii=False) + "\n")
        return
    table = Table("setting", "value", "default", "allowed", "meaning")
    for row in rows:
        value, default = (json.dumps(row[column], ensure_ascii=False) for column in ("value", "default"))
        table.add_row(row["setting"], value, default, row["allowed"], row["meaning"])
    print_table(table)
    if len(rows) == 1:
        for choice, meaning in rows[0]["choices"].items():
            Console().print(f"{choice}: {meaning}".rstrip(": "), highlight=False, soft_wrap=True, markup=False)


def _rows(chosen: PipelineSettings) -> list[dict[str, Any]]:
    """What there is to say of every setting, as JSON values."""
    meanings = {meaning.name: meaning for group in groups() for meaning in group.settings}
    return [
        {
            "setting": name,
            "value": json.loads(value),
            "default": json.loads(meanings[name].default),
            "allowed": meanings[name].kind,
            "meaning": meanings[name].text,
            "choices": dict(meanings[name].choices),
        }
        for name, value, _ in describe_settings(chosen)
    ]


def _named(name: str | None, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The setting of a name, or those of a group."""
    if name is None:
        return rows
    named = [row for row in rows if row["setting"] == name or row["setting"].startswith(f"{name}.")]
    if not named:
        settings = [row["setting"] for row in rows]
        known = [*settings, *{setting.rpartition(".")[0] for setting in settings}]
        same_end = next((setting for setting in settings if setting.endswith(f".{name}")), None)
        hint = did_you_mean(name, known) if same_end is None else f"did you mean {same_end}?"
        raise SettingsError(
            f"There is no setting and no group of settings {name!r}{f' ({hint})' if hint else ''}.",
            remedy="`p2rec settings` lists all.",
        )
    return named
