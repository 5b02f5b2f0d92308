"""An import that keeps an earlier one's numbers, and a dataset cut into nights."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from p2rec_core.errors import DataError
from storage.ingest.nights import nights
from storage.ingest.renumber import continued
from storage.sample import generate_sample
from storage.schemas import conform

TABLES = ("interactions", "sequences", "validation", "test", "items", "users")
FIRST = "b x y z\nd x y\nc z x y x\n"
SECOND = "a y w x\nb x y z v\nc z x y x\n"
CUT = {"per_user": 1, "late_users": 0.2, "late_items": 0.2, "min_rows": 3, "seed": 1}


def numbers(result):
    return [
        dict(zip(table.column(1).to_pylist(), table.column(0).to_pylist(), strict=True))
        for table in (result.users, result.items)
    ]


def by_name(result, table):
    users, items = ({i: name for name, i in of.items()} for of in numbers(result))
    return {
        users[row["user_idx"]]: [items[i] for i in row["items"]] if "items" in row else items[row["item_idx"]]
        for row in getattr(result, table).to_pylist()
    }


def go_on(before, after):
    return continued(after, user_ids=before.users.column("user_id"), item_ids=before.items.column("item_id"))


@pytest.fixture
def two(put, run):
    before, after = run(put(FIRST)), run(put(SECOND))
    return before, after, go_on(before, after)


def test_known_users_and_items_keep_their_index_and_new_ones_follow(two):
    before, _, now = two
    for known, all_now in zip(numbers(before), numbers(now), strict=True):
        assert all_now | known == all_now
        assert sorted(all_now.values()) == list(range(1, len(all_now) + 1))
    assert numbers(now)[0]["a"] == 4
    assert {numbers(now)[1][name] for name in "vw"} == {4, 5}


def test_only_the_numbers_differ(two):
    _, plain, now = two
    for table in ("validation", "test"):
        assert by_name(now, table) == by_name(plain, table)
    assert by_name(now, "sequences") == by_name(plain, "sequences") | {"d": []}
    assert now.rejects == plain.rejects
    order = [("user_idx", "ascending")]
    assert now.interactions.column("user_idx").to_pylist() == sorted(now.interactions.column("user_idx").to_pylist())
    assert now.test == now.test.sort_by(order)


def test_who_vanished_keeps_a_row_without_interactions(two):
    _, _, now = two
    row = numbers(now)[0]["d"] - 1
    assert now.users.column("n_train")[row].as_py() == 0
    assert now.sequences.column("items")[row].as_py() == []
    assert {name: now.counts[name] for name in now.counts if name.startswith(("n_new", "n_vanished"))} == {
        "n_new_users": 1,
        "n_vanished_users": 1,
        "n_new_items": 2,
        "n_vanished_items": 0,
    }


def test_an_equal_import_stays_as_it_is_bit_by_bit(put, run):
    result = run(put(FIRST))
    again = go_on(result, result)
    for table in TABLES:
        assert getattr(again, table).equals(getattr(result, table))
        conform(table, getattr(again, table))


def test_tables_keep_their_schemas(two):
    _, plain, now = two
    for table in TABLES:
        assert getattr(now, table).schema == getattr(plain, table).schema
        conform(table, getattr(now, table))


def test_an_import_of_something_else_is_refused(put, run):
    before = run(put(FIRST))
    with pytest.raises(DataError, match="No user of the current snapshot occurs in today's interactions"):
        go_on(before, run(put("p x y z\n")))
    with pytest.raises(DataError, match="No item of the current snapshot occurs in today's interactions"):
        go_on(before, run(put("b p q r\n")))


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    from storage.ingest.pipeline import ingest

    path = tmp_path_factory.mktemp("nights") / "sample.txt"
    path.write_text(generate_sample(n_users=80, n_items=40, n_categories=4, mean_length=8).text())
    result = ingest(
        path,
        format="sequences",
        user_column="user_id",
        item_column="item_id",
        timestamp_column=None,
        min_user_interactions=3,
        min_item_interactions=1,
        drop_duplicates=True,
        on_error="strict",
        max_rejected=0.0,
        seed=1,
    )
    return result, nights(result, 3, **CUT)


def test_every_night_begins_with_the_one_before_and_the_last_has_all(cut):
    result, tables = cut
    assert len(tables) == 4
    for before, after in itertools.pairwise(tables):
        assert before.num_rows < after.num_rows
        assert after.slice(0, before.num_rows).equals(before)
    assert tables[-1].num_rows == result.interactions.num_rows


def test_no_night_comes_between_earlier_interactions_of_a_user(cut):
    _, tables = cut
    bounds = [table.num_rows for table in tables]
    whole = tables[-1]
    night = np.searchsorted(bounds, np.arange(bounds[-1]), side="right")
    frame = pa.table({"user": whole["user_id"], "time": whole["timestamp"], "night": pa.array(night)})
    ordered = frame.sort_by([("user", "ascending"), ("time", "ascending")]).to_pylist()
    pairs = [(a, b) for a, b in itertools.pairwise(ordered) if a["user"] == b["user"]]
    assert pairs
    assert all(a["time"] < b["time"] and a["night"] <= b["night"] for a, b in pairs)


def test_some_users_and_items_come_late(cut):
    result, tables = cut
    users, items = (tables[0].column(name).unique() for name in ("user_id", "item_id"))
    assert 0 < len(users) < result.users.num_rows
    assert 0 < len(items) < result.items.num_rows


def test_a_cut_that_leaves_nothing_is_refused(cut):
    result, _ = cut
    with pytest.raises(DataError, match="0 nights of 1 interactions per user are none"):
        nights(result, 0, **CUT)
    with pytest.raises(DataError, match="leave nothing for the beginning"):
        nights(result, 2, **(CUT | {"late_users": 1.0}))


def test_a_share_of_all_interactions_comes_each_night(cut):
    result, _ = cut
    tables = nights(result, 10, share=0.03, late_users=0.0, late_items=0.0, min_rows=3, seed=2)
    total = result.interactions.num_rows
    added = np.diff([table.num_rows for table in tables])
    assert tables[-1].num_rows == total
    assert added.sum() == pytest.approx(0.3 * total, rel=0.15)
    assert (added > 0).all()
    first = tables[0].group_by("user_id").aggregate([("item_id", "count")])
    assert min(first["item_id_count"].to_pylist()) >= 3
    with pytest.raises(DataError, match=r"10 nights of 0\.9 of all"):
        nights(result, 10, share=0.9, late_users=0.0, late_items=0.0, min_rows=3, seed=2)
