"""Child processes that compute: one stage at a time each, so that torch's global state is no cell's but its own.

A worker reads orders as JSON lines from its standard input and answers with JSON lines: progress, log messages, and
in the end the result or an error. It is used for one computation after the other, which saves the imports. It dies
when its parent dies, however that comes about, and leaves its checkpoint.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import p2rec_core.errors
from p2rec_core.errors import P2RecError
from p2rec_core.progress import Progress
from storage.artefacts import ArtefactRef, Store
from tasks.matrix import Recipe
from tasks.process import die_with
from tasks.stage import StageResult, run_stage

PROGRESS_EVERY_S = 0.2
"""Seconds between two messages of progress."""

GRACE_S = 5.0
"""Seconds that a worker has to clean up before it is killed."""

_ERRORS = {
    kind.__name__: kind
    for kind in vars(p2rec_core.errors).values()
    if isinstance(kind, type) and issubclass(kind, P2RecError)
}


@dataclass(frozen=True)
class Order:
    """What a worker is to compute.

    Attributes:
        recipe: The pipeline that the slot belongs to.
        slot: Name of the slot.
        refs: Artefacts that it reads, by slot.
        key: Key that the result is to have.
        store: Directory of the store.
    """

    recipe: Recipe
    slot: str
    refs: Mapping[str, ArtefactRef]
    key: str
    store: Path

    def to_json(self) -> dict[str, Any]:
        """The order as JSON values."""
        refs = {name: ref.to_json() for name, ref in self.refs.items()}
        recipe = self.recipe.to_json()
        return {"recipe": recipe, "slot": self.slot, "refs": refs, "key": self.key, "store": str(self.store)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Order":
        """The inverse of ``to_json``."""
        refs = {name: ArtefactRef.from_json(ref) for name, ref in values["refs"].items()}
        return cls(Recipe.from_json(values["recipe"]), values["slot"], refs, values["key"], Path(values["store"]))


class Worker:
    """A child process, seen from its parent.

    To be started from a thread that lives as long as the worker is needed: on Linux the child is killed when the
    thread that started it ends.

    Args:
        threads: CPU threads of the libraries that are not told by a stage.
    """

    def __init__(self, threads: int) -> None:
        count = str(threads)
        environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), count)
        paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        self._in_use = threading.Lock()
        code = f"from tasks.worker import main; main({os.getpid()})"
        self._process = subprocess.Popen(  # noqa: S603 (our own interpreter and code)
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
        )

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can take an order."""
        return self._process.poll() is None

    def compute(self, order: Order, *, progress: Progress, log: Callable[[str], None]) -> StageResult:
        """Have a stage computed, or found in the store; blocks until it is.

        Args:
            order: What.
            progress: Told how far it is.
            log: Told what happens, a line each.

        Raises:
            P2RecError: What the stage raised, or that the process has ended before its time.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._in_use:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps(order.to_json()).encode() + b"\n")
                self._process.stdin.flush()
            for line in self._process.stdout:
                message = json.loads(line)
                if "result" in message:
                    return StageResult.from_json(message["result"])
                if "error" in message:
                    raise _error(message["error"])
                try:
                    progress(*message["progress"]) if "progress" in message else log(message["log"])
                except BaseException:
                    self._process.kill()  # nobody would read its answer
                    raise
            raise self._death(order)

    def _death(self, order: Order) -> P2RecError:
        status = self._process.wait()
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        said = f" Its last words: {last[0]:.200}" if last else ""
        if status >= 0:
            return P2RecError(
                f"The process that computed {order.slot} ended with status {status}.{said}",
                remedy="Run the same again; what was computed is kept.",
            )
        name = signal.Signals(-status).name
        return P2RecError(
            f"The process that computed {order.slot} was ended by {name}.{said}",
            remedy="Run the same again, with a lower --parallel if memory was short; what was computed is kept.",
        )

    def stop(self) -> None:
        """End the process: at once if it is idle, else after it has removed what it was writing."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)
        self._process.terminate()
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with self._in_use:
            self._process.stdout.close()
            self._errors.close()


class WorkerPool:
    """Workers, started when they are needed and used again.

    Args:
        store: Directory of the store.
        threads: See ``Worker``.
    """

    def __init__(self, store: Path, threads: int) -> None:
        self.store = store
        self.threads = threads
        self.started: list[Worker] = []
        self._idle: list[Worker] = []

    def take(self) -> Worker:
        """A worker that nobody else has; started if there is none."""
        while self._idle:
            worker = self._idle.pop()
            if worker.alive:
                return worker
        worker = Worker(self.threads)
        self.started.append(worker)
        return worker

    def give_back(self, worker: Worker) -> None:
        """Let others have a worker."""
        self._idle.append(worker)

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *error: object) -> None:
        threads = [threading.Thread(target=worker.stop) for worker in self.started]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _error(values: Mapping[str, str]) -> P2RecError:
    kind = _ERRORS.get(values["kind"], P2RecError)
    error = kind(values["problem"], remedy=values["remedy"])
    if values["trace"]:
        error.add_note(values["trace"])
    return error


def main(parent: int) -> NoReturn:
    """Take orders until the parent has no more.

    Args:
        parent: Process number of the parent.
    """
    die_with(parent)
    # the parent tells when to stop; Ctrl-C reaches the whole group
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    orders, answers = _private_streams()
    for line in orders:
        tell = _Answers(answers)
        tell(_carried_out(Order.from_json(json.loads(line)), tell))
    sys.exit(0)


def _private_streams() -> tuple[IO[bytes], IO[bytes]]:
    """The pipes to the parent, out of reach of libraries that read or print."""
    orders, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return orders, answers


class _Answers:
    """Sends messages to the parent; progress at most every ``PROGRESS_EVERY_S``, the last of it always."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._told_at = 0.0

    def __call__(self, message: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(message).encode() + b"\n")
        self._stream.flush()

    def progress(self, done: int, total: int, message: str) -> None:
        now = time.monotonic()
        if done >= total or now - self._told_at >= PROGRESS_EVERY_S:
            self._told_at = now
            self({"progress": [done, total, message]})

    def log(self, message: str) -> None:
        self({"log": message})


def _carried_out(order: Order, tell: _Answers) -> dict[str, Any]:
    """The result of an order, or its error, as a message."""
    try:
        slot = next(slot for slot in order.recipe.slots() if slot.name == order.slot)
        call = slot.call(order.refs)
        if (key := call.key()) != order.key:
            raise P2RecError(
                f"{order.slot} has the key {key} here and {order.key} where it was planned: the code or a source file "
                "has changed meanwhile.",
                remedy="Run the same again; what was computed is kept.",
            )
        runtime = order.recipe.settings.runtime
        result = run_stage(call, Store.open(order.store), runtime=runtime, progress=tell.progress, log=tell.log)
    except P2RecError as error:
        return _failure(type(error).__name__, error.problem, error.remedy)
    except Exception as error:
        problem = f"{order.slot} could not be computed: {type(error).__name__}: {error}."
        return _failure("P2RecError", problem, "Report it with the traceback that P2REC_TRACEBACK=1 shows.")
    return {"result": result.to_json()}


def _failure(kind: str, problem: str, remedy: str) -> dict[str, Any]:
    return {"error": {"kind": kind, "problem": problem, "remedy": remedy, "trace": traceback.format_exc()}}
