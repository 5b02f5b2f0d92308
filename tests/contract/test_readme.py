"""The README's make targets and tree are real; tests/flows/test_docs_commands.py has its commands."""

import re
from pathlib import Path

import pytest

from p2rec_core.language.identity import BUILT_IN_NAMES
from p2rec_core.settings.language import LanguageModelSettings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


MAKE_TARGETS = sorted(set(re.findall(r"^ {4,}make (\w[\w-]*)", README, re.MULTILINE)))


@pytest.mark.parametrize("target", MAKE_TARGETS)
def test_a_make_target_exists_and_explains_itself(target: str) -> None:
    assert re.search(rf"^{target}:.*## \w", (ROOT / "Makefile").read_text(), re.MULTILINE)


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
