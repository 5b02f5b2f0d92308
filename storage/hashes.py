"""Whether a file still is what its manifest says, before it is handed to a reader that does not look.

A Parquet file has checksums of its pages only, and DuckDB does not compare even these. So the sha256 of a whole file is
compared before it is read. A file that has not changed since then is not hashed again in the same process.
"""

import threading
import time
from pathlib import Path

from storage.disk import hash_file

_MOST_FILES = 4096
_SETTLED_NS = 2_000_000_000
"""Age from which a further change of a file is sure to show in its times; clocks of file systems tick coarsely."""

_State = tuple[int, int, int, int, int]


class FileHashes:
    """Remembers the sha256 of files by path, device, inode, size and times of change."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[_State, str]] = {}
        self._lock = threading.Lock()

    def sha256(self, path: Path) -> str:
        """The sha256 of a file's content in hex, hashed unless it is known and the file has not changed.

        Raises:
            OSError: The file cannot be read.
        """
        before = _state(path)
        with self._lock:
            known = self._known.get(path)
        if known is not None and known[0] == before:
            return known[1]
        found = hash_file(path)
        settled = all(abs(time.time_ns() - changed) > _SETTLED_NS for changed in before[-2:])
        with self._lock:
            self._known.pop(path, None)
            if settled and _state(path) == before:
                self._known[path] = (before, found)
                while len(self._known) > _MOST_FILES:
                    del self._known[next(iter(self._known))]
        return found


def _state(path: Path) -> _State:
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


KNOWN = FileHashes()
"""The files that this process has hashed."""
