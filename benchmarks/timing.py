"""Timing two ways of doing the same in turn."""

from collections.abc import Callable
from dataclasses import dataclass, field

import clock


@dataclass(frozen=True)
class Timed:
    """Seconds of both sides, one of each per round."""

    peer: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)


def seconds(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    begun = clock.now()
    work()
    return clock.now() - begun


def in_turn(ours: Callable[[], object], peer: Callable[[], object], rounds: int, *, warm_up: bool = True) -> Timed:
    """Time both sides in the order A B, B A, A B …, so that a machine that slows down favours neither.

    Args:
        ours: P2Rec's side.
        peer: The other.
        rounds: Calls of each that count.
        warm_up: Whether each is called once before.
    """
    if warm_up:
        ours()
        peer()
    timed = Timed()
    for number in range(rounds):
        sides = [(timed.ours, ours), (timed.peer, peer)]
        for kept, work in reversed(sides) if number % 2 else sides:
            kept.append(seconds(work))
    return timed
