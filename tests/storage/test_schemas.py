import pyarrow as pa
import pytest

from p2rec_core.errors import StoreError
from storage.schemas import TABLES, columns, conform, schema

LENGTHS = {"width": 4, "n_clusters": 3}


@pytest.mark.parametrize("table", sorted(TABLES))
def test_an_empty_table_of_every_schema_conforms(table: str) -> None:
    expected = schema(table, **LENGTHS)
    assert conform(table, expected.empty_table()).schema.equals(expected)


@pytest.mark.parametrize("table", sorted(TABLES))
def test_columns_are_described_and_hold_no_wall_clock(table: str) -> None:
    for column in columns(table):
        assert column.doc
        assert not column.name.endswith(("_s", "_utc"))
        assert column.type == pa.int32() or not column.name.endswith("_idx")


def test_vectors_have_the_lengths_asked_for() -> None:
    knowledge = schema("item_knowledge", width=8, n_clusters=5)
    assert knowledge.field("knowledge").type == pa.list_(pa.float32(), 8)
    assert knowledge.field("category_distribution").type == pa.list_(pa.float32(), 5)
    assert schema("interactions").field("timestamp").nullable
    assert not schema("interactions").field("position").nullable


def test_a_schema_with_vectors_needs_their_length() -> None:
    with pytest.raises(StoreError, match=r"'embedding' of table 'item_embeddings' needs width >= 1, not None"):
        schema("item_embeddings")
    with pytest.raises(StoreError, match=r"needs n_clusters >= 1, not 0"):
        schema("user_preferences", n_clusters=0)


def test_an_unknown_table_is_refused_with_the_known_ones() -> None:
    with pytest.raises(StoreError, match=r"There is no table 'itmes'\. Use one of: centroids, .*items"):
        conform("itmes", pa.table({}))


def _vectors(values: list[float | None]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values, pa.float32()), 2)


def _idx(values: list[int | None]) -> pa.Array:
    return pa.array(values, pa.int32())


PREFERENCE = {"user_idx": _idx([1]), "n_train": _idx([1])}


@pytest.mark.parametrize(
    ("table", "data", "message"),
    [
        ("test", {"user_idx": _idx([1])}, "columns: expected user_idx, item_idx, found user_idx"),
        ("test", {"item_idx": _idx([1]), "user_idx": _idx([1])}, "found item_idx, user_idx"),
        ("test", {"user_idx": [1], "item_idx": _idx([1])}, "column 'user_idx': expected int32, found int64"),
        ("test", {"user_idx": _idx([1]), "item_idx": _idx([None])}, "expected no nulls, found 1 nulls"),
        ("test", {"user_idx": _idx([1]), "item_idx": _idx([0])}, r"values from 1 \(0 is padding\), found 0"),
        (
            "sequences",
            {"user_idx": _idx([1]), "items": pa.array([[1, 0]], pa.list_(pa.int32()))},
            "column 'items': expected values from 1",
        ),
        (
            "sequences",
            {"user_idx": _idx([1]), "items": pa.array([[1, None]], pa.list_(pa.int32()))},
            "expected no nulls inside, found 1",
        ),
        (
            "sequences",
            {"user_idx": _idx([1, 3]), "items": pa.array([[1], [1]], pa.list_(pa.int32()))},
            "column 'user_idx': expected 2 in row 1, found 3",
        ),
        (
            "user_preferences",
            PREFERENCE | {"preference": _vectors([0.5, float("nan")])},
            "column 'preference': expected finite values, found 1 that are NaN or infinite",
        ),
        (
            "user_preferences",
            PREFERENCE | {"preference": _vectors([float("inf"), float("-inf")])},
            "found 2 that are NaN",
        ),
        ("user_preferences", PREFERENCE | {"preference": _vectors([1.0, None])}, "no nulls inside, found 1"),
        (
            "user_preferences",
            PREFERENCE | {"preference": pa.array([[1.0]], pa.list_(pa.float32()))},
            r"expected FixedSizeList<float32>\[n_clusters\], found list<item: float>",
        ),
        (
            "user_preferences",
            PREFERENCE | {"preference": pa.array([[1.0]], pa.list_(pa.float64(), 1))},
            "found fixed_size_list<item: double>",
        ),
    ],
)
def test_a_violation_names_table_column_expected_and_found(table: str, data: dict[str, object], message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        conform(table, pa.table(data))
    assert f"Table '{table}'" in str(caught.value)


def test_what_may_be_null_may_be_null() -> None:
    ranks = schema("user_ranks").empty_table().to_pydict() | {
        "user_idx": [1],
        "method": ["sasrec"],
        "variant": ["base"],
        "split": ["test"],
        "seen": ["excluded"],
        "rank": [None],
    }
    data = pa.table(ranks, schema=schema("user_ranks"))
    assert conform("user_ranks", data).column("rank").null_count == 1
