"""What is different between two snapshots: their slots, and what the tables of changed slots say.

Users and items are compared by their owners' identifiers, since the dense indices of two ingests are not the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from p2rec_core.errors import StoreError
from storage.artefacts import Artefact, ArtefactRef, Store
from storage.snapshots import Snapshot

_OWNERS = {"users": "user_id", "items": "item_id"}
_EMBEDDINGS = {
    "item_embeddings": ("source", "embedding"),
    "item_texts": (None, "embedding"),
    "item_knowledge": (None, "knowledge"),
}
"""By table with a vector per item: the column that tells an item's rows apart, if there is one, and the vector."""

_METRIC = ("method", "variant", "split", "seen", "metric", "k")
_COLUMNS: dict[str, tuple[str, ...]] = {
    **{table: (name,) for table, name in _OWNERS.items()},
    **{table: tuple(filter(None, ("item_idx", *names))) for table, names in _EMBEDDINGS.items()},
    "item_clusters": ("item_idx", "cluster"),
    "metrics": (*_METRIC, "value"),
}
"""What is read of the tables that can be compared."""

_BLOCK = 4096
"""Vectors that are compared at a time."""


@dataclass(frozen=True)
class SlotChange:
    """A slot that is not the same.

    Attributes:
        slot: Its name.
        old: Its artefact in the old snapshot; None where the slot was added.
        new: Its artefact in the new snapshot; None where the slot was removed.
    """

    slot: str
    old: ArtefactRef | None
    new: ArtefactRef | None

    @property
    def same_content(self) -> bool:
        """Whether both artefacts hold the same files, computed under another key."""
        return self.old is not None and self.new is not None and self.old.files == self.new.files

    def to_json(self) -> dict[str, Any]:
        """The change as JSON values."""
        old, new = (None if ref is None else f"{ref.stage}/{ref.key}" for ref in (self.old, self.new))
        return {"slot": self.slot, "old": old, "new": new, "same_content": self.same_content}


@dataclass(frozen=True)
class IdChange:
    """Which users or items there are.

    Attributes:
        table: ``users`` or ``items``.
        n_old: How many the old snapshot has.
        n_new: How many the new snapshot has.
        n_added: How many only the new one has.
        n_removed: How many only the old one has.
    """

    table: str
    n_old: int
    n_new: int
    n_added: int
    n_removed: int


@dataclass(frozen=True)
class ClusterChange:
    """How items moved between clusters.

    Attributes:
        slot: The slot of the clusters.
        n_items: Items that both snapshots have clusters for.
        changed: Share of them whose cluster has another number, 0…1.
        split: Share of them that did not go where most of their old cluster went, 0…1; 0 where clusters were only
            numbered anew.
    """

    slot: str
    n_items: int
    changed: float
    split: float


@dataclass(frozen=True)
class EmbeddingChange:
    """How similar the vectors of the same items are.

    Attributes:
        slot: The slot.
        table: The table of the vectors.
        n_items: Vectors that are compared: in both snapshots, and zero in neither.
        n_zero: Vectors in both snapshots that cannot be compared, since one of the two is zero.
        mean_cosine: Mean cosine similarity, -1…1; None where there is nothing to compare.
    """

    slot: str
    table: str
    n_items: int
    n_zero: int
    mean_cosine: float | None


@dataclass(frozen=True)
class MetricChange:
    """A metric side by side.

    Attributes:
        slot: The slot of the evaluation.
        method: The recommender's backbone.
        variant: What was added to it.
        split: Validation or test.
        seen: What was done with items that the user had already.
        metric: Name of the metric.
        k: Cut-off; 0 for a metric without one.
        old: Its value in the old snapshot; None where that has none.
        new: Its value in the new snapshot; None where that has none.
    """

    slot: str
    method: str
    variant: str
    split: str
    seen: str
    metric: str
    k: int
    old: float | None
    new: float | None


@dataclass(frozen=True)
class SnapshotChanges:
    """What is different between two snapshots.

    Attributes:
        old: Number of the old one.
        new: Number of the new one.
        slots: Slots that were added, removed or changed.
        ids: Users and items, where ingest changed.
        clusters: Clusters of changed slots.
        embeddings: Vectors of changed slots.
        metrics: Metrics of changed slots.
        notes: What could not be compared, and why.
    """

    old: int
    new: int
    slots: tuple[SlotChange, ...]
    ids: tuple[IdChange, ...]
    clusters: tuple[ClusterChange, ...]
    embeddings: tuple[EmbeddingChange, ...]
    metrics: tuple[MetricChange, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The changes as JSON values."""
        return asdict(self) | {"slots": [change.to_json() for change in self.slots]}


def snapshot_changes(store: Store, old: Snapshot, new: Snapshot) -> SnapshotChanges:
    """Compare two snapshots.

    The tables of a slot are compared if both snapshots have the slot and its content changed.

    Args:
        store: The store.
        old: The snapshot to compare with.
        new: The snapshot to compare.

    Raises:
        ArtefactMissing: An artefact of a changed slot, or of ingest, is not in the store.
        ArtefactDamaged: Such an artefact is not the one referred to, or one of its tables cannot be read.
        StoreError: DuckDB cannot compare the tables.
    """
    names = list(dict.fromkeys([*old.entries, *new.entries]))
    slots = [SlotChange(slot, old.entries.get(slot), new.entries.get(slot)) for slot in names]
    slots = [change for change in slots if change.old != change.new]
    try:
        with duckdb.connect(":memory:", config={"threads": 2, "python_enable_replacements": False}) as connection:
            comparison = _Comparison(store, old, new, connection)
            for change in slots:
                if change.old is not None and change.new is not None and not change.same_content:
                    comparison.compare(change.slot, store.load(change.old), store.load(change.new))
    except duckdb.Error as error:
        raise StoreError(
            f"Snapshots {old.number} and {new.number} of '{new.dataset}' cannot be compared: {error}.",
            remedy="This is a defect: report it with this message.",
        ) from error
    return SnapshotChanges(
        old.number,
        new.number,
        tuple(slots),
        tuple(comparison.ids),
        tuple(comparison.clusters),
        tuple(comparison.embeddings),
        tuple(comparison.metrics),
        tuple(comparison.notes),
    )


class _Comparison:
    """Compares slot by slot; items are matched once."""

    def __init__(self, store: Store, old: Snapshot, new: Snapshot, connection: duckdb.DuckDBPyConnection) -> None:
        self.ids: list[IdChange] = []
        self.clusters: list[ClusterChange] = []
        self.embeddings: list[EmbeddingChange] = []
        self.metrics: list[MetricChange] = []
        self.notes: list[str] = []
        self._numbers = (old.number, new.number)
        self._connection = connection
        self._matched, self._same_items = self._match_items(store, old, new)

    def compare(self, slot: str, old: Artefact, new: Artefact) -> None:
        """Compare the tables of a changed slot."""
        there = [{name for name, e in a.files.items() if e.kind == "table" and name in _COLUMNS} for a in (old, new)]
        for table in sorted(there[0] | there[1]):
            of_items = table in _EMBEDDINGS or table == "item_clusters"
            if table not in there[0] & there[1]:
                self._note(slot, table, f"only snapshot {self._numbers[table in there[1]]} has it")
            elif old.sha256(table) == new.sha256(table) and (self._same_items or not of_items):
                continue
            elif problem := self._misfit(_COLUMNS[table], old.files[table].columns, new.files[table].columns):
                self._note(slot, table, problem)
            elif of_items and not self._matched:
                self._note(slot, table, "items can only be matched by the table 'items' of both snapshots")
            elif table in _OWNERS:
                self._compare_ids(table, old, new)
            elif table in _EMBEDDINGS:
                self._compare_embeddings(slot, table, old, new)
            elif table == "item_clusters":
                self._compare_clusters(slot, old, new)
            else:
                self._compare_metrics(slot, old, new)

    def _match_items(self, store: Store, old: Snapshot, new: Snapshot) -> tuple[bool, bool]:
        """Make the table ``matches`` of item_idx; whether there is one, and whether the items are the same."""
        owners = [next((ref for ref in s.entries.values() if "items" in ref.files), None) for s in (old, new)]
        if owners[0] is None or owners[1] is None:
            return False, False
        before, after = (store.load(owner) for owner in owners if owner is not None)
        columns = ("item_idx", "item_id")
        if problem := self._misfit(columns, before.files["items"].columns, after.files["items"].columns):
            self.notes.append(f"Items cannot be matched: {problem}.")
            return False, False
        self._ask(
            """
            CREATE TABLE matches AS
            SELECT old.item_idx AS old_idx, new.item_idx AS new_idx FROM old JOIN new USING (item_id)
            """,
            before.table("items", columns),
            after.table("items", columns),
        )
        return True, before.sha256("items") == after.sha256("items")

    def _compare_ids(self, table: str, old: Artefact, new: Artefact) -> None:
        name = _OWNERS[table]
        before, after = old.table(table, [name]), new.table(table, [name])
        [[n_added, n_removed]] = self._ask(
            f"""
            SELECT (SELECT count(*) FROM new ANTI JOIN old USING ({name})),
                   (SELECT count(*) FROM old ANTI JOIN new USING ({name}))
            """,
            before,
            after,
        )
        self.ids.append(IdChange(table, before.num_rows, after.num_rows, n_added, n_removed))

    def _compare_clusters(self, slot: str, old: Artefact, new: Artefact) -> None:
        columns = _COLUMNS["item_clusters"]
        [[n_items, n_same, n_together]] = self._ask(
            """
            WITH moves AS (
                SELECT old.cluster AS source, new.cluster AS target, count(*) AS n
                FROM old JOIN matches ON old.item_idx = old_idx JOIN new ON new.item_idx = new_idx
                GROUP BY ALL
            )
            SELECT coalesce(sum(n), 0)::BIGINT,
                   coalesce(sum(n) FILTER (source = target), 0)::BIGINT,
                   (SELECT coalesce(sum(most), 0)::BIGINT FROM (SELECT max(n) AS most FROM moves GROUP BY source))
            FROM moves
            """,
            old.table("item_clusters", columns),
            new.table("item_clusters", columns),
        )
        if n_items == 0:
            self._note(slot, "item_clusters", "no item has a cluster in both snapshots")
        else:
            self.clusters.append(ClusterChange(slot, n_items, 1 - n_same / n_items, 1 - n_together / n_items))

    def _compare_embeddings(self, slot: str, table: str, old: Artefact, new: Artefact) -> None:
        apart, vector = _EMBEDDINGS[table]
        before, after = (artefact.table(table, _COLUMNS[table]) for artefact in (old, new))
        pairs = self._ask(
            f"""
            SELECT old.row, new.row
            FROM old JOIN matches ON old.item_idx = old_idx
            JOIN new ON new.item_idx = new_idx {f"AND new.{apart} = old.{apart}" if apart else ""}
            ORDER BY ALL
            """,
            _numbered(before.drop_columns([vector])),
            _numbered(after.drop_columns([vector])),
        )
        rows = np.array(pairs, np.int64).reshape(-1, 2)
        left, right = _vectors(before.column(vector)), _vectors(after.column(vector))
        total, n_items = 0.0, 0
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            x, y = left[block[:, 0]].astype(np.float64), right[block[:, 1]].astype(np.float64)
            norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
            usable = norms > 0
            total += float(((x * y).sum(axis=1)[usable] / norms[usable]).sum())
            n_items += int(usable.sum())
        mean = total / n_items if n_items else None
        self.embeddings.append(EmbeddingChange(slot, table, n_items, len(rows) - n_items, mean))
        if not len(rows):
            same = f"item and {apart}" if apart else "item"
            self._note(slot, table, f"the snapshots have no vectors of the same {same}")

    def _compare_metrics(self, slot: str, old: Artefact, new: Artefact) -> None:
        keys = ", ".join(_METRIC)
        rows = self._ask(
            f"""
            SELECT {keys}, old.value, new.value FROM old FULL JOIN new USING ({keys})
            ORDER BY new.row, old.row
            """,
            _numbered(old.table("metrics", _COLUMNS["metrics"])),
            _numbered(new.table("metrics", _COLUMNS["metrics"])),
        )
        self.metrics += [MetricChange(slot, *row) for row in rows]

    def _misfit(self, columns: Iterable[str], old: Mapping[str, str], new: Mapping[str, str]) -> str | None:
        """Why columns cannot be compared: one is missing, or of another type or length."""
        for column in columns:
            for number, there in zip(self._numbers, (old, new), strict=True):
                if column not in there:
                    return f"snapshot {number} has no column '{column}'"
            if old[column] != new[column]:
                before, after = self._numbers
                return f"column '{column}' is {old[column]} in snapshot {before} and {new[column]} in {after}"
        return None

    def _ask(self, sql: str, old: pa.Table, new: pa.Table) -> list[tuple[Any, ...]]:
        """Run a query over two tables, called ``old`` and ``new``."""
        self._connection.register("old", old)
        self._connection.register("new", new)
        try:
            rows: list[tuple[Any, ...]] = self._connection.execute(sql).fetchall()
        finally:
            self._connection.unregister("old")
            self._connection.unregister("new")
        return rows

    def _note(self, slot: str, table: str, problem: str) -> None:
        self.notes.append(f"Table '{table}' of slot {slot} cannot be compared: {problem}.")


def _numbered(table: pa.Table) -> pa.Table:
    """The table with the number of each row, from 0, as a column ``row``."""
    return table.append_column("row", pa.array(np.arange(table.num_rows)))


def _vectors(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """A column of vectors as a matrix, float32 (rows, D)."""
    values = column.combine_chunks()
    matrix: npt.NDArray[np.float32] = values.flatten().to_numpy().reshape(len(values), values.type.list_size)
    return matrix
