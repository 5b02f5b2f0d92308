"""What a reader of seconds and of results in floating point has to know of the machine."""

import os
import platform
from typing import Any

from p2rec_core.settings.pipeline import RuntimeSettings


def machine_facts(runtime: RuntimeSettings) -> dict[str, Any]:
    """Processor, cores, threads and device; neither the machine's name nor that of its user."""
    facts: dict[str, Any] = {
        "architecture": platform.machine(),
        "processor": _processor(),
        "n_cpus": os.cpu_count(),
        "threads": runtime.threads,
        "device": runtime.device,
    }
    if runtime.device.startswith("cuda"):
        import torch

        # what needs no GPU, such as the ingest, is computed where there is none, too
        facts["gpu"] = torch.cuda.get_device_name(runtime.device) if torch.cuda.is_available() else None
    return facts


def check_device(device: str) -> None:
    """Refuse a GPU that is not there, before anything is started for it; torch is loaded only to look for one.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        SettingsError: It is not there.
    """
    if device != "cpu":
        from p2rec_core.runtime import check_device as check

        check(device, named=f"The device (runtime.device, --device) is {device!r}")


def _processor() -> str | None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or None
