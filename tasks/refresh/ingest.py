"""Stage 1 of a refresh: today's interactions in the current snapshot's numbers."""

from pathlib import Path
from typing import Any

from p2rec_core.settings.data import IngestSettings
from storage.artefacts import ArtefactRef
from tasks.ingest import ingest_values
from tasks.stage import StageCall, StageContext


def continued_ingest_call(source: Path, settings: IngestSettings, *, previous: ArtefactRef) -> StageCall:
    """The import of today's interactions; known users and items keep their indices, new ones are appended.

    Args:
        source: The file; its content enters the key, its path does not.
        settings: Format, columns, k-core, seed.
        previous: The current snapshot's import, whose numbering is continued.

    Raises:
        DataError: The file cannot be read.
    """
    from storage.ingest.source import sha256_of

    chosen = ingest_values(settings)

    def compute(context: StageContext) -> dict[str, Any]:
        from storage.ingest.pipeline import TABLES, ingest
        from storage.ingest.renumber import continued

        context.progress(0, 1, f"reading {source.name}")
        result = continued(
            ingest(source, **chosen, memory_limit=context.runtime.ingest_memory),
            user_ids=context.table("previous_users", ["user_id"]).column("user_id"),
            item_ids=context.table("previous_items", ["item_id"]).column("item_id"),
        )
        for name in TABLES:
            context.writer.table(name, getattr(result, name))
        return {"counts": result.counts, "notices": result.notices}

    return StageCall(
        stage="ingest",
        module="tasks.refresh.ingest",
        settings=chosen,
        inputs={"previous_users": (previous, "users"), "previous_items": (previous, "items")},
        compute=compute,
        sources={"interactions-file": sha256_of(source)},
        files={"interactions-file": source},
    )
