"""How much memory there is, looked at before it is asked for."""

import os
import resource
from pathlib import Path

import torch

from p2rec_core.errors import ResourceError

_CGROUP = Path("/sys/fs/cgroup")

COPIES_IN_TRAINING = 7
"""Of every number of the table: itself, its gradient, Adam's two moments, the best so far, the number as the encoder
reads it beside the row of padding, and the gradient of that."""


def free_bytes(device: torch.device) -> int | None:
    """Bytes that this process may still take: of the GPU, or of the machine, its control group and its own limit.

    Returns:
        The least of those that are known; None where none is.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min((free for free in (_of_machine(), _of_control_group(), _of_process()) if free is not None), default=None)


def check_item_table(n_items: int, hidden_size: int, device: torch.device) -> None:
    """Stop before a training whose item table cannot fit, whatever its batches are.

    Args:
        n_items: N.
        hidden_size: Width d.
        device: Where it would be trained.

    Raises:
        ResourceError: It cannot; says how wide it may be.
    """
    free = free_bytes(device)
    per_width = 4 * COPIES_IN_TRAINING * (n_items + 1)
    if free is None or per_width * hidden_size <= free:
        return
    raise ResourceError(
        f"An item table of {n_items:,} items x hidden_size {hidden_size} takes {_gib(per_width * hidden_size)} in "
        f"training (float32, {COPIES_IN_TRAINING} copies); {_gib(free)} are free on {device}.",
        remedy=f"Set encoder.hidden_size to at most {max(1, free // per_width)}, keep fewer items with "
        "ingest.min_item_interactions, or use a machine with more memory.",
    )


def _of_machine() -> int | None:
    return _field(Path("/proc/meminfo"), "MemAvailable:", 1024)


def _of_control_group() -> int | None:
    try:
        most, now = ((_CGROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
    except OSError:
        return None
    cached = _field(_CGROUP / "memory.stat", "inactive_file ", 1) or 0  # given back when it is asked for
    return None if most == "max" else max(0, int(most) - int(now) + cached)


def _of_process() -> int | None:
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    used = _field(Path(f"/proc/{os.getpid()}/status"), "VmSize:", 1024)
    return None if most == resource.RLIM_INFINITY or used is None else max(0, most - used)


def _field(file: Path, name: str, unit: int) -> int | None:
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * unit for line in lines if line.startswith(name)), None)


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:,.1f} GiB"
