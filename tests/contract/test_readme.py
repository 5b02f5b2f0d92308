"""The README's commands and tree are real."""

import re
import shlex
from pathlib import Path

import pytest

from flows.cli import app
from p2rec_core.language.identity import BUILT_IN_NAMES
from p2rec_core.settings.language import LanguageModelSettings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(program: str) -> list[str]:
    """Indented lines that call ``program``, continued lines joined, comments cut off."""
    joined = re.sub(r'"\n? *([^"]*)"', lambda m: " ".join(m.group(0).split()), README)
    lines = [line.strip().removeprefix(".venv/bin/") for line in joined.splitlines() if line.startswith("    ")]
    return [re.sub(r"\s+#.*", "", line) for line in lines if line.startswith(program + " ")]


@pytest.mark.parametrize("command", commands("p2rec"))
def test_a_p2rec_command_can_be_parsed(command: str) -> None:
    _, bound, _ = app.parse_args(shlex.split(command)[1:], exit_on_error=False, print_error=False)
    assert bound.arguments is not None


def test_there_are_commands_to_check() -> None:
    assert len(commands("p2rec")) > 10


@pytest.mark.parametrize("command", sorted({line.split()[1] for line in commands("make")}))
def test_a_make_target_exists_and_explains_itself(command: str) -> None:
    assert re.search(rf"^{command}:.*## \w", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_tree_is_there_and_whole() -> None:
    named = set(re.findall(r"^    (\w+)/ +\w", README, re.MULTILINE)) | {"tests"}
    there = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    packages = {name for name in there if (ROOT / name / "__init__.py").exists()}
    assert named >= packages
    assert named <= there


@pytest.mark.parametrize("page", ["README.md", "docs/how-to/use-another-language-model.md", "the setting"])
def test_built_in_language_models_are_the_same_everywhere(page: str) -> None:
    described = LanguageModelSettings.model_fields["name_or_path"].description or ""
    text = described.replace("``", "`") if page == "the setting" else (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:all|random)-\S+?)`", text))
    assert named == set(BUILT_IN_NAMES)
