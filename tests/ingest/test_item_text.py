"""Items' texts put beside a catalogue."""

import csv

import pytest

from p2rec_core.errors import DataError
from storage.ingest.item_text import read_item_texts


def test_texts_follow_the_catalogue(tmp_path):
    path = tmp_path / "items.tsv"
    path.write_text('item_id\ttitle\tcategory\nb\tThe "B"  side\tmusic\nx\tunknown\t\na\t\tfilm\n', encoding="utf-8")
    read = read_item_texts(path, ["a", "b", "c"], None)
    assert read.texts == ["film", 'The "B" side. music', ""]
    assert (read.n_missing, read.n_unknown) == (1, 1)
    assert read_item_texts(path, ["b"], ("category",)).texts == ["music"]


def test_a_csv_file_has_quotation_marks(tmp_path):
    path = tmp_path / "items.csv"
    path.write_bytes(b'\xef\xbb\xbfid,words\n7,"red, ""matt"" lipstick"\n')
    assert read_item_texts(path, ["7"], None).texts == ['red, "matt" lipstick']


def test_identifiers_are_read_as_those_of_interactions_are(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text("item_id,title\n a ,red\n\tb,green\ncafe\u0301,blue\n", encoding="utf-8")
    assert read_item_texts(path, ["a", "b", "caf\u00e9", "cafe\u0301"], None).texts == ["red", "green", "", "blue"]
    composed = read_item_texts(path, ["a", "b", "caf\u00e9"], None, normalise_ids=True)
    assert (composed.texts, composed.n_missing, composed.n_unknown) == (["red", "green", "blue"], 0, 0)
    path.write_text("item_id,title\na,red\na ,green\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 3: the item 'a' is there twice"):
        read_item_texts(path, ["a"], None)


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_empty_lines_are_passed_over_and_lines_are_counted_all_the_same(tmp_path, suffix):
    path = tmp_path / f"items.{suffix}"
    by = {"csv": ",", "tsv": "\t"}[suffix]
    path.write_text(f"\nitem_id{by}title\n\na{by}red\n   \nb{by}green\n\n\n", encoding="utf-8")
    assert read_item_texts(path, ["a", "b"], None).texts == ["red", "green"]
    with path.open("a", encoding="utf-8") as file:
        file.write("c\n")
    with pytest.raises(DataError, match="line 9: 1 fields where the header has 2"):
        read_item_texts(path, ["a", "b"], None)


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_long_description_is_read_and_one_without_an_end_is_told(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"items.{suffix}"
    by, words = {"csv": ",", "tsv": "\t"}[suffix], "x" * 200_000
    path.write_text(f"item_id{by}title\na{by}{words}\n", encoding="utf-8")
    before = csv.field_size_limit()
    assert read_item_texts(path, ["a"], None).texts == [words]
    assert csv.field_size_limit() == before
    monkeypatch.setattr("storage.ingest.item_text._MAX_FIELD_CHARACTERS", 100_000)
    with pytest.raises(DataError, match=rf"items\.{suffix}, line 2, cannot be read: .*at most 100,000 characters"):
        read_item_texts(path, ["a"], None)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("item_id\ttitle\n", "has no rows of an identifier and a text"),
        ("item_id\na\n", "has no rows of an identifier and a text"),
        ("item_id\ttitle\na\tx\ty\n", "line 2: 3 fields where the header has 2"),
        ("item_id\ttitle\na\tx\na\ty\n", "line 3: the item 'a' is there twice"),
        ("item_id\ttitle\nz\tx\n", "None of the 1 items in"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, problem):
    path = tmp_path / "items.tsv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_item_texts(path, ["a", "b"], None)
    assert problem in caught.value.problem
    assert caught.value.remedy


def test_a_file_of_another_kind_and_one_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"neither \.tsv nor \.csv"):
        read_item_texts(tmp_path / "items.json", ["a"], None)
    with pytest.raises(DataError, match="cannot be read"):
        read_item_texts(tmp_path / "items.tsv", ["a"], None)


def test_a_column_that_is_not_there(tmp_path):
    path = tmp_path / "items.tsv"
    path.write_text("item_id\ttitle\na\tx\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_item_texts(path, ["a"], ("name",))
    assert "no column 'name'" in caught.value.problem
    assert caught.value.remedy == "Choose among title."
