"""Properties that hold for any interactions."""

import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2rec_core.errors import DataError
from storage.ingest import ingest, load, pipeline, records
from storage.ingest.source import TextSource

LOGS = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 9), st.integers(0, 20)), min_size=1, max_size=70)


def run(log, k_user, k_item, seed=1):
    text = "user_id,item_id,timestamp\n" + "".join(f"u{u},i{i},{t}\n" for u, i, t in log)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        path.write_text(text)
        return ingest(
            path,
            format="csv",
            user_column="user_id",
            item_column="item_id",
            timestamp_column="timestamp",
            min_user_interactions=k_user,
            min_item_interactions=k_item,
            drop_duplicates=False,
            on_error="strict",
            max_rejected=0.0,
            seed=seed,
        )


def naive_core(log, k_user, k_item):
    rows = [(f"u{u}", f"i{i}", t, p) for p, (u, i, t) in enumerate(log)]
    while True:
        users, items = Counter(row[0] for row in rows), Counter(row[1] for row in rows)
        kept = [row for row in rows if users[row[0]] >= k_user and items[row[1]] >= k_item]
        if kept == rows:
            return rows
        rows = kept


@settings(max_examples=30, deadline=None)
@given(log=LOGS, k_user=st.integers(1, 5), k_item=st.integers(1, 5))
def test_ingest_equals_a_naive_oracle(log, k_user, k_item):
    core = naive_core(log, k_user, k_item)
    if not core:
        with pytest.raises(DataError, match="leave none"):
            run(log, k_user, k_item)
        return
    result = run(log, k_user, k_item)
    item_id = dict(enumerate(result.items["item_id"].to_pylist(), start=1))
    user_id = dict(enumerate(result.users["user_id"].to_pylist(), start=1))
    found = {user_id[r["user_idx"]]: [item_id[i] for i in r["items"]] for r in result.sequences.to_pylist()}
    validation = {user_id[r["user_idx"]]: item_id[r["item_idx"]] for r in result.validation.to_pylist()}
    test = {user_id[r["user_idx"]]: item_id[r["item_idx"]] for r in result.test.to_pylist()}
    expected = {}
    for user, item, _, _ in sorted(core, key=lambda row: (row[0], row[2], row[3])):
        expected.setdefault(user, []).append(item)
    split = {user for user, items in expected.items() if len(items) >= 3}
    assert set(validation) == set(test) == split
    for user, items in expected.items():
        whole = found[user] + ([validation[user], test[user]] if user in split else [])
        assert whole == items
    assert list(found) == sorted(expected)


@settings(max_examples=10, deadline=None)
@given(log=LOGS, seed=st.integers(0, 2**31 - 1), shuffler=st.randoms(use_true_random=False))
def test_item_numbers_are_a_bijection_that_the_order_of_rows_cannot_change(log, seed, shuffler):
    result = run(log, 1, 1, seed)
    ids = result.items["item_id"].to_pylist()
    assert result.items["item_idx"].to_pylist() == list(range(1, len(ids) + 1))
    assert sorted(ids) == sorted({f"i{i}" for _, i, _ in log})
    shuffled = list(log)
    shuffler.shuffle(shuffled)
    assert run(shuffled, 1, 1, seed).items["item_id"].to_pylist() == ids


@settings(max_examples=15, deadline=None)
@given(log=LOGS, part_rows=st.integers(1, 30))
def test_how_many_users_are_in_a_part_changes_nothing(log, part_rows):
    whole = run(log, 1, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "PART_ROWS", part_rows)
        parts = run(log, 1, 1)
    assert all(getattr(whole, name).equals(getattr(parts, name)) for name in pipeline.TABLES)
    assert whole.counts == parts.counts


IDS = st.one_of(st.sampled_from(["u1", "u2", "i1", "i2"]), st.text('ab0_: \t\v\0\x1f"\u00a0é', max_size=3))
NUMBERS = (
    "1500000000 1500000001.5 1.5e9 +1500000000 -1 007 15. .5 1e-400 9007199254740993 0.1 123456789.123456789012345"
)
NO_NUMBERS = "1e400 -1e400 nan inf Infinity NULL abc 0x10 1,5 1_500_000_000 1500000000d 1500000000f 1e9e9 ١"
SPACED = ("", " 1500000000", "1500000000 ", "1500000000\v", "15 00")
STAMPS = st.sampled_from([*f"{NUMBERS} {NO_NUMBERS}".split(), *SPACED])
FORMATS = {",": "csv", "\t": "tsv", "::": "movielens"}
LINES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["u1", "u2"]), st.sampled_from(["i1", "i2"]), st.just("1500000000")),
        st.tuples(IDS, IDS, STAMPS),
        st.tuples(IDS, IDS),
        st.tuples(IDS, IDS, STAMPS, IDS),
        st.just(("user_id", "item_id", "timestamp")),
        st.just(()),
    ),
    min_size=1,
    max_size=12,
)


def judged(path, format, timed):
    """Everything that comes of a file under quarantine, or the words of its error."""
    try:
        found = load.read_interactions(
            path,
            format=format,
            user_column="user_id",
            item_column="item_id",
            timestamp_column="timestamp" if timed else None,
            on_error="quarantine",
            max_rejected=1.0,
        )
    except DataError as error:
        return error.problem
    return (found.interactions.to_pydict(), found.rejects.to_pydict(), found.n_rows, found.notices)


@settings(max_examples=60, deadline=None)
@given(lines=LINES, delimiter=st.sampled_from(list(FORMATS)), timed=st.booleans(), block_bytes=st.integers(1, 200))
@example(lines=[("u1", "i1", "+15")], delimiter=",", timed=True, block_bytes=200)
@example(lines=[("\u00a0", "\u00a0", "")], delimiter="\t", timed=False, block_bytes=200)
@example(lines=[("u1", "x" * 1025, "15"), ("u1", "x" * 1024, "15")], delimiter=",", timed=True, block_bytes=200)
def test_rows_that_are_read_at_once_come_out_as_if_they_were_judged_one_by_one(lines, delimiter, timed, block_bytes):
    first = ("user_id", "item_id", "timestamp")
    if delimiter == "::":  # user::item::rating::timestamp without a header
        first = ("u1", "i1", "5", "1500000000")
        lines = [(*row[:2], "5", *row[2:]) if len(row) > 2 else row for row in lines]
    text = "".join(delimiter.join(row) + "\n" for row in [first, *lines])

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "log.txt"
        path.write_text(text, encoding="utf-8", newline="")
        patch.setattr(load, "TextSource", partial(TextSource, block_bytes=block_bytes))
        at_once = judged(path, FORMATS[delimiter], timed)
        patch.setattr(records, "_clean_batch", lambda block, layout: None)
        assert at_once == judged(path, FORMATS[delimiter], timed)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["u1", "u2"]), st.sampled_from(["i1", "i2"]), st.just(1.5e9)),
            st.tuples(
                st.one_of(st.none(), IDS, st.just("a\nb"), st.just("x" * 1025)),
                st.one_of(st.none(), IDS),
                st.one_of(st.none(), st.floats(), st.floats(1e9, 2e9)),
            ),
        ),
        min_size=1,
        max_size=12,
    ),
    kind=st.sampled_from([pa.float64(), pa.string()]),
    timed=st.booleans(),
    group=st.integers(1, 4),
)
def test_rows_of_parquet_likewise(rows, kind, timed, group):
    users, items, stamps = zip(*rows, strict=True)
    table = pa.table({"user_id": users, "item_id": items, "timestamp": pa.array(stamps, pa.float64()).cast(kind)})
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "log.parquet"
        pq.write_table(table, path)
        patch.setattr(records, "BATCH_ROWS", group)
        at_once = judged(path, "parquet", timed)
        patch.setattr(records, "_clean_rows", lambda *columns: None)
        assert at_once == judged(path, "parquet", timed)
