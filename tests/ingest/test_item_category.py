"""True categories from the table of items' texts."""

from pathlib import Path

import pytest

from p2rec_core.errors import DataError
from storage.ingest.item_category import has_categories, read_item_categories
from storage.sample import generate_sample, write_sample


def test_categories_are_numbered_by_name_and_missing_ones_stay_missing(tmp_path: Path) -> None:
    path = tmp_path / "items.tsv"
    path.write_text('item_id\ttitle\tcategory\nb\tThe "B"\tmusic\nx\tz\tart\na\ty\tfilm\nc\tw\t\n', encoding="utf-8")
    assert has_categories(path)
    assert read_item_categories(path, ["a", "b", "c", "d", "b"]).tolist() == [0, 1, -1, -1, 1]


@pytest.mark.parametrize(
    ("name", "header", "there"),
    [
        ("items.tsv", "item_id\ttitle\tcategory", True),
        ("items.csv", '\ufeffid,"a, title",category', True),
        ("items.tsv", 'item_id\t"title\tcategory', True),
        ("items.tsv", "item_id\tterms", False),
        ("items.tsv", "category\tterms", False),
        ("items.tsv", "", False),
    ],
)
def test_a_column_of_categories_is_found_by_its_name(tmp_path: Path, name: str, header: str, there: bool) -> None:
    (tmp_path / name).write_text(header + "\n" if header else "", encoding="utf-8")
    assert has_categories(tmp_path / name) is there


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"items\.tsv cannot be read"):
        has_categories(tmp_path / "items.tsv")


def test_the_samples_categories_are_those_that_it_was_drawn_with(tmp_path: Path) -> None:
    sample = generate_sample(n_users=40, n_items=60, n_categories=4)
    path = write_sample(tmp_path, sample)["items"]
    assert has_categories(path)
    # "category 1" … "category 4" sort as their numbers do
    assert read_item_categories(path, sample.item_ids).tolist() == sample.category.tolist()
