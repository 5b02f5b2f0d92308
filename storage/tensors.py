"""Safetensors with the same bytes for the same content.

The library writes the metadata in the order of a hash table that differs from process to process,
and the memory of an array that is not contiguous in the wrong order; both are put right here.
"""

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from p2rec_core.errors import StoreError

Tensors = dict[str, npt.NDArray[Any]]


def encode(tensors: Tensors, metadata: dict[str, str] | None = None) -> bytes:
    """The content of a safetensors file.

    Args:
        tensors: Arrays of numbers or booleans, by name.
        metadata: Text by text, kept in the file's header.

    Raises:
        StoreError: A name or an array cannot be stored, for example one of Python objects.
    """
    try:
        arrays = {str(name): np.asarray(array, order="C") for name, array in tensors.items()}
        data = safetensors.numpy.save(arrays, metadata or None)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"Tensors {', '.join(sorted(map(str, tensors)))!r:.120} cannot be stored: {error}.",
            remedy="Pass NumPy arrays of integers, floats or booleans and metadata of text.",
        ) from error
    return _with_sorted_metadata(data)


def _with_sorted_metadata(data: bytes) -> bytes:
    header = read_header(data)
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    body = memoryview(data)[8 + int.from_bytes(data[:8], "little") :]
    return b"".join((len(text).to_bytes(8, "little"), text, body))


def read_header(data: bytes) -> dict[str, Any]:
    """The header of a safetensors file: type, shape and place by tensor, and ``__metadata__``."""
    length = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    return header


def describe(tensors: Tensors) -> dict[str, str]:
    """Type and shape by tensor, such as ``float32[3,4]``."""
    return {name: f"{a.dtype}[{','.join(map(str, a.shape))}]" for name, a in sorted(tensors.items())}


def decode(data: bytes) -> Tensors:
    """The arrays of a safetensors file.

    Raises:
        SafetensorError: It is not one.
    """
    arrays: Tensors = safetensors.numpy.load(data)
    return arrays
