"""Which examples there are, and the tokens of an epoch on the real datasets."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from p2rec_core.language.instances import (
    LanguageModelWork,
    inference_lengths,
    instance_level_lengths,
    next_item_instances,
    user_level_lengths,
)
from storage.datasets import DATASETS, locate

OPTIONS = [
    {"n_last_targets": last, "max_history": cap, "drop_empty_history": drop}
    for last in (None, 1, 3)
    for cap in (None, 2)
    for drop in (True, False)
]


def by_hand(rows: list[list[int]], options: dict[str, Any]) -> list[tuple[list[int], int]]:
    pairs = []
    for row in rows:
        for place, target in enumerate(row):
            last, cap = options["n_last_targets"], options["max_history"]
            history = row[:place] if cap is None else row[max(0, place - cap) : place]
            wanted = last is None or place >= len(row) - last
            if wanted and not (options["drop_empty_history"] and not history):
                pairs.append((history, target))
    return pairs


@pytest.mark.parametrize("options", OPTIONS)
def test_instances_are_those_written_down_by_hand(options: dict[str, Any], ragged: Callable[..., Any]) -> None:
    rows = [[4, 2, 9, 2, 7], [], [3], [8, 1], [5, 6, 5, 1]]
    instances = next_item_instances(ragged(rows), **options)
    expected = by_hand(rows, options)
    every = np.arange(len(instances))
    found = [
        (history[history > 0].tolist(), int(target))
        for history, target in zip(instances.histories(every), instances.targets(every), strict=True)
    ]
    assert found == expected
    assert instances.lengths.tolist() == [len(history) for history, _ in expected]
    lengths = np.array([len(row) for row in rows])
    assert instance_level_lengths(lengths, **options).tolist() == instances.lengths.tolist()
    assert instances.n_empty == sum(
        not history for history, _ in by_hand(rows, options | {"drop_empty_history": False})
    )


def test_no_targets(ragged: Callable[..., Any]) -> None:
    options = {"n_last_targets": 50, "max_history": 50, "drop_empty_history": True}
    assert len(next_item_instances(ragged([[], [3]]), **options)) == 0
    assert instance_level_lengths(np.zeros(0, np.int64), **options).tolist() == []


def test_work() -> None:
    assert user_level_lengths(np.array([3, 0, 60]), max_length=50).tolist() == [3, 50]
    assert inference_lengths(np.array([3, 0, 60]), max_history=None).tolist() == [3, 0, 60]
    work = LanguageModelWork.of(np.array([3, 50]))
    assert work == LanguageModelWork(2, 53)
    assert work.n_tokens(25) == 103


EXPECTED: dict[str, dict[str, Any]] = {
    "beauty": {
        "users": 22_363,
        "released": 150_258,
        "empty": 22_227,
        "prefixes": 131_413,
        "p2rec_tokens": 0.709,
        "ratios": (6.7, 6.8, 6.2, 16.1, 16.2, 14.3, 6.7),
        "inference": (2.3, 5.5),
    },
    "ml-1m": {
        "users": 6_040,
        "released": 267_884,
        "empty": 1_877,
        "prefixes": 981_491,
        "p2rec_tokens": 0.419,
        "ratios": (41.7, 116, 159, 69.9, 145, 262, 44.4),
        "inference": (4.7, 15.9),
    },
    "yelp": {
        "users": 30_431,
        "released": 247_854,
        "empty": 30_115,
        "prefixes": 225_061,
        "p2rec_tokens": 1.009,
        "ratios": (8.3, 8.4, 7.9, 19.1, 19.3, 17.7, 8.1),
        "inference": (2.0, 4.6),
    },
}


def as_printed(value: float) -> float:
    """One decimal, none from a hundred."""
    return round(value, 1) if value < 100 else round(value)


@pytest.mark.data
@pytest.mark.parametrize("name", EXPECTED)
def test_work_of_an_epoch(name: str, datasets_dir: Any, tmp_path: Any) -> None:
    expected = EXPECTED[name]
    path = locate(name, datasets_dir=datasets_dir, cache_dir=tmp_path, fetch=None)
    n = np.array([len(line.split()) - 1 for line in path.read_text().splitlines()])
    n_train, n_items = n - 2, DATASETS[name].n_items

    def e4srec(last: int | None, cap: int | None, *, drop: bool) -> LanguageModelWork:
        lengths = instance_level_lengths(n_train, n_last_targets=last, max_history=cap, drop_empty_history=drop)
        return LanguageModelWork.of(lengths)

    ours = LanguageModelWork.of(user_level_lengths(n_train, max_length=50))
    tokens = ours.n_tokens(25)
    capped, released = e4srec(50, 50, drop=False), e4srec(50, None, drop=False)
    prefixes = e4srec(None, 50, drop=True)
    assert ours.n_instances == expected["users"]
    assert capped.n_instances == released.n_instances == expected["released"]
    assert released.n_instances - e4srec(50, 50, drop=True).n_instances == expected["empty"]
    assert prefixes.n_instances == expected["prefixes"]
    assert round(tokens / 1e6, 3) == expected["p2rec_tokens"]
    ratios = [work.n_tokens(prompt) / tokens for prompt in (25, 69) for work in (capped, released, prefixes)]
    ratios.append(released.n_instances / ours.n_instances)  # every example padded to as many items
    assert tuple(map(as_printed, ratios)) == expected["ratios"]
    # the last 50 prefixes uncapped and all prefixes capped at 50 have the same items in users of more than 50
    longer = n_train[n_train > 50]
    assert (
        instance_level_lengths(longer, n_last_targets=50, max_history=None, drop_empty_history=False).sum()
        == instance_level_lengths(longer, n_last_targets=None, max_history=50, drop_empty_history=False).sum()
    )
    items = n_items * (25 + 1)
    inference = [
        LanguageModelWork.of(inference_lengths(n - 1, max_history=cap)).n_tokens(prompt) / items
        for cap, prompt in ((50, 25), (None, 69))
    ]
    assert tuple(map(as_printed, inference)) == expected["inference"]
