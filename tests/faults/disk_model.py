"""A disk that forgets: what may be on it after a power cut, from a record of what was asked of it.

Only a flush promises anything. A file's bytes are durable once that file was flushed, a name once its directory was;
whatever was asked for after that may have reached the disk or not, whole or torn, in any order. This is weaker than
what journalling file systems promise, so that what survives here survives on them.
"""

import itertools
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MOST_SUBSETS = 12
_ROOT = 0


@dataclass(frozen=True)
class Write:
    """Bytes written at an offset of a file."""

    file: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Link:
    """A name that appears in a directory, gone from ``source`` at the same instant if there is one."""

    directory: int
    name: str
    node: int
    source: tuple[int, str] | None = None


@dataclass(frozen=True)
class Unlink:
    """A name that goes from a directory."""

    directory: int
    name: str


@dataclass(frozen=True)
class Flush:
    """A file or a directory that is flushed."""

    node: int


Step = Write | Link | Unlink | Flush


@dataclass
class Disk:
    """Files by number, and the names of each directory."""

    files: dict[int, bytes] = field(default_factory=dict)
    names: dict[int, dict[str, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Path) -> tuple["Disk", dict[Path, int]]:
        """What is in a directory, and the number of each path."""
        disk, numbers, counter = cls(), {root: _ROOT}, itertools.count(1)
        disk.names[_ROOT] = {}
        for path in sorted(root.rglob("*")):
            numbers[path] = node = next(counter)
            disk.names[numbers[path.parent]][path.name] = node
            if path.is_dir():
                disk.names[node] = {}
            else:
                disk.files[node] = path.read_bytes()
        return disk, numbers

    def copy(self) -> "Disk":
        """One that can be changed without changing this one."""
        return Disk(dict(self.files), {node: dict(names) for node, names in self.names.items()})

    def apply(self, step: Step, *, part: float = 1.0) -> None:
        """Let a step reach the disk; of a write, the first part of its bytes."""
        if isinstance(step, Write):
            data = step.data[: int(len(step.data) * part)]
            old = self.files.get(step.file, b"")
            self.files[step.file] = old[: step.offset].ljust(step.offset, b"\0") + data + old[step.offset + len(data) :]
        elif isinstance(step, Link):
            if step.source is not None:
                names = self.names.get(step.source[0], {})
                if names.get(step.source[1]) == step.node:
                    del names[step.source[1]]
            self.names.setdefault(step.directory, {})[step.name] = step.node
        elif isinstance(step, Unlink):
            self.names.get(step.directory, {}).pop(step.name, None)

    def write_to(self, root: Path) -> None:
        """Make the files and directories that can be reached from the root."""
        root.mkdir()
        waiting = [(root, _ROOT)]
        while waiting:
            path, node = waiting.pop()
            for name, child in self.names.get(node, {}).items():
                if child in self.names:
                    (path / name).mkdir()
                    waiting.append((path / name, child))
                else:
                    (path / name).write_bytes(self.files.get(child, b""))

    def seen(self) -> tuple[tuple[str, bytes | None], ...]:
        """All paths with their content, to tell states apart."""
        found: list[tuple[str, bytes | None]] = []
        waiting = [("", _ROOT)]
        while waiting:
            path, node = waiting.pop()
            for name, child in self.names.get(node, {}).items():
                if child in self.names:
                    found.append((f"{path}/{name}", None))
                    waiting.append((f"{path}/{name}", child))
                else:
                    found.append((f"{path}/{name}", self.files.get(child, b"")))
        return tuple(sorted(found))


class Recorder:
    """Writes down what a store asks of the disk, while it is asked.

    Args:
        root: The store; what happens outside is not recorded.
        numbers: The number of each path that is there.
    """

    def __init__(self, root: Path, numbers: dict[Path, int]) -> None:
        self.root = root
        self.numbers = dict(numbers)
        self.steps: list[Step] = []
        self._next = itertools.count(max(numbers.values()) + 1)
        self._real: dict[str, Callable[..., Any]] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Stand in for the functions of ``os`` that change files."""
        wrapped = {
            "open": self._open, "write": self._write, "fsync": self._fsync, "mkdir": self._mkdir,
            "rename": self._rename, "replace": self._rename, "unlink": self._unlink, "rmdir": self._unlink,
        }  # fmt: skip
        self._real = {name: getattr(os, name) for name in wrapped}
        try:
            for name, function in wrapped.items():
                setattr(os, name, _named(function, self._real[name]))
            yield
        finally:
            for name, function in self._real.items():
                setattr(os, name, function)

    def _path(self, path: Any, dir_fd: int | None = None) -> Path | None:
        """An absolute path in the store, or None."""
        if isinstance(path, int):
            return self._of_fd(path)
        absolute = Path(os.readlink(f"/proc/self/fd/{dir_fd}")) / path if dir_fd is not None else Path(path).absolute()
        return absolute if absolute.is_relative_to(self.root) else None

    def _of_fd(self, fd: int) -> Path | None:
        target = Path(os.readlink(f"/proc/self/fd/{fd}"))
        return target if target.is_relative_to(self.root) else None

    def _link(self, path: Path, node: int, source: tuple[int, str] | None = None) -> None:
        self.numbers[path] = node
        self.steps.append(Link(self.numbers[path.parent], path.name, node, source))

    def _open(self, real: Callable[..., int], path: Any, flags: int, mode: int = 0o777, **rest: Any) -> int:
        inside = self._path(path, rest.get("dir_fd"))
        there = inside is None or inside.exists()
        fd = real(path, flags, mode, **rest)
        if inside is not None and not there:
            self._link(inside, next(self._next))
        return fd

    def _write(self, real: Callable[..., int], fd: int, data: Any) -> int:
        path = self._of_fd(fd)
        offset = os.lseek(fd, 0, os.SEEK_CUR) if path is not None else 0
        done = real(fd, data)
        if path is not None:
            self.steps.append(Write(self.numbers[path], offset, bytes(memoryview(data).cast("B")[:done])))
        return done

    def _fsync(self, real: Callable[..., None], fd: int) -> None:
        path = self._of_fd(fd)
        if path is not None:
            self.steps.append(Flush(self.numbers[path]))

    def _mkdir(self, real: Callable[..., None], path: Any, *args: Any, **rest: Any) -> None:
        real(path, *args, **rest)
        inside = self._path(path, rest.get("dir_fd"))
        if inside is not None:
            node = next(self._next)
            self.steps.append(Write(-node, 0, b""))  # marks the number as that of a directory
            self._link(inside, node)

    def _rename(self, real: Callable[..., None], source: Any, target: Any, **rest: Any) -> None:
        before, after = self._path(source), self._path(target)
        real(source, target, **rest)
        if before is None or after is None:
            return
        moved = {path: node for path, node in self.numbers.items() if path.is_relative_to(before)}
        for path in moved:
            del self.numbers[path]
        self._link(after, moved[before], (self.numbers[before.parent], before.name))
        for path, node in moved.items():
            self.numbers[after / path.relative_to(before)] = node

    def _unlink(self, real: Callable[..., None], path: Any, **rest: Any) -> None:
        inside = self._path(path, rest.get("dir_fd"))
        real(path, **rest)
        if inside is not None:
            self.steps.append(Unlink(self.numbers[inside.parent], inside.name))
            self.numbers.pop(inside, None)


def _named(function: Callable[..., Any], real: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return function(real, *args, **kwargs)

    return wrapped


def states(before: Disk, steps: list[Step], *, seed: int) -> Iterator[tuple[int, str, Disk]]:
    """What may be on the disk if the power goes after each number of steps, every state once.

    Args:
        before: What was on it, all of it durable.
        steps: What was asked of it.
        seed: Of the subsets that are drawn where there are too many.

    Yields:
        How many steps were done, what was lost, and the disk. After the last step a state with all that was not
        flushed gone comes first.
    """
    draw = random.Random(seed)
    seen: set[int] = set()
    for done in range(len(steps), -1, -1):
        durable, pending = _split(steps[:done])
        for lost, reached in _subsets(pending, draw):
            disk = before.copy()
            chosen = durable | reached.keys()
            for place, step in enumerate(steps[:done]):
                if isinstance(step, Write) and step.file < 0:
                    disk.names.setdefault(-step.file, {})
                elif place in chosen:
                    disk.apply(step, part=reached.get(place, 1.0))
            if (digest := hash(disk.seen())) not in seen or done == len(steps):
                seen.add(digest)
                yield done, lost, disk


def _split(steps: list[Step]) -> tuple[set[int], list[int]]:
    """The places of the steps that a later flush has made durable, and of those that it has not."""
    durable: set[int] = set()
    pending: list[int] = []
    flushed: set[int] = set()
    for place in range(len(steps) - 1, -1, -1):
        step = steps[place]
        if isinstance(step, Flush):
            flushed.add(step.node)
            continue
        node = step.file if isinstance(step, Write) else step.directory
        if node in flushed or node < 0:
            durable.add(place)
        else:
            pending.append(place)
    return durable, pending[::-1]


def _subsets(pending: list[int], draw: random.Random) -> Iterator[tuple[str, dict[int, float]]]:
    """Which of the steps that were not flushed reached the disk: by place, which part of them."""
    yield "nothing that was not flushed is there", {}
    if not pending:
        return
    whole = dict.fromkeys(pending, 1.0)
    yield "all is there", whole
    for place in pending[-_MOST_SUBSETS:]:
        yield f"only step {place} is there", {place: 1.0}
        yield f"all but step {place} is there", {other: 1.0 for other in pending if other != place}
        yield f"step {place} is torn", whole | {place: 0.5}
    for _ in range(_MOST_SUBSETS):
        yield "some of it is there", {place: draw.choice((1.0, 1.0, 0.5)) for place in pending if draw.random() < 0.5}
