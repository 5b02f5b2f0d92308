"""A refresh as a graph of slots: the pipeline's, each going on from the current snapshot's artefact.

It has two parts, since whether the language model is tuned anew is decided by what the first part finds.
"""

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path

from p2rec_core.errors import SettingsError
from p2rec_core.settings.pipeline import PipelineSettings
from p2rec_core.settings.sequence_model import Variant
from storage.artefacts import ArtefactRef, Store
from storage.snapshots import Snapshot
from tasks.dag import Refs, Slot, knowledge_slots, pipeline_slots
from tasks.other_settings import other_settings
from tasks.refresh.changes import changes_call
from tasks.refresh.clusters import continued_clusters_call
from tasks.refresh.comparison import comparison_call
from tasks.refresh.ingest import continued_ingest_call
from tasks.refresh.knowledge import renewed_knowledge_call
from tasks.refresh.recommender import continued_recommender_call
from tasks.refresh.text import renewed_text_call
from tasks.sources import TextFile
from tasks.stage import StageCall

CHANGES = "changes"
"""The slot of what is different from the current snapshot."""

_FIRST = ("ingest", "text", "backbone", "clusters", "preferences", CHANGES)
_NEEDED = ("ingest", "backbone", "clusters", "preferences", "finetune", "knowledge")


@dataclasses.dataclass(frozen=True)
class RefreshPlan:
    """The slots of a refresh.

    Attributes:
        first: From the import to the changes; no slot of these depends on the decision about the fine-tuning.
        tuned: The rest, where the language model is tuned anew.
        untuned: The rest, where the current adapter is used again.
    """

    first: list[Slot]
    tuned: list[Slot]
    untuned: list[Slot]


def comparison_slot(settings: PipelineSettings, variant: Variant) -> str:
    """Name of the slot that compares a variant with the current one."""
    return f"comparison.{settings.recommender.encoder.backbone}.{variant}"


def refresh_plan(settings: PipelineSettings, source: Path, texts: TextFile | None, current: Refs) -> RefreshPlan:
    """The slots of a refresh, each after those that it needs.

    Args:
        settings: Settings of every stage, as the current snapshot was made with (``check_continues``).
        source: The file of interactions.
        texts: The items' texts, where the dataset has some.
        current: The artefacts of the current snapshot by slot.

    Raises:
        SettingsError: The pipeline has no fine-tuned language model, so that there is nothing for a refresh to keep.
    """
    ordinary = {slot.name: slot for slot in pipeline_slots(settings, source, texts)}
    missing = [name for name in _NEEDED if name not in ordinary]
    if missing:
        raise SettingsError(
            f"A refresh goes on from all of the method's stages; these settings leave out {', '.join(missing)}.",
            remedy="Keep p2rec among variants, with fusion.source = tuned, or use `p2rec run`.",
        )
    going_on = {name: _going_on(settings, source, texts, slot, current) for name, slot in ordinary.items()}
    slots: list[Slot] = []
    for name, slot in going_on.items():
        slots.append(slot)
        if name == "preferences":
            slots.append(_changes_slot(current))
        elif slot.stage == "recommender":
            slots.append(_comparison_slot(settings, name, current))
    first = [slot for slot in slots if slot.name in _FIRST]
    rest = [slot for slot in slots if slot.name not in _FIRST]
    replaced = {name: ordinary[name] for name in ("finetune", "knowledge")}
    return RefreshPlan(
        first,
        tuned=[replaced.get(slot.name, slot) for slot in rest],
        untuned=[slot for slot in rest if slot.name != "finetune"],
    )


def _going_on(settings: PipelineSettings, source: Path, texts: TextFile | None, slot: Slot, current: Refs) -> Slot:
    """The slot that computes the same from the current snapshot's artefact; what is computed anew stays as it is."""
    lm, finetune, refresh = settings.language_model, settings.finetune, settings.refresh

    def ingest(refs: Refs) -> StageCall:
        return continued_ingest_call(source, settings.ingest, previous=current["ingest"])

    def text(refs: Refs) -> StageCall:
        assert texts is not None
        return renewed_text_call(
            lm,
            texts.path,
            texts.columns,
            ingest=refs["ingest"],
            previous=current["text"],
            seed=finetune.seed,
            normalise_ids=settings.ingest.normalise_ids,
        )

    def backbone(refs: Refs) -> StageCall:
        return continued_recommender_call(
            settings.backbone,
            Variant.BASE,
            settings.fusion,
            refresh,
            ingest=refs["ingest"],
            previous=current["backbone"],
        )

    def clusters(refs: Refs) -> StageCall:
        return continued_clusters_call(settings.clusters, backbone=refs["backbone"], previous=current["clusters"])

    def knowledge(refs: Refs) -> StageCall:
        beside = "text" in slot.needs
        return renewed_knowledge_call(
            lm,
            finetune,
            refresh.knowledge_tolerance,
            backbone=refs["backbone"],
            clusters=refs["clusters"],
            adapter=refs["finetune"],
            previous=current["knowledge"],
            previous_backbone=current["backbone"],
            text=refs["text"] if beside else None,
            previous_text=current["text"] if beside else None,
        )

    def recommender(refs: Refs) -> StageCall:
        variant = Variant(slot.name.split(".")[-1])
        origin, beside = knowledge_slots(settings, texts) if variant is Variant.P2REC else (None, None)
        return continued_recommender_call(
            settings.recommender,
            variant,
            settings.fusion,
            refresh,
            ingest=refs["ingest"],
            previous=current[slot.name],
            clusters=refs.get("clusters"),
            knowledge=refs[origin] if origin else None,
            previous_knowledge=current[origin] if origin else None,
            text=refs[beside] if beside else None,
            previous_text=current[beside] if beside else None,
        )

    known = {
        "ingest": ingest,
        "text": text,
        "backbone": backbone,
        "clusters": clusters,
        "knowledge": knowledge,
        "recommender": recommender,
    }
    call = known.get(slot.name, known.get(slot.stage) if slot.stage == "recommender" else None)
    return slot if call is None else dataclasses.replace(slot, call=call)


def _changes_slot(current: Refs) -> Slot:
    return Slot(
        CHANGES,
        "compare with the current snapshot",
        ("ingest", "clusters", "preferences"),
        lambda refs: changes_call(
            ingest=refs["ingest"],
            clusters=refs["clusters"],
            preferences=refs["preferences"],
            previous_ingest=current["ingest"],
            previous_clusters=current["clusters"],
            previous_preferences=current["preferences"],
        ),
    )


def _comparison_slot(settings: PipelineSettings, recommender: str, current: Refs) -> Slot:
    variant = Variant(recommender.split(".")[-1])
    return Slot(
        comparison_slot(settings, variant),
        f"compare {recommender.removeprefix('recommender.')} with the current one",
        ("ingest", recommender),
        lambda refs: comparison_call(
            settings.recommender,
            settings.refresh,
            ingest=refs["ingest"],
            model=refs[recommender],
            previous=current[recommender],
        ),
    )


def check_continues(
    settings: PipelineSettings, source: Path, texts: TextFile | None, snapshot: Snapshot, store: Store
) -> None:
    """Make sure that the current snapshot was made with the present settings.

    Raises:
        SettingsError: A slot is missing in it, or was computed with other settings or another language model.
        ArtefactMissing: An artefact of it is not in the store.
        ArtefactDamaged: An artefact of it is not the one that is meant.
    """
    problems = []
    slots = pipeline_slots(settings, source, texts)
    for slot in slots:
        if slot.stage == "evaluation":
            continue
        ref = snapshot.entries.get(slot.name)
        if ref is None or any(need not in snapshot.entries for need in slot.needs):
            problems.append(f"it has no {slot.name}")
            continue
        if slot.stage in ("finetune", "knowledge"):
            before = store.load(ref).manifest.inputs["language-model"].sha256
            now = slot.call(snapshot.entries).sources["language-model"]
            problems += [f"another language model than {settings.language_model.name_or_path}"] if before != now else []
    others = other_settings(slots, snapshot, store)
    problems += [str(other) for other in others]
    if problems:
        again = " ".join(f"--set {shlex.quote(other.assignment())}" for other in others)
        raise SettingsError(
            f"Snapshot {snapshot.number} of '{snapshot.dataset}' was made with other settings than these: "
            f"{'; '.join(dict.fromkeys(problems))}.",
            remedy=f"Give those that it was made with, by the --config of its run, which `p2rec settings -d "
            f"{snapshot.dataset} --snapshot {snapshot.number} --toml` prints{f', or by {again}' if again else ''}; "
            "or compute a new snapshot with `p2rec run` and these.",
        )


def nothing_new(source: Path, texts: TextFile | None, current: Mapping[str, ArtefactRef], store: Store) -> bool:
    """Whether the current snapshot was made from exactly these files.

    Raises:
        DataError: A file cannot be read.
        ArtefactMissing: An artefact is not in the store.
        ArtefactDamaged: An artefact is not the one that is meant.
    """
    from storage.ingest.source import sha256_of

    files = [("ingest", "interactions-file", source)]
    if texts is not None and "text" in current:
        files.append(("text", "item-texts-file", texts.path))
    return all(store.load(current[slot]).manifest.inputs[name].sha256 == sha256_of(path) for slot, name, path in files)
