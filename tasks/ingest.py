"""Stage 1: raw interactions → numbered sequences, split leave-one-out."""

import contextlib
from pathlib import Path
from typing import Any

from p2rec_core.settings.data import IngestSettings
from tasks.stage import StageCall, StageContext


def ingest_values(settings: IngestSettings) -> dict[str, Any]:
    """The settings as an import takes them and its key has them.

    A header is left out where there is one: what was imported before there was that setting has one.
    """
    return settings.model_dump(mode="json", exclude={"header"} if settings.header else None)


def ingest_call(source: Path, settings: IngestSettings) -> StageCall:
    """The import of a file of interactions.

    Args:
        source: The file; its content enters the key, its path does not.
        settings: Format, columns, k-core, seed.

    Raises:
        DataError: The file cannot be read.
    """
    from storage.ingest.source import sha256_of

    chosen = ingest_values(settings)

    def compute(context: StageContext) -> dict[str, Any]:
        from storage.ingest.pipeline import TABLES, ingest_by_parts

        context.progress(0, 1, f"reading {source.name}")
        with contextlib.ExitStack() as files:
            append = {name: files.enter_context(context.writer.table_by_parts(name)) for name in TABLES}
            facts = ingest_by_parts(
                source, lambda name, part: append[name](part), **chosen, memory_limit=context.runtime.ingest_memory
            )
        return {"counts": facts.counts, "notices": facts.notices}

    return StageCall(
        stage="ingest",
        module="tasks.ingest",
        settings=chosen,
        inputs={},
        compute=compute,
        sources={"interactions-file": sha256_of(source)},
        files={"interactions-file": source},
    )
