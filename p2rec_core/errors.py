"""Every error that P2Rec raises on purpose.

P2RecError
├── SettingsError      a setting is unknown, out of range or contradicts another     exit status 2
│   ├── ExtraMissing       what was asked for needs a package that is not installed
│   └── QueryError         a query is not one SELECT, or not one that can be answered
├── DataError          the user's data cannot be read or cannot be used              exit status 3
├── StoreError         the artefact store cannot be read or written                  exit status 4
│   ├── ArtefactMissing    an artefact that something refers to is not there
│   ├── ArtefactDamaged    an artefact is there, but not what its manifest says
│   ├── SnapshotOvertaken  another snapshot became the current one than the one that was to be replaced
│   └── StoreUnsound       something in the store is damaged or missing                exit status 7
├── ModelError         a language model or a checkpoint cannot be used               exit status 5
├── RefreshRefused     a refresh made a snapshot that does not pass the quality gate  exit status 6
└── ResourceError      there is not enough memory                                     exit status 8

A message names the value, the place and the bound; ``remedy`` says what to do about it.
The command line prints both and no traceback.
"""

import difflib
from collections.abc import Iterable


class P2RecError(Exception):
    """Base of all errors that a user can do something about.

    Args:
        problem: What is wrong, naming the value and the place.
        remedy: What to do about it, as an imperative sentence.
    """

    exit_status = 1

    def __init__(self, problem: str, *, remedy: str) -> None:
        super().__init__(f"{problem} {remedy}")
        self.problem = problem
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.problem, self.remedy))


def _rebuild(kind: type[P2RecError], problem: str, remedy: str) -> P2RecError:
    return kind(problem, remedy=remedy)


class SettingsError(P2RecError):
    """A setting is unknown, out of range or contradicts another."""

    exit_status = 2


class ExtraMissing(SettingsError):
    """What was asked for needs an optional package that is not installed."""


class QueryError(SettingsError):
    """A query is not one SELECT, or not one that can be answered."""


class DataError(P2RecError):
    """The user's data cannot be read or cannot be used."""

    exit_status = 3


class StoreError(P2RecError):
    """The artefact store cannot be read or written."""

    exit_status = 4


class ArtefactMissing(StoreError):
    """An artefact that something refers to is not in the store."""


class ArtefactDamaged(StoreError):
    """An artefact is in the store, but its bytes are not what its manifest says."""


class SnapshotOvertaken(StoreError):
    """Another snapshot became the current one than the one that was to be replaced."""


class StoreUnsound(StoreError):
    """A look at the whole store found something that is damaged or missing."""

    exit_status = 7


class ResourceError(P2RecError):
    """There is not enough memory for what was asked."""

    exit_status = 8


class ModelError(P2RecError):
    """A language model or a checkpoint cannot be used."""

    exit_status = 5


class RefreshRefused(P2RecError):
    """A refresh made a snapshot that does not pass the quality gate; the current snapshot stays."""

    exit_status = 6


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Ask about the known name that is most like a wrong one: ``"did you mean sasrec?"``; empty if none is."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}?" if close else ""
