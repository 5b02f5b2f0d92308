"""How long computations take, judged by like ones: from the manifests in the store and from this run."""

import heapq
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from storage.artefacts import Artefact, InputRef, Store, canonical_json

Kinds = tuple[str, ...]
"""What a computation is like, the closest first: equal but for seeds; of the same variant; of the same backbone."""

_FASTEST_S = 0.01
"""No training is this fast; keeps a fraction that has hardly begun from being divided by."""


def kinds_of(stage: str, settings: Mapping[str, Any], origin: str, inputs: Mapping[str, InputRef]) -> Kinds:
    """Say what a computation is like.

    Args:
        stage: Its stage.
        settings: What it reads of the settings.
        origin: sha256 of the file of interactions that all comes from.
        inputs: The files that it reads.
    """
    encoder = settings.get("encoder", {})
    model = inputs["language-model"].sha256 if "language-model" in inputs else ""
    backbone = f"{stage} {origin} {encoder.get('backbone', '')}{model}"
    return (
        f"{backbone} {canonical_json(_without_seeds(settings))}",
        f"{backbone} {settings.get('variant', '')}",
        backbone,
    )


def _without_seeds(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_seeds(inner) for name, inner in value.items() if name != "seed"}
    return value


class Walls:
    """Seconds that computations took, by kind."""

    def __init__(self) -> None:
        self._by_kind: dict[str, list[float]] = {}

    @classmethod
    def of(cls, store: Store) -> "Walls":
        """Those of every artefact in a store; damaged ones are left out."""
        walls = cls()
        artefacts = {
            (artefact.stage, artefact.key): artefact for artefact in store.artefacts(on_damaged=lambda damage: None)
        }
        for artefact in artefacts.values():
            manifest = artefact.manifest
            kinds = kinds_of(artefact.stage, manifest.settings, _origin(artefact, artefacts), manifest.inputs)
            walls.learn(kinds, whole_wall(manifest.wall_s, manifest.info))
        return walls

    def learn(self, kinds: Kinds, wall_s: float) -> None:
        """Remember how long one took."""
        for kind in dict.fromkeys(kinds):
            self._by_kind.setdefault(kind, []).append(wall_s)

    def guess(self, kinds: Kinds) -> float | None:
        """Median of the closest ones in seconds, or None where there is no like one."""
        for kind in kinds:
            if kind in self._by_kind:
                return statistics.median(self._by_kind[kind])
        return None

    def copy(self) -> "Walls":
        """A copy that can learn more."""
        other = Walls()
        other._by_kind = {kind: list(walls) for kind, walls in self._by_kind.items()}
        return other


def whole_wall(wall_s: float, info: Mapping[str, Any]) -> float:
    """Seconds of a training as if it had not been interrupted; ``wall_s`` counts from the resumption only."""
    resumed, steps = info.get("resumed_at_step"), info.get("n_steps")
    if isinstance(resumed, int) and isinstance(steps, int) and steps > resumed:
        return wall_s * steps / (steps - resumed)
    return wall_s


def _origin(artefact: Artefact, artefacts: Mapping[tuple[str, str], Artefact]) -> str:
    """sha256 of the file of interactions that an artefact comes from; empty where that cannot be found out."""
    waiting, seen = [artefact], {(artefact.stage, artefact.key)}
    while waiting:
        inputs = waiting.pop().manifest.inputs
        if "interactions-file" in inputs:
            return inputs["interactions-file"].sha256
        for ref in inputs.values():
            place = (ref.stage, ref.key)
            if place in artefacts and place not in seen:
                seen.add(place)
                waiting.append(artefacts[place])
    return ""


def remaining_s(elapsed_s: float, fraction: float, expected_s: float | None) -> float | None:
    """Seconds that a running computation still takes.

    Args:
        elapsed_s: Since it began.
        fraction: How far it is; an upper bound of the rest where early stopping may end it before.
        expected_s: How long like ones took.
    """
    if expected_s is not None:
        by_likes = max(0.0, expected_s - elapsed_s)
        return min(by_likes, elapsed_s * (1 - fraction) / fraction) if fraction > 0.5 else by_likes
    if fraction > 0 and elapsed_s > _FASTEST_S:
        return elapsed_s * (1 - fraction) / fraction
    return None


@dataclass(frozen=True)
class TimeLeft:
    """An estimate.

    Attributes:
        seconds: Until all is done, as far as it can be told; None where nothing can be.
        n_unknown: Computations without a like one, which are not in it.
    """

    seconds: float | None
    n_unknown: int

    def __str__(self) -> str:
        if self.seconds is None:
            return "time left unknown"
        if self.n_unknown:
            return f"at least {duration(self.seconds)} left ({self.n_unknown} of unknown length)"
        return f"about {duration(self.seconds)} left"


def duration(seconds: float) -> str:
    """Seconds for a person: ``45 s``, ``12 min``, ``3 h 20 min``, ``2 d 4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def time_left(
    seconds: Mapping[str, float | None], needs: Mapping[str, Iterable[str]], running: Iterable[str], parallel: int
) -> TimeLeft:
    """Play the rest of a run through: what is ready takes the next free place.

    Args:
        seconds: What is left of each computation that is not done, in the order of starting; None = unknown.
        needs: What each needs; names that are not in ``seconds`` are done.
        running: Those that have a place now.
        parallel: Number of places.
    """
    n_unknown = sum(value is None for value in seconds.values())
    if n_unknown and n_unknown == len(seconds):
        return TimeLeft(None, n_unknown)
    open_needs = {name: {need for need in needs[name] if need in seconds} for name in seconds}
    waiting = [name for name in seconds if name not in set(running)]
    places = [(seconds[name] or 0.0, name) for name in running]
    heapq.heapify(places)
    now = 0.0
    while places or waiting:
        for name in [name for name in waiting if not open_needs[name]][: max(0, parallel - len(places))]:
            waiting.remove(name)
            heapq.heappush(places, (now + (seconds[name] or 0.0), name))
        if not places:
            break  # what is left needs something that failed
        now, finished = heapq.heappop(places)
        for name in waiting:
            open_needs[name].discard(finished)
    return TimeLeft(now, n_unknown)
