"""The method: everything that computes, and nothing that orchestrates or stores.

OpenMP threads that wait are told to sleep instead of spinning. Spinning wins microseconds on an idle machine and
loses whole factors as soon as anything else runs on it, such as a Prefect server. It has to be said before torch
loads OpenMP, hence here; a value in the environment wins.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
