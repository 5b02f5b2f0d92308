"""One stage anew from the command line: with and without what depends on it, forced and not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.cli import app
from flows.report import RunReport
from storage.artefacts import Store
from storage.snapshots import read_snapshot

BEFORE = {"ingest", "backbone", "clusters"}
AFFECTED = {"clusters", "preferences", "finetune", "knowledge"}
AFFECTED |= {f"{stage}.sasrec.{variant}" for stage in ("recommender", "evaluation") for variant in ("ci", "p2rec")}


@pytest.fixture
def rerun(
    first_run: tuple[Path, RunReport], small_assignments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """What `p2rec stage clusters` did: slots that were computed, all slots, the snapshot of the run and the store's."""
    store = shutil.copytree(first_run[0], tmp_path / "store")
    settings = [word for assignment in small_assignments for word in ("--set", assignment)]

    def rerun(*words: str) -> Any:
        app(["stage", "clusters", *settings, *words, "--store", str(store), "--json"], result_action="return_value")
        report = json.loads(capsys.readouterr().out)
        computed = {name for name, result in report["results"].items() if result["outcome"] == "computed"}
        current = read_snapshot(Store.open(store), "sample").number
        return computed, set(report["results"]), report["snapshot"], current

    return rerun


@pytest.mark.parametrize(
    ("words", "computed", "alone", "snapshot"),
    [
        ([], set(), False, 1),
        (["--force"], {"clusters"}, False, 1),  # to the same content, so that what depends on it is cached
        (["--no-downstream"], set(), True, 1),
        (["--no-downstream", "--force"], {"clusters"}, True, 1),
        (["--no-downstream", "--set", "clusters.n_clusters=7"], {"clusters"}, True, 1),
        (["--set", "clusters.n_clusters=7"], AFFECTED, False, 2),
    ],
)
def test_a_stage_is_run_as_it_was_asked_for(
    rerun: Callable[..., Any], words: list[str], computed: set[str], alone: bool, snapshot: int
) -> None:
    found, slots, made, current = rerun(*words)
    assert found == computed
    assert (slots == BEFORE) is alone
    assert (made, current) == (None if alone else snapshot, snapshot)
