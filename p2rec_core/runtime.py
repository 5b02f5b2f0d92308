"""The device that computations run on, and what makes them reproducible there."""

import ctypes
import os

import torch

from p2rec_core.errors import SettingsError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's ``mallopt``."""

_KEPT_BYTES = 1 << 30


_LIBC = ctypes.CDLL(None) if os.name == "posix" else None


def _keep_freed_memory() -> None:
    """Let glibc hand freed memory out again instead of giving it back to the system.

    By default every tensor of a few MiB or more is mapped, zeroed page by page and unmapped, block after block. Other
    libraries of C have no such knob and are left alone.
    """
    mallopt = getattr(_LIBC, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def release_freed_memory() -> None:
    """Give the system what ``prepared_device`` makes glibc keep; for where the sizes that are asked for change.

    Blocks that were freed and fit nothing else add up otherwise.
    """
    trim = getattr(_LIBC, "malloc_trim", None)
    if trim is not None:
        trim(0)


def prepared_device(device: str, threads: int) -> torch.device:
    """Set the process up for reproducible computation and return the device.

    Results are a function of inputs and seeds for a given machine, device and number of threads.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads of one operation.

    Raises:
        SettingsError: The device is not there.
    """
    check_device(device, named=f"runtime.device = {device!r}")
    chosen = torch.device(device)
    if chosen.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    _keep_freed_memory()
    torch.set_num_threads(threads)
    # ``use_deterministic_algorithms`` is the same, and imports torch's compiler to tell it: a second and 70 MiB
    torch.set_deterministic_debug_mode("error")
    # else float32 would have ten bits in convolutions and recurrences, Caser's and GRU4Rec's, and 23 everywhere else
    torch.backends.cudnn.allow_tf32 = False
    # nothing here reads memory before writing it, so filling every new tensor first would be work for nothing
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 (a property of the module)
    return chosen


def check_device(device: str, *, named: str) -> None:
    """Refuse a device that is not there.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        named: What asked for it, for the message.

    Raises:
        SettingsError: It is not there.
    """
    chosen = torch.device(device)
    if chosen.type != "cuda":
        return
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if n_gpus == 0:
        raise SettingsError(
            f"{named}, but torch {torch.__version__} sees no CUDA GPU.",
            remedy="Compute on the CPU (--set runtime.device=cpu, or --device cpu), or install a CUDA build of torch.",
        )
    if (chosen.index or 0) >= n_gpus:
        raise SettingsError(f"{named}, but there are {n_gpus} GPUs.", remedy="Count from cuda:0.")
