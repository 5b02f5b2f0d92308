"""Seeds of streams of random numbers that have nothing to do with each other."""

from enum import IntEnum

import numpy as np

_INITIAL = 0xFFFF_FFFF
"""Stands where a training step has its epoch; no training has so many."""


class Initial(IntEnum):
    """What starts from random numbers."""

    RECOMMENDER = 0
    HEAD = 1
    ADAPTERS = 2
    LANGUAGE_MODEL = 3


def step_seed(seed: int, epoch: int, step: int) -> int:
    """The seed of one optimiser step's random numbers."""
    return int(np.random.SeedSequence((seed, epoch, step)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def initial_seed(seed: int, part: Initial) -> int:
    """The seed of what a part of a model starts from."""
    return step_seed(seed, _INITIAL, part)
