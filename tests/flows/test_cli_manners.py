"""How commands behave towards terminals, pipes, programs and shells."""

import inspect
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App

from flows.cli import app
from p2rec_core import errors
from p2rec_core.settings.data import IngestSettings
from storage.artefacts import Store
from tasks.sources import register

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


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_page_of_a_command_ends_with_examples_that_can_be_copied(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    app.help_print(command.split())
    page = capsys.readouterr().out
    words, _, examples = page.partition("\n\nExamples:\n")
    lines = [line.strip() for line in examples.strip().splitlines()]
    assert lines
    for line in lines:
        *_, given = re.split(rf"^(?:[A-Z_]+=\S+ )?p2rec(?= {command}\b)", line)
        assert given != line, line
        called = given.partition(" > ")[0]
        parsed, bound, _ = app.parse_args(shlex.split(called, comments=True), exit_on_error=False, print_error=False)
        assert parsed is COMMANDS[command].default_command
        assert bound.arguments is not None
    described = (inspect.getdoc(COMMANDS[command].default_command) or "").partition("\n\nExample")[0]
    assert "".join(described.replace("`", "").split()) in "".join(words.split())


def test_lists_of_commands_have_a_line_each(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    app.help_print(["query"])
    capsys.readouterr()
    app.help_print([])
    page = capsys.readouterr().out
    assert re.search(r"query +Ask a snapshot with SQL\. ", page)
    assert "Examples" not in page


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
    assert all(row["meaning"] and row["allowed"] for row in rows)


def test_a_part_of_the_settings_with_default_range_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    def rows(*words: str) -> list[dict[str, Any]]:
        app(["settings", *words, "--json"], result_action="return_value")
        return json.loads(capsys.readouterr().out)

    by_name = {row["setting"]: row for row in rows("clusters")}
    assert all(name.startswith("clusters.") for name in by_name)
    found = by_name["clusters.n_clusters"]
    assert (found["value"], found["default"], found["allowed"]) == (12, 50, "whole number, ≥ 2, ≤ 65536")
    [kind] = rows("fusion.kind")
    assert kind["choices"]["sum"] == "The ID embedding plus the projected knowledge."
    app(["settings", "fusion.kind"], result_action="return_value")
    head, row, *choices = capsys.readouterr().out.splitlines()
    assert head.split("\t") == ["setting", "value", "default", "allowed", "meaning"]
    assert row.startswith('fusion.kind\t"init"\t"init"\tone of "gate", "sum", "concat", "init"\t')
    assert "sum: The ID embedding plus the projected knowledge." in choices
    for wrong, hint in (("fusio", "fusion"), ("n_clusters", "clusters.n_clusters"), ("fusion.kin", "fusion.kind")):
        with pytest.raises(errors.SettingsError, match=rf"{wrong}' \(did you mean {hint}\?\)"):
            rows(wrong)


def test_the_settings_of_an_imported_dataset_are_those_of_its_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store.open(tmp_path / "store")
    remembered = IngestSettings(format="csv", user_column="visitor", min_user_interactions=2)
    register(store, "clicks", tmp_path / "clicks.csv", remembered)

    def values(*words: str) -> dict[str, Any]:
        app(["settings", "ingest", "--json", "--store", str(store.root), *words], result_action="return_value")
        rows = json.loads(capsys.readouterr().out)
        return {row["setting"].removeprefix("ingest."): row["value"] for row in rows}

    found = values("-d", "clicks")
    assert (found["format"], found["user_column"], found["min_user_interactions"]) == ("csv", "visitor", 2)
    assert values("-d", "clicks", "--set", "ingest.min_user_interactions=3")["min_user_interactions"] == 3
    assert values("-d", "ml-1m")["format"] == "sequences"
    with pytest.raises(errors.SettingsError, match=r"was imported with"):
        values("-d", "clicks", "--set", "ingest.format=tsv")
    with pytest.raises(errors.DataError, match=r"There is no dataset 'click'\. Did you mean clicks\?"):
        values("-d", "click")


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
