"""Experiments by name: those that come with P2Rec, files of the user's own, and what was run before."""

from importlib.resources import as_file, files
from pathlib import Path

from p2rec_core.errors import SettingsError, did_you_mean
from p2rec_core.settings.experiment import ExperimentSettings, read_experiment
from storage.artefacts import Store
from tasks.experiments import read_record, recorded


def built_in() -> dict[str, ExperimentSettings]:
    """The experiments that come with P2Rec, by name."""
    found: dict[str, ExperimentSettings] = {}
    for entry in sorted((files("flows") / "experiments").iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".toml"):
            with as_file(entry) as path:
                definition = read_experiment(path)
            found[definition.name] = definition
    return found


def find_definition(name_or_path: str, root: Path) -> ExperimentSettings:
    """An experiment by the name of a built-in one, by the path of a TOML file, or by the name that it was run under.

    Args:
        name_or_path: Which.
        root: Directory of the store, which there need not be, in whose records it is looked for last.

    Raises:
        SettingsError: There is no such experiment, or the file is wrong.
        StoreError: Its record is damaged.
    """
    if "/" in name_or_path or name_or_path.endswith(".toml"):
        return read_experiment(Path(name_or_path).expanduser())
    known = built_in()
    if name_or_path in known:
        return known[name_or_path]
    store = Store(root.expanduser().resolve())
    names = [*known, *(name for name in recorded(store) if name not in known)]
    if name_or_path not in names:
        hint = did_you_mean(name_or_path, names)
        raise SettingsError(
            f"There is no experiment {name_or_path!r} ({hint}{' ' if hint else ''}known: {', '.join(names)}).",
            remedy="Choose one of them, or give the path of a TOML file.",
        )
    return read_record(store, name_or_path).settings
