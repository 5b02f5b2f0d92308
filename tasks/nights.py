"""A dataset cut into nights, as the content of Parquet files."""

import io

import pyarrow.parquet as pq

from p2rec_core.settings.data import IngestSettings
from storage.artefacts import Store
from storage.ingest.nights import nights
from storage.ingest.pipeline import ingest
from tasks.sources import find_source


def cut_into_nights(
    dataset: str,
    store: Store,
    n_nights: int,
    *,
    per_user: int,
    share: float | None,
    late_users: float,
    late_items: float,
    seed: int,
) -> list[bytes]:
    """The files of a beginning and of every night after it, each with all rows up to its night.

    Args:
        dataset: Name of a known or imported dataset.
        store: Where imports are registered.
        n_nights: Nights after the beginning.
        per_user: Interactions of a user in a night.
        share: Part of all interactions that comes in a night, 0…1; None goes by ``per_user``.
        late_users: Part of the users who come late, 0…1.
        late_items: Part of the items that come late, 0…1.
        seed: Of who comes late, and when.

    Raises:
        DataError: There is no such dataset, or it cannot be cut so.
    """
    source = find_source(dataset, store)
    settings = source.ingest_settings(IngestSettings())
    tables = nights(
        ingest(source.path, **settings.model_dump(mode="json")),
        n_nights,
        per_user=per_user,
        share=share,
        late_users=late_users,
        late_items=late_items,
        min_rows=settings.min_user_interactions,
        seed=seed,
    )
    contents = []
    for table in tables:
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        contents.append(buffer.getvalue())
    return contents
