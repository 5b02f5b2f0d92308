"""One stage as the store sees it: what it reads, the key of its result, and computing it once.

The store decides what is cached, not Prefect: a hit needs the key to match and every byte of the artefact to be what
its manifest says. A damaged artefact is set aside and rebuilt. One process computes a key while others wait for it.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import pyarrow as pa

from p2rec_core.errors import ArtefactDamaged, ArtefactMissing, DataError, P2RecError, ResourceError
from p2rec_core.progress import Progress, silent
from p2rec_core.settings.pipeline import RuntimeSettings
from storage.artefacts import Artefact, ArtefactRef, ArtefactWriter, InputRef, Store, content_key
from storage.disk import hash_file
from storage.snapshots import mark_used
from tasks.fingerprint import code_fingerprint
from tasks.machine import machine_facts

_MEMORY_ERRORS = ("OutOfMemoryException", "OutOfMemoryError")
_MEMORY_TEXTS = (
    "can't allocate memory",
    "Cannot allocate memory",
    "can't start new thread",
    "bad_alloc",
    "failed to map segment",
    "ThreadPoolBuildError",
)
"""Names and texts of errors of DuckDB, torch, tokenizers and the loader of libraries, which are not imported for it."""
_PERHAPS_MEMORY = "could not create a primitive"
"""What oneDNN says for lack of memory, among other things."""
_SCARCE_BYTES = 1 << 30

VERIFIED = "the key matches and every byte is verified"
"""Why a cached artefact was taken."""


class Outcome(StrEnum):
    """How a stage came by its artefact."""

    CACHED = "cached"
    COMPUTED = "computed"
    REBUILT = "rebuilt"
    """There was one, but damaged."""


@dataclass(frozen=True)
class StageContext:
    """What a stage's computation may use.

    Attributes:
        inputs: The artefacts that it declared, by input name, with the file that it reads.
        writer: Where its results go.
        workspace: Directory for checkpoints; it survives a kill and goes when the artefact is published.
        runtime: Device, threads and the like.
        progress: Told how far it is.
    """

    inputs: Mapping[str, tuple[Artefact, str]]
    writer: ArtefactWriter
    workspace: Path
    runtime: RuntimeSettings
    progress: Progress

    def table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """An input that is a table."""
        artefact, file = self.inputs[name]
        return artefact.table(file, columns)

    def tensors(self, name: str) -> dict[str, Any]:
        """An input that is a file of tensors, as numpy arrays."""
        artefact, file = self.inputs[name]
        return dict(artefact.tensors(file))


@dataclass(frozen=True)
class StageCall:
    """A computation that the store can cache.

    Attributes:
        stage: Its name; the artefact's directory.
        module: The module whose code computes it; its imports are followed for the fingerprint.
        settings: JSON values that it really reads, and no others.
        inputs: Input name → artefact and the file of it that is read. Only the file's content enters the key.
        compute: Writes tables through the context and returns facts for the manifest: counts, metrics, notes.
        sources: Files outside the store: name → sha256 of the content.
        files: Where those of ``sources`` are that are single files, by the same name; what is computed is published
            only if they still have that content afterwards.
        extra_modules: Modules that compute it and that ``module`` finds by name instead of importing them.
    """

    stage: str
    module: str
    settings: dict[str, Any]
    inputs: Mapping[str, tuple[ArtefactRef, str]]
    compute: Callable[[StageContext], dict[str, Any]]
    sources: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    extra_modules: tuple[str, ...] = ()

    def input_refs(self) -> dict[str, InputRef]:
        """What the key and the manifest say of the inputs."""
        refs = {name: InputRef(ref.stage, ref.key, file, ref.files[file]) for name, (ref, file) in self.inputs.items()}
        refs |= {name: InputRef("source", sha256[:32], name, sha256) for name, sha256 in self.sources.items()}
        return refs

    def fingerprint(self) -> str:
        """Fingerprint of the code that computes it."""
        return code_fingerprint(self.module, *self.extra_modules)

    def key(self) -> str:
        """The name of its result."""
        return content_key(self.stage, self.settings, self.input_refs(), self.fingerprint())


@dataclass(frozen=True)
class StageResult:
    """An artefact and how it was come by; small and plain, fit for a Prefect result.

    Attributes:
        ref: The artefact.
        outcome: Cached, computed or rebuilt.
        reason: Why it was computed, for a person.
        wall_s: Seconds that this run spent on it.
        info: What the manifest says of it.
        n_bytes: Size of its files.
    """

    ref: ArtefactRef
    outcome: Outcome
    reason: str
    wall_s: float
    info: dict[str, Any]
    n_bytes: int

    @classmethod
    def of(cls, artefact: Artefact, outcome: Outcome, reason: str, wall_s: float) -> "StageResult":
        """The result that an artefact is."""
        return cls(
            ref=artefact.ref(),
            outcome=outcome,
            reason=reason,
            wall_s=wall_s,
            info=dict(artefact.manifest.info),
            n_bytes=sum(entry.bytes for entry in artefact.files.values()),
        )

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "ref": self.ref.to_json(),
            "outcome": str(self.outcome),
            "reason": self.reason,
            "wall_s": self.wall_s,
            "info": self.info,
            "n_bytes": self.n_bytes,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "StageResult":
        """The inverse of ``to_json``."""
        return cls(
            ArtefactRef.from_json(values["ref"]),
            Outcome(values["outcome"]),
            values["reason"],
            values["wall_s"],
            values["info"],
            values["n_bytes"],
        )


def run_stage(
    call: StageCall,
    store: Store,
    *,
    runtime: RuntimeSettings,
    force: bool = False,
    progress: Progress = silent,
    log: Callable[[str], None] = lambda message: None,
) -> StageResult:
    """Return a stage's artefact, computing it only if it must be.

    Args:
        call: The stage.
        store: Where artefacts are.
        runtime: Device, threads and the like.
        force: Compute even if there is a whole artefact.
        progress: Told how far the computation is.
        log: Told what happens, a line each.

    Raises:
        P2RecError: The stage cannot be computed, or the store cannot be used; nothing is published then.
    """
    begun = time.monotonic()
    key = call.key()
    if not force and (hit := used_artefact(call.stage, key, store)[0]) is not None:
        return StageResult.of(hit, Outcome.CACHED, VERIFIED, time.monotonic() - begun)

    def on_wait() -> None:
        log(f"another process computes {call.stage}/{key}; waiting for it")

    with store.lock(call.stage, key, on_wait=on_wait):
        present, damage = used_artefact(call.stage, key, store)
        if present is not None and not force:
            return StageResult.of(
                present, Outcome.CACHED, "another process has just computed it", time.monotonic() - begun
            )
        outcome, reason = Outcome.COMPUTED, "forced" if force else "not in the store"
        if damage is not None:
            outcome, reason = Outcome.REBUILT, f"it was damaged: {damage.problem}"
            kept = store.discard(call.stage, key, damage.problem)
            log(f"{damage.problem} It is kept in {kept} and rebuilt.")
        elif present is not None:
            shutil.rmtree(store.workspace_path(call.stage, key), ignore_errors=True)
        artefact = _compute(call, key, store, runtime, progress, replace=force)
    return StageResult.of(artefact, outcome, reason, time.monotonic() - begun)


def whole_artefact(stage: str, key: str, store: Store) -> tuple[Artefact | None, ArtefactDamaged | None]:
    """The verified artefact, or what is wrong with the one that is there."""
    try:
        artefact = store.find(stage, key)
        if artefact is not None:
            store.verify(artefact)
    except ArtefactDamaged as damage:
        return None, damage
    except ArtefactMissing as missing:
        return None, ArtefactDamaged(missing.problem, remedy=missing.remedy)
    return artefact, None


def used_artefact(stage: str, key: str, store: Store) -> tuple[Artefact | None, ArtefactDamaged | None]:
    """As ``whole_artefact``, for a run that will read it: garbage collection leaves it alone for the grace period."""
    artefact, damage = whole_artefact(stage, key, store)
    if artefact is not None and not mark_used(store, artefact):
        return None, None
    return artefact, damage


@contextlib.contextmanager
def _memory_errors(stage: str) -> Iterator[None]:
    """Turn what libraries raise for lack of memory, each in its own way, into one error.

    Raises:
        ResourceError: The block ran out of memory.
    """
    try:
        yield
    except P2RecError:
        raise
    except BaseException as error:  # a panic of tokenizers is no Exception
        name, text = type(error).__name__, str(error)
        certain = isinstance(error, MemoryError) or name in _MEMORY_ERRORS or any(t in text for t in _MEMORY_TEXTS)
        if not certain and not (_PERHAPS_MEMORY in text and _memory_is_scarce()):
            raise
        raise ResourceError(
            f"The stage {stage} ran out of memory: {text.splitlines()[0] if text else name:.200}.",
            remedy="Free memory, or make its batches smaller (`p2rec settings` lists them); nothing was published, and "
            "the same command goes on from the last checkpoint.",
        ) from error


def _memory_is_scarce() -> bool:
    import torch

    from p2rec_core.memory import free_bytes

    free = free_bytes(torch.device("cpu"))
    return free is not None and free < _SCARCE_BYTES


def _compute(
    call: StageCall, key: str, store: Store, runtime: RuntimeSettings, progress: Progress, *, replace: bool
) -> Artefact:
    begun = time.monotonic()
    inputs = {name: (store.load(ref), file) for name, (ref, file) in call.inputs.items()}
    with store.write(
        call.stage, key, settings=call.settings, inputs=call.input_refs(), fingerprint=call.fingerprint()
    ) as writer:
        context = StageContext(inputs, writer, store.workspace(call.stage, key), runtime, progress)
        with _memory_errors(call.stage):
            info = call.compute(context) | {"machine": machine_facts(runtime)}
        for name, path in call.files.items():
            if not path.is_file() or hash_file(path) != call.sources[name]:
                raise DataError(
                    f"{path} changed while the stage {call.stage} read it.",
                    remedy="Wait until its writer has finished, then run again.",
                )
        return writer.publish(info, time.monotonic() - begun, replace=replace)
