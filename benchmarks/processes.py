"""Commands and scripts as processes of their own."""

import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SHOWN_LINES = 15


class BenchmarkError(Exception):
    """A benchmark cannot be run, or its two sides did not do the same; the message says why."""


def tail(output: str) -> str:
    """The last lines of a command's output, indented."""
    return "\n".join(f"    {line}" for line in output.strip().splitlines()[-SHOWN_LINES:]) or "    (no output)"


def threads_environment(threads: int) -> dict[str, str]:
    """Variables that keep a process's libraries to so many threads."""
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))


def run_command(command: Sequence[str], *, folder: Path, environment: Mapping[str, str] | None = None) -> str:
    """Run a command and return what it wrote.

    Args:
        command: Program and arguments.
        folder: Directory to run it in.
        environment: Variables beside those of this process.

    Raises:
        BenchmarkError: It cannot be run, or failed.
    """
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    except OSError as error:
        raise BenchmarkError(f"`{shlex.join(command)}` cannot be run: {error}.") from error
    if done.returncode == 0:
        return done.stdout
    killed = " It was killed, as a system does that runs out of memory." if done.returncode in (-9, 137) else ""
    raise BenchmarkError(
        f"`{shlex.join(command)}` ended with {done.returncode}.{killed} Its last lines:\n{tail(done.stdout)}"
    )


def run_script(
    python: Path, script: Path, request: dict[str, Any], *, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a script on a request in a folder of its own.

    Args:
        python: Interpreter.
        script: Takes the file of its request and that of its result.
        request: What to do, with ``threads`` among it.
        environment: Variables beside those of this process.

    Returns:
        The result, and the request as ``request``.

    Raises:
        BenchmarkError: It failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        request_file, result_file = Path(folder, "request.json"), Path(folder, "result.json")
        request_file.write_text(json.dumps(request))
        command = [str(python), str(script.resolve()), str(request_file), str(result_file)]
        told = threads_environment(request["threads"]) | {"PYTHONWARNINGS": "ignore"} | dict(environment or {})
        try:
            run_command(command, folder=Path(folder), environment=told)
        except BenchmarkError as error:
            raise BenchmarkError(f"{error}\nIts request was {json.dumps(request)}.") from error
        result: dict[str, Any] = json.loads(result_file.read_text())
    return {"request": request, **result}
