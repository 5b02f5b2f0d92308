"""Asking a snapshot in SQL: a view per table, and nothing else within reach."""

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from p2rec_core.errors import ArtefactDamaged, QueryError, ResourceError, SettingsError, StoreError
from storage.artefacts import Artefact, Store
from storage.ingest.engine import MEMORY_SIZE
from storage.manifest import REBUILD
from storage.snapshots import Snapshot
from storage.spill import spill_folder

_OWNERS = {"users": ("user_idx", "user_id"), "items": ("item_idx", "item_id")}


class _Source(NamedTuple):
    slot: str
    path: str
    schema: pa.Schema
    artefact: Artefact


class Catalogue:
    """A read-only connection to the tables of one snapshot.

    Every table is a view of its name. A table with ``user_idx`` or ``item_idx`` also has the owner's
    ``user_id`` or ``item_id``, in front. A table that several slots hold is their union, with a column
    ``slot``. Vectors are FLOAT[n] arrays, as ``array_cosine_similarity`` wants them; where the slots' lengths
    differ they are lists. DuckDB trusts a file that it reads, so the sha256 of every table is compared when the
    snapshot is opened, and before a query again for files that have changed.

    Args:
        store: The store.
        snapshot: What to look at.
        memory_limit: Most memory that a query may use before it spills to a temporary directory of its own, which is
            removed when the connection is closed; such as ``4GB``.
        threads: Most threads.

    Raises:
        ArtefactMissing: An artefact of the snapshot is not in the store.
        ArtefactDamaged: An artefact is not the one that the snapshot means, or a table is damaged.
        SettingsError: ``memory_limit`` is no number with a unit.
        ResourceError: ``memory_limit`` is too little to open the snapshot.
        StoreError: The store's path cannot be queried, or there is no place for temporary files.
    """

    def __init__(self, store: Store, snapshot: Snapshot, *, memory_limit: str = "2GB", threads: int = 2) -> None:
        if not MEMORY_SIZE.fullmatch(memory_limit):
            raise SettingsError(f"{memory_limit!r} is no size of memory.", remedy="Write a number with a unit: 4GB.")
        self._memory_limit = memory_limit
        sources = _sources(store, snapshot)
        self._sources = [(table, source.artefact) for table, parts in sources.items() for source in parts]
        self._views: dict[str, dict[str, str]] = {}
        self._spilled = contextlib.ExitStack()
        try:
            self._open(sources, snapshot, threads, self._spilled.enter_context(spill_folder()))
            self._views = {table: self._columns(table) for table in sorted(sources)}
        except BaseException:
            self._spilled.close()
            raise

    def _open(self, sources: dict[str, list[_Source]], snapshot: Snapshot, threads: int, spilled: Path) -> None:
        """Connect, make the views, and lock the door behind them."""
        try:
            self._connection = duckdb.connect(
                ":memory:",
                config={
                    "memory_limit": self._memory_limit,
                    "threads": threads,
                    "temp_directory": str(spilled),
                    "autoinstall_known_extensions": False,
                    "autoload_known_extensions": False,
                    "python_enable_replacements": False,
                },
            )
            for table in sorted(sources):
                self._connection.execute(f"CREATE VIEW {_name(table)} AS {_view(table, sources)}")
            paths = sorted({source.path for table in sources.values() for source in table})
            self._connection.execute(f"SET allowed_paths = [{', '.join(map(_text, paths))}]")
            self._connection.execute("SET enable_external_access = false")
            self._connection.execute("SET lock_configuration = true")
        except duckdb.OutOfMemoryException as error:
            raise self._out_of_memory(error) from error
        except duckdb.Error as error:
            self._verify()
            raise StoreError(
                f"Snapshot {snapshot.number} of '{snapshot.dataset}' cannot be opened: {error}.",
                remedy=REBUILD,
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and remove what it spilled; safe to call again."""
        self._connection.close()
        self._spilled.close()

    def views(self) -> list[tuple[str, dict[str, str]]]:
        """The views, sorted, each with its columns in order and their DuckDB types."""
        return [(view, dict(columns)) for view, columns in self._views.items()]

    def query(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None) -> pa.Table:
        """Run one SELECT.

        Args:
            sql: A single statement that only reads: SELECT, WITH, FROM, VALUES, DESCRIBE, SHOW, SUMMARIZE.
            parameters: Values for ``?`` as a list, or for ``$name`` as a dict.

        Returns:
            The rows. Of columns of one name the second is called ``name_1``, or the next number that is free.

        Raises:
            QueryError: It is another statement, more than one, or DuckDB refuses it.
            ResourceError: There is not enough memory, or not enough room to spill.
            ArtefactDamaged: A table of the snapshot is damaged.
            ArtefactMissing: A table of the snapshot is gone.
        """
        self._verify()
        try:
            self._select(sql)
            bound = dict(parameters) if isinstance(parameters, Mapping) else list(parameters or ())
            table = self._connection.sql(sql, params=bound or None).to_arrow_table()
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:  # the latter where a disk is full
            self._verify()
            raise self._out_of_memory(error) from error
        except duckdb.Error as error:
            self._verify()  # garbage collection may have taken a table meanwhile
            raise self._refused(error) from error
        return table.rename_columns(_distinct(table.column_names))

    def named_parameters(self, sql: str) -> list[str]:
        """Names of the parameters of one SELECT, sorted; none where they go by position.

        Raises:
            QueryError: It is another statement, more than one, or none that DuckDB can read.
        """
        try:
            return sorted(name for name in self._select(sql).named_parameters if not name.isdecimal())
        except duckdb.Error as error:
            raise self._refused(error) from error

    def _select(self, sql: str) -> duckdb.Statement:
        statements = self._connection.extract_statements(sql)
        kinds = [statement.type.name for statement in statements]
        if kinds != ["SELECT"]:
            raise QueryError(
                f"Only one SELECT statement can be run here, not {' and '.join(kinds) or 'nothing'}.",
                remedy="The catalogue is read-only: send one SELECT at a time.",
            )
        return statements[0]

    def _refused(self, error: duckdb.Error) -> QueryError:
        return QueryError(
            f"DuckDB refuses the query: {error}.",
            remedy=f"Views: {', '.join(self._views) or 'none'}; `DESCRIBE <view>` lists columns.",
        )

    def _out_of_memory(self, error: duckdb.Error) -> ResourceError:
        return ResourceError(
            f"{self._memory_limit} of memory is not enough: {str(error).splitlines()[0].rstrip('.')}.",
            remedy="Ask for fewer rows or columns, or allow more memory with --memory, e.g. --memory 8GB; what does "
            f"not fit is spilled to {tempfile.gettempdir()}, which needs room.",
        )

    def nearest_items(self, item_id: str, n: int = 10, *, slot: str | None = None) -> pa.Table:
        """The items whose embeddings are most similar to that of an item.

        Args:
            item_id: The owner's identifier.
            n: How many.
            slot: Which slot's embeddings; needed if several hold some.

        Returns:
            item_id, item_idx, similarity (cosine, -1…1), the most similar first.

        Raises:
            StoreError: There are no embeddings, the item has none, or ``slot`` is needed.
        """
        source = self._one_slot("item_embeddings", slot)
        known = self.query(f"SELECT 1 FROM {source} WHERE item_id = $item_id", {"item_id": item_id})
        if not known.num_rows:
            raise _unknown("item", item_id, "items")
        return self.query(
            f"""
            WITH embeddings AS (
                SELECT item_id, item_idx, source, embedding::FLOAT[] AS embedding FROM {source}
            )
            SELECT other.item_id, other.item_idx,
                   list_cosine_similarity(other.embedding, this.embedding) AS similarity
            FROM embeddings AS other JOIN embeddings AS this USING (source)
            WHERE this.item_id = $item_id AND other.item_idx <> this.item_idx
            ORDER BY similarity DESC, other.item_idx
            LIMIT $n
            """,
            {"item_id": item_id, "n": n},
        )

    def user_preference(self, user_id: str, *, slot: str | None = None) -> pa.Table:
        """A user's distribution over clusters.

        Args:
            user_id: The owner's identifier.
            slot: Which slot's preferences; needed if several hold some.

        Returns:
            cluster (0…K-1), preference, the strongest first.

        Raises:
            StoreError: There are no preferences, the user has none, or ``slot`` is needed.
        """
        source = self._one_slot("user_preferences", slot)
        found = self.query(
            f"""
            SELECT (generate_subscripts(preference::FLOAT[], 1) - 1)::INTEGER AS cluster,
                   unnest(preference::FLOAT[]) AS preference
            FROM {source} WHERE user_id = $user_id
            ORDER BY 2 DESC, 1
            """,
            {"user_id": user_id},
        )
        if not found.num_rows:
            raise _unknown("user", user_id, "users")
        return found

    def cluster_members(self, cluster: int, n: int = 10, *, slot: str | None = None) -> pa.Table:
        """The items of a cluster.

        Args:
            cluster: The cluster, 0…K-1.
            n: How many.
            slot: Which slot's clusters; needed if several hold some.

        Returns:
            item_id, item_idx, distance (Euclidean, to the centroid), the nearest first; empty for a cluster
            without items.

        Raises:
            StoreError: There are no clusters, or ``slot`` is needed.
        """
        source = self._one_slot("item_clusters", slot)
        return self.query(
            f"""
            SELECT item_id, item_idx, distance FROM {source} WHERE cluster = $cluster
            ORDER BY distance, item_idx LIMIT $n
            """,
            {"cluster": cluster, "n": n},
        )

    def _verify(self) -> None:
        """Compare every table with its manifest."""
        for table, artefact in self._sources:
            artefact.whole_file(table)

    def _columns(self, view: str) -> dict[str, str]:
        described = self.query(f"DESCRIBE {_name(view)}").select(["column_name", "column_type"]).to_pylist()
        return {column["column_name"]: column["column_type"] for column in described}

    def _one_slot(self, view: str, slot: str | None) -> str:
        """SQL for the rows of a view that come from one slot."""
        if view not in self._views:
            raise StoreError(
                f"The snapshot has no table '{view}'.", remedy=f"It has: {', '.join(self._views) or 'none'}."
            )
        if "slot" not in self._views[view]:
            return _name(view)
        slots = self.query(f"SELECT DISTINCT slot FROM {_name(view)} ORDER BY slot").column("slot").to_pylist()
        if slot is None or slot not in slots:
            found = "needs a slot" if slot is None else f"has no slot '{slot}'"
            raise StoreError(f"Table '{view}' {found}.", remedy=f"Pass one of: {', '.join(slots)}.")
        return f"(SELECT * FROM {_name(view)} WHERE slot = {_text(slot)})"


def _sources(store: Store, snapshot: Snapshot) -> dict[str, list[_Source]]:
    """Where each table of a snapshot is, by table, in the order of slots."""
    sources: dict[str, list[_Source]] = {}
    for slot, ref in sorted(snapshot.entries.items()):
        artefact = store.load(ref)
        for entry in artefact.files.values():
            if entry.kind != "table":
                continue
            path = str(artefact.whole_file(entry.name))
            if set(path) & set("*?["):
                raise StoreError(
                    f"The path {path} has a character that DuckDB reads as a pattern: * ? or [.",
                    remedy="Move the store to a path without these.",
                )
            try:
                schema = pq.read_schema(path)
            except (OSError, pa.ArrowException) as error:
                raise ArtefactDamaged(f"The file {path} cannot be opened: {error}.", remedy=REBUILD) from error
            sources.setdefault(entry.name, []).append(_Source(slot, path, schema, artefact))
    for table in _OWNERS:
        if len(sources.get(table, [])) > 1:
            slots = ", ".join(source.slot for source in sources[table])
            raise StoreError(
                f"Snapshot {snapshot.number} has several tables '{table}', in {slots}.",
                remedy="Publish a snapshot with one ingest.",
            )
    return sources


def _view(table: str, sources: dict[str, list[_Source]]) -> str:
    """The SELECT behind a view."""
    parts = sources[table]
    names = list(dict.fromkeys(name for part in parts for name in part.schema.names))
    vectors = {name: _vector_type(name, parts) for name in names}
    selects = []
    for part in parts:
        columns = [f"{_name(c)}::{vectors[c]} AS {_name(c)}" if vectors[c] else _name(c) for c in part.schema.names]
        if len(parts) > 1:
            columns.insert(0, f"{_text(part.slot)} AS slot")
        selects.append(f"SELECT {', '.join(columns)} FROM read_parquet({_text(part.path)})")
    ids, joins = [], []
    for owner, (idx, name) in _OWNERS.items():
        if idx in names and name in names:
            ids.append(f"rows.{name}")
        elif idx in names and owner in sources:
            ids.append(f"{owner}.{name}")
            joins.append(f"LEFT JOIN read_parquet({_text(sources[owner][0].path)}) AS {owner} USING ({idx})")
    slot = ["rows.slot"] if len(parts) > 1 else []
    rest = [f"rows.{_name(name)}" for name in names if f"rows.{name}" not in ids]
    rows = " UNION ALL BY NAME ".join(selects)
    return f"SELECT {', '.join(ids + slot + rest)} FROM ({rows}) AS rows {' '.join(joins)}"


def _vector_type(name: str, parts: list[_Source]) -> str | None:
    """FLOAT[n] for a vector column, FLOAT[] if its length differs from slot to slot, else None."""
    types = [part.schema.field(name).type for part in parts if name in part.schema.names]
    if not all(pa.types.is_fixed_size_list(kind) for kind in types):
        return None
    lengths = {kind.list_size for kind in types}
    return f"FLOAT[{lengths.pop()}]" if len(lengths) == 1 else "FLOAT[]"


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, with a number behind each that is there already."""
    taken, distinct = set(names), list[str]()
    for name in names:
        number, other = 0, name
        while other in distinct or (number and other in taken):
            number += 1
            other = f"{name}_{number}"
        distinct.append(other)
    return distinct


def _name(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _unknown(kind: str, value: str, view: str) -> StoreError:
    return StoreError(
        f"The snapshot has nothing on {kind} {value!r:.80}.",
        remedy=f"See the view '{view}' for those it has.",
    )
