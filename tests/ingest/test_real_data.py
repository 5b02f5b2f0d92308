"""The three data sets of the paper, byte for byte as published."""

import pytest

from storage.datasets import DATASETS, check_statistics, describe, locate


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "cold", "lengths", "repeats"),
    [("beauty", 138, (5, 6, 204), 0), ("ml-1m", 0, (18, 96, 2277), 0), ("yelp", 73, (5, 7, 350), 11_830)],
)
def test_statistics_are_those_of_table_1(datasets_dir, tmp_path, run, name, cold, lengths, repeats):
    known = DATASETS[name]
    path = locate(name, datasets_dir=datasets_dir, cache_dir=tmp_path, fetch=None)
    result = run(path, format=known.format, min_user_interactions=5, min_item_interactions=5)
    counts = result.counts
    assert check_statistics(name, counts) == []
    assert counts["n_interactions_dropped"] == 0
    assert counts["n_cold_test"] == cold
    assert tuple(counts[f"length_{which}"] for which in ("min", "median", "max")) == lengths
    assert counts["n_repeats"] == repeats
    assert result.sha256 == known.sha256
    tables = {t: getattr(result, t) for t in ("interactions", "sequences", "validation", "test", "items", "users")}
    assert describe(tables).items() <= counts.items()
    # The tables hold what the file says, read in the plainest way.
    item_id, user_id = result.items["item_id"].to_pylist(), result.users["user_id"].to_pylist()
    lines = {line.split()[0]: line.split()[1:] for line in path.read_text().splitlines()}
    last = {user_id[r["user_idx"] - 1]: item_id[r["item_idx"] - 1] for r in result.test.to_pylist()}
    assert last == {user: items[-1] for user, items in lines.items()}
    for row in result.sequences.slice(0, 500).to_pylist():
        assert [item_id[i - 1] for i in row["items"]] == lines[user_id[row["user_idx"] - 1]][:-2]
