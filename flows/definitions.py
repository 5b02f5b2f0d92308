"""Experiments by name: those that come with P2Rec, and files of the user's own."""

from importlib.resources import as_file, files
from pathlib import Path

from p2rec_core.errors import SettingsError, did_you_mean
from p2rec_core.settings.experiment import ExperimentSettings, read_experiment


def built_in() -> dict[str, ExperimentSettings]:
    """The experiments that come with P2Rec, by name."""
    found: dict[str, ExperimentSettings] = {}
    for entry in sorted((files("flows") / "experiments").iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".toml"):
            with as_file(entry) as path:
                definition = read_experiment(path)
            found[definition.name] = definition
    return found


def find_definition(name_or_path: str) -> ExperimentSettings:
    """An experiment by the name of a built-in one, or by the path of a TOML file.

    Raises:
        SettingsError: There is no such experiment, or the file is wrong.
    """
    if "/" in name_or_path or name_or_path.endswith(".toml"):
        return read_experiment(Path(name_or_path).expanduser())
    known = built_in()
    if name_or_path not in known:
        hint = did_you_mean(name_or_path, known)
        raise SettingsError(
            f"There is no experiment {name_or_path!r} ({hint}{' ' if hint else ''}known: {', '.join(known)}).",
            remedy="Choose one of them, or give the path of a TOML file.",
        )
    return known[name_or_path]
