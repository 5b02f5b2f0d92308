"""What all tests share."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from p2rec_core.errors import P2RecError

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


@pytest.fixture(autouse=True, scope="session")
def _every_error_is_a_sentence_with_a_remedy() -> Iterator[None]:
    """Whatever error a test provokes says what is wrong and, as a sentence, what to do about it."""
    init = P2RecError.__init__

    def checked(self: P2RecError, problem: str, *, remedy: str) -> None:
        assert isinstance(problem, str), problem
        assert re.search(r"[.)'`:?]$", problem) or "\n" in problem, problem
        assert isinstance(remedy, str), remedy
        assert re.match(r"[A-Z`]", remedy), remedy
        assert remedy.endswith(".") or ": p2rec " in remedy, remedy  # a command to copy may end it
        assert not remedy.isupper(), remedy
        init(self, problem, remedy=remedy)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(P2RecError, "__init__", checked)
        yield
