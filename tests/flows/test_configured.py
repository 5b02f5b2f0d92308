"""Whether a Prefect server is configured: the same answer as Prefect's own, without Prefect."""

import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings.models.root import Settings

from flows.configured import configured_server
from p2rec_core.errors import SettingsError

PROFILES = """
active = "alone"
# PREFECT_API_URL = "http://127.0.0.1:1/api"

[profiles.alone]
PREFECT_LOGGING_LEVEL = "INFO"

[profiles.team]
PREFECT_API_URL = "http://127.0.0.1:2/api"
"""
ACTIVE = PROFILES.replace('active = "alone"', 'active = "team"')
TEAM = "http://127.0.0.1:2/api"


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty PREFECT_HOME, and an empty working directory beside it."""
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"):
        monkeypatch.delenv(name, raising=False)
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("PREFECT_HOME", str(home))
    monkeypatch.chdir(here)
    return home


@pytest.mark.parametrize(
    ("files", "environment", "url"),
    [
        ({}, {}, None),
        ({}, {"PREFECT_API_URL": "http://127.0.0.1:3/api"}, "http://127.0.0.1:3/api"),
        ({"../home/profiles.toml": PROFILES}, {}, None),
        ({"../home/profiles.toml": PROFILES}, {"PREFECT_PROFILE": "team"}, TEAM),
        ({"../home/profiles.toml": ACTIVE}, {}, TEAM),
        ({"../home/profiles.toml": ACTIVE}, {"PREFECT_PROFILE": "alone"}, None),
        ({"../home/profiles.toml": ACTIVE}, {"PREFECT_PROFILE": "nobody"}, None),
        ({"../home/profiles.toml": ACTIVE}, {"PREFECT_API_URL": ""}, None),
        ({"else.toml": ACTIVE}, {"PREFECT_PROFILES_PATH": "else.toml"}, TEAM),
        ({"prefect.toml": '[api]\nurl = "http://127.0.0.1:4/api"\n'}, {}, "http://127.0.0.1:4/api"),
        ({"prefect.toml": '[server.api]\nhost = "127.0.0.1"\n'}, {}, None),
        ({"pyproject.toml": '[tool.prefect.api]\nurl = "http://127.0.0.1:5/api"\n'}, {}, "http://127.0.0.1:5/api"),
        ({"pyproject.toml": '[project]\nname = "mine"\n'}, {}, None),
        ({".env": "PREFECT_API_URL=http://127.0.0.1:6/api\n"}, {}, "http://127.0.0.1:6/api"),
    ],
)
def test_the_server_is_the_one_that_prefect_would_take(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], environment: dict[str, str], url: str | None
) -> None:
    for name, text in files.items():
        Path(name).write_text(text)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert configured_server() == url
    assert (Settings().api.url or None) == url


def test_profiles_that_are_no_toml_configure_no_server_and_other_files_are_refused(home: Path) -> None:
    (home / "profiles.toml").write_text("PREFECT_API_URL")
    assert configured_server() is None
    Path("prefect.toml").write_text("PREFECT_API_URL")
    with pytest.raises(SettingsError, match=r"prefect\.toml is not valid TOML"):
        configured_server()


def test_prefect_is_not_imported_to_know_it() -> None:
    code = (
        "import sys; from flows.configured import configured_server; configured_server(); "
        "assert not {'prefect', 'pydantic_settings'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
