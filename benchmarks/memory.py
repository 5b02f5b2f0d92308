"""The memory of a process; needs nothing but Python, so that every environment can import it."""

import resource
import sys
from pathlib import Path


def peak_rss_bytes() -> int:
    """Most memory that this process has had resident, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(lines[0].split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
