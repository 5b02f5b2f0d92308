"""``p2rec settings``."""

import json
import sys
from typing import Annotated, Any, Literal

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
from p2rec_core.settings.document import EXPERIMENTS_ONLY, configuration, groups
from p2rec_core.settings.pipeline import PipelineSettings, Profile, Recipe, describe_settings, pipeline_settings
from p2rec_core.settings.proposal import Proposal
from storage.artefacts import Store
from storage.snapshots import read_snapshot
from tasks.other_settings import language_model_name, settings_of
from tasks.precheck import LANGUAGE_MODEL_STAGES
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
    snapshot: Annotated[
        int | Literal["current"] | None,
        Parameter(name="--snapshot", help='Number of a snapshot, or "current": the values that it was computed with.'),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_toml: Annotated[
        bool, Parameter(name="--toml", negative="", help="Print a commented configuration, for --config.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List settings with the value that a run on a dataset takes, the general default, and the values that are allowed.

    What no stage reads, such as the device, is not of a snapshot: its value is the one that a run would take.

    Examples:
        p2rec settings -d ml-1m
        p2rec settings fusion -d beauty
        p2rec settings fusion.kind
        p2rec settings recommender.training --profile gpu --json
        p2rec settings -d beauty --snapshot current --toml > beauty.toml
    """
    given = {"--profile": profile is not Profile.CPU, "--recipe": recipe is not Recipe.DEFAULT}
    given |= {"--config": config is not None, "--set": bool(assignments)}
    if snapshot is not None and any(given.values()):
        of_a_run = ", ".join(option for option, is_given in given.items() if is_given)
        raise SettingsError(f"Of a snapshot {of_a_run} would change nothing.", remedy="Leave it out, or --snapshot.")
    if as_toml and as_json:
        raise SettingsError("--toml and --json exclude each other.", remedy="Leave one out.")
    chosen = pipeline_settings(
        dataset=dataset, profile=profile, recipe=recipe, config=config, assignments=assignments or ()
    )
    head = [f"What a run on {dataset} takes."]
    with looked_at(store) as (opened, _):
        if snapshot is not None:
            chosen, head = _of_snapshot(dataset, None if snapshot == "current" else snapshot, chosen, opened)
        ingest = ingest_settings_of(dataset, chosen.ingest, opened)
    rows = _named(name, _rows(chosen.model_copy(update={"ingest": ingest})))
    if as_toml:
        proposed = [Proposal(row["setting"], row["value"], "") for row in rows]
        sys.stdout.write(configuration(head, proposed, left_out=EXPERIMENTS_ONLY))
        return
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


def _of_snapshot(
    dataset: str, number: int | None, chosen: PipelineSettings, store: Store
) -> tuple[PipelineSettings, list[str]]:
    """What a snapshot was computed with, and words for it; what no stage reads is as it was chosen.

    Args:
        dataset: The dataset.
        number: The snapshot's; None is the current one.
        chosen: What a run would take now.
        store: Where the snapshot is.
    """
    snapshot = read_snapshot(store, dataset, number)
    head = [f"What snapshot {snapshot.number} of {dataset} was computed with."]
    values = settings_of(snapshot, store)
    if any(slot.split(".")[0] in LANGUAGE_MODEL_STAGES for slot in snapshot.entries):
        model = language_model_name(snapshot, store, [chosen.language_model.name_or_path])
        values["language_model.name_or_path"] = model or chosen.language_model.name_or_path
        if model is None:
            head.append("Its language model was another one than language_model.name_or_path says here.")
    assignments = [f"{name}={json.dumps(value)}" for name, value in values.items()]
    return pipeline_settings(dataset=dataset, assignments=assignments), head


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
