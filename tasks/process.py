"""Processes that do not outlive the one that started them."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time

_PARENT_LOOKED_AT_EVERY_S = 0.5
_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Make sure that this process does not outlive its parent, however that one ends.

    On Linux the kernel kills it when the thread that started it ends; elsewhere a thread watches.

    Args:
        parent: Process number of the parent.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_LOOKED_AT_EVERY_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
