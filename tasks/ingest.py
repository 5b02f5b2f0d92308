"""Stage 1: raw interactions → numbered sequences, split leave-one-out."""

from pathlib import Path
from typing import Any

from p2rec_core.settings.data import IngestSettings
from tasks.stage import StageCall, StageContext

_TABLES = ("interactions", "sequences", "validation", "test", "items", "users", "rejects")


def ingest_call(source: Path, settings: IngestSettings) -> StageCall:
    """The import of a file of interactions.

    Args:
        source: The file; its content enters the key, its path does not.
        settings: Format, columns, k-core, seed.

    Raises:
        DataError: The file cannot be read.
    """
    from storage.ingest.source import sha256_of

    chosen = settings.model_dump(mode="json")

    def compute(context: StageContext) -> dict[str, Any]:
        from storage.ingest.pipeline import ingest

        context.progress(0, 1, f"reading {source.name}")
        result = ingest(source, **chosen)
        for name in _TABLES:
            context.writer.table(name, getattr(result, name))
        return {"counts": result.counts, "notices": result.notices}

    return StageCall(
        stage="ingest",
        module="tasks.ingest",
        settings=chosen,
        inputs={},
        compute=compute,
        sources={"interactions-file": sha256_of(source)},
        files={"interactions-file": source},
    )
