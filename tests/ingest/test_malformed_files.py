"""Files that are wrong as a whole: each stops with a message that names the place and the remedy."""

import gzip
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from p2rec_core.errors import DataError
from storage.ingest import sha256_of

GOOD = "user_id,item_id,timestamp\n" + "".join(f"u{i % 3},i{i % 4},{1_500_000_000 + i}\n" for i in range(12))
ARCHIVE = gzip.compress(GOOD.encode())


@pytest.mark.parametrize(
    ("content", "changes", "words"),
    [
        pytest.param(b"", {}, "is empty (0 bytes)", id="01-empty"),
        pytest.param("\n \n\n", {}, "no text but blank lines", id="01-blank"),
        pytest.param(
            "user_id,item_id,timestamp\n",
            {},
            "no interactions: no rows below its header",
            id="02-header-only",
        ),
        pytest.param("<!DOCTYPE html>\n<html>x", {}, "begins with '<!DOCTYPE html>", id="03-html"),
        pytest.param(
            "user_id,item_id,timestamp\nu,\xe9,5\n".encode("latin1"),
            {},
            "line 2: byte 0xe9 at offset 28",
            id="27-latin1",
        ),
        pytest.param(GOOD.encode("utf-16"), {}, "encoded in UTF-16: its byte order mark", id="28-utf16"),
        pytest.param(GOOD.encode("utf-16-le"), {}, "are NUL", id="28-utf16-without-mark"),
        pytest.param(GOOD.encode("utf-32"), {}, "encoded in UTF-32", id="28-utf32"),
        pytest.param(
            'user_id,item_id,timestamp,note\nu1,i1,1,fine\nu1,i2,2,"open\nu2,i1,3,x\nu2,i3,4,y\n',
            {},
            "line 3: a quote opened in this row is not closed",
            id="34-unclosed-quote",
        ),
        pytest.param(
            'user_id,item_id,timestamp,note\nu1,i1,1,"open\nu1,i2,2,x\nu1,i2,2,"closed"\n',
            {},
            "line 2: a quote opened",
            id="34-quote-closed-by-the-next",
        ),
        pytest.param("u1,i1,5\nu1,i2,6\n", {}, "there is no header; the first line looks like data", id="36-no-header"),
        pytest.param(
            "user_id,item_id,timestamp,item_id\nu,i,1,j\n",
            {},
            "column 'item_id' stands in the header 2 times",
            id="37-doubled",
        ),
        pytest.param(
            "user,item_id,timestamp\nu,i,1\n",
            {},
            "no column 'user_id'; there are 'user', 'item_id', 'timestamp'. Did you mean 'user'?",
            id="38-missing",
        ),
        pytest.param(
            "user,item_id\nu,i\n", {}, "as the file does with --user-column (ingest.user_column)", id="38-option"
        ),
        pytest.param("User_ID,item_id,timestamp\nu,i,1\n", {}, "Did you mean 'User_ID'?", id="38-case"),
        pytest.param("user_id,item_id\nu,i\n", {}, "set timestamp_column to null", id="38-no-timestamp"),
        pytest.param("user_id;item_id;timestamp\nu;i;1\n", {}, "separated by ';'", id="41-semicolon"),
        pytest.param("user_id|item_id|timestamp\nu|i|1\n", {}, "the delimiter to '|' (--delimiter '|')", id="41-pipe"),
        pytest.param(
            GOOD.partition("\n")[2],
            {"user_column": "u0", "item_column": "i0", "timestamp_column": "1500000000"},
            "looks like data: 'u0, i0, 1500000000'. Say so with --no-header",
            id="36-named-by-a-value",
        ),
        pytest.param(GOOD, {"format": "recbole", "header": False}, "has a header or none of its own", id="36-recbole"),
        pytest.param(GOOD, {"delimiter": ";"}, "Leave the delimiter away", id="41-another-delimiter"),
        pytest.param("a b\n", {"format": "sequences", "delimiter": ";"}, "has a delimiter of its own", id="41-no-csv"),
        pytest.param("user_id\titem_id\ttimestamp\nu\ti\t1\n", {}, "Set the format to 'tsv'", id="41-tab"),
        pytest.param("user_id:token\titem_id:token\nu\ti\n", {}, "Set the format to 'recbole'", id="41-recbole"),
        pytest.param(GOOD, {"format": "tsv"}, "Set the format to 'csv'", id="41-comma"),
        pytest.param("1::2::5::978300760\n", {}, "Set the format to 'movielens'", id="42-movielens"),
        pytest.param(GOOD, {"format": "movielens"}, "Set the format to 'csv'", id="42-no-movielens"),
        pytest.param(GOOD, {"format": "sequences"}, "has no header", id="36-header-of-sequences"),
        pytest.param("1,2,3\n", {"format": "sequences"}, "Set the format to 'csv'", id="41-commas-in-sequences"),
        pytest.param("user_id\titem_id\nu\ti\n", {"format": "recbole"}, "has no type", id="38-recbole-types"),
        pytest.param(b"PK\x03\x04rest of it", {}, "is a ZIP archive", id="zip"),
        pytest.param(b"PAR1rest of it", {}, "Set the format to 'parquet'", id="parquet-as-csv"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\n", {}, "Git LFS pointer", id="lfs"),
        pytest.param(GOOD, {"format": "parquet"}, "cannot be read as Parquet", id="55-no-parquet"),
        pytest.param(GOOD, {"item_column": "user_id"}, "need a column each", id="one-column-twice"),
    ],
)
def test_a_broken_file_is_refused_with_its_reason(put, read, content, changes, words):
    path = put(content)
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        read(path, **changes)
    assert str(path) in caught.value.problem or "need a column" in words
    assert caught.value.remedy.endswith(".")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(ARCHIVE[:-20], "damaged gzip", id="46-truncated"),
        pytest.param(ARCHIVE[:40] + bytes([ARCHIVE[40] ^ 255]) + ARCHIVE[41:], "damaged gzip", id="46-flipped"),
        pytest.param(ARCHIVE + b"junk", "damaged gzip", id="46-trailing-junk"),
        pytest.param(GOOD.encode(), "not a gzip archive", id="46-not-gz"),
        pytest.param(ARCHIVE + ARCHIVE, "repeated_header", id="47-two-members"),
    ],
)
def test_a_broken_archive_is_named(put, read, content, words):
    with pytest.raises(DataError, match=words) as caught:
        read(put(content, "data.csv.gz"))
    assert "data.csv.gz" in caught.value.problem


def test_what_is_no_file_is_refused(tmp_path, put, read):
    put(GOOD, "here.csv")
    with pytest.raises(DataError, match=r"there\.csv does not exist.*holds here\.csv"):
        read(tmp_path / "there.csv")
    with pytest.raises(DataError, match="is a directory"):
        read(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        sha256_of(tmp_path / "none" / "at all")


def test_a_file_that_changes_while_it_is_read_is_refused(put, read, monkeypatch):
    """Row 54."""
    path = put(GOOD)
    from storage.ingest import load

    honest = load.text_records

    def records_then_write(*args, **kwargs):
        with path.open("a") as file:
            file.write("u9,i9,1500000099\n")
        return honest(*args, **kwargs)

    monkeypatch.setattr(load, "text_records", records_then_write)
    with pytest.raises(DataError, match="changed while it was being read"):
        read(path)


@pytest.mark.parametrize(
    ("column", "name", "words"),
    [
        (pa.array([1.0, 2.0]), "user_id", "'user_id' is double, expected text or an integer"),
        (pa.array([[1], [2]]), "item_id", "'item_id' is list"),
        (pa.array([True, False]), "item_id", "'item_id' is bool"),
        (pa.array([True, False]), "timestamp", "'timestamp' is bool, expected a number"),
    ],
)
def test_parquet_columns_of_the_wrong_type_are_refused(tmp_path, read, column, name, words):
    """Row 55."""
    columns = {"user_id": pa.array([1, 2]), "item_id": pa.array(["a", "b"]), "timestamp": pa.array([1, 2])}
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table(columns | {name: column}), path)
    with pytest.raises(DataError, match=words):
        read(path, format="parquet")


def test_a_parquet_file_without_its_end_is_refused(tmp_path, read):
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["i"], "timestamp": [1]}), path)
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read(path, format="parquet")
