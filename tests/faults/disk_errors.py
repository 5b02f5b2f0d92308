"""A full disk and errors of the disk at every step that touches it, and writes that take only a part."""

import errno
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from p2rec_core.errors import P2RecError, StoreError
from storage.artefacts import Store
from tests.faults.house import OPERATIONS, Operation, fill, problem_of, settle, undisturbed
from tests.faults.rows import Fate, Row, Timed
from tests.storage.crash_driver import STEPS

PART = "d disk error"
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EMFILE)
_TIDYING = "tidying"
"""What removes a directory that is of no use any more: failing there leaves it to garbage collection."""


def disk_rows(directory: Path, *, quick: bool) -> list[Row]:
    """Every operation, every step, every error; the quick form takes every 7th step of two errors."""
    template = fill(directory / "template").root
    operations = OPERATIONS[1:2] if quick else OPERATIONS
    errors, stride = (ERRORS[:2], 7) if quick else (ERRORS, 1)
    rows = [failed(template, directory, operation, errors, stride) for operation in operations]
    return [*rows, _short(template, directory)]


@contextmanager
def failing(step: int, error: int) -> Iterator[list[str]]:
    """Raise an error of the operating system at a step; gives the name of the function that came to it."""
    counter, failed = itertools.count(1), list[str]()
    real = {name: getattr(os, name) for name in STEPS}

    def wrap(name: str) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if next(counter) == step:
                tidying = sys._getframe(1).f_code.co_filename == shutil.__file__
                failed.append(_TIDYING if tidying else name)
                raise OSError(error, os.strerror(error), None if isinstance(args[0], int) else str(args[0]))
            return None if name == "fsync" else real[name](*args, **kwargs)

        return wrapped

    try:
        for name in STEPS:
            setattr(os, name, wrap(name))
        yield failed
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def failed(template: Path, directory: Path, operation: Operation, errors: tuple[int, ...], stride: int) -> Row:
    expected = undisturbed(template, operation, directory / "undisturbed")
    with Timed(Row(PART, operation.name)) as row:
        for error in errors:
            for step in itertools.count(1, stride):
                root = directory / "disturbed"
                shutil.copytree(template, root)
                raised: Exception | None = None
                with failing(step, error) as failed:
                    try:
                        operation.run(Store(root))
                    except Exception as caught:
                        raised = caught
                if failed:
                    _judge(Store(root), operation, expected, row, f"step {step}, {failed[0]}", error, raised)
                shutil.rmtree(root)
                if not failed:
                    break
            row.most("steps", step - 1)
    row.facts["errors"] = len(errors)
    return row


def _judge(
    store: Store,
    operation: Operation,
    expected: dict[str, object],
    row: Row,
    what: str,
    error: int,
    raised: Exception | None,
) -> None:
    try:
        problem = problem_of(store, operation.seen)
    except P2RecError as lost:
        row.add(Fate.LOST, f"{what}: {lost.problem}")
        return
    if problem is not None:
        row.add(Fate.WRONG, f"{what}: {problem}")
        return
    unclear = _unclear(raised, store, what, error)
    left = [p for p in store.staging.iterdir() if not p.name.startswith("removed.")]
    if raised is not None and left and not what.endswith(_TIDYING):
        unclear = unclear or f"{left[0]} was left behind"
    problem, took = settle(store, operation, expected)
    row.most("longest rerun s", took)
    complaint = unclear or problem
    row.add(Fate.HARMLESS if raised is None else Fate.DETECTED, f"{what}: {complaint}" if complaint else "")


def _unclear(raised: Exception | None, store: Store, what: str, error: int) -> str | None:
    """What an error lacks of: its kind, the path, the bytes, the reason, the remedy."""
    if raised is None:
        return None if what.endswith((_TIDYING, "unlink", "mkdir")) else "nothing was raised"
    if not isinstance(raised, StoreError):
        return f"no clear error but {type(raised).__name__}: {raised}"
    if str(store.root) not in raised.problem or os.strerror(error) not in raised.problem or not raised.remedy:
        return f"the error does not tell all: {raised}"
    if error in (errno.ENOSPC, errno.EDQUOT) and what.endswith("write") and "bytes needed" not in raised.problem:
        return f"the error does not say how many bytes are needed: {raised}"
    return None


def _short(template: Path, directory: Path) -> Row:
    """The operating system takes a byte, or half of what it is given, at a time."""
    operation = OPERATIONS[1]
    expected = undisturbed(template, operation, directory / "undisturbed")
    real = os.write
    with Timed(Row(PART, "writes that take only a part")) as row:
        for share in (2, 3, 1_000_000):
            root = directory / "short"
            shutil.copytree(template, root)
            n = itertools.count()

            def write(fd: int, data: Any, share: int = share, n: Iterator[int] = n) -> int:
                next(n)
                view = memoryview(data)
                return real(fd, view[: max(1, len(view) // share)])

            os.write = write
            try:
                operation.run(Store(root))
            finally:
                os.write = real
            problem = problem_of(Store(root), operation.seen) or settle(Store(root), operation, expected)[0]
            row.add(Fate.WRONG if problem else Fate.HARMLESS, problem or "")
            row.most("writes", next(n))
            shutil.rmtree(root)
    return row
