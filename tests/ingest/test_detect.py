"""What a file is found to be before it is imported, and which k-core is proposed for it."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from p2rec_core.errors import DataError
from storage.ingest.detect import Wanted, detect
from storage.ingest.first_look import first_look
from storage.ingest.layout import Columns, Dialect


@pytest.mark.parametrize(
    ("name", "content", "format", "columns"),
    [
        ("a.txt", "u1 i1 i2\n", "sequences", ("user_id", "item_id", None)),
        ("a.csv", "visitor,sku,time\nu,i,1\n", "csv", ("visitor", "sku", "time")),
        ("a.txt", '"Client ID","StockCode","InvoiceDate"\nu,i,1\n', "csv", ("Client ID", "StockCode", "InvoiceDate")),
        ("a.csv", "item_id,session_id,rating,ts,user_id\ni,s,5,1,u\n", "csv", ("user_id", "item_id", "ts")),
        ("a.tsv", "\n\nuserId\tmovieId\trating\ttimestamp\n1\t2\t3\t4\n", "tsv", ("userId", "movieId", "timestamp")),
        ("a.inter", "uid:token\titem_id:token\ttime:float\nu\ti\t1\n", "recbole", ("uid", "item_id", "time")),
        ("ratings.dat", "1::1193::5::978300760\n", "movielens", ("user_id", "item_id", "timestamp")),
    ],
)  # fmt: skip
def test_a_text_is_recognised(tmp_path, name, content, format, columns):
    (tmp_path / name).write_text(content, encoding="utf-8")
    found = detect(tmp_path / name)
    assert (found.format, found.columns) == (format, Columns(*columns))
    with gzip.open(tmp_path / "packed.gz", "wt", encoding="utf-8") as file:
        file.write(content)
    assert detect(tmp_path / "packed.gz") == found


@pytest.mark.parametrize(
    ("first", "user"),
    [
        ("u0007,i0012,1700000000", "u0007"),
        ("u0007,i0012,1700000000", None),
        ("u0007,i0012,2023-11-05 12:00:00", None),
        ("7,12,3", "7"),
        ("7,12,1.7e9", None),
    ],
)
def test_a_row_is_not_taken_for_a_header(tmp_path, first, user):
    path = tmp_path / "a.csv"
    path.write_text(first + "\n")
    _, item, stamp = first.split(",") if user else (None, None, None)
    with pytest.raises(DataError, match="line 1: there is no header; the first line looks like data") as caught:
        detect(path, Wanted(user=user, item=item, timestamp=stamp))
    assert "--no-header" in caught.value.remedy


@pytest.mark.parametrize("header", ["0,1,2", "user,item,time,2023-11-05,1", "user,item,2019,time"])
def test_a_header_with_numbers_is_one_all_the_same(tmp_path, header):
    path = tmp_path / "a.csv"
    path.write_text(header + "\n")
    names = header.split(",")
    named = Wanted(user="0", item="1", timestamp="2") if names[0] == "0" else Wanted()
    assert detect(path, named).columns.user == names[0]


def test_without_a_header_columns_are_named_by_position(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("i1;u1;15\n")
    with pytest.raises(DataError, match=r"users' ids; there are '1' \(i1\), '2' \(u1\), '3' \(15\)"):
        detect(path, Wanted(header=False))
    found = detect(path, Wanted(header=False, user="2", item="1", timestamp="3"))
    assert (found.format, found.dialect, found.columns) == ("csv", Dialect(";", False), Columns("2", "1", "3"))
    with pytest.raises(DataError, match=r"a\.csv: there is no column '4'; there are '1', '2', '3'"):
        detect(path, Wanted(header=False, user="2", item="1", timestamp="4"))


@pytest.mark.parametrize("mark", [";", "|"])
@pytest.mark.parametrize("wanted", [Wanted(), Wanted(format="csv")], ids=["by-itself", "as-csv"])
def test_another_delimiter_is_recognised(tmp_path, mark, wanted):
    (tmp_path / "a.csv").write_text(mark.join(["user_id", '"sku, or name"', "item_id", "ts"]) + "\n")
    found = detect(tmp_path / "a.csv", wanted)
    assert (found.format, found.dialect) == ("csv", Dialect(mark))
    assert found.columns == Columns("user_id", "item_id", "ts")


def test_parquet_is_recognised_by_its_content(tmp_path):
    table = pa.table({"reviewerID": ["u"], "asin": ["i"], "unixReviewTime": [1]})
    pq.write_table(table, tmp_path / "data.bin")
    found = detect(tmp_path / "data.bin")
    assert (found.format, found.columns) == ("parquet", Columns("reviewerID", "asin", "unixReviewTime"))


def test_what_the_user_says_counts(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("who,sku,time,user_id\nu,i,1,2\n")
    found = detect(path, Wanted(user="who", untimed=True))
    assert found.columns == Columns("who", "sku", None)
    with pytest.raises(DataError, match="there is no column 'whom'"):
        detect(path, Wanted(user="whom"))


@pytest.mark.parametrize(
    ("content", "problem", "remedy"),
    [
        ("who,sku,time\nu,i,1\n", "usual for the users' ids; there are 'who', 'sku'", "--user-column"),
        ("user,what,time\nu,i,1\n", "usual for the items' ids", "--item-column"),
        ("user,sku,rating\nu,i,1\n", "usual for the times", "`--timestamp-column none`"),
        ("user,user,sku,time\n", "column 'user' stands in the header 2 times", "a name of its own"),
        (" \n\n", "holds no text but blank lines", "Check the export"),
        ("", "is empty", "Check the export"),
        ("<html>", "is an HTML or XML page", "login"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_asked(tmp_path, content, problem, remedy):
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        detect(path)
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy


def looked_at(tmp_path, rows, **options):
    path = tmp_path / "a.csv"
    path.write_text("u,i,t\n" + "".join(f"{u},{i},{t}\n" for t, (u, i) in enumerate(rows)))
    known = {"on_error": "strict", "max_rejected": 0.01, "drop_duplicates": True} | options
    return first_look(path, format="csv", columns=Columns("u", "i", "t"), **known)


def block(n_users, n_items, prefix=""):
    """Every user has every item once."""
    return [(f"{prefix}u{u}", f"{prefix}i{i}") for u in range(n_users) for i in range(n_items)]


def test_the_usual_core_is_proposed_where_it_keeps_most(tmp_path):
    look = looked_at(tmp_path, [*block(20, 8), *block(4, 3, "few")])
    assert (look.n_users, look.n_items, look.n_rows) == (24, 11, 172)
    core = look.core
    assert (core.min_user, core.min_item, core.n_users, core.n_items, core.n_interactions) == (5, 5, 20, 8, 160)
    assert core.longest == 8


def test_a_looser_core_is_proposed_where_the_usual_one_loses_more_than_half(tmp_path):
    core = looked_at(tmp_path, [*block(5, 5), *block(20, 4, "four"), *block(3, 3, "three")]).core
    assert (core.min_user, core.min_item, core.n_interactions) == (4, 4, 105)


def test_items_that_nobody_else_has_are_kept_where_nothing_else_is_left(tmp_path):
    core = looked_at(tmp_path, [(f"u{u}", f"i{u}-{n}") for u in range(4) for n in range(3)]).core
    assert (core.min_user, core.min_item, core.n_users, core.n_items) == (3, 1, 4, 12)


def test_users_with_two_interactions_teach_nothing(tmp_path):
    with pytest.raises(DataError, match="none of its 9 users has 3 interactions"):
        looked_at(tmp_path, block(9, 2))


def test_rows_that_cannot_be_read_stop_it_as_they_stop_an_import(tmp_path):
    rows = [*block(20, 8), ("", "i1")]
    with pytest.raises(DataError, match="the user id is empty"):
        looked_at(tmp_path, rows)
    look = looked_at(tmp_path, rows, on_error="quarantine")
    assert (look.n_rows, look.n_rejected) == (161, 1)


def test_equal_rows_count_once(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("u,i,t\n" + "u1,i1,1\n" * 5 + "".join(f"u{u},i{i},{i}\n" for u in range(3) for i in range(3)))
    options = {"format": "csv", "columns": Columns("u", "i", "t"), "on_error": "strict", "max_rejected": 0.0}
    assert first_look(path, drop_duplicates=True, **options).core.n_interactions == 9
    assert first_look(path, drop_duplicates=False, **options).core.n_interactions == 14
