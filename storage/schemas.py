"""The tables that the store keeps: names, types and what every column means.

Conventions: a ``*_idx`` is dense, 1…N; 0 is padding and never occurs in a table. A ``*_id`` is the
owner's identifier, as text. A vector is a FixedSizeList of float32. No table but
``language_model_cost``, which is a measurement, holds a wall-clock time, so that the same computation gives the same
bytes.

The descriptions stay in this module and out of the files: improving a sentence must not change
the content hash of an artefact.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from p2rec_core.errors import StoreError

Axis = Literal["width", "n_clusters"]

_REMEDY = "This is a defect of the stage that wrote it: report it with this message."


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: Column name.
        type: Arrow type; None for a vector, whose length is only known at run time.
        doc: What a value means, in one line.
        nullable: Whether null may occur.
        axis: For a vector, which length it has: that of an embedding or the number of clusters.
        dense: Whether row i holds the value i + 1.
    """

    name: str
    type: pa.DataType | None
    doc: str
    nullable: bool = False
    axis: Axis | None = None
    dense: bool = False


def _idx(name: str, doc: str, *, dense: bool = False) -> Column:
    return Column(name, pa.int32(), doc, dense=dense)


def _vector(name: str, axis: Axis, doc: str) -> Column:
    return Column(name, None, doc, axis=axis)


_USER = _idx("user_idx", "the user, 1…N")
_ITEM = _idx("item_idx", "the item, 1…N")
_EACH_USER = _idx("user_idx", "the user; row i holds i + 1", dense=True)
_EACH_ITEM = _idx("item_idx", "the item; row i holds i + 1", dense=True)
_TARGET = _idx("item_idx", "the held-out item")
_USER_N_TRAIN = Column("n_train", pa.int32(), "interactions of the user in the training part")
_CLUSTER = Column("cluster", pa.int32(), "the cluster, 0…K-1")
_LEARNING_CURVE = (
    Column("epoch", pa.int32(), "training epoch, from 1"),
    Column("metric", pa.string(), "what was measured"),
    Column("value", pa.float64(), "its value at the end of the epoch"),
)
_RUN = (
    Column("method", pa.string(), "the recommender's backbone"),
    Column("variant", pa.string(), "what was added to it: base, ci, p2rec, …"),
    Column("split", pa.string(), "validation or test"),
    Column("seen", pa.string(), "what was done with items that the user had already"),
)

TABLES: dict[str, tuple[Column, ...]] = {
    "interactions": (
        _USER,
        _ITEM,
        Column("timestamp", pa.float64(), "when, in the unit of the source; null where unknown", nullable=True),
        Column("position", pa.int64(), "row in the source, which breaks ties of time"),
    ),
    "sequences": (
        _EACH_USER,
        Column("items", pa.list_(pa.int32()), "item_idx of the training part, oldest first"),
    ),
    "validation": (_USER, _TARGET),
    "test": (_USER, _TARGET),
    "items": (
        _EACH_ITEM,
        Column("item_id", pa.string(), "the owner's identifier"),
        Column("n_train", pa.int32(), "interactions with the item in the training part"),
    ),
    "users": (_EACH_USER, Column("user_id", pa.string(), "the owner's identifier"), _USER_N_TRAIN),
    "rejects": (
        Column("line", pa.int64(), "line of the source, from 1"),
        Column("reason", pa.string(), "why the line was not used"),
        Column("content", pa.string(), "the line as it was, possibly shortened"),
    ),
    "item_embeddings": (
        _ITEM,
        Column("source", pa.string(), "the model that the embedding comes from"),
        Column("trained", pa.bool_(), "whether the item occurred in training; else the vector is its start value"),
        _vector("embedding", "width", "the item's embedding"),
    ),
    "history": _LEARNING_CURVE,
    "item_texts": (
        _EACH_ITEM,
        Column("text", pa.string(), "what is known of the item in words; empty where there is nothing"),
        _vector("embedding", "width", "the language model's embedding of the text; zero where there is none"),
    ),
    "item_clusters": (
        _ITEM,
        _CLUSTER,
        Column("distance", pa.float32(), "Euclidean distance to the centroid"),
    ),
    "finer_clusters": (
        _ITEM,
        Column("n_clusters", pa.int32(), "clusters of the grouping"),
        Column("cluster", pa.int32(), "the item's cluster in it, from 0"),
    ),
    "centroids": (
        _CLUSTER,
        Column("size", pa.int32(), "items in the cluster"),
        _vector("centroid", "width", "mean of the members' embeddings"),
    ),
    "user_preferences": (
        _USER,
        _USER_N_TRAIN,
        _vector("preference", "n_clusters", "the user's distribution over clusters"),
    ),
    "finetune_history": _LEARNING_CURVE,
    "item_knowledge": (
        _ITEM,
        _vector("knowledge", "width", "the item's knowledge embedding"),
        _vector("category_distribution", "n_clusters", "the model's distribution over clusters for the item"),
    ),
    "user_ranks": (
        _USER,
        *_RUN,
        Column(
            "rank",
            pa.int32(),
            "rank of the held-out item, from 1; null where it could not be ranked",
            nullable=True,
        ),
    ),
    "metrics": (
        *_RUN,
        Column("metric", pa.string(), "name of the metric"),
        Column("k", pa.int32(), "cut-off; 0 for a metric without one"),
        Column("value", pa.float64(), "mean over users"),
        Column("n_users", pa.int32(), "users that the mean is over"),
    ),
    "changes": (
        Column("measure", pa.string(), "what was compared with the snapshot before"),
        Column("value", pa.float64(), "what was found: a count, or a share from 0 to 1"),
    ),
    "language_model_cost": (
        Column("method", pa.string(), "p2rec or e4srec"),
        Column("phase", pa.string(), "training (one epoch) or inference (everything once)"),
        Column("level", pa.string(), "what an example is: user, instance or item"),
        Column("n_instances", pa.int64(), "examples of the whole"),
        Column("n_tokens", pa.int64(), "their tokens, without padding"),
        Column("n_tokens_measured", pa.int64(), "tokens that were timed"),
        Column("seconds_measured", pa.float64(), "what these took: a measurement, another each time"),
        Column("seconds_per_epoch", pa.float64(), "seconds of the whole, extrapolated by tokens"),
    ),
    "probes": (
        Column("probe", pa.string(), "next_item, copurchase or category"),
        Column("metric", pa.string(), "what was measured"),
        Column("group", pa.string(), "all, or targets of a training frequency"),
        Column("value", pa.float64(), "mean over the group; null where there is nothing to measure", nullable=True),
        Column("chance", pa.float64(), "what vectors that carry nothing would give", nullable=True),
        Column("n", pa.int64(), "users or items that the mean is over"),
    ),
}


def columns(table: str) -> tuple[Column, ...]:
    """The columns of a table, in order.

    Raises:
        StoreError: There is no table of that name.
    """
    if table not in TABLES:
        raise StoreError(f"There is no table '{table}'.", remedy=f"Use one of: {', '.join(sorted(TABLES))}.")
    return TABLES[table]


def schema(table: str, *, width: int | None = None, n_clusters: int | None = None) -> pa.Schema:
    """The Arrow schema of a table.

    Args:
        table: One of ``TABLES``.
        width: Length of embeddings, needed by tables that hold some.
        n_clusters: Number of clusters, needed by tables with a distribution over clusters.

    Raises:
        StoreError: The table is unknown, or a length that it needs is missing or below 1.
    """
    lengths = {"width": width, "n_clusters": n_clusters}
    fields = []
    for column in columns(table):
        kind = column.type
        if column.axis is not None:
            length = lengths[column.axis]
            if length is None or length < 1:
                raise StoreError(
                    f"Column '{column.name}' of table '{table}' needs {column.axis} >= 1, not {length}.",
                    remedy=f"Pass {column.axis}.",
                )
            kind = pa.list_(pa.float32(), length)
        fields.append(pa.field(column.name, kind, nullable=column.nullable))
    return pa.schema(fields)


def conform(table: str, data: pa.Table, *, first_row: int = 0) -> pa.Table:
    """Check that data is what the schema of a table says, and give it exactly that schema.

    Args:
        table: One of ``TABLES``.
        data: Columns in order. Nullability and schema metadata may differ; nothing else may.
        first_row: Place of the first row in the whole table, where ``data`` is a part of it.

    Returns:
        The same rows, in one chunk per column, with the canonical nullability and no metadata.

    Raises:
        StoreError: A column is missing, extra, misplaced or of another type; a value is null where it
            may not be, not finite in a vector, below 1 in a ``*_idx`` or not i + 1 where rows are dense.
    """
    expected = columns(table)
    names = [column.name for column in expected]
    if data.column_names != names:
        raise _violation(table, "columns", ", ".join(names), ", ".join(data.column_names) or "none")
    fields = []
    for column in expected:
        found = data.schema.field(column.name).type
        _check_type(table, column, found)
        fields.append(pa.field(column.name, found if column.type is None else column.type, nullable=column.nullable))
    data = data.combine_chunks()
    for column in expected:
        _check_values(table, column, data.column(column.name), first_row)
    return data.cast(pa.schema(fields))


def _check_type(table: str, column: Column, found: pa.DataType) -> None:
    if column.axis is None:
        if found != column.type:
            raise _violation(table, f"column '{column.name}'", str(column.type), str(found))
    elif not (pa.types.is_fixed_size_list(found) and found.value_type == pa.float32() and found.list_size > 0):
        raise _violation(table, f"column '{column.name}'", f"FixedSizeList<float32>[{column.axis}]", str(found))


def _check_values(table: str, column: Column, values: pa.ChunkedArray, first_row: int) -> None:
    place = f"column '{column.name}'"
    if values.null_count and not column.nullable:
        raise _violation(table, place, "no nulls", f"{values.null_count} nulls")
    inner = values
    if pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
        inner = pc.list_flatten(values)
        if inner.null_count:
            raise _violation(table, place, "no nulls inside", f"{inner.null_count} nulls inside")
    if column.axis is not None:
        n_bad = len(inner) - (pc.sum(pc.is_finite(inner)).as_py() or 0)
        if n_bad:
            raise _violation(table, place, "finite values", f"{n_bad} that are NaN or infinite")
    if (column.name.endswith("_idx") or column.name == "items") and len(inner):
        least = pc.min(inner).as_py()
        if least < 1:
            raise _violation(table, place, "values from 1 (0 is padding)", str(least))
    if column.dense:
        _check_dense(table, place, values, first_row)


def _check_dense(table: str, place: str, values: pa.ChunkedArray, first_row: int) -> None:
    dense = pa.array(np.arange(first_row + 1, first_row + len(values) + 1, dtype=np.int32))
    wrong = pc.index(pc.not_equal(values, dense), True).as_py()
    if wrong >= 0:
        row = first_row + wrong
        raise _violation(table, place, f"{row + 1} in row {row}", str(values[wrong].as_py()))


def _violation(table: str, place: str, expected: str, found: str) -> StoreError:
    return StoreError(f"Table '{table}', {place}: expected {expected}, found {found}.", remedy=_REMEDY)
