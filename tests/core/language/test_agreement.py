"""The paper's three cases of what a language model tells of an item's cluster."""

import numpy as np
import pytest

from p2rec_core.language.agreement import category_agreement

CLUSTERS = np.array([2, 0, 1, 3, 0], np.int32)


def test_by_hand():
    distribution = np.array(
        [
            [0.1, 0.2, 0.6, 0.1, 0.0],  # first
            [0.2, 0.5, 0.1, 0.1, 0.1],  # second
            [0.3, 0.2, 0.3, 0.1, 0.1],  # third
            [0.4, 0.3, 0.2, 0.1, 0.0],  # fourth
            [0.9, 0.1, 0.0, 0.0, 0.0],  # first
        ],
        np.float32,
    )
    assert category_agreement(distribution, CLUSTERS) == pytest.approx({"C1": 0.4, "C2": 0.4, "C3": 0.2})


@pytest.mark.parametrize("told", ["nothing", "one wrong cluster"])
def test_who_tells_nothing_is_not_right(told):
    distribution = np.full((5, 50), 0.02 if told == "nothing" else 0.0, np.float32)
    if told == "one wrong cluster":
        distribution[:, 49] = 1.0
    assert category_agreement(distribution, CLUSTERS) == {"C1": 0.0, "C2": 0.0, "C3": 1.0}


def test_half_of_a_tie_counts():
    distribution = np.array([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]], np.float32)
    assert category_agreement(distribution, np.zeros(2, np.int32)) == {"C1": 0.0, "C2": 1.0, "C3": 0.0}
