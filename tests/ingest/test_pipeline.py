"""Filtering, numbering and splitting, on cases small enough to do by hand."""

import re

import numpy as np
import pyarrow as pa
import pytest

from p2rec_core.errors import DataError

SCHEMAS = {
    "interactions": "user_idx: int32, item_idx: int32, timestamp: double, position: int64",
    "sequences": "user_idx: int32, items: list<item: int32>",
    "validation": "user_idx: int32, item_idx: int32",
    "test": "user_idx: int32, item_idx: int32",
    "items": "item_idx: int32, item_id: string, n_train: int32",
    "users": "user_idx: int32, user_id: string, n_train: int32",
    "rejects": "line: int64, reason: string, content: string",
}


def names(result, table):
    """Replace numbers by ids."""
    users = dict(zip(*(result.users[c].to_pylist() for c in ("user_idx", "user_id")), strict=True))
    items = dict(zip(*(result.items[c].to_pylist() for c in ("item_idx", "item_id")), strict=True))
    return {
        users[row["user_idx"]]: [items[i] for i in row["items"]] if "items" in row else items[row["item_idx"]]
        for row in getattr(result, table).to_pylist()
    }


def test_tables_have_their_schemas(put, run):
    result = run(put("b x y z\na x y\nc z x y x\n"))
    for name, fields in SCHEMAS.items():
        schema = getattr(result, name).schema
        assert ", ".join(f"{field.name}: {field.type}" for field in schema) == fields


def test_leave_one_out_by_hand(put, run):
    result = run(put("b x y z\na x y\nc z x y x w\n"))
    assert result.users["user_id"].to_pylist() == ["a", "b", "c"]
    assert result.users["user_idx"].to_pylist() == [1, 2, 3]
    assert result.users["n_train"].to_pylist() == [2, 1, 3]
    assert names(result, "sequences") == {"a": ["x", "y"], "b": ["x"], "c": ["z", "x", "y"]}
    assert names(result, "validation") == {"b": "y", "c": "x"}
    assert names(result, "test") == {"b": "z", "c": "w"}
    trained = dict(zip(result.items["item_id"].to_pylist(), result.items["n_train"].to_pylist(), strict=True))
    assert trained == {"w": 0, "x": 3, "y": 2, "z": 1}
    expected = {
        "n_rows": 3,
        "n_rejected": 0,
        "n_interactions_read": 10,
        "n_duplicates": 0,
        "n_users": 3,
        "n_items": 4,
        "n_interactions": 10,
        "n_users_unsplit": 1,
        "n_users_split": 2,
        "n_cold_test": 1,
        "n_cold_test_items": 1,
        "n_cold_validation": 0,
        "n_repeats": 1,
        "n_repeat_test": 0,
        "length_min": 2,
        "length_max": 5,
        "length_median": 3.0,
    }
    assert {key: result.counts[key] for key in expected} == expected
    assert result.counts["density"] == pytest.approx(10 / 12)
    assert result.counts["length_mean"] == pytest.approx(10 / 3)
    assert "1 users have fewer than 3 interactions" in result.notices[0]


def test_order_is_by_time_then_by_position(put, run):
    rows = ["a,late,30", "b,q,1", "a,first,10", "a,tie2,20", "a,early,5", "a,tie1,20", "b,p,1"]
    result = run(put("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n"), format="csv")
    assert names(result, "sequences") == {"a": ["early", "first", "tie2"], "b": ["q", "p"]}
    assert names(result, "validation") == {"a": "tie1"}
    assert names(result, "test") == {"a": "late"}
    assert result.interactions["position"].to_pylist() == [4, 2, 3, 5, 0, 1, 6]
    assert result.interactions["timestamp"].to_pylist() == [5, 10, 20, 20, 30, 1, 1]


def test_exact_duplicates_are_dropped_only_where_time_tells_them_apart(put, run):
    """Rows 12 and 13."""
    path = put("user_id,item_id,timestamp\na,x,1\na,x,1\na,x,2\na,y,1\na,x,1\n")
    dropped = run(path, format="csv")
    assert dropped.counts["n_duplicates"] == 2
    assert dropped.interactions["position"].to_pylist() == [0, 3, 2]
    assert run(path, format="csv", drop_duplicates=False).counts["n_duplicates"] == 0
    assert run(path, format="csv", timestamp_column=None).counts["n_interactions"] == 5


def test_k_core_by_hand(put, run):
    # z falls (one interaction), then b (one left), then y (one left), then a stands with x alone.
    result = run(put("a x x y\nb y z\nc x x\n"), min_user_interactions=2, min_item_interactions=2)
    assert names(result, "sequences") == {"a": ["x", "x"], "c": ["x", "x"]}
    counts = result.counts
    assert (counts["n_users_dropped"], counts["n_items_dropped"], counts["n_interactions_dropped"]) == (
        1,
        2,
        3,
    )
    assert counts["k_core_rounds"] == 2


def test_an_empty_k_core_names_bounds_that_leave_something(put, run):
    """Row 51."""
    path = put("a x y\nb x y\nc z\n")
    words = "min_user_interactions = 9 and min_item_interactions = 4 leave none of 3 users, 3 items and 5 "
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        run(path, min_user_interactions=9, min_item_interactions=4)
    assert caught.value.remedy == "Lower them: 2 and 2 leave 2 users and 2 items."
    assert run(path, min_user_interactions=2, min_item_interactions=2).counts["n_users"] == 2


def test_numbers_depend_on_the_set_of_ids_and_the_seed_alone(put, run):
    forward = run(put("1 a b c d e f g h\n2 a b c\n"))
    backward = run(put("2 h g f e d c b a\n1 c c\n"))
    assert forward.items["item_id"].equals(backward.items["item_id"])
    assert forward.users["user_id"].equals(backward.users["user_id"])
    other = run(put("1 a b c d e f g h\n2 a b c\n"), seed=2)
    assert not forward.items["item_id"].equals(other.items["item_id"])
    assert sorted(other.items["item_id"].to_pylist()) == list("abcdefgh")


def test_numbers_say_nothing_about_the_order_of_ids(put, run):
    result = run(put("1 " + " ".join(f"{i:04d}" for i in range(2000)) + "\n"))
    ranks = np.array([int(name) for name in result.items["item_id"].to_pylist()])
    assert abs(np.corrcoef(ranks, np.arange(2000))[0, 1]) < 0.1


@pytest.mark.parametrize(("place", "name"), [(-1, "test"), (-2, "validation")])
def test_a_target_can_change_without_a_byte_of_the_training_tables(put, run, place, name):
    lines = [[f"u{u}", *(f"i{(u * 7 + 3 * k) % 10}" for k in range(6))] for u in range(12)]
    before = run(put("".join(" ".join(line) + "\n" for line in lines)))
    lines[4][place] = "i0" if lines[4][place] != "i0" else "i1"
    after = run(put("".join(" ".join(line) + "\n" for line in lines)))
    for table in ("sequences", "items", "users"):
        assert as_bytes(getattr(before, table)) == as_bytes(getattr(after, table))
    assert as_bytes(getattr(before, name)) != as_bytes(getattr(after, name))


def as_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue().to_pybytes()


def test_too_little_memory_is_an_error_with_a_remedy(put, run):
    path = put("".join(f"u{u} " + " ".join(f"i{(u * 7 + k) % 997}" for k in range(60)) + "\n" for u in range(3000)))
    with pytest.raises(DataError, match=r"memory allowed \(1MB\) is not enough") as caught:
        run(path, memory_limit="1MB")
    assert "Raise memory_limit" in caught.value.remedy


def test_two_runs_give_the_same_bytes_also_when_memory_is_short(put, run):
    text = "".join(f"u{u} " + " ".join(f"i{(u * u + 17 * k) % 997}" for k in range(40)) + "\n" for u in range(3000))
    path = put(text)
    first, second = run(path), run(path, memory_limit="64MB")
    for table in SCHEMAS:
        assert as_bytes(getattr(first, table)) == as_bytes(getattr(second, table))
