"""The documentation: links that lead somewhere, and a site in which nothing is out of date."""

import html
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from p2rec_core.settings.pipeline import PipelineSettings, describe_settings
from storage.schemas import TABLES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
GENERATED = {"settings.md", "command-line.md", "tables.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_a_pages_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            place = (page.parent / target).resolve()
            assert place.exists() or (place.parent == DOCS / "reference" and place.name in GENERATED), target


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [page.relative_to(DOCS) for page in PAGES]
    # a day's tables of benchmarks are reached from the page about them
    listed = [page for page in pages if page.parts[:2] != ("results", "benchmarks") or page.name == "README.md"]
    assert [str(page) for page in listed if str(page) not in navigation] == []


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The module that makes the reference."""
    spec = importlib.util.spec_from_file_location("reference_pages", DOCS / "reference_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_names_every_setting_with_its_meaning(reference: ModuleType) -> None:
    page = reference.settings_page()
    for name, _, meaning in describe_settings(PipelineSettings()):
        group, _, own = name.rpartition(".")
        [section] = re.findall(rf"^## {re.escape(group or 'The whole')}\n(.*?)(?=^## |\Z)", page, re.M | re.S)
        [row] = re.findall(rf"^\| `{own}` \|.*$", section, re.M)
        assert html.unescape(row).replace("`", "").count(meaning.replace("`", "")), name
        assert row.count(" | ") == 3, name


def test_the_reference_names_every_command_and_every_exit_status(reference: ModuleType) -> None:
    page = reference.commands_page()
    for command in ("init", "run", "experiment run", "data import", "track", "completion"):
        assert re.search(rf"^## p2rec {command}$", page, re.M), command
    statuses = [int(number) for number in re.findall(r"^\| (\d+) \|", page, re.M)]
    assert statuses == [0, 1, 2, 3, 4, 5, 6, 7, 8, 130]


def test_the_reference_names_every_table(reference: ModuleType) -> None:
    assert re.findall(r"^## (\w+)$", reference.tables_page(), re.M) == sorted(TABLES)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="requirements-docs.txt is not installed")
def test_the_site_is_built_without_a_warning_and_has_all_there_is(tmp_path: Path) -> None:
    site = tmp_path / "site"
    call = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
    )
    assert call.returncode == 0, call.stderr
    assert "WARNING" not in call.stderr
    settings = (site / "reference" / "settings.html").read_text(encoding="utf-8")
    assert all(
        f"<code>{name.rpartition('.')[2]}</code>" in settings for name, _, _ in describe_settings(PipelineSettings())
    )
    assert "p2rec completion bash" in (site / "reference" / "command-line.html").read_text(encoding="utf-8")
    assert ">item_knowledge<" in (site / "reference" / "tables.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="https?://(?!www\.mkdocs|squidfunk|github)', (site / "index.html").read_text())
