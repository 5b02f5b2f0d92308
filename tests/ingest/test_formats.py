"""What is no error: every format, odd but legal text, ids that other readers would change."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.ingest import records
from storage.ingest.layout import Columns
from storage.ingest.source import TextSource

HEADER = "user_id,item_id,timestamp\n"
T = 1_500_000_000


def pairs(raw):
    return list(zip(raw.interactions["user_id"].to_pylist(), raw.interactions["item_id"].to_pylist(), strict=True))


@pytest.mark.parametrize(
    ("content", "changes", "expected", "times"),
    [
        ("b 3 1\na 2\n", {"format": "sequences"}, [("b", "3"), ("b", "1"), ("a", "2")], None),
        ("b 3\na 2\nb 1\n", {"format": "sequences"}, [("b", "3"), ("a", "2"), ("b", "1")], None),
        (" b\t3  1 \r\n\r\na 2", {"format": "sequences"}, [("b", "3"), ("b", "1"), ("a", "2")], None),
        (HEADER + "a,x,5\nb,y,6\n", {}, [("a", "x"), ("b", "y")], [5, 6]),
        ("rating,timestamp,item_id,user_id\n1,5,x,a\n", {}, [("a", "x")], [5]),
        (
            "u,v\na,x\n",
            {"user_column": "v", "item_column": "u", "timestamp_column": None},
            [("x", "a")],
            None,
        ),
        ('"user_id","item_id",timestamp\n"a,b","x ""y""",5\n', {}, [("a,b", 'x "y"')], [5]),
        ('user_id;item_id;timestamp\na,b;"x;y";5\n', {"delimiter": ";"}, [("a,b", "x;y")], [5]),
        (
            '\n\na,"x",5\nb,y,6\n',
            {"header": False, "user_column": "1", "item_column": "2", "timestamp_column": "3"},
            [("a", "x"), ("b", "y")],
            [5, 6],
        ),
        ("user_id|item_id|timestamp\na|x|5\n", {"delimiter": "|"}, [("a", "x")], [5]),
        ("user_id\titem_id\ttimestamp\na b\tx,y\t1e9\n", {"format": "tsv"}, [("a b", "x,y")], [1e9]),
        (
            "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t2\t3\t4.5\n",
            {"format": "recbole"},
            [("1", "2")],
            [4.5],
        ),
        (
            "1::10::5::978300760\n2::11::3::978300761\n",
            {"format": "movielens"},
            [("1", "10"), ("2", "11")],
            [978300760, 978300761],
        ),
    ],
    ids=[
        "sequences",
        "pair-lines",
        "white-space",
        "csv",
        "39-reordered",
        "39-swapped",
        "quoted",
        "semicolons",
        "36-no-header-and-said-so",
        "pipes",
        "tsv",
        "recbole",
        "movielens",
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_a_format_is_read(put, read, content, changes, expected, times, packed):
    path = put(gzip.compress(content.encode()), "d.gz") if packed else put(content)
    raw = read(path, **changes)
    assert pairs(raw) == expected
    assert raw.interactions["timestamp"].to_pylist() == (times or [None] * len(expected))


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param(["-4", "4"], id="14-negative"),
        pytest.param([*map(str, range(50)), "text"], id="15-int-then-text"),
        pytest.param(["007", "7", "07"], id="16-leading-zero"),
        pytest.param(["1.0", "1", "1.00"], id="17-decimal"),
        pytest.param(["1e5", "100000"], id="18-exponent"),
        pytest.param(["9223372036854775808", "9223372036854775809"], id="19-beyond-64-bits"),
        pytest.param(["true", "True", "false"], id="20-boolean"),
        pytest.param(["2020-01-01", "20200101"], id="21-date"),
        pytest.param(["NULL", "NA", "null", "nan", "None"], id="22-null-words"),
        pytest.param(["é", "e\u0301", "a\u200bb", "ab"], id="30-unicode-twins"),
        pytest.param(["'; DROP TABLE raw; --", "=1+1", "../../etc/passwd", "$user"], id="48-hostile"),
    ],
)
def test_ids_stay_the_text_that_they_are(put, read, run, ids):
    path = put(HEADER + "".join(f"{name},{name},{T + i}\n" for i, name in enumerate(ids)))
    assert pairs(read(path)) == [(name, name) for name in ids]
    assert run(path, format="csv").items["item_id"].to_pylist() != []
    assert sorted(run(path, format="csv").users["user_id"].to_pylist()) == sorted(ids)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\xef\xbb\xbf" + b"user_id,item_id,timestamp\na,x,5\nb,y,6\n", id="23-mark"),
        pytest.param(b"user_id,item_id,timestamp\r\na,x,5\r\nb,y,6\r\n", id="24-crlf"),
        pytest.param(b"user_id,item_id,timestamp\ra,x,5\rb,y,6\r", id="25-cr"),
        pytest.param(b"user_id,item_id,timestamp\na,x,5\r\nb,y,6", id="26-mixed"),
        pytest.param(b"user_id,item_id,timestamp\n a,x\t, 5 \nb,y ,6\n", id="31-spaces"),
        pytest.param(b"\n\nuser_id,item_id,timestamp\n\na,x,5\n  \nb,y,6\n\n", id="44-blank"),
        pytest.param(b'user_id,item_id,timestamp,n\na,x,5,"1\n2"\n\nb,y,6,\n', id="35-newline-in-value"),
    ],
)
def test_odd_text_is_read_as_meant(put, read, content):
    raw = read(put(content))
    assert pairs(raw) == [("a", "x"), ("b", "y")]
    assert raw.interactions["timestamp"].to_pylist() == [5, 6]


def test_oddities_are_noticed(put, read, run):
    assert "3 lines end in a bare carriage return" in read(put(b"user_id,item_id,timestamp\ra,x,5\rb,y,6\r")).notices[0]
    assert "ids was removed in 1 rows" in read(put(HEADER + "a ,x,5\nb,y,6\n")).notices[0]
    same = run(put(HEADER + f"a,x,{T}\na,y,{T}\n"), format="csv").notices
    assert same[0] == "All timestamps are equal: interactions keep the order of the file."
    twins = run(put("u1 007 7 é e\u0301\n"), format="sequences").notices
    assert "1 item ids are kept apart though equal as numbers" in twins[0]
    assert "'007' and '7'" in twins[0]
    assert "equal to the eye" in twins[1]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_blocks_join_to_the_same_lines_whatever_their_size(put, size):
    text = "é1 2\r\n3 44444444444\r\n\r\n5\r6 7\n8 ü"
    blocks = list(TextSource(put(text), block_bytes=size).blocks())
    assert "".join(block.text for block in blocks) == "é1 2\n3 44444444444\n\n5\n6 7\n8 ü\n"
    seen = 1
    for block in blocks:
        assert block.first_line == seen
        seen += block.text.count("\n")


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([5, 6]), [5, 6]),
        (pa.array([5.5, 6.5]), [5.5, 6.5]),
        (pa.array(["5", "6"]), [5, 6]),
        (pa.array([5_000, 6_000], pa.timestamp("ms", "UTC")), [5, 6]),
        (pa.array([5_000_000_000, 6_000_000_000], pa.timestamp("ns")), [5, 6]),
        (pa.array([1, 2], pa.date32()), [86400, 172800]),
    ],
    ids=["int", "float", "text", "zone", "no-zone", "date"],
)
def test_parquet_is_read(tmp_path, read, column, expected):
    users = pa.array(["a", "b"]).dictionary_encode()
    path = tmp_path / "odd [name]*.parquet"
    pq.write_table(pa.table({"timestamp": column, "item_id": pa.array([7, 8]), "user_id": users}), path)
    raw = read(path, format="parquet")
    assert pairs(raw) == [("a", "7"), ("b", "8")]
    assert raw.interactions["timestamp"].to_pylist() == expected
    assert bool(raw.notices) == (column.type in (pa.timestamp("ns"), pa.date32()))


NOON = 1_699_185_600


@pytest.mark.parametrize(
    ("dates", "zoneless"),
    [
        (["2023-11-05 12:00:00", "2023-11-05 12:00:01"], "Timestamps"),
        (["2023-11-05T12:00:00.000Z", "2023-11-05T12:00:01.000Z"], ""),
        (["2023-11-05 13:00:00+01:00", "2023-11-05 07:00:01-0500"], ""),
        (["2023-11-05 12:00:00 UTC", "2023-11-05 12:00:01 UTC"], ""),
        (["2023-11-05 12:00:00.000000000", "2023-11-05 12:00:01"], "Timestamps"),
        (["2023-11-05 12:00", "2023-11-05T12:00:01Z"], "1 of 2 timestamps"),
    ],
    ids=["pandas", "Z", "offsets", "UTC", "fractions", "both"],
)
@pytest.mark.parametrize("format", ["csv", "quoted", "tsv", "movielens", "parquet"])
def test_times_may_be_dates(tmp_path, read, format, dates, zoneless):
    path = tmp_path / "log"
    if format == "parquet":
        pq.write_table(pa.table({"user_id": ["a", "b"], "item_id": ["x", "y"], "timestamp": dates}), path)
    elif format == "movielens":
        path.write_text(f"a::x::5::{dates[0]}\nb::y::5::{dates[1]}\n")
    else:
        mark, quote = {"csv": (",", ""), "quoted": (",", '"'), "tsv": ("\t", "")}[format]
        rows = [("user_id", "item_id", "timestamp"), ("a", "x", dates[0]), ("b", "y", dates[1])]
        path.write_text("".join(mark.join(f"{quote}{value}{quote}" for value in row) + "\n" for row in rows))
    raw = read(path, format="csv" if format == "quoted" else format)
    assert pairs(raw) == [("a", "x"), ("b", "y")]
    assert raw.interactions["timestamp"].to_pylist() == [NOON, NOON + 1]
    assert raw.notices == ([f"{zoneless} carry no time zone and were taken as UTC."] if zoneless else [])


def test_days_fractions_and_bounds_of_dates(put, read):
    raw = read(put(HEADER + "a,x,2023-11-05\na,y,2023-11-05 12:00:00.123456\n"), last_day="2023-11-05")
    assert raw.interactions["timestamp"].to_pylist() == [NOON - 43_200, NOON + 0.123456]
    late = HEADER + "a,x,2023-11-05\na,y,2023-11-06\n"
    raw = read(put(late), last_day="2023-11-05", on_error="quarantine", max_rejected=0.5)
    assert raw.rejects["reason"].to_pylist() == ["timestamp_out_of_range"]
    # a date far in the future is no time in milliseconds
    never = HEADER + "a,x,2023-11-05\na,y,9999-12-31\n"
    raw = read(put(never), on_error="quarantine", max_rejected=0.5)
    assert raw.rejects["reason"].to_pylist() == ["timestamp_out_of_range"]


@pytest.mark.parametrize("packed", ["", '"'], ids=["plain", "quoted"])
def test_the_first_time_decides_whether_a_file_has_dates_or_numbers(put, read, packed):
    rows = f"a,x,\na,{packed}y{packed},2023-11-05 12:00:00\na,z,{NOON}\na,w,2023-02-30\na,v,5 Nov 2023\n"
    raw = read(put(HEADER + rows), on_error="quarantine", max_rejected=1)
    assert raw.interactions["timestamp"].to_pylist() == [NOON]
    assert raw.rejects["reason"].to_pylist() == ["empty_timestamp", "invalid_date", "invalid_date", "invalid_date"]
    rows = f"a,x,\na,{packed}y{packed},{NOON}\na,z,2023-11-05 12:00:00\n"
    raw = read(put(HEADER + rows), on_error="quarantine", max_rejected=1)
    assert raw.interactions["timestamp"].to_pylist() == [NOON]
    assert raw.rejects["reason"].to_pylist() == ["empty_timestamp", "text_timestamp"]


def test_nulls_in_parquet_are_rejects(tmp_path, read):
    path = tmp_path / "data.parquet"
    table = {"user_id": ["a", None, "c", "d"], "item_id": [1, 2, None, 4], "timestamp": [1.0, 2.0, 3.0, None]}
    pq.write_table(pa.table(table), path)
    raw = read(path, format="parquet", on_error="quarantine", max_rejected=0.9)
    rejected = [(row["line"], row["reason"]) for row in raw.rejects.to_pylist()]
    assert rejected == [(2, "empty_user"), (3, "empty_item"), (4, "empty_timestamp")]


def test_no_timestamp_column_keeps_the_order_of_a_movielens_file(put, read):
    path = put("1::10::5::978300761\n1::11::3::978300760\n")
    assert read(path, format="movielens", timestamp_column=None).interactions["timestamp"].null_count == 2


def test_unknown_settings_raise(put, read, run):
    path = put(HEADER + "a,x,5\n")
    with pytest.raises(ValueError, match="format 'jsonl' is none of sequences, csv"):
        read(path, format="jsonl")
    with pytest.raises(ValueError, match="on_error 'ignore'"):
        read(path, on_error="ignore")
    with pytest.raises(ValueError, match="memory_limit 'lots'"):
        read(path, memory_limit="lots")


@pytest.mark.parametrize(
    ("format", "header", "row"),
    [
        ("csv", "user_id,item_id,timestamp\n", "u{0},i{0},15\n"),
        ("tsv", "user_id\titem_id\ttimestamp\n", "u{0}\ti{0}\t15\n"),
        ("recbole", "user_id:token\titem_id:token\ttimestamp:float\n", "u{0}\ti{0}\t15\n"),
        ("movielens", "", "u{0}::i{0}::5::15\n"),
        ("csv", "user_id,item_id,timestamp\n", "u{0},i{0},2023-11-05 12:00:15Z\n"),
    ],
)
def test_clean_rows_are_read_at_once_and_others_are_looked_at(tmp_path, format, header, row):
    def schemas(rows):
        path = tmp_path / "log"
        path.write_text(header + rows)
        source = TextSource(path, block_bytes=100)
        columns = Columns("user_id", "item_id", "timestamp")
        return [
            batch.schema for batch in records.text_records(source, format=format, columns=columns).batches if len(batch)
        ]

    many = "".join(row.format(n) for n in range(10, 60))
    assert set(schemas(many)) == {records.CLEAN}
    assert set(schemas(many + row.format("7 "))) == {records.CLEAN, records.LINES}
