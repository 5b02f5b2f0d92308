"""The device that computations run on, and what makes them reproducible there."""

import os

import torch

from p2rec_core.errors import SettingsError


def prepared_device(device: str, threads: int) -> torch.device:
    """Set the process up for reproducible computation and return the device.

    Results are a function of inputs and seeds for a given machine, device and number of threads.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads of one operation.

    Raises:
        SettingsError: The device is not there.
    """
    chosen = torch.device(device)
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise SettingsError(
                f"runtime.device = {device!r}, but torch {torch.__version__} sees no CUDA GPU.",
                remedy="Use the cpu profile, or install a CUDA build of torch.",
            )
        if (chosen.index or 0) >= torch.cuda.device_count():
            raise SettingsError(
                f"runtime.device = {device!r}, but there are {torch.cuda.device_count()} GPUs.",
                remedy="Count from cuda:0.",
            )
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # nothing here reads memory before writing it, so filling every new tensor first would be work for nothing
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 (a property of the module)
    return chosen
