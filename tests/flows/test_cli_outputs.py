"""Recommendations, neighbours and exports as a person asks for them: commands, files, exit status."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

from flows.cli import app
from flows.cli.outputs import export, neighbours, recommend
from flows.report import RunReport
from p2rec_core.errors import P2RecError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "recommend.md").read_text(encoding="utf-8")
COMMANDS = [re.sub(r"\s+#.*", "", line).strip() for line in PAGE.splitlines() if line.startswith("    p2rec ")]


class Answer(NamedTuple):
    """How a command ended and what it printed."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def p2rec(
    first_run: tuple[Path, RunReport],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Answer]:
    """Run a command on the filled store, in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def p2rec(*arguments: str) -> Answer:
        try:
            app([*arguments, "--store", str(first_run[0])], result_action="return_value")
        except P2RecError as error:
            return Answer(error.exit_status, capsys.readouterr().out, error.problem + " " + error.remedy)
        return Answer(0, *capsys.readouterr())

    return p2rec


@pytest.fixture
def files(tmp_path: Path) -> None:
    """The files that the page speaks of."""
    (tmp_path / "some.txt").write_text("u0001\nu0003\n")
    (tmp_path / "stock.txt").write_text("".join(f"i{item:04}\n" for item in range(1, 200)))
    (tmp_path / "stock.csv").write_text("user_id,item_id\nu0001,i0001\n")
    sessions = re.findall(r'^    (\{"user_id".*)$', PAGE, re.MULTILINE)
    (tmp_path / "sessions.jsonl").write_text("\n".join(sessions))


def test_the_page_has_commands() -> None:
    assert {shlex.split(command)[1] for command in COMMANDS} == {"recommend", "neighbours", "export"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_works_on_the_sample(p2rec, files, tmp_path: Path, command: str) -> None:
    words = shlex.split(command)[1:]
    call = p2rec(*words)
    if "faiss" in words and find_spec("faiss") is None:
        assert call.returncode == 2
        assert "pip install faiss-cpu" in call.stderr
        return
    assert call.returncode == 0, call.stderr
    assert call.stdout
    if "--to" in words:
        target = tmp_path / words[words.index("--to") + 1]
        if target.suffix == ".csv":
            assert len(target.read_text().splitlines()) == 1 + 20 * 900
        else:
            assert target.is_dir() if "--format" in words else pq.read_metadata(target).num_rows
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("command", [recommend, neighbours, export])
def test_the_examples_of_a_command_can_be_parsed(command: Callable[..., None]) -> None:
    examples = [line.strip() for line in command.__doc__.splitlines() if line.strip().startswith("p2rec ")]
    assert len(examples) >= 3
    for example in examples:
        _, bound, _ = app.parse_args(shlex.split(example)[1:], exit_on_error=False, print_error=False)
        assert bound.arguments is not None


def test_the_exported_model_recommends_bit_for_bit_what_the_command_does(p2rec, files, tmp_path: Path) -> None:
    asked = p2rec("recommend", "--sequences", "sessions.jsonl", "-n", "3", "--json")
    assert asked.returncode == 0, asked.stderr
    rows = json.loads(asked.stdout)
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert {(row["user_id"], row["source"]) for row in rows} == {("visitor 1", "model")}
    assert not {row["item_id"] for row in rows} & {"i0001", "i0007"}
    assert p2rec("export", "recommender.sasrec.p2rec", "--format", "model", "--to", "model").returncode == 0
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    before = "import sys, torch\ntorch.set_num_threads(2)\n"
    after = (
        "others = {'prefect', 'duckdb', 'pyarrow', 'storage', 'tasks', 'flows'} & set(sys.modules)\nassert not others"
    )
    call = subprocess.run(
        [sys.executable, "-c", before + code + after],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert call.returncode == 0, call.stderr
    found = [line.split() for line in call.stdout.splitlines()]
    assert [(item_id, float(score)) for item_id, score in found] == [(row["item_id"], row["score"]) for row in rows]


def test_json_says_what_was_written(p2rec, files, tmp_path: Path) -> None:
    call = p2rec("recommend", "--users", "some.txt", "-n", "2", "--to", "r.parquet", "--json")
    assert call.returncode == 0, call.stderr
    said = json.loads(call.stdout)
    assert (said["rows"], said["users"], said["slot"]) == (4, 2, "recommender.sasrec.p2rec")
    metadata = json.loads(pq.read_metadata(tmp_path / "r.parquet").metadata[b"p2rec"])
    assert metadata["settings"] == {"n": 2, "seen": "mask", "n_allowed_items": None}
    assert (metadata["dataset"], metadata["snapshot"]) == ("sample", said["snapshot"])
    nearest = json.loads(p2rec("neighbours", "i0001", "-n", "2", "--json").stdout)
    assert [row["rank"] for row in nearest] == [1, 2]
    assert p2rec("recommend", "--sequences", os.devnull, "--json").stdout == "[]\n"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("recommend --users some.txt --sequences sessions.jsonl", 2, "exclude each other"),
        ("recommend -n 0", 2, "n = 0"),
        ("recommend --threads 0", 2, "--threads 0"),
        ("recommend --slot knowledge", 2, "holds no sequential recommender"),
        ("recommend --slot recommender.sasrec.p2", 2, "has no slot 'recommender.sasrec.p2'"),
        ("recommend --users stock.txt", 3, "line 1: there is no user 'i0001'"),
        ("recommend --items some.txt", 3, "line 1: there is no item 'u0001'"),
        ("recommend --users none.txt", 3, "none.txt cannot be read"),
        ("recommend --snapshot 99", 4, "There is no snapshot 99"),
        ("recommend --to .", 4, "is a directory"),
        ("recommend --to some.txt/r.parquet", 4, "cannot be written"),
        ("recommend --to some.txt", 2, "Give it one of these: .parquet, .csv."),
        ("recommend --to stock.csv", 4, "stock.csv is there already, and P2Rec did not write it."),
        ("neighbours --all --to stock.csv", 4, "did not write it. Name another file or move it away."),
        ("export knowledge --to stock.csv", 2, "Give it one of these: .parquet."),
        ("neighbours", 2, "Give an item's id, or --all"),
        ("neighbours i0001 --all", 2, "Give an item's id, or --all"),
        ("neighbours --all", 2, "--to FILE.parquet"),
        ("neighbours nothing", 3, "There is no item 'nothing'"),
        ("neighbours i0001 --slot clusters", 2, "holds no embeddings"),
        ("export clusters --to c.parquet", 2, "holds no embeddings"),
        ("export knowledge --format model --to m", 2, "holds no sequential recommender"),
        ("export knowledge --format npy --to some.txt", 4, "is there already"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_message(
    p2rec, files, tmp_path: Path, words: str, status: int, said: str
) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    call = p2rec(*shlex.split(words))
    assert call.returncode == status, call.stderr
    assert said in call.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_unknown_ids_are_passed_over_and_counted(p2rec, files, tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("u0001\nnobody\n")
    call = p2rec("recommend", "--users", "some.txt", "--unknown", "skip", "-n", "1", "--json")
    assert call.returncode == 0, call.stderr
    assert [row["user_id"] for row in json.loads(call.stdout)] == ["u0001"]
    assert "1 unknown ids were passed over" in call.stderr
