"""The pipeline as a graph of slots: what each stage reads, in the order of computation.

The flow runs it, ``p2rec show`` and dry runs walk it without computing, and a rerun of one stage cuts it.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from p2rec_core.errors import DataError
from p2rec_core.settings.pipeline import PipelineSettings
from p2rec_core.settings.sequence_model import KnowledgeSource, Variant
from storage.artefacts import ArtefactRef
from tasks.clusters import clusters_call
from tasks.cost import cost_call
from tasks.e4srec import e4srec_call
from tasks.e4srec_evaluation import e4srec_evaluation_call
from tasks.evaluation import evaluation_call, no_learning_call
from tasks.finetune import finetune_call
from tasks.ingest import ingest_call
from tasks.knowledge import knowledge_call
from tasks.precheck import counted_first
from tasks.preferences import preferences_call
from tasks.probes import probe_call
from tasks.recommender import recommender_call
from tasks.sources import TextFile
from tasks.stage import StageCall
from tasks.text import text_call

Refs = Mapping[str, ArtefactRef]


@dataclass(frozen=True)
class Slot:
    """A place in the pipeline that an artefact fills.

    Attributes:
        name: Unique in the pipeline and in a snapshot, e.g. ``recommender.sasrec.p2rec``.
        title: What a person reads, e.g. ``train SASRec +P2Rec``.
        needs: Slots that it reads.
        call: The computation, given the artefacts of the slots that it needs.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    call: Callable[[Refs], StageCall]

    @property
    def stage(self) -> str:
        """The stage: the first part of the name."""
        return self.name.split(".")[0]


STAGES = (
    "ingest",
    "backbone",
    "clusters",
    "preferences",
    "finetune",
    "knowledge",
    "recommender",
    "evaluation",
)
"""The eight stages in order."""

KNOWLEDGE_SLOTS: dict[KnowledgeSource, str | None] = {
    KnowledgeSource.TUNED: "knowledge",
    KnowledgeSource.UNTUNED: "knowledge.untuned",
    KnowledgeSource.TEXT: "text",
    KnowledgeSource.BACKBONE: "backbone",
    KnowledgeSource.CATEGORIES: "knowledge",
    KnowledgeSource.RANDOM: None,
}
"""The slot that +P2Rec's knowledge comes from."""

NO_LEARNING = "evaluation.no-learning"
"""The slot of the rows that learn nothing."""

E4SREC_EVALUATION = "e4srec.evaluation"

PROBE = "probe"
"""The slot of what a pipeline's knowledge carries by itself."""

VARIANT_TITLES = {Variant.BASE: "Base", Variant.CI: "+CI", Variant.P2REC: "+P2Rec"}


def pipeline_slots(settings: PipelineSettings, source: Path, texts: TextFile | None = None) -> list[Slot]:
    """The slots of a pipeline, each after those that it needs.

    Args:
        settings: Settings of every stage.
        source: The file of interactions.
        texts: The items' texts, where the dataset has some.

    Raises:
        DataError: Texts are asked for that there are not.
    """
    lm, finetune = settings.language_model, settings.finetune
    if texts is None and settings.fusion.source is KnowledgeSource.TEXT and Variant.P2REC in settings.variants:
        raise DataError(
            "fusion.source = text, but the dataset has no item texts.",
            remedy="Import it with `p2rec data import FILE --item-texts FILE`, or choose another fusion.source.",
        )
    beside = _texts_beside(settings, texts)
    slots = [
        Slot("ingest", "import and split", (), lambda refs: ingest_call(source, settings.ingest)),
        Slot(
            "backbone",
            "pre-train the backbone",
            ("ingest",),
            lambda refs: recommender_call(settings.backbone, Variant.BASE, settings.fusion, ingest=refs["ingest"]),
        ),
        Slot(
            "clusters",
            "cluster the items",
            ("backbone",),
            lambda refs: clusters_call(settings.clusters, backbone=refs["backbone"]),
        ),
        Slot(
            "preferences",
            "user preferences",
            ("ingest", "clusters"),
            lambda refs: preferences_call(ingest=refs["ingest"], clusters=refs["clusters"]),
        ),
        Slot(
            "finetune",
            "fine-tune the language model",
            ("ingest", "backbone", "clusters", "preferences", *beside),
            lambda refs: finetune_call(
                lm,
                finetune,
                ingest=refs["ingest"],
                backbone=refs["backbone"],
                clusters=refs["clusters"],
                preferences=refs["preferences"],
                text=refs["text"] if beside else None,
            ),
        ),
        _knowledge_slot(settings, beside, tuned=True),
        _knowledge_slot(settings, beside, tuned=False),
    ]
    if texts is not None:
        slots.insert(
            1,
            Slot(
                "text",
                "embed the items' texts",
                ("ingest",),
                lambda refs: text_call(
                    lm,
                    texts.path,
                    texts.columns,
                    ingest=refs["ingest"],
                    seed=finetune.seed,
                    normalise_ids=settings.ingest.normalise_ids,
                ),
            ),
        )
    for variant in settings.variants:
        slots.extend(_recommender_slots(settings, texts, variant))
    slots.append(
        Slot(
            NO_LEARNING,
            "evaluate the rows that learn nothing",
            ("ingest",),
            lambda refs: no_learning_call(settings.evaluation, ingest=refs["ingest"]),
        )
    )
    # what no evaluation needs is left out, e.g. the language model where only Base is wanted
    kept = upstream(slots, {slot.name for slot in slots if slot.stage == "evaluation"})
    if any(slot.name == "clusters" for slot in kept):
        return [_counted_first(slot, settings) if slot.name == "backbone" else slot for slot in kept]
    return kept


def _counted_first(slot: Slot, settings: PipelineSettings) -> Slot:
    return replace(slot, call=lambda refs: counted_first(slot.call(refs), settings))


def e4srec_slots(settings: PipelineSettings) -> list[Slot]:
    """The instance-level baseline: its training and its evaluation; they need a pipeline's ingest and backbone."""
    lm, e4srec = settings.language_model, settings.e4srec
    return [
        Slot(
            "e4srec",
            "train E4SRec",
            ("ingest", "backbone"),
            lambda refs: e4srec_call(lm, e4srec, ingest=refs["ingest"], backbone=refs["backbone"]),
        ),
        Slot(
            E4SREC_EVALUATION,
            "evaluate E4SRec",
            ("ingest", "backbone", "e4srec"),
            lambda refs: e4srec_evaluation_call(
                settings.evaluation,
                lm,
                e4srec,
                ingest=refs["ingest"],
                backbone=refs["backbone"],
                model=refs["e4srec"],
            ),
        ),
    ]


def cost_slots(settings: PipelineSettings, texts: TextFile | None) -> list[Slot]:
    """The measurement of what the language model costs P2Rec and E4SRec, in one run; P2Rec reads what it trains on."""
    beside = _texts_beside(settings, texts)
    return [
        Slot(
            "cost",
            "measure the language model's cost",
            ("ingest", "backbone", "clusters", "preferences", *beside),
            lambda refs: cost_call(
                settings.language_model,
                settings.finetune,
                settings.e4srec,
                settings.cost,
                ingest=refs["ingest"],
                backbone=refs["backbone"],
                clusters=refs["clusters"],
                preferences=refs["preferences"],
                text=refs["text"] if beside else None,
            ),
        )
    ]


def probe_slots(settings: PipelineSettings, texts: TextFile | None) -> list[Slot]:
    """What the knowledge that +P2Rec is given carries by itself; needs a pipeline's ingest and that knowledge."""
    source, beside = knowledge_slots(settings, texts)
    return [
        Slot(
            PROBE,
            "probe the knowledge",
            ("ingest", *filter(None, (source, beside))),
            lambda refs: probe_call(
                settings.fusion,
                ingest=refs["ingest"],
                knowledge=refs[source] if source else None,
                text=refs[beside] if beside else None,
                seed=settings.recommender.training.seed,
                item_texts=None if texts is None else texts.path,
                normalise_ids=settings.ingest.normalise_ids,
            ),
        )
    ]


def _texts_beside(settings: PipelineSettings, texts: TextFile | None) -> tuple[str, ...]:
    """The slot of the items' texts, where the language model reads them beside the backbone's embeddings."""
    return ("text",) if texts is not None and settings.language_model.item_text else ()


def knowledge_slots(settings: PipelineSettings, texts: TextFile | None) -> tuple[str | None, str | None]:
    """The slots that +P2Rec's knowledge comes from.

    Returns:
        That of ``fusion.source``, None where it is noise; and that of the texts that stand beside it, None where none
        do.
    """
    fusion = settings.fusion
    alone = texts is None or not fusion.item_text or fusion.source in (KnowledgeSource.TEXT, KnowledgeSource.RANDOM)
    return KNOWLEDGE_SLOTS[fusion.source], None if alone else "text"


def _knowledge_slot(settings: PipelineSettings, beside: tuple[str, ...], *, tuned: bool) -> Slot:
    """The items through the language model, fine-tuned or as it came."""
    return Slot(
        "knowledge" if tuned else "knowledge.untuned",
        "embed the items" if tuned else "embed the items without fine-tuning",
        ("backbone", "clusters", *beside, *(("finetune",) if tuned else ())),
        lambda refs: knowledge_call(
            settings.language_model,
            settings.finetune,
            backbone=refs["backbone"],
            clusters=refs["clusters"],
            adapter=refs["finetune"] if tuned else None,
            text=refs["text"] if beside else None,
        ),
    )


def _recommender_slots(settings: PipelineSettings, texts: TextFile | None, variant: Variant) -> list[Slot]:
    backbone = settings.recommender.encoder.backbone
    trained = f"recommender.{backbone}.{variant}"
    clusters = "clusters" if variant is Variant.CI else None
    knowledge, text = knowledge_slots(settings, texts) if variant is Variant.P2REC else (None, None)
    label = f"{backbone} {VARIANT_TITLES[variant]}"
    return [
        Slot(
            trained,
            f"train {label}",
            ("ingest", *filter(None, (clusters, knowledge, text))),
            lambda refs: recommender_call(
                settings.recommender,
                variant,
                settings.fusion,
                ingest=refs["ingest"],
                clusters=refs[clusters] if clusters else None,
                knowledge=refs[knowledge] if knowledge else None,
                text=refs[text] if text else None,
            ),
        ),
        Slot(
            f"evaluation.{backbone}.{variant}",
            f"evaluate {label}",
            ("ingest", trained),
            lambda refs: evaluation_call(
                settings.evaluation,
                settings.recommender,
                variant,
                ingest=refs["ingest"],
                model=refs[trained],
            ),
        ),
    ]


def upstream(slots: list[Slot], chosen: Collection[str]) -> list[Slot]:
    """The chosen slots and all that they need, in order."""
    wanted = set(chosen)
    for slot in reversed(slots):
        if slot.name in wanted:
            wanted.update(slot.needs)
    return [slot for slot in slots if slot.name in wanted]


def downstream(slots: list[Slot], name: str) -> list[str]:
    """Names of the slots that read ``name``, directly or not, in order."""
    reached = {name}
    for slot in slots:
        if reached.intersection(slot.needs):
            reached.add(slot.name)
    return [slot.name for slot in slots if slot.name in reached and slot.name != name]
