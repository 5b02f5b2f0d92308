"""Properties that hold for any interactions."""

import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from p2rec_core.errors import DataError
from storage.ingest import ingest, load, pipeline, records
from storage.ingest.dates import date_columns, seconds_of_dates
from storage.ingest.engine import open_engine
from storage.ingest.source import TextSource

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
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
DATES = (
    *("2017-07-14", "2017-07-14 02", "2017-07-14T02:40", "2017-07-14 02:40:00", "2017-07-14T02:40:00Z", "0000-01-01"),
    *("2017-07-14 02:40:00.5", "2017-07-14 02:40:00.123456", "2017-07-14 02:40:00.123456789+00:00", "2016-02-29"),
    *("2017-07-14T02:40:00+05:30", "2017-07-14T02:40:00-0330", "2017-07-14 02:40:00+14", "2017-07-14 02:40:00 UTC"),
    *("1500-03-01", "9999-12-31T23:59:59", "1969-12-31 23:59:59.000001", "2017-07-14 02Z", "2017-07-14T02:40-23:59"),
)
NO_DATES = (
    *("2023-02-30", "2017-7-14", "2017-07-14 24:00:00", "2017-07-14 02:40:60", "2017-07-14Z", "2017-07-14 02:40:00."),
    *(
        "2017-07-14t02:40:00",
        "2017-07-14T02:40:00+24:00",
        "2017-07-14T02:40:00+01:",
        "12017-07-14",
        "2017-07-14  02:40",
    ),
    *(
        "2017-07-14 02:40:00 CET",
        "2017-07-14\v",
        "2017-07-14 02:40:00.1234567890",
        "20170714",
        "14.07.2017",
        "2017-02-29",
    ),
)
STAMPS = st.sampled_from([*f"{NUMBERS} {NO_NUMBERS}".split(), *SPACED, *DATES, *NO_DATES])
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


WITH_DATES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["u1", "u2"]), st.sampled_from(["i1", "i2"]), st.sampled_from(DATES)),
        st.tuples(IDS, IDS, STAMPS),
        st.just(("user_id", "item_id", "timestamp")),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=80, deadline=None)
@given(
    lines=st.one_of(LINES, WITH_DATES),
    delimiter=st.sampled_from(list(FORMATS)),
    timed=st.booleans(),
    block_bytes=st.integers(1, 200),
)
@example(
    lines=[("u1", "i1", " 2017-07-14"), ("u1", " i1", "2017-07-14 02:40")], delimiter=",", timed=True, block_bytes=200
)
@example(lines=[("u1", "i1", "+15")], delimiter=",", timed=True, block_bytes=200)
@example(lines=[("\u00a0", "\u00a0", "")], delimiter="\t", timed=False, block_bytes=200)
@example(lines=[("u1", "x" * 1025, "15"), ("u1", "x" * 1024, "15")], delimiter=",", timed=True, block_bytes=200)
def test_rows_that_are_read_at_once_come_out_as_if_they_were_judged_one_by_one(lines, delimiter, timed, block_bytes):
    first = ("user_id", "item_id", "timestamp")
    if delimiter == "::":  # user::item::rating::timestamp without a header
        first = ("u1", "i1", "5", "")
        lines = [(*row[:2], "5", *row[2:]) if len(row) > 2 else row for row in lines]
    text = "".join(delimiter.join(row) + "\n" for row in [first, *lines])

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "log.txt"
        path.write_text(text, encoding="utf-8", newline="")
        patch.setattr(load, "TextSource", partial(TextSource, block_bytes=block_bytes))
        at_once = judged(path, FORMATS[delimiter], timed)
        patch.setattr(records, "_clean_batch", lambda block, layout: None)
        assert at_once == judged(path, FORMATS[delimiter], timed)


def by_the_library(text):
    """Unix seconds and whether there is no offset, as Python reads a date; None where it is none."""
    try:
        read = datetime.fromisoformat(text.replace(" UTC", "Z").replace("123456789", "123456"))
    except ValueError:
        return None
    return (read.replace(tzinfo=read.tzinfo or UTC) - EPOCH) / timedelta(seconds=1), read.tzinfo is None


def test_dates_are_read_as_python_reads_them_one_by_one_and_at_once():
    forms = [*DATES, *NO_DATES]
    with open_engine(None) as engine, engine.table("forms", pa.table({"form": forms})):
        rows = engine.rows(f"WITH parts AS (SELECT form, {date_columns('form')} FROM forms) SELECT * FROM parts")
    found = {form: (stamp, zoneless) for form, _, stamp, zoneless in rows if stamp is not None}
    # Python knows no year 0
    assert {f: by_the_library(f) for f in DATES if f[:4] != "0000"} == {f: found[f] for f in DATES if f[:4] != "0000"}
    assert not found.keys() & set(NO_DATES)
    for first in ("2017-07-14", "2017-07-14 00:00Z", "2017-07-14 00:00 UTC"):
        for form in forms:
            at_once = seconds_of_dates(pa.array([first, form]))
            assert at_once is None or (at_once[0][1].as_py(), at_once[1]) == found.get(form), (first, form)
    assert sum(seconds_of_dates(pa.array([form])) is not None for form in DATES) == len(DATES) - 1  # nanoseconds


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
