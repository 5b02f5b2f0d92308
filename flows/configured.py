"""Which Prefect server the user has configured, found out without importing Prefect, which takes seconds.

Prefect's own sources in its own order: the environment, ``.env``, ``prefect.toml``, ``pyproject.toml``, the profile.
"""

import importlib.util
import os
import tomllib
from pathlib import Path
from typing import Any

API_URL_VARIABLE = "PREFECT_API_URL"
"""Address of a Prefect server's API; set but empty, there is none, whatever the other sources say."""

_IN_FILES = (("prefect.toml", ()), ("pyproject.toml", ("tool", "prefect")))
"""Files in the working directory, with the table of Prefect's settings."""


def prefect_home() -> Path:
    """Directory of Prefect's history and profiles on this machine."""
    return Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()


def configured_server() -> str | None:
    """Address of the API that runs go to; None where the user has configured no Prefect server.

    Raises:
        SettingsError: ``prefect.toml`` or ``pyproject.toml`` is not valid TOML.
    """
    url = _said(API_URL_VARIABLE, ("api", "url"))
    if url is None:
        url = _profile().get(API_URL_VARIABLE)
    return str(url) if url else None


def _said(variable: str, setting: tuple[str, ...]) -> Any:
    """What the sources before the profile say; None where they say nothing."""
    if variable in os.environ:
        return os.environ[variable]
    if Path(".env").is_file():
        from dotenv import dotenv_values

        if (value := dotenv_values(".env").get(variable)) is not None:
            return value
    for name, table in _IN_FILES:
        if (value := _at(_of(Path(name).absolute()), (*table, *setting))) is not None:
            return value
    return None


def _profile() -> dict[str, Any]:
    """The active profile; empty where there is none, or its file is not valid TOML: Prefect warns of that."""
    try:
        profiles = tomllib.loads(_profiles_path().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    active = os.environ.get("PREFECT_PROFILE") or profiles.get("active")
    found = _at(profiles, ("profiles", active)) if isinstance(active, str) else None
    return found if isinstance(found, dict) else {}


def _profiles_path() -> Path:
    if said := _said("PREFECT_PROFILES_PATH", ("profiles_path",)):
        return Path(said)
    path = prefect_home() / "profiles.toml"
    prefect = importlib.util.find_spec("prefect")
    if not os.environ.get("PREFECT_HOME") and not path.exists() and prefect and prefect.submodule_search_locations:
        return Path(prefect.submodule_search_locations[0]) / "settings" / "profiles.toml"
    return path


def _of(path: Path) -> dict[str, Any]:
    """What a file says; nothing where there is none."""
    if not path.exists():
        return {}
    from p2rec_core.settings.pipeline import read_toml  # a server's own process has no other use for it

    return read_toml(path)


def _at(values: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        values = values.get(name) if isinstance(values, dict) else None
    return values
