"""How commands behave towards terminals, pipes, programs and shells."""

import inspect
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import App

from flows.cli import app
from p2rec_core import errors

ROOT = Path(__file__).parents[2]
CALL = "import sys; sys.argv[0] = 'p2rec'; from flows.cli import main; main()"
WITHOUT_JSON = {"serve", "completion"}
"""Commands that answer nothing: one serves until it is stopped, one prints a script."""

TABLE = """
from rich.table import Table
from flows.cli.tables import print_table
table = Table("name", "state", title="Two rows")
table.add_row("x" * 300, "[green]done[/]")
table.add_row("a\\nb\\tc", "[1, 2]")
print_table(table, markup=True)
"""


def commands(of: App = app, prefix: str = "") -> Iterator[tuple[str, App]]:
    for name in of:
        if not name.startswith("-"):
            found = of[name]
            inner = [inner for inner in found if not inner.startswith("-")]
            if inner:
                yield from commands(found, f"{prefix}{name} ")
            else:
                yield f"{prefix}{name}", found


COMMANDS = dict(commands())


def on_a_terminal(code: str, **environment: str) -> str:
    """What a program writes to a terminal of 100 columns."""
    leader, follower = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=follower,
        env=kept | {"TERM": "xterm-256color", "COLUMNS": "100"} | environment,
    )
    os.close(follower)
    written = b""
    while True:
        try:
            part = os.read(leader, 1 << 16)
        except OSError:  # Linux says so where the other side is closed
            part = b""
        if not part:
            break
        written += part
    os.close(leader)
    assert process.wait(60) == 0
    return written.decode()


def test_there_are_the_commands_that_help_names() -> None:
    assert {"run", "init", "experiment run", "data import", "completion"} <= COMMANDS.keys()


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - WITHOUT_JSON))
def test_every_command_that_answers_can_answer_a_program(command: str) -> None:
    parameters = inspect.signature(COMMANDS[command].default_command).parameters
    assert {"as_json", "as_csv"} & parameters.keys(), command


def test_a_table_is_drawn_with_colours_on_a_terminal() -> None:
    written = on_a_terminal(TABLE)
    assert "\x1b[32mdone" in written
    assert "┃" in written
    without = on_a_terminal(TABLE, NO_COLOR="1")
    assert "\x1b[32m" not in without
    assert "┃" in without


def test_a_table_is_lines_of_whole_values_in_a_pipe() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"}
    call = subprocess.run(
        [sys.executable, "-c", TABLE], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    assert call.stdout == f"Two rows\nname\tstate\n{'x' * 300}\tdone\na, b c\t[1, 2]\n"


def p2rec(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", CALL, *words], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("words", [["run", "--nope"], ["nope"], ["query"], ["run", "--force=3"], ["stage", "a", "b"]])
def test_wrong_arguments_end_with_status_2_and_nothing_on_the_output(words: list[str]) -> None:
    call = p2rec(*words)
    assert (call.returncode, call.stdout) == (2, "")
    assert "Error" in call.stderr
    assert "Traceback" not in call.stderr


def test_help_names_the_status_of_every_error() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.P2RecError)]
    named = {int(number) for number in re.findall(r"(\d+) \w", app.help_epilogue or "")}
    assert named == {0, 130} | {kind.exit_status for kind in kinds}


def test_settings_for_a_program() -> None:
    rows = json.loads(p2rec("settings", "-d", "beauty", "--json").stdout)
    assert {"setting": "fusion.smoothing", "value": 0.5} in [
        {key: row[key] for key in ("setting", "value")} for row in rows
    ]
    assert all(row["meaning"] for row in rows)


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "p2rec"
    path.write_text(p2rec("completion", "bash").stdout)
    return path


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["p2rec", "neigh"], {"neighbours"}),
        (["p2rec", "experiment", "r"], {"run"}),
        (["p2rec", "run", "--da"], {"--dataset"}),
        (["p2rec", "run", "--profile", ""], {"cpu", "cpu-bf16", "gpu"}),
        (["p2rec", "completion", ""], {"bash", "zsh", "fish"}),
    ],
)
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes(script: Path, words: list[str], completed: set[str]) -> None:
    listed = " ".join(f"'{word}'" for word in words)
    code = (
        f"source '{script}'; COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; COMPREPLY=(); _p2rec; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    call = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert set(call.stdout.split()) == completed


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script(shell: str) -> None:
    written = app.generate_completion(prog_name="p2rec", shell=shell)
    assert "neighbours" in written
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=written, text=True, check=True, timeout=60)
