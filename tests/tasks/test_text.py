"""Whether the identifiers of items' texts are composed is a setting of what reads them, in a run and in a refresh."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from p2rec_core.settings.pipeline import PipelineSettings, pipeline_settings
from storage.artefacts import ArtefactRef
from tasks.dag import pipeline_slots, probe_slots
from tasks.refresh.slots import refresh_plan
from tasks.sources import TextFile
from tasks.stage import StageCall

SMALL = ["language_model.name_or_path=random-llama-tiny", "fusion.item_text=true"]
FILES = ("items", "sequences", "validation", "item_texts", "item_knowledge")


def ordinary(settings: PipelineSettings, source: Path, texts: TextFile, refs: dict[str, ArtefactRef]) -> StageCall:
    return next(slot for slot in pipeline_slots(settings, source, texts) if slot.name == "text").call(refs)


def refreshed(settings: PipelineSettings, source: Path, texts: TextFile, refs: dict[str, ArtefactRef]) -> StageCall:
    plan = refresh_plan(settings, source, texts, refs)
    return next(slot for slot in (*plan.first, *plan.untuned) if slot.name == "text").call(refs)


def probed(settings: PipelineSettings, source: Path, texts: TextFile, refs: dict[str, ArtefactRef]) -> StageCall:
    return probe_slots(settings, texts)[0].call(refs)


@pytest.mark.parametrize("made", [ordinary, refreshed, probed])
def test_composed_identifiers_are_in_the_key_of_what_reads_texts(
    made: Callable[..., StageCall], tmp_path: Path
) -> None:
    path = tmp_path / "texts.tsv"
    path.write_text("item_id\ttitle\tcategory\ncafe\u0301\tblue\tart\n", encoding="utf-8")
    names = ("ingest", "text", "backbone", "clusters", "preferences", "finetune", "knowledge")
    refs = {name: ArtefactRef(name, "k", dict.fromkeys(FILES, name[0] * 64)) for name in names}
    plain, composed = (
        made(pipeline_settings(dataset="sample", assignments=[*SMALL, *more]), path, TextFile(path), refs)
        for more in ([], ["ingest.normalise_ids=true"])
    )
    assert composed.settings == plain.settings | {"normalise_ids": True}
    assert "normalise_ids" not in plain.settings  # a refresh goes on from what was made before there was the setting
    assert dataclasses.replace(composed, settings=plain.settings).key() == plain.key() != composed.key()
