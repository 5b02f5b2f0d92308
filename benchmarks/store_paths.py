"""The artefact store beside plain files: what durability and checks cost, and the rate of each."""

import hashlib
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from processes import BenchmarkError
from report import Row
from timing import in_turn

from storage.artefacts import Artefact, Store, content_key
from storage.reading import verify

STAGE, NAME = "benchmark", "vectors"
FINGERPRINT = "0" * 64


def written(store: Store, vectors: NDArray[np.float32], number: int) -> Artefact:
    """The vectors as artefact ``number``: hashed, flushed to the disk, read back and published."""
    settings = {"number": number}
    key = content_key(STAGE, settings, {}, FINGERPRINT)
    with (
        store.lock(STAGE, key),
        store.write(STAGE, key, settings=settings, inputs={}, fingerprint=FINGERPRINT) as writer,
    ):
        writer.tensors(NAME, {NAME: vectors})
        return writer.publish({}, 0.0)


def plain_file(path: Path, vectors: NDArray[np.float32]) -> None:
    """The same bytes in a file, flushed to the disk."""
    with path.open("wb") as file:
        vectors.tofile(file)
        file.flush()
        os.fsync(file.fileno())


def plain_hash(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def store_rows(folder: Path, *, n_items: int, width: int, rounds: int) -> list[Row]:
    """Seconds of writing, verifying and reading embeddings, each beside a plain file in the same directory.

    Args:
        folder: A directory on the disk that is to be measured; what is written there is removed.
        n_items: Rows.
        width: Columns, float32.
        rounds: Rounds that count.

    Raises:
        BenchmarkError: What was read is not what was written.
    """
    vectors = np.random.default_rng(1).random((n_items, width), np.float32)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        store, path = Store.open(Path(scratch, "store")), Path(scratch, "plain")
        numbers = iter(range(rounds + 1))
        artefact = written(store, vectors, next(numbers))
        plain_file(path, vectors)
        if not np.array_equal(artefact.tensors(NAME)[NAME], vectors):
            raise BenchmarkError("The embeddings that the store gives are not those that it was given.")

        def row(quantity: str, ours: Callable[[], object], plain: Callable[[], object], beside: str) -> Row:
            timed = in_turn(ours, plain, rounds, warm_up=False)
            rate = vectors.nbytes / statistics.median(timed.ours) / 1e9
            note = f"{rate:.2f} GB/s; beside {beside}"
            return Row(quantity, f"{n_items:,} x {width}", "", "s", timed.peer, timed.ours, note=note)

        return [
            row(
                "store: write",
                lambda: written(store, vectors, next(numbers)),
                lambda: plain_file(path, vectors),
                "a file written and flushed; the store also hashes it and reads it back",
            ),
            row("store: verify", lambda: verify(artefact), lambda: plain_hash(path), "its sha256 by hashlib"),
            row(
                "store: read",
                lambda: artefact.tensors(NAME),
                lambda: np.fromfile(path, np.float32),
                "numpy's fromfile; the store checks the sha256 too. Both from the system's cache",
            ),
        ]
