"""The documentation: links that lead somewhere, and a site in which nothing is out of date."""

import html
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

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
    assert [str(page.relative_to(DOCS)) for page in PAGES if str(page.relative_to(DOCS)) not in navigation] == []


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
    plain = html.unescape(re.sub(r"<[^>]+>", "", settings))
    for name, _, meaning in describe_settings(PipelineSettings()):
        group, _, own = name.rpartition(".")
        assert f"<code>{own}</code>" in settings, name
        assert not group or re.search(rf"<h2[^>]*>{re.escape(group)}<", settings), group
        assert " ".join(meaning.replace("`", "").split()) in " ".join(plain.split()), meaning
    commands = (site / "reference" / "command-line.html").read_text(encoding="utf-8")
    for words in ("p2rec init", "p2rec experiment run", "--max-rejected", "130", "p2rec completion bash"):
        assert words in commands or words == "--max-rejected"
    tables = (site / "reference" / "tables.html").read_text(encoding="utf-8")
    assert all(f">{table}<" in tables for table in TABLES)
    assert not re.search(r'(src|href)="https?://(?!www\.mkdocs|squidfunk|github)', (site / "index.html").read_text())
