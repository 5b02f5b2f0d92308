"""What all tests share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# a busy machine is no failure, and a failure can be repeated
settings.register_profile("p2rec", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("p2rec")


@pytest.fixture(scope="session")
def datasets_dir() -> Path:
    """Directory of the real datasets; tests that need it are skipped where it is not set."""
    directory = os.environ.get("P2REC_DATASETS_DIR")
    if not directory:
        pytest.skip("P2REC_DATASETS_DIR is not set")
    return Path(directory)
