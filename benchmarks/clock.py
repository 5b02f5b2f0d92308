"""The seconds that are measured; needs nothing but Python, so that every environment can import it.

On a machine that others use, a process waits for its core, and the time on the wall says more of the others than of
the work. The seconds that its cores spent on it are nearly those of an idle machine, where one thread does the work and
waits for no disk. Caches and memory are shared all the same.
"""

import os
import resource
import time

CLOCKS = ("wall", "cpu")
VARIABLE = "P2REC_BENCHMARK_CLOCK"


def now() -> float:
    """Seconds from some point on: on the wall, or of the cores for this process and its children that have ended."""
    if os.environ.get(VARIABLE, CLOCKS[0]) == "wall":
        return time.perf_counter()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
