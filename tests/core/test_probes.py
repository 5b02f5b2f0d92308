"""Probes of knowledge on data whose answer is known."""

import math

import numpy as np
import pytest

from p2rec_core import probes
from p2rec_core.probes import category_probe, copurchase_probe, nearest, next_item_probe, unit_rows

ONE_HOTS = np.eye(4, dtype=np.float32)


def random_vectors(n_items: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n_items, 8)).astype(np.float32)


def by_place(measures) -> dict[tuple[str, str], tuple[float | None, float | None, int]]:
    return {(m.metric, m.group): (m.value, m.chance, m.n) for m in measures}


@pytest.fixture
def many(ragged):
    """Sixty users over forty items, and a target for all but the first."""
    rng = np.random.default_rng(3)
    rows = [rng.choice(40, int(rng.integers(0, 12)), replace=False) + 1 for _ in range(60)]
    targets = rng.integers(1, 41, 60).astype(np.int32)
    targets[0] = 0
    return ragged(rows), targets


# ---------------------------------------------------------------- next item


def test_the_rank_of_the_next_item_by_hand(ragged):
    # twelve items around a quarter circle, 7.5 degrees apart: the nearest are the neighbours in number
    angle = np.deg2rad(7.5 * np.arange(12))
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    sequences = ragged([[1], [1, 2], [12], []])
    # user 0 is at item 1: 2 is first, 4 third; user 1 is between 1 and 2, which are masked: 3 is first
    measures = by_place(next_item_probe(vectors, sequences, np.array([4, 3, 1, 5], np.int32)))
    # user 2 is at the other end: item 1 is the last of eleven, a miss; user 3 is like nothing: all twelve tie, rank 7
    gains = [1 / math.log2(4), 1.0, 0.0, 1 / math.log2(8)]
    assert measures["HR@10", "all"][0] == pytest.approx(3 / 4)
    assert measures["NDCG@10", "all"][0] == pytest.approx(np.mean(gains))
    assert measures["NDCG@10", "all"][2] == 4
    # items 3, 4 and 5 occur in no training part, item 1 twice
    assert measures["NDCG@10", "cold"][0] == pytest.approx(np.mean([gains[0], gains[1], gains[3]]))
    assert measures["NDCG@10", "2"][0] == 0.0
    eligible = [11, 10, 11, 12]
    assert measures["HR@10", "all"][1] == pytest.approx(np.mean([10 / n for n in eligible]))
    discounts = sum(1 / math.log2(rank + 1) for rank in range(1, 11))
    assert measures["NDCG@10", "cold"][1] == pytest.approx(np.mean([discounts / n for n in (11, 10, 12)]))


def test_only_the_latest_items_are_read_and_lengths_of_vectors_do_not_count(many, ragged):
    sequences, targets = many
    vectors = random_vectors(40)
    lengths = np.random.default_rng(1).uniform(0.1, 9.0, (40, 1)).astype(np.float32)
    assert next_item_probe(vectors * lengths, sequences, targets) == next_item_probe(vectors, sequences, targets)
    # an old item changes what is masked, and nothing else
    one = next_item_probe(ONE_HOTS, ragged([[1, 2, 2, 2, 2, 2]]), np.array([4], np.int32))
    other = next_item_probe(ONE_HOTS, ragged([[3, 2, 2, 2, 2, 2]]), np.array([4], np.int32))
    assert by_place(one) == by_place(other)


def test_a_target_that_is_in_the_history_is_a_miss_and_so_it_is_by_chance(ragged):
    measures = by_place(next_item_probe(ONE_HOTS, ragged([[1, 2]]), np.array([2], np.int32)))
    assert measures["HR@10", "all"] == (0.0, 0.0, 1)


def test_nobody_with_a_target_has_no_value(ragged):
    measures = by_place(next_item_probe(ONE_HOTS, ragged([[1, 2]]), np.array([0], np.int32)))
    assert measures == {("HR@10", "all"): (None, None, 0), ("NDCG@10", "all"): (None, None, 0)}


def test_a_random_order_gives_what_is_said_to_be_chance(ragged):
    rng = np.random.default_rng(5)
    rows = [rng.choice(40, 5, replace=False) + 1 for _ in range(3000)]
    targets = np.array([rng.choice(np.setdiff1d(np.arange(1, 41), row)) for row in rows], np.int32)
    for value, chance, _ in by_place(next_item_probe(random_vectors(40), ragged(rows), targets)).values():
        assert value == pytest.approx(chance, abs=0.06)


# ---------------------------------------------------------------- co-purchase


def test_copurchase_by_hand(ragged):
    # items 1 and 2 point one way, 3 and 4 another; 1 goes with 2, and 3 with nothing; item 5 was never taken
    vectors = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [1, 0]], np.float32)
    measure = copurchase_probe(vectors, ragged([[1, 2], [2, 1, 1], [3], [4, 4], []]))
    # each of four items has three others, all of which are neighbours: 1/3, 1/3, 0, 0
    assert (measure.value, measure.chance, measure.n) == (pytest.approx(1 / 6), pytest.approx(1 / 6), 4)


def test_the_nearest_count_and_not_the_others(ragged):
    # two groups of twelve around two corners; users take items of one group only
    groups = np.repeat(np.eye(2, dtype=np.float32), 12, axis=0) + 0.01 * random_vectors(24)[:, :2]
    sequences = ragged([range(1, 13), range(13, 25)])
    measure = copurchase_probe(groups, sequences)
    assert (measure.value, measure.n) == (1.0, 24)
    assert measure.chance == pytest.approx(11 / 23)


def test_copurchase_is_what_a_plain_reading_gives_and_noise_is_near_chance(many):
    sequences, _ = many
    vectors = random_vectors(40)
    baskets = [set(sequences.items[a:b]) for a, b in zip(sequences.offsets, sequences.offsets[1:], strict=False)]
    taken = sorted(set().union(*baskets))
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found, possible = [], []
    for item in taken:
        others = [other for other in taken if other != item]
        together = {o for o in others if any({item, o} <= basket for basket in baskets)}
        near = sorted(others, key=lambda other: -units[item - 1] @ units[other - 1])[:10]
        found.append(len(together & set(near)) / 10)
        possible.append(len(together) / len(others))
    measure = copurchase_probe(vectors, sequences)
    assert measure.value == pytest.approx(np.mean(found))
    assert measure.chance == pytest.approx(np.mean(possible))
    assert measure.value == pytest.approx(measure.chance, abs=0.06)


def test_equal_vectors_are_at_the_level_of_chance(many):
    sequences, _ = many
    measure = copurchase_probe(np.ones((40, 3), np.float32), sequences)
    assert measure.value == pytest.approx(measure.chance)


def test_one_item_goes_with_nothing(ragged):
    measure = copurchase_probe(ONE_HOTS, ragged([[2], [2]]))
    assert (measure.value, measure.chance, measure.n) == (None, None, 1)


# ---------------------------------------------------------------- category


def test_one_hots_of_the_categories_tell_them_all():
    categories = np.arange(60) % 4
    measure = category_probe(ONE_HOTS[categories], categories)
    assert (measure.value, measure.chance, measure.n) == (1.0, 0.25, 60)


def test_noise_tells_categories_by_chance():
    categories = np.random.default_rng(2).permutation(np.arange(1200) % 3)
    measure = category_probe(random_vectors(1200), categories)
    assert measure.value == pytest.approx(1 / 3, abs=0.04)


def test_a_tie_of_categories_counts_by_parts():
    # items 0 and 1 lie between two of their own kind and two of another: half of the votes each
    vectors = np.array([[1, 0], [1, 0], [1, 0], [1, 0], [1, 0]], np.float32)
    measure = category_probe(vectors, np.array([0, 0, 0, 1, 1]))
    # each of three sees 2 : 2, a half; each of two sees 3 : 1 against itself
    assert measure.value == pytest.approx(3 * 0.5 / 5)
    assert measure.chance == pytest.approx(3 / 5)


def test_only_known_categories_count_and_none_are_not_invented():
    categories = np.where(np.arange(60) < 40, np.arange(60) % 4, -1)
    measure = category_probe(ONE_HOTS[np.arange(60) % 4], categories)
    assert (measure.value, measure.n) == (1.0, 40)
    for unknown in (None, np.full(60, -1), np.where(np.arange(60) == 7, 2, -1)):
        measure = category_probe(random_vectors(60), unknown)
        assert (measure.value, measure.chance) == (None, None)


# ---------------------------------------------------------------- both


def test_weights_of_the_nearest_share_what_ties_leave():
    # from item 0: item 1 is nearer than 2, 3 and 4, which are equally near; 5 is farthest
    vectors = np.array([[1, 0], [1, 0.1], [1, 1], [2, 2], [3, 3], [-1, 0]], np.float32)
    row, column, weight = nearest(unit_rows(vectors), np.array([0]), 2)
    assert row.tolist() == [0, 0, 0, 0]
    assert dict(zip(column.tolist(), weight.tolist(), strict=True)) == pytest.approx(
        {1: 1, 2: 1 / 3, 3: 1 / 3, 4: 1 / 3}
    )
    _, column, weight = nearest(unit_rows(vectors), np.array([5, 0]), 99)
    assert (len(column), set(weight)) == (10, {1.0})


def test_a_zero_row_is_like_nothing():
    assert unit_rows(np.array([[0, 0], [3, 4]], np.float32)).tolist() == [[0, 0], [0.6, 0.8]]


@pytest.mark.parametrize("values", [1, 97, 1 << 20])
def test_blocks_change_no_result(many, monkeypatch, values):
    sequences, targets = many
    # few distinct vectors, so that ties are everywhere
    vectors = np.concatenate([random_vectors(7)] * 6)[:40]
    categories = np.arange(40) % 5
    told: list[tuple[int, int]] = []

    def all_measures() -> list[probes.Measure]:
        return [
            *next_item_probe(vectors, sequences, targets),
            copurchase_probe(vectors, sequences, progress=lambda done, total, message: told.append((done, total))),
            category_probe(vectors, categories),
        ]

    whole = all_measures()
    assert len(told) == 1
    monkeypatch.setattr(probes, "_BLOCK_VALUES", values)
    monkeypatch.setattr("p2rec_core.ranking.SCORED_ROWS", values)
    assert all_measures() == whole
    assert told[-1] == told[0]
