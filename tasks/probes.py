"""What the knowledge of a +P2Rec recommender carries by itself, measured before any recommender is trained."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from p2rec_core.settings.sequence_model import FusionSettings, KnowledgeSource, Whitening
from storage.artefacts import ArtefactRef
from tasks.arrays import ragged, targets
from tasks.recommender import knowledge_inputs, prepared_knowledge
from tasks.stage import StageCall, StageContext


def probe_call(
    fusion: FusionSettings,
    *,
    ingest: ArtefactRef,
    knowledge: ArtefactRef | None,
    text: ArtefactRef | None = None,
    seed: int,
    item_texts: Path | None = None,
    normalise_ids: bool = False,
) -> StageCall:
    """The probes of one matrix of knowledge embeddings, as the recommender's item table gets it.

    Test items are not among the inputs.

    Args:
        fusion: Source and preparation of the knowledge; how it enters the item table changes nothing here.
        ingest: Training parts, validation items and the catalogue.
        knowledge: The artefact of ``fusion.source``; None where that is noise.
        text: Embeddings of the items' texts that stand beside it; None where none do.
        seed: Seed of the recommender's training, which noise is drawn from.
        item_texts: The table of items' texts; read only where it has a column of categories.
        normalise_ids: Whether identifiers of that table are brought into composed form, as the catalogue's were.

    Raises:
        DataError: The table of items' texts cannot be read.
    """
    from storage.ingest.item_category import has_categories
    from storage.ingest.source import sha256_of

    inputs = {name: (ingest, name) for name in ("sequences", "validation", "items")}
    inputs |= knowledge_inputs(fusion, knowledge, text)
    drawn = fusion.source is KnowledgeSource.RANDOM
    read = {"source", "whitening"} | ({"n_components"} if drawn or fusion.whitening is Whitening.PCA else set())
    categories = item_texts if item_texts is not None and has_categories(item_texts) else None

    def compute(context: StageContext) -> dict[str, Any]:
        return _probe(context, fusion, seed, categories, normalise_ids)

    settings = fusion.model_dump(mode="json", include=read) | ({"seed": seed} if drawn else {})
    if categories is not None and normalise_ids:
        settings["normalise_ids"] = True
    return StageCall(
        stage="probe",
        module="tasks.probes",
        settings=settings,
        inputs=inputs,
        compute=compute,
        sources={} if categories is None else {"item-texts-file": sha256_of(categories)},
        files={} if categories is None else {"item-texts-file": categories},
    )


def _probe(
    context: StageContext, fusion: FusionSettings, seed: int, categories: Path | None, normalise_ids: bool
) -> dict[str, Any]:
    from threadpoolctl import threadpool_limits

    from p2rec_core.probes import category_probe, copurchase_probe, next_item_probe
    from storage.ingest.item_category import read_item_categories

    items = context.table("items", ["item_id"])
    sequences = ragged(context.table("sequences"))
    validation = targets(context.table("validation"), len(sequences))
    known = None
    if categories is not None:
        item_ids = items.column("item_id").to_pylist()
        known = read_item_categories(categories, item_ids, normalise_ids=normalise_ids)
    with threadpool_limits(limits=context.runtime.threads):
        vectors = prepared_knowledge(context, fusion, items.num_rows, seed).vectors
        measures = [
            *next_item_probe(vectors, sequences, validation, progress=context.progress),
            copurchase_probe(vectors, sequences, progress=context.progress),
            category_probe(vectors, known, progress=context.progress),
        ]
    rows = [asdict(measure) for measure in measures]
    kinds = [pa.string()] * 3 + [pa.float64()] * 2 + [pa.int64()]
    schema = pa.schema(list(zip(rows[0], kinds, strict=True)))
    context.writer.table("probes", pa.Table.from_pylist(rows, schema=schema))
    return {
        "source": f"{fusion.source} beside text" if "texts" in context.inputs else str(fusion.source),
        "n_items": len(vectors),
        "width": int(vectors.shape[1]),
        "metrics": [row for row in rows if row["group"] == "all"],
    }
