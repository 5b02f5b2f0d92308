"""The tutorial, done by somebody new: a fresh environment, an own CSV file, five commands."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from storage.sample import generate_sample

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^## \d\. .*\n\n    (p2rec .*)$", PAGE, re.MULTILINE)
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".p2rec", "build", "results", "__pycache__", "*_cache", "*.egg-info")
OURS = ("PYTHON", "P2REC", "PREFECT")
"""What begins so in the environment is of the tests and not a newcomer's."""


def write_clicks(path: Path, *, n_users: int = 240, n_items: int = 120) -> int:
    """An own file: the columns of "tutorial.md", by time; how many rows it has."""
    sample = generate_sample(n_users=n_users, n_items=n_items, n_categories=6, seed=11)
    rows = sorted(
        (1_700_000_000 + 3600 * n + 7 * user, sample.user_ids[user], sample.item_ids[item])
        for user, items in enumerate(sample.sequences)
        for n, item in enumerate(items)
    )
    path.write_text("visitor,sku,time\n" + "".join(f"{user},{item},{time}\n" for time, user, item in rows))
    return len(rows)


def test_there_are_five_commands() -> None:
    assert [shlex.split(command)[1] for command in COMMANDS] == ["init", "data", "run", "recommend", "neighbours"]


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("P2REC_OFFLINE", "0") != "0", reason="needs a package index")
def test_a_newcomer_gets_recommendations_in_five_commands(tmp_path: Path) -> None:
    shutil.copytree(ROOT, tmp_path / "p2rec", ignore=LEFT_OUT)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    environment |= {"PREFECT_HOME": str(tmp_path / "prefect")}

    def call(words: list[str], where: Path, timeout_s: int) -> str:
        answer = subprocess.run(
            words, cwd=where, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert answer.returncode == 0, f"{shlex.join(words)}\n{answer.stdout}\n{answer.stderr}"
        return answer.stdout

    python = str(tmp_path / "venv" / "bin" / "python")
    call([sys.executable, "-m", "venv", str(tmp_path / "venv")], tmp_path, 300)
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps"]
    call([*install, "--requirement", "requirements.lock"], tmp_path / "p2rec", 3000)
    call([*install, "--no-build-isolation", "."], tmp_path / "p2rec", 300)

    mine = tmp_path / "mine"
    mine.mkdir()
    n_rows = write_clicks(mine / "clicks.csv")
    said = {}
    for command in COMMANDS:
        words = shlex.split(command)
        words[0] = str(tmp_path / "venv" / "bin" / "p2rec")
        said[words[1]] = call(words, mine, 3000)
    assert f"{n_rows:,} rows" in said["init"]
    assert "sasrec +P2Rec" in said["run"]
    recommended = pq.read_table(mine / "recommendations.parquet")
    assert recommended.num_rows == 240 * 10
    assert set(recommended.column("user_id").to_pylist()) == {f"u{user + 1:04}" for user in range(240)}
    had = {tuple(line.split(",")[:2]) for line in (mine / "clicks.csv").read_text().splitlines()[1:]}
    pairs = zip(recommended.column("user_id").to_pylist(), recommended.column("item_id").to_pylist(), strict=True)
    assert not had & set(pairs)
    assert pq.read_metadata(mine / "similar.parquet").num_rows == 120 * 10
