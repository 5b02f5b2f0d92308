"""Every row of the table of malformed interaction files, by number, with the behaviour that is stated for it.

The sections beside this one go deeper into single rows; here no number may be missing.
"""

import gzip
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from p2rec_core.clustering import cluster_items
from p2rec_core.errors import DataError, SettingsError
from p2rec_core.sequences import RaggedSequences, tail_windows
from p2rec_core.settings.pipeline import validated
from storage.ingest import ingest

HEADER = "user_id,item_id,timestamp\n"
T = 1_500_000_000
GOOD = "".join(f"u{i % 5},i{i % 7},{T + i}\n" for i in range(30))
ARCHIVE = gzip.compress((HEADER + GOOD).encode())


@dataclass(frozen=True)
class Row:
    """A malformed file and what becomes of it.

    Attributes:
        n: Its number.
        what: What is wrong with it.
        content: The file.
        refused: Words of the error that it is refused with under ``strict``.
        reason: The reason under which quarantine sets exactly one row aside; ``strict`` refuses it with that.
        ids: The users' identifiers that must come out, in order of their bytes; None where they do not matter.
        notice: Words of a notice.
        counts: What must have been counted.
        changes: Settings.
        name: Name of the file.
    """

    n: int
    what: str
    content: str | bytes
    refused: str = ""
    reason: str = ""
    ids: tuple[str, ...] | None = None
    notice: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    name: str = "data.csv"


def bad(line: str) -> str:
    """A file of which one line is bad."""
    return HEADER + GOOD + line + "\n"


def kept(*ids: str) -> str:
    """A file of as many users as identifiers; each buys three items."""
    return HEADER + "".join(f"{name},i{i},{T + i}\n" for name in ids for i in range(3))


def same(n: int, what: str, *ids: str, notice: str = "", **changes: Any) -> Row:
    """Identifiers that come out byte for byte as they went in."""
    ordered = tuple(sorted(ids, key=str.encode))
    return Row(n, what, kept(*ids), ids=ordered, notice=notice, changes=changes)


QUOTED = "user_id,item_id,timestamp,note\n"
ROWS = [
    Row(1, "empty file", b"", refused="is empty (0 bytes)"),
    Row(2, "header only", HEADER, refused="no interactions"),
    Row(3, "HTML page", "<!DOCTYPE html><html>Sign in", refused="it begins with '<!DOCTYPE html><html>Sign in'"),
    Row(4, "NaN timestamp", bad("u1,i1,nan"), reason="nan_timestamp"),
    Row(5, "inf timestamp", bad("u1,i1,inf"), reason="infinite_timestamp"),
    Row(6, "empty timestamp", bad("u1,i1,"), reason="empty_timestamp"),
    Row(7, "text timestamp", bad("u1,i1,yesterday"), reason="text_timestamp"),
    Row(8, "seconds and milliseconds", HEADER + GOOD + GOOD.replace("\n", "000\n"),
        refused="mixes units of time"),
    Row(9, "negative", bad("u1,i1,-5"), reason="timestamp_out_of_range"),
    Row(9, "far future", bad(f"u1,i1,{T * 5}"), reason="timestamp_out_of_range"),
    Row(9, "before first_day", bad("u1,i1,1262304000"), reason="timestamp_out_of_range",
        changes={"first_day": "2010-01-02"}),
    Row(9, "the last second before last_day ends is in", bad("u1,i1,1609459199"), ids=tuple(f"u{i}" for i in range(5)),
        changes={"last_day": "2020-12-31"}),
    Row(9, "after last_day", bad("u1,i1,1609459200"), reason="timestamp_out_of_range",
        changes={"last_day": "2020-12-31"}),
    Row(9, "after last_day, in milliseconds",
        HEADER + GOOD.replace("\n", "000\n") + "u1,i1,1609459200000\n", reason="timestamp_out_of_range",
        changes={"last_day": "2020-12-31"}),
    Row(9, "days without a clock", HEADER + "a,x,1\na,y,2\n", refused="no times of a clock",
        changes={"first_day": "2010-01-01"}),
    Row(10, "all timestamps equal", HEADER + "".join(f"a,i{i},{T}\n" for i in (3, 1, 2)),
        notice="All timestamps are equal"),
    Row(11, "ISO dates", bad("u1,i1,2020-01-01T00:00:00Z"), reason="text_timestamp"),
    Row(12, "exact duplicates", HEADER + GOOD + GOOD, counts={"n_duplicates": 30, "n_interactions": 30}),
    Row(12, "exact duplicates are kept if so set", HEADER + GOOD + GOOD, counts={"n_interactions": 60},
        changes={"drop_duplicates": False}),
    Row(13, "same user and item at another time", HEADER + f"a,x,{T}\na,x,{T + 1}\na,y,{T + 2}\n",
        counts={"n_interactions": 3, "n_repeats": 1}),
    same(14, "negative ids", "-4", "4"),
    Row(15, "int then text ids", kept(*(str(i) for i in range(50)), "text"), counts={"n_users": 51}),
    same(16, "leading zeros", "007", "7", notice="kept apart though equal as numbers"),
    same(17, "1.0 and 1", "1.0", "1", notice="kept apart though equal as numbers"),
    same(18, "1e5 and 100000", "1e5", "100000", notice="kept apart though equal as numbers"),
    same(19, "beyond 64 bits", "9223372036854775808", "9223372036854775809"),
    same(20, "true and false", "true", "false", "True"),
    same(21, "dates", "2020-01-01", "20200101"),
    same(22, "NULL, NA, null", "NULL", "NA", "null", "None"),
    Row(22, "empty id", bad(f",i1,{T}"), reason="empty_user"),
    Row(23, "byte order mark", b"\xef\xbb\xbf" + kept("a").encode(), ids=("a",)),
    Row(24, "CRLF", kept("a").replace("\n", "\r\n"), ids=("a",)),
    Row(25, "CR only", kept("a").replace("\n", "\r"), ids=("a",), notice="bare carriage return"),
    Row(26, "mixed line ends", kept("a").replace("\n", "\r\n", 2), ids=("a",)),
    Row(27, "Latin-1", kept("é").encode("latin-1"), refused="byte 0xe9 at offset 26 is not UTF-8"),
    Row(27, "Latin-1, and said so", kept("é").encode("latin-1"), ids=("é",), changes={"encoding": "latin-1"}),
    Row(27, "Shift JIS, and said so", kept("表示").encode("shift_jis"), ids=("表示",),
        changes={"encoding": "shift_jis"}),
    Row(28, "UTF-16", kept("a").encode("utf-16"), refused="its byte order mark says so"),
    Row(29, "NUL in an id", bad(f"u\0,i1,{T}"), reason="nul_byte"),
    same(30, "zero-width twin", "ab", "a\u200bb", notice="equal to the eye"),
    same(30, "NFC and NFD", "é", "e\u0301", notice="equal to the eye"),
    Row(30, "NFC and NFD made one", kept("é", "e\u0301"), ids=("é",), notice="composed form (NFC) in 3 rows",
        changes={"normalise_ids": True}),
    Row(31, "spaces around ids", kept("a", " b "), ids=("a", "b"),
        notice="White space around ids was removed in 3 rows"),
    Row(32, "short row", bad("u1,i1"), reason="short_row"),
    Row(33, "long row", bad(f"u1,i1,{T},4"), reason="long_row"),
    Row(34, "unclosed quote", QUOTED + f'a,x,{T},fine\na,y,{T},"open\na,z,{T},b\n', refused="line 3: a quote opened"),
    Row(35, "newline in a value", QUOTED + f'a,x,{T},"1\n2"\na,y,{T},\na,z,{T},\n', ids=("a",)),
    Row(35, "newline in an id", bad(f'u1,"i\n1",{T}'), reason="newline_in_id"),
    Row(36, "no header", GOOD, refused="there is no header"),
    Row(37, "doubled header", f"user_id,item_id,timestamp,item_id\na,x,{T},y\n",
        refused="stands in the header 2 times"),
    Row(38, "missing column", f"user_id,sku,timestamp\na,x,{T}\n", refused="there is no column 'item_id'"),
    Row(39, "reordered columns", f"item_id,timestamp,user_id\nx,{T},a\ny,{T},a\nz,{T},a\n", ids=("a",)),
    Row(40, "header again", bad(HEADER.strip()), reason="repeated_header"),
    Row(41, "semicolons", HEADER.replace(",", ";") + "a;x;1\n", refused="separated by ';'"),
    Row(41, "tabs", HEADER.replace(",", "\t") + "a\tx\t1\n", refused="Set the format to 'tsv'"),
    Row(42, "MovieLens as CSV", "1::10::5::978300760\n", refused="Set the format to 'movielens'"),
    Row(42, "MovieLens", "".join(f"1::{i}::5::{978300760 + i}\n" for i in range(3)), ids=("1",),
        changes={"format": "movielens"}),
    Row(43, "decimal comma", bad('u1,i1,"1500000000,5"'), reason="decimal_comma_timestamp"),
    Row(43, "thousands", bad('u1,i1,"1,500,000,000"'), reason="decimal_comma_timestamp"),
    Row(44, "blank lines", kept("a").replace("\n", "\n\n \n"), ids=("a",)),
    Row(44, "comment", bad("# made by hand"), reason="short_row"),
    Row(45, "3 MB id", bad(f"u1,{'x' * 3_000_000},{T}"), reason="id_too_long"),
    Row(46, "archive cut short", ARCHIVE[:-20], refused="damaged gzip", name="data.csv.gz"),
    Row(46, "archive with a flipped bit", ARCHIVE[:40] + bytes([ARCHIVE[40] ^ 64]) + ARCHIVE[41:],
        refused="damaged gzip", name="data.csv.gz"),
    Row(46, "archive with junk behind", ARCHIVE + b"junk", refused="damaged gzip", name="data.csv.gz"),
    Row(46, "no archive", HEADER + GOOD, refused="not a gzip archive", name="data.csv.gz"),
    Row(47, "two members with two headers", ARCHIVE + gzip.compress(HEADER.encode()), reason="repeated_header",
        name="data.csv.gz"),
    same(48, "SQL, formulas and paths", "'; DROP TABLE raw; --", "=1+1", "../../etc/passwd", "$1", "{{7*7}}", "%s",
         "$(id)", "`id`", "a' OR '1'='1", "\\x00", "-rf", "<script>alert(1)</script>"),
    Row(49, "users with 1 and 2 interactions", kept("a") + f"b,i0,{T}\nc,i0,{T}\nc,i1,{T}\n",
        counts={"n_users": 3, "n_users_split": 1, "n_users_unsplit": 2}, notice="fewer than 3 interactions"),
    Row(51, "k-core empties the data", kept("a", "b"), refused="Lower them: 2 and 2 leave 2 users and 3 items",
        changes={"min_user_interactions": 9, "min_item_interactions": 9}),
    Row(52, "test item that is never in training", kept("a") + kept("b").replace("i2", "new").removeprefix(HEADER),
        counts={"n_cold_test": 2, "n_cold_test_items": 2}),
]  # fmt: skip
ELSEWHERE = {50, 53, 54, 55}
"""Tested below, since they are no single file of text."""


def read(path: Path, **changes: Any) -> Any:
    chosen = {"format": "csv", "min_user_interactions": 1, "min_item_interactions": 1} | changes
    settings = validated({"ingest": chosen}).ingest.model_dump(mode="json")
    return ingest(path, **settings)


def test_no_number_is_missing() -> None:
    assert {row.n for row in ROWS} | ELSEWHERE == set(range(1, 56))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.n:02}-{row.what.replace(' ', '-')}")
def test_the_stated_behaviour(row: Row, tmp_path: Path) -> None:
    path = tmp_path / row.name
    path.write_bytes(row.content.encode() if isinstance(row.content, str) else row.content)
    if row.refused or row.reason:
        with pytest.raises(DataError) as caught:
            read(path, **row.changes)
        assert str(path) in caught.value.problem
        assert row.refused in str(caught.value)
        assert caught.value.remedy
        if row.refused:
            return
        assert f"1 of {31} rows cannot be read" in caught.value.problem
        assert f"\n{row.reason}" in caught.value.problem
        result = read(path, **row.changes, on_error="quarantine", max_rejected=0.05)
        assert result.rejects.column("reason").to_pylist() == [row.reason]
        assert result.rejects.column("line").to_pylist() == [32]
        assert result.counts["n_rejected"] == 1
        assert result.counts["n_interactions"] == 30
        with pytest.raises(DataError, match=r"more than max_rejected = 0\.01 allows"):
            read(path, **row.changes, on_error="quarantine", max_rejected=0.01)
        return
    result = read(path, **row.changes)
    if row.ids is not None:
        assert tuple(result.users.column("user_id").to_pylist()) == row.ids
    assert row.notice in " ".join(result.notices)
    for name, count in row.counts.items():
        assert result.counts[name] == count, name


@pytest.mark.parametrize("n", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_row_50_a_user_with_very_many_interactions(tmp_path: Path, n: int) -> None:
    path = tmp_path / "data.txt"
    with path.open("w") as file:
        file.write("many " + " ".join(f"i{i % 997}" for i in range(n)) + "\n")
        file.writelines(f"u{i} i0 i1 i2\n" for i in range(50))
    result = read(path, format="sequences", timestamp_column=None)
    assert result.counts["length_max"] == n
    assert result.counts["n_users_split"] == 51
    rows = [row.as_py() for row in result.sequences.column("items")]
    lengths = np.array([len(row) for row in rows])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    windows = tail_windows(RaggedSequences(np.concatenate(rows).astype(np.int32), offsets), 50)
    assert int(windows.lengths.max()) == 50


@pytest.mark.parametrize(
    ("embeddings", "words"),
    [
        (np.eye(3, dtype=np.float32), "clusters.n_clusters = 5, but only 3 distinct items"),
        (np.ones((40, 3), np.float32), "only 1 distinct items have training interactions. Train the backbone on more"),
        (np.full((40, 3), np.nan, np.float32), "40 of 40 item embeddings are not finite"),
        (np.where(np.eye(40, 3) > 0, np.inf, 0).astype(np.float32), "3 of 40 item embeddings are not finite"),
    ],
    ids=["fewer-items-than-clusters", "identical", "NaN", "inf"],
)
def test_row_53_items_that_make_no_clusters(embeddings: np.ndarray, words: str) -> None:
    with pytest.raises(DataError) as caught:
        cluster_items(
            embeddings, np.ones(len(embeddings), bool), n_clusters=5, n_init=1, max_iter=5, normalise=False, seed=1
        )
    assert words in str(caught.value)


@pytest.mark.parametrize("change", ["grows", "shrinks", "other bytes", "goes"])
def test_row_54_a_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    from storage.ingest import load

    path = tmp_path / "data.csv"
    path.write_text(HEADER + GOOD)
    changes: dict[str, Callable[[], object]] = {
        "grows": lambda: path.write_text(HEADER + GOOD + f"z,z,{T}\n"),
        "shrinks": lambda: path.write_text(HEADER + GOOD[:-20]),
        "other bytes": lambda: path.write_text(HEADER + GOOD.replace("i3", "i4")),
        "goes": path.unlink,
    }
    honest = load.text_records

    def records_then_change(*args: Any, **kwargs: Any) -> Any:
        found = honest(*args, **kwargs)
        changes[change]()
        return found

    monkeypatch.setattr(load, "text_records", records_then_change)
    with pytest.raises(DataError, match=r"changed while it was being read|does not exist"):
        read(path)


@pytest.mark.parametrize(
    ("column", "name", "words"),
    [
        (pa.array([1.0, 2.0]), "user_id", "'user_id' is double"),
        (pa.array([[1], [2]]), "item_id", "'item_id' is list"),
        (pa.array([{"a": 1}] * 2), "item_id", "'item_id' is struct"),
        (pa.array([1.5, 2.0]).dictionary_encode(), "item_id", "'item_id' is double"),
        (pa.array([b"\xff", b"a"]), "user_id", "'user_id' is binary"),
        (pa.array([True, False]), "timestamp", "'timestamp' is bool"),
    ],
)
def test_row_55_parquet_of_other_types(tmp_path: Path, column: pa.Array, name: str, words: str) -> None:
    columns = {"user_id": pa.array([1, 2]), "item_id": pa.array(["a", "b"]), "timestamp": pa.array([1, 2])}
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table(columns | {name: column}), path)
    with pytest.raises(DataError, match=words):
        read(path, format="parquet")


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("encoding", "utf-16", "line ends in utf-16 are not those of ASCII"),
        ("encoding", "klingon", "there is no text encoding 'klingon'"),
        ("encoding", "base64", "there is no text encoding"),
        ("first_day", "31.1.2020", "nvalid isoformat string"),
        ("last_day", "2020-02-30", "day is out of range|day"),
    ],
)
def test_settings_that_cannot_be_meant(setting: str, value: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        validated({"ingest": {setting: value}})


def test_days_in_the_wrong_order() -> None:
    with pytest.raises(SettingsError, match="first_day 2021-01-01 is after last_day 2020-01-01"):
        validated({"ingest": {"first_day": "2021-01-01", "last_day": "2020-01-01"}})


def test_days_without_timestamps(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("a x y z\n")
    with pytest.raises(DataError, match="without timestamps cannot be kept to days"):
        read(path, format="sequences", last_day="2020-01-01")


@pytest.mark.parametrize("size", [1, 5])
def test_an_archive_that_unpacks_to_one_endless_line_is_refused_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """A bomb: 20 MB of one letter in 20 kB; what is kept of it is bounded by the longest line."""
    from storage.ingest import source

    monkeypatch.setattr(source, "MAX_LINE_BYTES", size << 20)
    path = tmp_path / "data.csv.gz"
    path.write_bytes(gzip.compress(HEADER.encode() + b"x" * (20 << 20)))
    with pytest.raises(DataError, match=f"holds a line of more than {size} MiB"):
        read(path)
