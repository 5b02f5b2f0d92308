"""The benchmarks are scripts that import one another by name."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))


@pytest.fixture(scope="session")
def benchmarks() -> Path:
    """The directory of the scripts."""
    return BENCHMARKS
