"""Where progress goes: to a listener in this process (the terminal) and to a progress artifact in Prefect.

A server that is away for a while is no reason to stop computing: what cannot be shown is logged.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol
from uuid import UUID

EVERY_S = 2.0
"""Seconds between two updates of a Prefect artifact."""

AGAIN_S = 60.0
"""Seconds, at the least, until an artifact that could not be shown is tried again."""

_PATIENCE = 9.0
"""Times as long as a failed try took until the next one: of the time that a server is away a tenth is lost."""


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


@contextlib.contextmanager
def shown_if_possible(what: str) -> Iterator[None]:
    """Log that ``what`` could not be shown where the block cannot reach Prefect's server; other errors are raised.

    For artifacts of the present flow or task run, when what they tell of is done and kept.
    """
    import httpx
    from prefect import get_run_logger
    from prefect.exceptions import PrefectException

    try:
        yield
    except (httpx.HTTPError, PrefectException, OSError) as error:
        get_run_logger().warning("%s could not be shown: %s: %s", what, type(error).__name__, error)


class ProgressArtifact:
    """A progress artifact of the present flow or task run.

    Args:
        title: Begins its description.
        every_s: Seconds between two updates.
    """

    def __init__(self, title: str, *, every_s: float = EVERY_S) -> None:
        self._title = title
        self._every_s = every_s
        self._artifact: UUID | None = None
        self._next_at = 0.0
        self._reached = True

    def __call__(self, percent: float, message: str) -> None:
        """Tell how far the run is; the artifact is made with the first call and updated now and then."""
        if time.monotonic() >= self._next_at:
            self._update(percent, message)

    def finish(self) -> None:
        """Set the artifact, if there is one, to 100 %."""
        if self._artifact is not None:
            self._update(100.0, "done")

    def _update(self, percent: float, message: str) -> None:
        from prefect import get_run_logger
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        text = f"{self._title}: {message}"
        begun = time.monotonic()
        try:
            if self._artifact is None:
                created = create_progress_artifact(progress=percent, description=text)
                self._artifact = created if isinstance(created, UUID) else None
            else:
                update_progress_artifact(artifact_id=self._artifact, progress=percent, description=text)
        except Exception as error:  # whatever it is: a computation is worth more than a word about it
            ended = time.monotonic()
            self._next_at = ended + max(AGAIN_S, _PATIENCE * (ended - begun))
            if self._reached:
                get_run_logger().warning("progress could not be shown: %s: %s", type(error).__name__, error)
            self._reached = False
        else:
            self._next_at = begun + self._every_s
            self._reached = True


class StageProgress:
    """Progress of one task run, for the listeners and for Prefect's artifact.

    Args:
        stage: Name shown to a person.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._artifact = ProgressArtifact(stage)

    def __call__(self, done: int, total: int, message: str) -> None:
        """Tell how far the stage is."""
        for listener in _listeners:
            listener(self.stage, done, total, message)
        self._artifact(100.0 * done / max(total, 1), message)

    def finish(self) -> None:
        """Set the artifact, if there is one, to 100 %."""
        self._artifact.finish()
