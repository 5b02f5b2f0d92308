"""Writing that survives a crash: each step is on the disk before the next one relies on it.

Neither PyArrow nor DuckDB flushes what it writes, so every byte that the store publishes goes
through this module: create, write, fsync, rename, fsync of the directory.
"""

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from p2rec_core.errors import StoreError

_BLOCK = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}


@contextlib.contextmanager
def os_errors(path: Path, *, n_bytes: int = 0) -> Iterator[None]:
    """Turn an error of the operating system into one that says what to do.

    Args:
        path: What was being written or read.
        n_bytes: How much was to be written, 0 where it does not matter.

    Raises:
        StoreError: The block raised ``OSError``.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        need = f" ({n_bytes:,} bytes needed)" if n_bytes else ""
        if error.errno in _FULL:
            remedy = f"Free at least {n_bytes:,} bytes there or choose a store on another disk."
        elif error.errno in _FORBIDDEN:
            remedy = "Give this user write permission there or choose another store directory."
        else:
            remedy = "Check that the path is on a working, mounted disk, or choose another store directory."
        raise StoreError(f"The store cannot use {path}{need}: {reason}.", remedy=remedy) from error


class DurableFile:
    """A new file that is hashed as it is written; enough of a file object for PyArrow.

    Args:
        path: Must not exist yet; a symbolic link is not followed.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        self.path = path
        self._fd = os.open(path, flags, 0o644)
        self._sha256 = hashlib.sha256()
        self.n_bytes = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        """Write all of ``data``, however little the operating system takes at a time."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            done += os.write(self._fd, view[done:])
        self._sha256.update(view)
        self.n_bytes += len(view)
        return len(view)

    def tell(self) -> int:
        """Bytes written so far."""
        return self.n_bytes

    def flush(self) -> None:
        """Nothing is buffered here; ``sync`` is what makes it durable."""

    def readable(self) -> bool:
        """Whether it can be read: no."""
        return False

    def writable(self) -> bool:
        """Whether it can be written: yes."""
        return True

    def seekable(self) -> bool:
        """Whether it can be rewound: no."""
        return False

    def sync(self) -> str:
        """Flush to the disk.

        Returns:
            sha256 of what was meant to be written, in hex.
        """
        os.fsync(self._fd)
        return self._sha256.hexdigest()

    def close(self) -> None:
        """Close the file; safe to call again."""
        if not self.closed:
            self.closed = True
            os.close(self._fd)


def write_durably(path: Path, data: bytes) -> str:
    """Write a new file and flush it.

    Returns:
        sha256 of ``data`` in hex.
    """
    with contextlib.closing(DurableFile(path)) as file:
        file.write(data)
        return file.sync()


def replace_durably(path: Path, data: bytes, *, scratch: Path) -> None:
    """Put ``data`` at ``path`` so that a reader sees the old file or the new one, never a part.

    Args:
        path: File to create or replace.
        data: Its new content.
        scratch: Directory on the same file system for the unfinished file.
    """
    unfinished = scratch / f"{path.name}.{secrets.token_hex(8)}"
    try:
        write_durably(unfinished, data)
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """Flush a file that another library has written."""
    _sync(path)


def sync_directory(path: Path) -> None:
    """Flush a directory, so that the names in it survive a power cut."""
    _sync(path)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(path: Path, mode: int = 0o777) -> Path:
    """Create a directory and its parents durably; one that is there already is left as it is."""
    if not path.is_dir():
        make_directory(path.parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, mode)
        sync_directory(path.parent)
    return path


def hash_file(path: Path) -> str:
    """The sha256 of a file's content in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
