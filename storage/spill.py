"""Where DuckDB spills to: a temporary folder that is gone with its process, however that ends."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from p2rec_core.errors import StoreError

_PREFIX = "p2rec-spill-"


@contextlib.contextmanager
def spill_folder() -> Iterator[Path]:
    """A folder of one's own among the system's temporary files, removed with what is in it at the end.

    A process that is killed leaves its folder behind, with gigabytes in it perhaps. So each folder is locked by its
    process, and whoever makes the next one removes those of the same user whose lock nobody holds any more.

    Raises:
        StoreError: There is no place for temporary files.
    """
    try:
        _remove_abandoned()
        folder, lock = _locked_folder()
    except OSError as error:
        raise StoreError(
            f"There is no place for temporary files: {error.strerror or error}.",
            remedy="Name a directory that can be written in TMPDIR.",
        ) from error
    try:
        yield Path(folder.name)
    finally:
        folder.cleanup()
        os.close(lock)


def _locked_folder() -> tuple[tempfile.TemporaryDirectory[str], int]:
    """A new folder, and the descriptor that holds its lock."""
    while True:
        folder = tempfile.TemporaryDirectory(prefix=_PREFIX)
        # another process may take it for an abandoned one before it is locked
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            lock = _locked(folder.name)
            if os.path.isdir(folder.name):
                return folder, lock
            os.close(lock)
        folder.cleanup()


def _locked(folder: str) -> int:
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise
    except OSError:
        return lock  # a file system without locks, on which nothing is ever taken for abandoned
    return lock


def _remove_abandoned() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # what cannot be opened, locked or removed is somebody else's, or gone already
        with contextlib.suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.getuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
            finally:
                os.close(lock)
