"""Making do with a GPU's memory: half as much at once, until it fits."""

from collections.abc import Callable
from typing import TypeVar

import torch

from p2rec_core.errors import ModelError

Result = TypeVar("Result")


def halving(
    attempt: Callable[[int], Result], size: int, *, least: int, what: str, told: Callable[[str], None]
) -> tuple[Result, int]:
    """Try with ``size`` at once, and with half of it whenever the device runs out of memory.

    Args:
        attempt: Does the work with so much at once; what it did before it failed must not matter.
        size: How much to try first.
        least: As little as it can be; if that does not fit, nothing does.
        what: What is counted, with the setting's name, such as "tokens at once (micro_batch_tokens)".
        told: Told a sentence whenever memory ran out.

    Returns:
        What came of the attempt that fitted, and its size.

    Raises:
        ModelError: Even ``least`` does not fit.
    """
    while True:
        try:
            return attempt(size), size
        except torch.OutOfMemoryError as error:
            reason = str(error).splitlines()[0].rstrip(".")
        # only here, outside of the handler, are the tensors of the attempt no longer referred to
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if size <= least:
            raise ModelError(
                f"The device has too little memory for {size:,} {what}, and less is not possible: {reason}.",
                remedy="Shorten what is read (max_length, max_history), set gradient_checkpointing, quantise the "
                "language model or choose a smaller one.",
            )
        half = max(least, size // 2)
        told(f"the device ran out of memory with {size:,} {what}; went on with {half:,}, to the same effect")
        size = half


__all__ = ["halving"]
