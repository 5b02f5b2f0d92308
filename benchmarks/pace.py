"""How long an epoch takes, read off some of its steps; needs nothing but Python, for every environment to import it.

Where an epoch takes hours, minutes of it tell its seconds: steps of one training cost about the same. The first step
is left out: it allocates, and compiles where something is compiled.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import clock

LEAST_STEPS = 2
"""Timed steps at the least, however long they take."""


class Pace:
    """The seconds of steps, until there are enough of them.

    Attributes:
        steps: Timed steps so far.
        step_s: Mean seconds of a timed step.

    Args:
        seconds: Seconds after which there are enough, once ``LEAST_STEPS`` are timed.
    """

    def __init__(self, seconds: float) -> None:
        self.steps = -1
        self.step_s = 0.0
        self._enough_s = seconds
        self._begun = 0.0

    def __call__(self) -> bool:
        """Count a step that has ended; whether these were enough."""
        self.steps += 1
        if self.steps == 0:
            self._begun = clock.now()
            return False
        seconds = clock.now() - self._begun
        self.step_s = seconds / self.steps
        return self.steps >= LEAST_STEPS and seconds >= self._enough_s


class SomeSteps:
    """The first batches of a loader: a loop over them ends when its pace is known.

    Args:
        loader: Gives a batch for every step of an epoch.
        pace: Told after every step.
    """

    def __init__(self, loader: Iterable[Any], pace: Pace) -> None:
        self.loader = loader
        self.pace = pace

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            yield batch
            if self.pace():
                return


def paced(pace: Pace, steps_per_epoch: int) -> dict[str, float]:
    """What a run tells of its pace.

    Args:
        pace: Of its steps.
        steps_per_epoch: Steps of a whole epoch.

    Raises:
        RuntimeError: The epoch had no step but the first, which is not timed.
    """
    if pace.steps < 1:
        raise RuntimeError(f"An epoch of {steps_per_epoch} steps has none to time beside the first.")
    return {"epoch_s": pace.step_s * steps_per_epoch, "timed_steps": pace.steps, "steps_per_epoch": steps_per_epoch}
