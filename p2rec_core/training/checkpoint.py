"""Checkpoints that a killed training goes on from, bit for bit.

A checkpoint is one safetensors file: the trainable tensors, Adam's moments, the best tensors so far, and the
cursor as JSON in the file's header. It replaces the one before atomically, so a kill at any instant leaves a
whole one. Random numbers need no saving: the loop seeds them anew at every step from (seed, epoch, step).
"""

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from p2rec_core.errors import ModelError

_FILE = "checkpoint.safetensors"
_PREVIOUS = "checkpoint.previous.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """All that a training needs to go on.

    Attributes:
        tensors: Every tensor by a prefixed name, on the CPU.
        cursor: Where the training is: small JSON values.
    """

    tensors: dict[str, Tensor]
    cursor: dict[str, Any]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with ``prefix + "/"``, without it."""
        cut = len(prefix) + 1
        return {name[cut:]: t for name, t in self.tensors.items() if name.startswith(prefix + "/")}


class Checkpointer:
    """Saves and restores the one checkpoint of a training.

    Args:
        directory: A directory of this training's own. It is created if it is missing.
        every_s: Seconds between two saves; 0 saves after every step.
    """

    def __init__(self, directory: Path, *, every_s: float) -> None:
        self.directory = directory
        self.every_s = every_s
        self.notes: list[str] = []
        self._saved_at = time.monotonic()
        directory.mkdir(parents=True, exist_ok=True)

    def due(self) -> bool:
        """Whether the last save (or the start) was ``every_s`` or more seconds ago."""
        return time.monotonic() - self._saved_at >= self.every_s

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint atomically; the one before stays as a fall-back."""
        target, partial = self.directory / _FILE, self.directory / f"{_FILE}.part"
        tensors = {name: t.detach().cpu().contiguous() for name, t in checkpoint.tensors.items()}
        cursor = json.dumps(checkpoint.cursor, sort_keys=True, allow_nan=True)
        save_file(tensors, partial, metadata={"cursor": cursor, "digest": _digest(tensors, cursor)})
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        if target.exists():
            os.replace(target, self.directory / _PREVIOUS)
        os.replace(partial, target)
        self._saved_at = time.monotonic()

    def load(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None where there is none.

        A damaged file is passed over for the one before; ``notes`` then says so.

        Raises:
            ModelError: There are checkpoints and none of them can be read.
        """
        damaged: list[str] = []
        for path in (self.directory / _FILE, self.directory / _PREVIOUS):
            if not path.exists():
                continue
            try:
                checkpoint = read_checkpoint(path)
            except ValueError as error:
                damaged.append(f"{path} ({error})")
                continue
            self.notes.extend(f"passed over the damaged checkpoint {d}" for d in damaged)
            return checkpoint
        if damaged:
            raise ModelError(
                f"No checkpoint can be read: {'; '.join(damaged)}.",
                remedy=f"Delete {self.directory} to train from the start.",
            )
        return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read one file that ``Checkpointer.save`` wrote.

    Raises:
        ValueError: It is not whole, or cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if _digest(tensors, metadata["cursor"]) != metadata["digest"]:
            raise ValueError("its content is not what its digest says")
        return Checkpoint(tensors, json.loads(metadata["cursor"]))
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise ValueError(str(error)) from error


def _digest(tensors: dict[str, Tensor], cursor: str) -> str:
    """sha256 over names, types, shapes and bytes: safetensors itself has no checksum."""
    digest = hashlib.sha256(cursor.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
