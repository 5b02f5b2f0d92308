"""Where progress goes: to a listener in this process (the terminal) and to a progress artifact in Prefect."""

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol

EVERY_S = 2.0
"""Seconds between two updates of a Prefect artifact."""


class Listener(Protocol):
    """Hears of every stage's progress in this process."""

    def __call__(self, stage: str, done: int, total: int, message: str) -> None:
        """``done`` of ``total`` units of ``stage`` are finished."""


_listeners: list[Listener] = []


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell ``listener`` of progress while the context lasts."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class StageProgress:
    """Progress of one task run, for the listeners and for Prefect's artifact.

    Args:
        stage: Name shown to a person.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._artifact: object | None = None
        self._told_at = 0.0

    def __call__(self, done: int, total: int, message: str) -> None:
        """Tell how far the stage is; the artifact is made with the first call and updated now and then."""
        for listener in _listeners:
            listener(self.stage, done, total, message)
        now = time.monotonic()
        if now - self._told_at < EVERY_S:
            return
        self._told_at = now
        self._update(100.0 * done / max(total, 1), message)

    def finish(self) -> None:
        """Set the artifact, if there is one, to 100 %."""
        if self._artifact is not None:
            self._update(100.0, "done")

    def _update(self, percent: float, message: str) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        if self._artifact is None:
            self._artifact = create_progress_artifact(progress=percent, description=f"{self.stage}: {message}")
        else:
            update_progress_artifact(
                artifact_id=self._artifact,  # type: ignore[arg-type]
                progress=percent,
                description=f"{self.stage}: {message}",
            )
