"""A directory that a partition is added to every day."""

import gzip
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from p2rec_core.errors import DataError
from storage.ingest.partitions import joined
from tasks.ingest import ingest_call
from tasks.sources import find_source, register


@pytest.fixture
def place(tmp_path):
    return tmp_path / "joined"


@pytest.fixture
def days(tmp_path):
    directory = tmp_path / "days"
    directory.mkdir()
    return directory


def test_text_is_joined_with_one_header_in_the_order_of_names(days, place):
    (days / "2026-11-24.csv").write_text("user_id,item_id\nb,y\n")
    (days / "2026-11-23.csv").write_bytes(b"\xef\xbb\xbfuser_id,item_id\r\na,x\r\nb,x")
    (days / "2026-11-25.csv.gz").write_bytes(gzip.compress(b"user_id,item_id\nc,z\n"))
    (days / "_SUCCESS").write_text("")
    (days / ".part.csv").write_text("user_id,item_id\nhidden,h\n")
    assert joined(days, "csv", place).read_bytes() == b"user_id,item_id\na,x\r\nb,x\nb,y\nc,z\n"


def test_lines_without_a_header_are_joined_as_they_are(days, place):
    (days / "1.txt").write_text("a x y\n")
    (days / "2.txt").write_text("b y z\n")
    assert joined(days, "sequences", place).read_text() == "a x y\nb y z\n"


def test_parquet_is_joined_at_any_depth(days, place):
    for day, user in (("day=2", "b"), ("day=1", "a")):
        (days / day).mkdir()
        pq.write_table(pa.table({"user_id": [user], "item_id": [1]}), days / day / "part-0.parquet")
    assert pq.read_table(joined(days, "parquet", place)).to_pydict() == {"user_id": ["a", "b"], "item_id": [1, 1]}


def test_who_wrote_a_parquet_partition_does_not_matter(days, place):
    strict = pa.schema([pa.field("user_id", pa.string(), nullable=False), pa.field("item_id", pa.int64())])
    pq.write_table(pa.table({"user_id": ["a"], "item_id": [1]}, schema=strict), days / "1.parquet")
    pq.write_table(pa.table({"user_id": pa.array(["b"], pa.large_string()), "item_id": [2]}), days / "2.parquet")
    pq.write_table(pa.table({"user_id": ["c"], "item_id": [3]}), days / "3.parquet")
    assert pq.read_table(joined(days, "parquet", place)).to_pydict() == {
        "user_id": ["a", "b", "c"],
        "item_id": [1, 2, 3],
    }


def test_a_file_is_made_once_for_the_same_content_and_old_ones_go(days, place):
    seen = []
    for day in range(4):
        (days / f"{day}.csv").write_text(f"user_id,item_id\nu{day},x\n")
        path = joined(days, "csv", place)
        os.utime(path, (1000 + day, 1000 + day))
        seen.append(path)
    before = path.stat().st_mtime_ns
    assert joined(days, "csv", place) == path
    assert path.stat().st_mtime_ns == before
    assert sorted(place.iterdir()) == sorted(seen[-2:])


def test_other_columns_are_named(days, place):
    (days / "1.csv").write_text("user_id,item_id\na,x\n")
    (days / "2.csv").write_text("user_id,sku\na,x\n")
    with pytest.raises(
        DataError,
        match=r"2\.csv has the columns user_id, sku; .*: without item_id and with sku besides",
    ):
        joined(days, "csv", place)
    for number, column in ((1, "item_id"), (2, "sku")):
        pq.write_table(pa.table({"user_id": ["a"], column: [1]}), days / f"{number}.csv")
    with pytest.raises(DataError, match=r"2\.csv has the columns user_id string, sku int64"):
        joined(days, "parquet", place)
    assert list(place.iterdir()) == []


def test_what_is_no_partition_is_named(days, place):
    with pytest.raises(DataError, match="days holds no partition"):
        joined(days, "csv", place)
    (days / "1.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"1\.parquet cannot be read as Parquet"):
        joined(days, "parquet", place)


def test_a_dataset_may_be_a_directory_that_grows(days, tmp_path):
    from p2rec_core.settings.data import IngestSettings
    from storage.artefacts import Store

    store = Store.open(tmp_path / "store")
    settings = IngestSettings(format="csv", timestamp_column=None)
    (days / "1.csv").write_text("user_id,item_id\na,x\n")
    register(store, "clicks", days, settings)
    first = find_source("clicks", store)
    (days / "2.csv").write_text("user_id,item_id\nb,y\n")
    second = find_source("clicks", store)
    assert second.path.read_text() == "user_id,item_id\na,x\nb,y\n"
    assert ingest_call(first.path, settings).key() != ingest_call(second.path, settings).key()


def test_a_joined_file_that_is_damaged_is_made_anew(days, place):
    """What a power cut left of it, or a flipped bit, is never taken for the data."""
    for day in range(2):
        (days / f"{day}.csv").write_text(f"user_id,item_id\nu{day},x\n")
    path = joined(days, "csv", place)
    good = path.read_bytes()
    for damaged in (b"", good[:-5], good.replace(b"u1", b"u3")):
        path.write_bytes(damaged)
        assert joined(days, "csv", place) == path
        assert path.read_bytes() == good
    assert list(place.iterdir()) == [path]


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:20] + b"?" + data[21:]])
def test_a_damaged_archive_among_partitions_is_named(days, place, damage):
    (days / "1.csv").write_text("user_id,item_id\na,x\n")
    text = "user_id,item_id\n" + "".join(f"u{n},i{n * n}\n" for n in range(99))
    (days / "2.csv.gz").write_bytes(damage(gzip.compress(text.encode())))
    with pytest.raises(DataError, match=r"2\.csv\.gz is a damaged gzip archive"):
        joined(days, "csv", place)
    assert list(place.iterdir()) == []


def test_a_header_that_is_not_utf_8_is_compared_all_the_same(days, place):
    (days / "1.csv").write_bytes("user_id,größe\na,x\n".encode("latin1"))
    (days / "2.csv").write_text("user_id,item_id\na,x\n")
    with pytest.raises(DataError, match=r"2\.csv has the columns user_id, item_id; "):
        joined(days, "csv", place)


def test_a_partition_that_changes_while_it_is_joined_is_refused(days, place, monkeypatch):
    from storage.ingest import partitions

    path = days / "1.csv"
    path.write_text("user_id,item_id\na,x\n")
    honest = partitions._join_text

    def join_then_write(*args, **options):
        honest(*args, **options)
        path.write_text("user_id,item_id\na,y\n")

    monkeypatch.setattr(partitions, "_join_text", join_then_write)
    with pytest.raises(DataError, match=r"1\.csv changed while it was being read"):
        joined(days, "csv", place)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("pattern", ["*.csv", "**/*.csv", "*/*.csv", "[!x]*.csv"])
def test_what_is_hidden_or_not_finished_is_left_out_of_a_pattern_too(tmp_path, place, pattern):
    days = tmp_path / "_landing" / "days"
    (days / "day=1").mkdir(parents=True)
    (days / "_temporary").mkdir()
    header = "user_id,item_id\n"
    for name in ("1.csv", "day=1/1.csv"):
        (days / name).write_text(header + "a,x\n")
    for name in ("_2.csv", ".3.csv", "_temporary/4.csv", "day=1/_5.csv"):
        (days / name).write_text(header + "half,w")
    assert set(joined(days / pattern, "csv", place).read_text().splitlines()) == {"user_id,item_id", "a,x"}


def test_a_pattern_is_what_it_matches(days, place, tmp_path):
    """Row 55: a glob is read as one file, and refused with a difference where its files do not agree."""
    from p2rec_core.settings.data import IngestSettings
    from storage.artefacts import Store

    for name in ("2026-01", "2026-02", "2025-12"):
        (days / f"{name}.csv").write_text(f"user_id,item_id\nu{name[-1]},x\n")
    assert joined(days / "2026-*.csv", "csv", place).read_text() == "user_id,item_id\nu1,x\nu2,x\n"
    store = Store.open(tmp_path / "store")
    register(store, "clicks", days / "2026-*.csv", IngestSettings(format="csv", timestamp_column=None))
    assert find_source("clicks", store).path.read_text() == "user_id,item_id\nu1,x\nu2,x\n"
    with pytest.raises(DataError, match=r"The pattern .*2024-\*\.csv matches no file"):
        joined(days / "2024-*.csv", "csv", place)
    (days / "2026-03.csv").write_text("item_id,user_id\nx,u3\n")
    with pytest.raises(DataError, match=r"2026-03\.csv has the columns .*: in another order"):
        joined(days / "2026-*.csv", "csv", place)
