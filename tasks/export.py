"""What other programs take from a snapshot: embeddings with the owner's identifiers, neighbours, a model to load."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from p2rec_core.errors import ArtefactDamaged, DataError, ExtraMissing, SettingsError
from p2rec_core.progress import Progress, silent
from storage.artefacts import Store
from storage.manifest import REBUILD
from storage.snapshots import Snapshot
from tasks.arrays import vector_array, vectors
from tasks.outputs import write_directory, write_table
from tasks.recommendation import PublishedRecommender, verified_artefact

VECTORS = {"item_embeddings": "embedding", "item_knowledge": "knowledge", "item_texts": "embedding"}
"""Tables with a vector per item, and the column of it."""

NEIGHBOURS = pa.schema(
    [("item_id", pa.string()), ("rank", pa.int32()), ("neighbour_id", pa.string()), ("similarity", pa.float32())]
)
"""Columns of neighbours; ``rank`` is from 1, ``similarity`` is the cosine."""

EMBEDDINGS, IDS = "embeddings.npy", "ids.txt"
"""Files of embeddings as a NumPy array: float32 (N, d), and the owner's identifiers, one a line in the same order."""

INDEX = "index.faiss"
"""File of embeddings as an index that ``faiss.read_index`` reads."""

_BLOCK = 4096


@dataclass(frozen=True)
class ItemVectors:
    """A vector per item.

    Attributes:
        item_ids: The owner's identifiers; that of item i + 1 at place i.
        vectors: float32 (N, d), row i is item i + 1.
        facts: Where they come from, JSON values.
    """

    item_ids: pa.Array
    vectors: NDArray[np.float32]
    facts: dict[str, Any]


def item_vectors(store: Store, snapshot: Snapshot, slot: str) -> ItemVectors:
    """The vectors of a slot.

    Args:
        store: The store.
        snapshot: The snapshot.
        slot: ``knowledge``, ``backbone``, a recommender's or any other with embeddings of items.

    Raises:
        SettingsError: There is no such slot, or it has no embeddings.
        ArtefactMissing: An artefact or a file of one is gone.
        ArtefactDamaged: An artefact is not what its manifest says.
    """
    artefact = verified_artefact(store, snapshot, slot)
    table = next((name for name in VECTORS if name in artefact.files), None)
    if table is None:
        having = [s for s, ref in snapshot.entries.items() if not ref.files.keys().isdisjoint(VECTORS)]
        raise SettingsError(
            f"Slot {slot!r} holds no embeddings of items.", remedy=f"Choose one of: {', '.join(having) or 'none'}."
        )
    rows = artefact.table(table, ["item_idx", VECTORS[table]])
    item_idx = rows.column("item_idx").to_numpy()
    order = np.argsort(item_idx)
    items = verified_artefact(store, snapshot, "ingest").table("items", ["item_id"])
    if not np.array_equal(item_idx[order], np.arange(1, items.num_rows + 1)):
        raise ArtefactDamaged(
            f"The {len(item_idx)} vectors in slot {slot!r} are not those of the snapshot's {items.num_rows} items.",
            remedy=REBUILD,
        )
    facts = {
        "dataset": snapshot.dataset,
        "snapshot": snapshot.number,
        "slot": slot,
        "artefact": f"{artefact.stage}/{artefact.key}",
        "column": f"{table}.{VECTORS[table]}",
        "sha256": artefact.sha256(table),
    }
    return ItemVectors(items.column("item_id").combine_chunks(), vectors(rows, VECTORS[table])[order], facts)


def item_place(found: ItemVectors, item_id: str) -> int:
    """The row of an item with a direction.

    Raises:
        DataError: The dataset has no such item, or its vector is zero.
    """
    place = int(pc.index(found.item_ids, item_id).as_py())
    if place < 0:
        raise DataError(
            f"There is no item {item_id!r:.80} in {found.facts['dataset']!r}.",
            remedy=f'List items with `p2rec query "SELECT item_id FROM items" -d {found.facts["dataset"]}`.',
        )
    if not found.vectors[place].any():
        raise DataError(
            f"The vector of item {item_id!r:.80} in slot {found.facts['slot']!r} is zero, so nothing is near it.",
            remedy="Choose another slot.",
        )
    return place


def neighbours(
    found: ItemVectors, n: int, *, rows: NDArray[np.int64] | None = None, progress: Progress = silent
) -> Iterator[pa.Table]:
    """The items that are most similar to items by the cosine of their vectors.

    Args:
        found: The vectors.
        n: Neighbours per item.
        rows: int64 (B,) rows of the vectors; None takes all.
        progress: Told after every block of items.

    Yields:
        Tables of ``NEIGHBOURS``, the most similar first. An item whose vector is zero has none.

    Raises:
        SettingsError: ``n`` is below 1.
    """
    from p2rec_core.recommendation import nearest_items

    chosen = np.arange(len(found.vectors)) if rows is None else rows
    for start in range(0, len(chosen), _BLOCK):
        these = chosen[start : start + _BLOCK]
        items, cosine = nearest_items(found.vectors, these, n)
        row, place = np.nonzero(items)
        yield pa.Table.from_arrays(
            [
                found.item_ids.take(pa.array(these[row])),
                pa.array((place + 1).astype(np.int32)),
                found.item_ids.take(pa.array(items[row, place] - 1)),
                pa.array(cosine[row, place]),
            ],
            schema=NEIGHBOURS,
        )
        done = start + len(these)
        progress(done, len(chosen), f"{done} of {len(chosen)} items")


def export_parquet(found: ItemVectors, path: Path) -> int:
    """Write embeddings as a Parquet file with the columns ``item_id`` and ``embedding``.

    Returns:
        How many there are.

    Raises:
        OutputNotWritten: The file cannot be written.
    """
    width = found.vectors.shape[1]
    schema = pa.schema([("item_id", pa.string()), ("embedding", pa.list_(pa.float32(), width))])
    blocks = (slice(start, start + _BLOCK) for start in range(0, len(found.vectors), _BLOCK))
    parts = (
        pa.Table.from_arrays([found.item_ids[block], vector_array(found.vectors[block])], schema=schema)
        for block in blocks
    )
    return write_table(path, schema, parts, found.facts)


def export_npy(found: ItemVectors, directory: Path) -> int:
    """Write embeddings as a directory of ``EMBEDDINGS`` and ``IDS``.

    Returns:
        How many there are.

    Raises:
        OutputNotWritten: The directory is there already or cannot be written.
    """
    array = io.BytesIO()
    np.save(array, found.vectors, allow_pickle=False)
    write_directory(directory, {EMBEDDINGS: array.getvalue(), IDS: _id_lines(found)})
    return len(found.vectors)


def export_faiss(found: ItemVectors, directory: Path) -> int:
    """Write embeddings as a directory of ``INDEX`` and ``IDS``.

    The index is exact and by inner product over vectors of unit length, so that what it gives are cosines; number i of
    it is line i of the identifiers, from 0.

    Returns:
        How many there are.

    Raises:
        ExtraMissing: faiss is not installed.
        OutputNotWritten: The directory is there already or cannot be written.
    """
    try:
        import faiss
    except ImportError as error:
        raise ExtraMissing("faiss is not installed.", remedy="Install it: pip install faiss-cpu.") from error
    directions = np.array(found.vectors, np.float32)
    faiss.normalize_L2(directions)
    index = faiss.IndexFlatIP(directions.shape[1])
    index.add(directions)
    write_directory(directory, {INDEX: faiss.serialize_index(index).tobytes(), IDS: _id_lines(found)})
    return len(found.vectors)


def _id_lines(found: ItemVectors) -> bytes:
    return "".join(f"{item_id}\n" for item_id in found.item_ids.to_pylist()).encode()


def export_model(published: PublishedRecommender, directory: Path) -> int:
    """Write a recommender as a directory that ``p2rec_core.inference.Recommender`` loads.

    Returns:
        How many items it knows.

    Raises:
        OutputNotWritten: The directory is there already or cannot be written.
    """
    from p2rec_core.inference import recommender_files

    files = recommender_files(
        published.model.tensors("model"),
        published.item_ids.to_pylist(),
        published.item_counts,
        published.encoder(),
        repeat_bias=published.bias(),
        source=published.facts(),
    )
    write_directory(directory, files)
    return len(published.item_ids)
