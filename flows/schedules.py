"""When flows are run: schedules from a TOML file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from zoneinfo import available_timezones

from pydantic import Field, ValidationError, field_validator, model_validator

from p2rec_core.errors import SettingsError
from p2rec_core.settings.base import Settings
from p2rec_core.settings.pipeline import read_toml

Scheduled = Literal["pipeline", "stage", "refresh", "experiment", "report", "gc"]


class Schedule(Settings):
    """One deployment at set times, with parameters of its own."""

    deployment: Scheduled
    """What is run."""
    cron: str | None = None
    """Minute, hour, day, month, day of the week, e.g. ``0 3 * * *``."""
    interval_s: float | None = Field(None, ge=1)
    """Seconds between two runs, instead of ``cron``."""
    timezone: str = "UTC"
    """Time zone of ``cron``, e.g. ``Europe/Berlin``."""
    config: Path | None = None
    """TOML file with one table of settings per stage, as for ``p2rec run --config``; relative to this file."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the flow."""

    @field_validator("cron")
    @classmethod
    def _understood(cls, cron: str | None) -> str | None:
        if cron is not None:
            from prefect.client.schemas.schedules import CronSchedule

            try:
                CronSchedule(cron=cron)
            except ValidationError as error:
                raise ValueError(
                    f"{cron!r} is not minute, hour, day, month and day of the week, e.g. '0 3 * * *'"
                ) from error
        return cron

    @field_validator("timezone")
    @classmethod
    def _known(cls, timezone: str) -> str:
        if timezone not in available_timezones():
            raise ValueError(f"there is no time zone {timezone!r}")
        return timezone

    @model_validator(mode="after")
    def _one_rhythm(self) -> "Schedule":
        if (self.cron is None) == (self.interval_s is None):
            raise ValueError("give either cron or interval_s")
        return self


class _File(Settings):
    schedule: tuple[Schedule, ...] = ()


def read_schedules(path: Path) -> tuple[Schedule, ...]:
    """Read a file of ``[[schedule]]`` tables; what ``config`` names is read into the parameter ``settings``.

    Raises:
        SettingsError: A file cannot be read, or is wrong; names every wrong field.
    """
    try:
        schedules = _File.model_validate(read_toml(path)).schedule
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors()]
        raise SettingsError(f"{path}: {'; '.join(problems)}.", remedy="Correct the file.") from error
    return tuple(_with_settings(schedule, path.parent) for schedule in schedules)


def check_parameters(schedule: Schedule, flow: Any, filled_in: Mapping[str, Any]) -> None:
    """Refuse at once the parameters that the flow would refuse when its time has come.

    Args:
        schedule: The schedule.
        flow: The Prefect flow of its deployment.
        filled_in: Parameters that the deployment has already.

    Raises:
        SettingsError: A parameter is wrong, unknown or missing; names it.
    """
    from prefect.exceptions import ParameterTypeError, SignatureMismatchError

    try:
        flow.validate_parameters({**filled_in, **schedule.parameters})
    except (SettingsError, ParameterTypeError, SignatureMismatchError, TypeError) as error:
        said = error.problem if isinstance(error, SettingsError) else " ".join(str(error).split())
        raise SettingsError(
            f"A schedule of {schedule.deployment} has wrong parameters: {said.rstrip('.')}.",
            remedy=f"The parameters are: {', '.join(flow.parameters.properties)}.",
        ) from error


def _with_settings(schedule: Schedule, directory: Path) -> Schedule:
    if schedule.config is None:
        return schedule
    if "settings" in schedule.parameters:
        raise SettingsError(
            f"A schedule of {schedule.deployment} has both config and parameters.settings.",
            remedy="Write all settings into one of them.",
        )
    parameters = schedule.parameters | {"settings": read_toml(directory / schedule.config)}
    return schedule.model_copy(update={"parameters": parameters})
