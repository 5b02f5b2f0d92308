"""The environment that RecBole runs in: made on the first run, from fully pinned versions, apart from the project's."""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from processes import BenchmarkError, run_command

LOCK = Path(__file__).parent / "peers" / "recbole.lock"
CHECK = "from recbole.trainer import Trainer; from recbole.data import create_dataset"


def peer_python(folder: Path, *, base_python: str = sys.executable) -> Path:
    """The interpreter of RecBole's environment, which is made if it is not there or not of the lock file.

    Args:
        folder: Where the environment is.
        base_python: Interpreter to make it with.

    Raises:
        BenchmarkError: It cannot be made, or RecBole cannot be imported there.
    """
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    stamp = folder / ".installed"
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == digest:
        return python
    print(f"making RecBole's environment in {folder} (once)", flush=True)
    _run([base_python, "-m", "venv", "--clear", str(folder)], remedy="Install Python's module venv.")
    _run(
        [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--requirement", str(LOCK)],
        remedy="Its pins have wheels for Python 3.11 and 3.12: name such an interpreter with --peer-python. "
        "Where pip finds no torch of that version, point it to an index that has its CPU build (PIP_EXTRA_INDEX_URL).",
    )
    _run(
        [str(python), "-c", CHECK],
        remedy="If torch misses a CUDA library, point pip to an index with the CPU build of torch (PIP_INDEX_URL).",
    )
    stamp.write_text(digest)
    return python


def _run(command: Sequence[str], *, remedy: str) -> None:
    try:
        run_command(command, folder=Path.cwd())
    except BenchmarkError as error:
        raise BenchmarkError(
            f"RecBole's environment cannot be made: {error}\n{remedy}\n"
            "The parts of hot_paths.py need no such environment."
        ) from error
